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
	"github.com/hms-mkt/lockstep/outbox"
	"github.com/hms-mkt/lockstep/relay"
	"github.com/hms-mkt/lockstep/relay/mapping"
)

// maxTypeLen is the longest event type that the outbox takes, in bytes.
const maxTypeLen = 200

var syncName = regexp.MustCompile(`^[A-Za-z0-9_.-]{1,63}$`)

// check checks text of the file by the check tag of its field.
func (d *decoder) check(tag string, n *node) {
	switch tag {
	case "":
	case "address":
		_, port, err := net.SplitHostPort(n.text)
		if _, portErr := strconv.ParseUint(port, 10, 16); n.text != "" && (err != nil || portErr != nil) { // empty turns health and metrics off
			d.at(n, "%s is not an address: write host:port, such as 127.0.0.1:9464, or :9464 for all interfaces", d.quote(n))
		}
	case "database":
		d.checkDatabase(n)
	case "file":
		if n.text != "" && d.sub.read != nil {
			_, _ = d.sub.read(n.text, 0) // a Watch notices changes of the file; the adapter says what is wrong with it
		}
	case "name":
		if !syncName.MatchString(n.text) {
			d.at(n, "%s cannot be a sync's name: use 1 to 63 characters of A-Z a-z 0-9 _ . -", d.quote(n))
		}
	case "event":
		switch {
		case n.text == "":
			d.at(n, "is empty: name an event type such as scheduling:updated, or * for all")
		case len(n.text) > maxTypeLen:
			d.at(n, "is longer than %d bytes, the limit of an event type: shorten it", maxTypeLen)
		case strings.ContainsFunc(n.text, func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) }):
			d.at(n, "%s contains space or control characters: an event type is a word such as scheduling:updated; write several as a list in events", d.quote(n))
		case strings.HasPrefix(n.text, outbox.OperatorEvents) && !slices.ContainsFunc(outbox.OperatorEventTypes(), func(known string) bool { return overlap(n.text, known) }):
			d.at(n, "%s matches no operator event: they are %s", d.quote(n), strings.Join(outbox.OperatorEventTypes(), ", "))
		}
	case "condition":
		_, err := mapping.CompileFilter(n.text)
		d.checkExpression(n, err, "a condition, or remove the key to send every event")
	case "scope":
		_, err := mapping.CompileScope(n.text)
		d.checkExpression(n, err, "an expression such as event.court, or remove the key")
	case "zone":
		if _, err := mapping.LoadZone(n.text); err != nil {
			d.at(n, "%s is not a time zone: write an IANA name such as America/New_York, or UTC", d.quote(n))
		}
	case "person":
		d.checkPerson(n)
	case "header":
		d.checkHeader(n)
	case "network":
		if p, ok := network(n.text); ok && p.Bits() == 0 {
			d.at(n, "%s is every address, so everybody could choose a name: name the addresses of the proxies", d.quote(n))
		} else if !ok {
			d.at(n, "%s is not an address: write one such as 10.0.0.5, or a network such as 10.0.0.0/24", d.quote(n))
		}
	case "from":
		if _, err := time.Parse(time.RFC3339, n.text); err != nil && n.text != "beginning" && n.text != "now" {
			d.at(n, "%s is neither beginning, now nor a time with an offset such as 2027-03-01T00:00:00Z%s",
				d.quote(n), n.suggest([]string{"beginning", "now"}))
		}
	default:
		panic("config: no check is called " + tag)
	}
}

func (d *decoder) checkExpression(n *node, err error, want string) {
	if strings.TrimSpace(n.text) == "" {
		d.at(n, "is empty: write %s", want)
	} else if err != nil {
		d.at(n, "%s", d.redactExpression(n, err.Error()))
	}
}

func (d *decoder) checkDatabase(n *node) {
	const hint = "write postgres://user@host:5432/database, or keywords such as host=… dbname=…; the value is not shown, because it may contain a password"
	u, err := url.Parse(n.text)
	isURL := strings.Contains(n.text, "://")
	switch {
	case n.text == "":
		d.at(n, "is empty: %s", hint)
	case isURL && (err != nil || u.Scheme != "postgres" && u.Scheme != "postgresql"):
		d.at(n, "is not a PostgreSQL URL: %s", hint)
	case !isURL && !strings.Contains(n.text, "="):
		d.at(n, "is neither a URL nor keywords: %s", hint)
	}
}

// checkSyncs makes the checks that concern more than one key.
func (d *decoder) checkSyncs(root *node) {
	lines := make(map[string]int)
	for i := range d.file.Syncs {
		s, n := &d.file.Syncs[i], root.at("syncs").items[i]
		if n.kind != kindMap {
			continue // reported
		}
		if name := n.at("name"); !name.failed && name.kind == kindText {
			if line, twice := lines[s.Name]; twice {
				d.at(name, "%s is the name of two syncs, the other one in line %d: rename one of them", d.quote(name), line)
			} else {
				lines[s.Name] = name.line
			}
		}
		d.checkEvents(n, s.Events)
		d.checkTypes(n, s)
		d.checkLease(root, n, s)
		if s.Retry.Max > 0 && s.Retry.Max < s.Retry.Initial {
			d.at(n.at("retry", "max"), "is shorter than retry.initial (%s): raise max or lower initial", s.Retry.Initial)
		}
		d.checkEscalate(n, s.Escalate)
		d.checkWindows(n, s)
		d.checkMapping(n, s)
		for _, key := range []string{"when", "mapping", "compute", "limits"} {
			s.Substituted = append(s.Substituted, n.at(key).allSubstituted()...)
		}
		s.Adapter.Substituted = n.at("adapter").allSubstituted()
	}
}

func (d *decoder) checkEvents(n *node, events []string) {
	one, many := n.at("event"), n.at("events")
	switch {
	case one.kind != kindAbsent && many.kind != kindAbsent:
		d.at(many, "is given together with event: keep one of them; events takes a list")
	case one.kind == kindAbsent && many.kind == kindAbsent:
		d.at(one, `is missing: name the event types of this sync, such as event: scheduling:updated, or events: ["scheduling:*"]`)
	case many.kind == kindList && len(events) == 0:
		d.at(many, `is empty: name the event types of this sync, such as ["scheduling:*"]`)
	default:
		for i, event := range events {
			if event != "" && slices.Index(events, event) < i {
				d.at(many.items[i], "is in the list already: remove it")
			}
		}
	}
}

// checkLease refuses a lease that could end before an attempt does.
func (d *decoder) checkLease(root, n *node, s *Sync) {
	lease := d.file.Relay.Lease
	if s.Adapter.Adapter == nil || lease == 0 {
		return
	}
	timeout := relay.Sync{Adapter: s.Adapter.Adapter}.AttemptTimeout()
	if lease >= 2*timeout {
		return
	}
	at := root.at("relay", "lease")
	if at.kind == kindAbsent {
		at = n.at("adapter", "timeout")
	}
	name := s.Name
	if ref := n.at("name").ref; ref != "" {
		name = variables(ref)
	}
	d.at(at, "a lease of %s is shorter than twice the timeout of sync %s (%s), so an attempt could outlive its claim: raise relay.lease to at least %s, or lower the adapter's timeout",
		lease, name, timeout, 2*timeout)
}

// checkMapping compiles the mapping, and those of routes.
func (d *decoder) checkMapping(n *node, s *Sync) {
	made := d.compileMapping(n, s.mapping())
	d.checkLearned(n, s.mapping(), s.Adapter.Adapter)
	switch a := s.Adapter.Adapter.(type) {
	case adapters.Router:
		d.checkRoutes(n, s, a.Routes(), made)
	case adapters.FieldUser:
		d.checkFields(n.at("adapter"), a.Fields(), made)
	}
}

// checkLearned refuses an expression that reads a value which no answer teaches, because it
// would always be null.
func (d *decoder) checkLearned(n *node, m mapping.Mapping, a adapters.Adapter) {
	if a == nil {
		return // its names are not known
	}
	names := []string{"external_id", "etag"}
	if a, ok := a.(adapters.Learner); ok {
		names = append(names, a.Learned()...)
	}
	items := slices.DeleteFunc(slices.Clone(n.at("compute").items), func(item *node) bool { return item.failed })
	for i, c := range m.Compute {
		for _, name := range c.Refs() {
			if !slices.Contains(names, name) {
				d.at(items[i], "%s", d.redactExpression(items[i], fmt.Sprintf("no key learn has the name %q, so ref.%s would always be null; known are ref.%s",
					name, name, strings.Join(names, ", ref."))))
			}
		}
	}
}

// checkFields refuses an adapter that uses a field which the mapping does not make,
// because each of its deliveries would fail. Without a mapping the payload itself is sent,
// and its fields are not known here.
func (d *decoder) checkFields(at *node, used, made []string) {
	if len(made) == 0 {
		return
	}
	within := func(inner, outer string) bool { return inner == outer || strings.HasPrefix(inner, outer+".") }
	for _, name := range slices.Compact(slices.Sorted(slices.Values(used))) {
		if !slices.ContainsFunc(made, func(to string) bool { return within(name, to) || within(to, name) }) {
			d.atUse(at, name, fmt.Sprintf(
				"uses {fields.%s}, but the mapping does not make this field: use one of its fields (%s), or add it to the mapping", name, strings.Join(made, ", ")))
		}
	}
}
