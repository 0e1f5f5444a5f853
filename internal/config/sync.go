package config

import (
	"fmt"
	"net"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/relay/mapping"
)

// maxTypeLen is the longest event type that the outbox takes, in bytes.
const maxTypeLen = 200

var syncName = regexp.MustCompile(`^[A-Za-z0-9_.-]{1,63}$`)

// build checks what concerns more than one key, and makes the File.
func (d *decoder) build(root *node, spec fileSpec) *File {
	f := &File{
		Database:  Database(spec.Database),
		Relay:     RelaySettings(spec.Relay),
		Listen:    spec.Listen,
		Retention: Retention(spec.Retention),
	}
	d.checkDatabase(root, spec.Database)
	d.checkListen(root, spec.Listen)
	list := root.get("syncs")
	names := make(map[string]int)
	for i, s := range spec.Syncs {
		n, path := list.items[i], fmt.Sprintf("syncs[%d]", i)
		if n.kind != kindMap {
			continue // reported
		}
		d.checkName(n, path, s.Name, names)
		d.checkLease(root, n, spec, s, path)
		f.Syncs = append(f.Syncs, d.sync(n, path, s))
	}
	return f
}

func (d *decoder) sync(n *node, path string, s syncSpec) Sync {
	d.checkCondition(n, path, s.When)
	d.checkPer(n, path, s.Limits.Per)
	d.checkFrom(n, path, s.From)
	if s.Retry.Max > 0 && s.Retry.Max < s.Retry.Initial {
		at, full := nearest(n, path, "retry", "max")
		d.at(at, full, "is shorter than retry.initial (%s): raise max or lower initial", s.Retry.Initial)
	}
	mapping := compileMapping(d, &s.Mapping, &s.Compute)
	d.checkFields(path, s.Adapter, mapping)
	return Sync{
		Name:        s.Name,
		Patterns:    d.patterns(n, path, s),
		When:        s.When,
		From:        s.From,
		Notify:      s.Notify,
		AdapterKind: s.Adapter.kind,
		Adapter:     s.Adapter.adapter,
		Mapping:     mapping,
		OnFailed:    s.OnFailed,
		Retry: Retry{
			Initial: s.Retry.Initial, Max: s.Retry.Max, Jitter: float64(s.Retry.Jitter),
			MaxAge: s.Retry.MaxAge, Attempts: s.Retry.Attempts,
		},
		Per:         s.Limits.Per,
		Concurrency: s.Limits.Concurrency,
		Rate:        float64(s.Limits.Rate),
		Put:         slices.Concat(n.get("when").puts(), n.get("mapping").puts(), n.get("compute").puts(), n.get("limits").puts()),
		AdapterPut:  n.get("adapter").puts(),
	}
}

// checkFields refuses an adapter that asks for a field which the mapping never
// makes: each of its deliveries would fail. Without a mapping the payload itself
// is sent, of which nothing is known.
func (d *decoder) checkFields(path string, a adapterSpec, m mapping.Mapping) {
	user, ok := a.adapter.(adapters.FieldUser)
	if !ok || len(m.Fields)+len(m.Compute) == 0 {
		return
	}
	var made []string
	for _, f := range m.Fields {
		made = append(made, f.To)
	}
	for _, c := range m.Compute {
		made = append(made, c.To)
	}
	within := func(inner, outer string) bool { return inner == outer || strings.HasPrefix(inner, outer+".") }
	for _, name := range slices.Compact(slices.Sorted(slices.Values(user.Fields()))) {
		if !slices.ContainsFunc(made, func(to string) bool { return within(name, to) || within(to, name) }) {
			d.at(a.node, join(path, "adapter"), "%s", d.redact(a.node, fmt.Sprintf(
				"asks for {fields.%s}, which the mapping does not make: write one of its fields (%s), or map it", name, strings.Join(made, ", "))))
		}
	}
}

func (d *decoder) checkName(n *node, path, name string, names map[string]int) {
	at := n.get("name")
	if at == nil || at.broken || at.kind != kindText {
		return // reported
	}
	path = join(path, "name")
	if !syncName.MatchString(name) {
		d.at(at, path, "%s cannot be a sync's name: use 1 to 63 characters of A-Z a-z 0-9 _ . -", d.quote(at))
		return
	}
	if line, twice := names[name]; twice {
		d.at(at, path, "%s is the name of two syncs, the other one in line %d: rename one of them", d.quote(at), line)
		return
	}
	names[name] = at.line
}

func (d *decoder) patterns(n *node, path string, s syncSpec) []string {
	one, many := n.get("event"), n.get("events")
	switch {
	case one != nil && many != nil:
		d.at(many, join(path, "events"), "stands beside event: keep one of them, events takes a list")
		return nil
	case one == nil && many == nil:
		d.at(n, join(path, "event"), `is missing: name the event types of this sync, such as event: scheduling:updated, or events: ["scheduling:*"]`)
		return nil
	case one != nil:
		d.checkPattern(one, join(path, "event"), s.Event)
		return []string{s.Event}
	}
	path = join(path, "events")
	if many.kind == kindNull || many.kind == kindList && len(many.items) == 0 {
		d.at(many, path, `is empty: name the event types of this sync, such as ["scheduling:*"]`)
	}
	for i, pattern := range s.Events {
		at := fmt.Sprintf("%s[%d]", path, i)
		d.checkPattern(many.items[i], at, pattern)
		if first := slices.Index(s.Events, pattern); first < i && pattern != "" {
			d.at(many.items[i], at, "is in the list already: remove it")
		}
	}
	return s.Events
}

func (d *decoder) checkPattern(n *node, path, pattern string) {
	bad := func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) }
	switch {
	case n.broken || n.kind != kindText:
	case pattern == "":
		d.at(n, path, "is empty: name an event type such as scheduling:updated, or * for all")
	case len(pattern) > maxTypeLen:
		d.at(n, path, "is longer than %d bytes, and so is no event type: shorten it", maxTypeLen)
	case strings.ContainsFunc(pattern, bad):
		d.at(n, path, "%s contains space or control characters: an event type is a word such as scheduling:updated; write several as a list in events", d.quote(n))
	}
}

func (d *decoder) checkCondition(n *node, path, when string) {
	at := n.get("when")
	if at == nil || at.broken || at.kind != kindText {
		return
	}
	path = join(path, "when")
	if strings.TrimSpace(when) == "" {
		d.at(at, path, "is empty: write a condition, or remove the key to send every event")
		return
	}
	if _, err := mapping.CompileFilter(when); err != nil {
		d.at(at, path, "%s", d.redactExpression(at, err.Error()))
	}
}

func (d *decoder) checkPer(n *node, path, per string) {
	limits := n.get("limits")
	if limits == nil {
		return
	}
	at := limits.get("per")
	if at == nil || at.broken || at.kind != kindText {
		return
	}
	path = join(join(path, "limits"), "per")
	if strings.TrimSpace(per) == "" {
		d.at(at, path, "is empty: write an expression such as event.court, or remove the key")
		return
	}
	if _, err := mapping.CompileScope(per); err != nil {
		d.at(at, path, "%s", d.redactExpression(at, err.Error()))
	}
}

func (d *decoder) checkFrom(n *node, path, from string) {
	at := n.get("from")
	if at == nil || at.broken || at.kind != kindText || from == "beginning" || from == "now" {
		return
	}
	if _, err := time.Parse(time.RFC3339, from); err != nil {
		d.at(at, join(path, "from"), "%s is neither beginning, now nor a time with an offset such as 2027-03-01T00:00:00Z%s",
			d.quote(at), d.suggest(at, []string{"beginning", "now"}))
	}
}

func (d *decoder) checkLease(root, sync *node, spec fileSpec, s syncSpec, path string) {
	timeout := s.Adapter.timeout()
	if timeout == 0 || spec.Relay.Lease == 0 || spec.Relay.Lease >= 2*timeout {
		return
	}
	at, full := s.Adapter.node, join(path, "adapter")
	if n := at.get("timeout"); n != nil {
		at, full = n, join(full, "timeout")
	}
	if r := root.get("relay"); r != nil && r.get("lease") != nil {
		at, full = r.get("lease"), "relay.lease"
	}
	name := s.Name
	if n := sync.get("name"); n != nil && n.ref != "" {
		name = variables(n.ref)
	}
	d.at(at, full, "a lease of %s is shorter than twice the timeout of sync %s (%s), so an attempt could outlive its claim: raise relay.lease to at least %s, or lower the adapter's timeout",
		spec.Relay.Lease, name, timeout, 2*timeout)
}

func (d *decoder) checkDatabase(root *node, spec databaseSpec) {
	db := root.get("database")
	if db == nil {
		return
	}
	n := db.get("url")
	if n == nil || n.broken || n.kind != kindText {
		return
	}
	text := spec.URL.Reveal()
	hint := "write postgres://user@host:5432/database, or keywords such as host=… dbname=…; the value is not shown, because it may contain a password"
	u, err := url.Parse(text)
	switch {
	case text == "":
		d.at(n, "database.url", "is empty: %s", hint)
	case strings.Contains(text, "://") && (err != nil || u.Scheme != "postgres" && u.Scheme != "postgresql"):
		d.at(n, "database.url", "is not a PostgreSQL URL: %s", hint)
	case !strings.Contains(text, "://") && !strings.Contains(text, "="):
		d.at(n, "database.url", "is neither a URL nor keywords: %s", hint)
	}
}

func (d *decoder) checkListen(root *node, listen string) {
	n := root.get("listen")
	if n == nil || n.broken || n.kind != kindText || listen == "" {
		return // empty: no health and metrics
	}
	_, port, err := net.SplitHostPort(listen)
	if number, portErr := strconv.ParseUint(port, 10, 16); err != nil || portErr != nil || number > 65535 {
		d.at(n, "listen", "%s is not an address: write host:port, such as 127.0.0.1:9464, or :9464 for all interfaces", d.quote(n))
	}
}

// nearest finds the value at keys below n, or the nearest one around it.
func nearest(n *node, path string, keys ...string) (*node, string) {
	for _, key := range keys {
		path = join(path, key)
		if next := n.get(key); next != nil {
			n = next
		}
	}
	return n, path
}
