package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"html"
	"io"
	"maps"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/internal/output"
	"github.com/hms-mkt/lockstep/outbox"
	"github.com/hms-mkt/lockstep/relay"
	"github.com/hms-mkt/lockstep/relay/mapping"
)

// maxInput is the largest input from a file, in bytes. It is twice the limit of an
// event.
const maxInput = 2 << 20

// preview is a request that would be sent.
type preview struct {
	Sync           string            `json:"sync"`
	Adapter        string            `json:"adapter"`
	Send           bool              `json:"send"`
	Notes          []string          `json:"notes"`
	Method         string            `json:"method,omitempty"`
	URL            string            `json:"url,omitempty"`
	Headers        map[string]string `json:"headers,omitempty"`
	Scope          string            `json:"scope,omitempty"` // the destination, if the sync has several
	IdempotencyKey string            `json:"idempotency_key,omitempty"`
	MappingVersion string            `json:"mapping_version"`
	Body           json.RawMessage   `json:"body,omitempty"`         // the mapped fields
	ContentType    string            `json:"content_type,omitempty"` // of Request
	Request        string            `json:"request,omitempty"`      // the bytes on the wire, if they are not Body
}

// example is an event to be mapped, and what the database knows about it.
type example struct {
	event    outbox.Event
	stored   bool // the event is in the database
	ref      adapters.Ref
	revision int
	attempts int
	body     []byte // kept from an earlier attempt
	version  string // of body
}

// assumed is what the user says about an event.
type assumed struct {
	typ, key string            // of an event from a file
	headers  map[string]string // of an event from a file
	ref      string            // the receiver's id for the key
	etag     string
	learned  map[string]string // values that learn read from the receiver's answers
}

func (a *app) mapCommand() *cobra.Command {
	var assume assumed
	c := &cobra.Command{
		Use:   "map SYNC EVENT|FILE",
		Short: "Show what would be sent for an event, send nothing",
		Long: `Show what would be sent for an event: the mapped fields, the request that the
adapter makes from them with its headers (secrets are masked), the version of the
mapping and the idempotency key. Nothing is sent or changed, and no token is
fetched.

EVENT is the id of an event of the database, and then the login needs the role
outbox_auditor. FILE holds a whole event with "type" and "payload", or only a
payload; - is standard input. --type and --key replace what FILE has, and --headers
adds to it. An id that FILE lacks is shown as zeros. This is the only command that
prints payloads.

--ref, --etag and --learned say what the receiver answered for the key, as if it had
accepted an earlier event. Without them, an event of the database has what the database
knows, and an event from a file has nothing. So a file without --ref shows how a hearing
is created, and with --ref how it is updated.`,
		Example: `  lockstep map CourtCalendarSync 0199f3a1-7c1e-7b5e-9c3e-5a4f2d1b0c9d
  lockstep map CourtCalendarSync hearing.json --type scheduling:updated
  lockstep map CourtCalendarSync hearing.json --type scheduling:updated --ref C-7 --etag 'W/"3"'
  lockstep map CourtCalendarSync hearing.json --type scheduling:cancelled --ref C-7
  echo '{"hearingId":"H-7"}' | lockstep map CourtCalendarSync -`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			f, err := a.load()
			if err != nil {
				return err
			}
			i, err := findSync(f, args[0])
			if err != nil {
				return err
			}
			named, sync := f.Syncs[i], f.RelayConfig().Syncs[i]
			if err := assume.check(sync); err != nil {
				return err
			}
			var x example
			if uuid.MatchString(args[1]) {
				if assume.typ != "" || assume.key != "" || len(assume.headers) > 0 {
					return usagef("--type, --key and --headers are for an event from a file: an event of the database has its own")
				}
				err = a.with(cmd, f, roleAuditor, func(ctx context.Context, db *database) (err error) {
					x, err = db.example(ctx, sync.Name, args[1])
					return err
				})
			} else {
				x.event, err = a.readEvent(args[1])
			}
			if err != nil {
				return err
			}
			x.complete(sync, assume)
			p, err := x.preview(sync, named.Adapter.Kind)
			if err != nil {
				return err
			}
			if named.Adapter.Kind == "rest" && p.Send && assume.etag != "" && p.Headers["If-Match"] != assume.etag {
				p.Notes = append(p.Notes, "the ETag is not sent as If-Match: if_match is false here, or a weak ETag needs if_match: weak")
			}
			p.mask(named.Substituted, named.Adapter.Substituted)
			return output.Object(a.stdout, a.format, p, p.text)
		},
	}
	c.Flags().StringVar(&assume.typ, "type", "", "`TYPE` of an event from a file, instead of the file's")
	c.Flags().StringVar(&assume.key, "key", "", "`KEY` of an event from a file, instead of the file's")
	c.Flags().StringToStringVar(&assume.headers, "headers", nil, "more headers of an event from a file, as `NAME=VALUE`,…")
	c.Flags().StringVar(&assume.ref, "ref", "", "the receiver's `ID` for the key")
	c.Flags().StringVar(&assume.etag, "etag", "", "the `ETAG` that the receiver answered last for the key")
	c.Flags().StringToStringVar(&assume.learned, "learned", nil, "values that learn has read from the receiver's answers, as `NAME=VALUE`,…")
	return c
}

// readEvent reads an event from a file, or from standard input for "-".
func (a *app) readEvent(name string) (outbox.Event, error) {
	in := a.stdin
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return outbox.Event{}, usagef("%w; EVENT is a UUID, FILE a JSON file, or - for standard input", err)
		}
		defer f.Close()
		in = f
	}
	b, err := io.ReadAll(io.LimitReader(in, maxInput+1))
	if err != nil {
		return outbox.Event{}, err
	}
	if len(b) > maxInput {
		return outbox.Event{}, fmt.Errorf("%s has more than %d bytes, which is too long for an event", name, maxInput)
	}
	e, err := parseEvent(bytes.TrimPrefix(b, []byte("\uFEFF"))) // a byte-order mark is not a part of the text
	if err != nil {
		return e, fmt.Errorf("%s: %w", name, err)
	}
	var typed struct{ Type *string }
	if e.Type == "" && json.Unmarshal(e.Payload, &typed) == nil && typed.Type != nil {
		a.say(`%s has "type" and no object "payload", so all of it is taken for a payload`, name)
	}
	return e, nil
}

// parseEvent reads a whole event, or only a payload.
func parseEvent(b []byte) (outbox.Event, error) {
	var whole struct {
		ID         string            `json:"id"`
		Type       string            `json:"type"`
		Key        string            `json:"key"`
		Version    *int64            `json:"version"`
		Payload    json.RawMessage   `json:"payload"`
		Headers    map[string]string `json:"headers"`
		OccurredAt time.Time         `json:"occurred_at"`
	}
	var members map[string]json.RawMessage
	if err := json.Unmarshal(b, &members); err != nil || members == nil {
		return outbox.Event{}, errors.New("want one JSON object: a payload, or an event with type and payload")
	}
	if members["type"] == nil || !bytes.HasPrefix(bytes.TrimSpace(members["payload"]), []byte("{")) {
		return outbox.Event{Payload: b}, nil
	}
	if err := json.Unmarshal(b, &whole); err != nil {
		if wrong, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
			return outbox.Event{}, fmt.Errorf("the event's %s cannot be a %s", wrong.Field, wrong.Value)
		}
		return outbox.Event{}, errors.New("the event's occurred_at is not a time such as 2027-01-31T08:00:00Z")
	}
	return outbox.Event{
		ID: whole.ID, Type: whole.Type, Key: whole.Key, Version: whole.Version,
		Payload: whole.Payload, Headers: whole.Headers, OccurredAt: whole.OccurredAt,
	}, nil
}

// check refuses an answer that the receiver's adapter would not keep.
func (a assumed) check(sync relay.Sync) error {
	if err := checkETag(a.etag); err != nil {
		return usagef("--etag %w", err)
	}
	if err := values(a.learned).check(); err != nil {
		return usagef("--learned %w", err)
	}
	var known []string
	if learner, ok := sync.Adapter.(adapters.Learner); ok {
		known = slices.Sorted(slices.Values(learner.Learned()))
	}
	for _, name := range slices.Sorted(maps.Keys(a.learned)) {
		if !slices.Contains(known, name) {
			return usagef("--learned %s: %s does not learn this value; learn of its adapter has %s",
				quoted(name), sync.Name, cmp.Or(strings.Join(known, ", "), "no names"))
		}
	}
	return nil
}

// complete fills in what the user says, and the fields that an event from a file lacks.
func (x *example) complete(sync relay.Sync, assume assumed) {
	x.ref.ExternalID = cmp.Or(assume.ref, x.ref.ExternalID)
	x.ref.ETag = cmp.Or(assume.etag, x.ref.ETag)
	x.ref.Learned = with(x.ref.Learned, assume.learned)
	if x.stored {
		return
	}
	x.revision = 1
	if x.event.ID == "" {
		x.event.ID = "00000000-0000-0000-0000-000000000000" // the database would give it one
	}
	x.event.Type = cmp.Or(assume.typ, x.event.Type)
	x.event.Key = cmp.Or(assume.key, x.event.Key)
	x.event.Headers = with(x.event.Headers, assume.headers)
	if x.event.Type == "" && !strings.Contains(sync.Events[0], "*") {
		x.event.Type = sync.Events[0]
	}
	if x.event.OccurredAt.IsZero() {
		x.event.OccurredAt = time.Now()
	}
}

// with returns values with those of more.
func with(values, more map[string]string) map[string]string {
	both := maps.Clone(values)
	if both == nil {
		both = make(map[string]string, len(more))
	}
	maps.Copy(both, more)
	return both
}

// example reads an event, and what a relay would use for it.
func (db *database) example(ctx context.Context, sync, id string) (example, error) {
	const statement = `-- lockstep map
SELECT e.id::text, e.seq, e.type, e.key, e.version, e.payload::text, e.headers::text, e.occurred_at,
       coalesce(r.external_id, ''), coalesce(r.etag, ''), coalesce(r.learned, '{}')::text, r.version,
       coalesce(d.revision, 1), coalesce(d.total_attempts, 0), encode(d.body, 'hex'), coalesce(d.mapping_version, '')
  FROM outbox.event AS e
  LEFT JOIN outbox.external_ref AS r ON r.sync = $2 AND r.key = e.key
  LEFT JOIN outbox.delivery AS d ON d.sync = $2 AND d.key = e.key AND d.event_id = e.id
 WHERE e.id = $1::uuid`
	x := example{stored: true}
	var payload, headers, learned string
	var body *string // in hexadecimal: the login's bytea_output would change the text of a bytea
	err := db.conn.QueryRow(ctx, statement, id, sync).Scan(
		&x.event.ID, &x.event.Seq, &x.event.Type, &x.event.Key, &x.event.Version, &payload, &headers, &x.event.OccurredAt,
		&x.ref.ExternalID, &x.ref.ETag, &learned, &x.ref.Version, &x.revision, &x.attempts, &body, &x.version)
	if errors.Is(err, pgx.ErrNoRows) {
		return x, fmt.Errorf("event %s does not exist: its transaction did not commit, or it is past its retention", id)
	}
	if err == nil && body != nil {
		x.body, err = hex.DecodeString(*body)
	}
	if err != nil {
		return x, err
	}
	x.event.Payload = json.RawMessage(payload)
	x.event.Headers, x.ref.Learned = texts(headers), texts(learned)
	return x, nil
}

// texts reads the headers of an event. A value that is not text is kept as JSON.
func texts(object string) map[string]string {
	var values map[string]json.RawMessage
	if err := json.Unmarshal([]byte(object), &values); err != nil {
		return nil
	}
	m := make(map[string]string, len(values))
	for name, raw := range values {
		var s string
		if json.Unmarshal(raw, &s) != nil {
			s = string(raw)
		}
		m[name] = s
	}
	return m
}

// preview maps x like a relay.
func (x example) preview(sync relay.Sync, kind string) (preview, error) {
	p := preview{Sync: sync.Name, Adapter: kind, Send: true, Notes: []string{}}
	filter, err := mapping.CompileFilter(sync.When)
	if err != nil {
		return p, err
	}
	msg := adapters.Message{
		ID: x.event.ID, Type: x.event.Type, Key: x.event.Key, Version: x.event.Version,
		OccurredAt: x.event.OccurredAt, Attempt: x.attempts + 1, Headers: x.event.Headers, Ref: x.ref,
	}
	mapper, version, err := sync.Mapper(msg)
	if err != nil {
		return p, err
	}
	if x.body != nil && !relay.SameRequest(x.version, version) {
		p.Notes = append(p.Notes, "an earlier attempt took another route, or the settings of its body have changed, so the body is made again and has a new idempotency key")
		x.body = nil
		x.revision++
	}
	msg.IdempotencyKey = x.event.ID
	if x.revision > 1 {
		msg.IdempotencyKey = fmt.Sprintf("%s:%d", x.event.ID, x.revision)
	}
	p.IdempotencyKey, p.MappingVersion = msg.IdempotencyKey, version
	scope, err := mapping.CompileScope(sync.Per)
	if err != nil {
		return p, err
	}
	matches := x.event.Type == ""
	for _, pattern := range sync.Events {
		matches = matches || adapters.MatchType(pattern, x.event.Type)
	}
	if !matches {
		p.not("its events %s do not match type %s", strings.Join(sync.Events, ", "), x.event.Type)
	}
	if name := relay.SimilarType(x.event.Type, sync.TypeNames); name != "" {
		p.Notes = append(p.Notes, fmt.Sprintf("the adapter has no entry for type %s. Did you mean %s?", x.event.Type, name))
	}
	wanted, err := filter.Match(x.event, nil)
	if err != nil {
		return p, fmt.Errorf("the delivery would fail with class mapping: %w", err)
	}
	if !wanted {
		p.not("filtered: its condition %s is not met", sync.When)
	}
	ref := outbox.Ref{ExternalID: x.ref.ExternalID, ETag: x.ref.ETag, Learned: x.ref.Learned}
	p.Body, err = mapper.Map(x.event, mapping.Sending{IdempotencyKey: p.IdempotencyKey, Ref: ref}, nil)
	switch {
	case x.body != nil:
		if !bytes.Equal(p.Body, x.body) {
			p.Notes = append(p.Notes, "the body is that of an earlier attempt and stays the same until a requeue; the mapping has changed since")
		}
		p.Body, p.MappingVersion = x.body, x.version
	case err != nil:
		return p, fmt.Errorf("the delivery would fail with class mapping: %w", err)
	}
	msg.Body = p.Body
	if sync.Per != "" && wanted {
		if p.Scope, err = scope.Of(x.event, nil); err != nil {
			return p, fmt.Errorf("the delivery would fail with class mapping: %w", err)
		}
	} else if a, ok := sync.Adapter.(adapters.Addresser); ok {
		if destination := a.Destination(); destination != nil {
			p.Scope = destination(msg)
		}
	}
	if tells, ok := sync.Adapter.(adapters.Previewer); ok {
		would, err := tells.Preview(msg)
		p.Method, p.URL, p.Headers = would.Method, would.URL, would.Headers
		switch {
		case err != nil:
			p.not("the adapter refuses it: %v", err)
		case would.Skipped != "":
			p.not("filtered: %s", would.Skipped)
			p.Method, p.Body = "", nil // there is no request
		case len(would.Body) == 0:
			p.Body, p.Notes = nil, append(p.Notes, "sent without a body")
		case !bytes.Equal(would.Body, p.Body):
			p.ContentType, p.Request = would.ContentType, string(would.Body)
		}
	}
	return p, nil
}

// not adds a note that says why nothing would be sent.
func (p *preview) not(format string, args ...any) {
	p.Send = false
	p.Notes = append(p.Notes, "would not be sent: "+fmt.Sprintf(format, args...))
}

// jsonString matches a string of a JSON document.
var jsonString = regexp.MustCompile(`"(?:[^"\\]|\\.)*"`)

// mask hides the values of the sync's ${…}. Values in the adapter are hidden only in
// the request, its headers and its query, because the operator wants to see where it goes.
func (p *preview) mask(substituted, inAdapter []adapters.Secret) {
	hide, hideAll := masker(substituted), masker(slices.Concat(substituted, inAdapter))
	p.Scope = hide.Replace(p.Scope)
	address, query, has := strings.Cut(p.URL, "?")
	if p.URL = hide.Replace(address); has {
		p.URL += "?" + hideAll.Replace(query)
	}
	p.Request = hideAll.Replace(p.Request)
	for name, value := range p.Headers {
		p.Headers[name] = hideAll.Replace(value)
	}
	for i := range p.Notes {
		p.Notes[i] = hide.Replace(p.Notes[i])
	}
	p.Body = jsonString.ReplaceAllFunc(p.Body, func(s []byte) []byte { return []byte(hide.Replace(string(s))) })
}

// masker hides values in every spelling. Short values are not hidden: they cannot be
// secrets, and words would be hidden too.
func masker(secrets []adapters.Secret) *strings.Replacer {
	const shortest = 4
	var pairs []string
	for _, secret := range slices.SortedFunc(slices.Values(secrets), func(a, b adapters.Secret) int { return len(b) - len(a) }) {
		value := secret.Reveal()
		if len(value) < shortest {
			continue
		}
		for _, form := range []string{value, inJSON(value), html.EscapeString(value), url.PathEscape(value), url.QueryEscape(value)} {
			pairs = append(pairs, form, secret.String())
		}
	}
	return strings.NewReplacer(pairs...)
}

// inJSON returns text as in a JSON string, without the quotes.
func inJSON(text string) string {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(text); err != nil {
		panic(err) // a string always encodes
	}
	return strings.Trim(b.String(), "\"\n")
}

// anyLineEnd makes lines of a request also if they end as in HL7.
var anyLineEnd = strings.NewReplacer("\r\n", "\n", "\r", "\n")

// text writes p for a person.
func (p preview) text(w io.Writer) error {
	line := func(name, value string) {
		if value != "" {
			fmt.Fprintf(w, "%-16s %s\n", name, adapters.Clean(value, 0))
		}
	}
	line("sync", p.Sync+" ("+p.Adapter+")")
	line("request", strings.TrimSpace(p.Method+" "+p.URL))
	title := "headers"
	for _, name := range slices.Sorted(maps.Keys(p.Headers)) {
		line(title, name+": "+p.Headers[name])
		title = ""
	}
	line("scope", p.Scope)
	line("idempotency key", p.IdempotencyKey)
	line("mapping version", p.MappingVersion)
	for _, note := range p.Notes {
		line("note", note)
	}
	if p.Body != nil {
		var b bytes.Buffer
		if err := json.Indent(&b, p.Body, "", "  "); err != nil {
			return err
		}
		fmt.Fprintf(w, "\n%s\n", b.String())
	}
	if p.Request != "" {
		fmt.Fprintf(w, "\nsent as %s:\n\n", p.ContentType)
		for line := range strings.Lines(anyLineEnd.Replace(p.Request)) {
			fmt.Fprintln(w, adapters.Clean(strings.TrimRight(line, "\r\n"), 0))
		}
	}
	return nil
}
