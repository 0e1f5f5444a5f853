package rest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/adapters/internal/endpoint"
	"github.com/hms-mkt/lockstep/adapters/internal/exchange"
	"github.com/hms-mkt/lockstep/adapters/internal/placeholder"
)

const (
	maxPage  = 8 << 20 // bytes of one page of a list
	maxPages = 100_000
)

// list says how the receiver's records are listed.
type list struct {
	url       *endpoint.URL
	items     exchange.Pointer
	next      *source
	key       exchange.Pointer
	found     []condition
	id        *source
	etag      *source
	version   exchange.Pointer
	at        string
	cancelled *condition
	fields    map[string]exchange.Pointer
}

// The placeholders of List.URL, as learnt values of a message that only a list has.
var listNames = []string{"from", "to", "cursor"}

// cursorParameter matches a parameter whose whole value is the cursor.
var cursorParameter = regexp.MustCompile(`[?&][^=&?]+=\{cursor\}(&|$)`)

var listPlaceholder = regexp.MustCompile(`\{(` + strings.Join(listNames, "|") + `)\}`)

// parse reads the settings. id and etag are those of answers.
func (l List) parse(p *routeParser, id, etag *source) *list {
	parsed := &list{at: l.At, id: id, etag: etag, fields: map[string]exchange.Pointer{}}
	var err error
	switch parsed.url, err = endpoint.ParseURL(listPlaceholder.ReplaceAllString(l.URL, "{ref.$1}"), listNames...); {
	case l.URL == "":
		p.fail("list.url: is required")
	case err != nil:
		p.check("list.url: ", err)
	case strings.Contains(listPlaceholder.ReplaceAllString(l.URL, ""), "{"):
		p.fail("list.url: may have the placeholders {from}, {to} and {cursor} alone, because a list is about no message")
	case strings.Contains(l.URL, "{cursor}") && (strings.Count(l.URL, "{cursor}") > 1 || !cursorParameter.MatchString(l.URL)):
		p.fail("list.url: has {cursor} in another place than the value of a parameter, as in ?page={cursor}, which is left out on the first page")
	case parsed.url.Uses("ref.cursor") && l.Next == (Source{}):
		p.fail("list.next: is required for {cursor}")
	}
	pointer := func(key, text string) exchange.Pointer {
		at, err := exchange.ParsePointer(text)
		if err != nil {
			p.fail("list.%s: %w", key, err)
		}
		return at
	}
	parsed.items, parsed.version = pointer("items", l.Items), pointer("version", l.Version)
	if parsed.key = pointer("key", l.Key); l.Key == "" {
		p.fail("list.key: is required: where a record has the key of its event")
	}
	from := func(key string, s Source) *source {
		parsed, err := s.parse()
		p.check("list."+key, err)
		return parsed
	}
	if l.Next != (Source{}) {
		parsed.next = from("next", l.Next)
	}
	if l.ExternalID != (Source{}) {
		parsed.id = from("external_id", l.ExternalID)
	}
	if l.ETag != (Source{}) {
		parsed.etag = from("etag", l.ETag)
	}
	parsed.found = p.conditions("list.found", l.Found)
	if slices.ContainsFunc(parsed.found, func(c condition) bool { return c.field != "" }) {
		p.fail("list.found: has a field, but a list is about no message: write equals")
	}
	if c := l.Cancelled; c.Field != "" || (c.Path == "") != (c.Equals == nil) {
		p.fail("list.cancelled: write path and equals")
	} else if c.Path != "" {
		parsed.cancelled = &p.conditions("list.cancelled", []Match{c})[0]
	}
	if len(l.Fields) == 0 {
		p.fail("list.fields: is required: the mapped fields that are compared, and where a record has them")
	}
	for _, name := range slices.Sorted(maps.Keys(l.Fields)) {
		parsed.fields[name] = pointer("fields["+name+"]", l.Fields[name])
	}
	if _, ok := l.Fields[l.At]; l.At != "" && !ok {
		p.fail("list.at: %q is not one of fields", l.At)
	}
	return parsed
}

// Lists implements [adapters.Lister].
func (a *Adapter) Lists() error {
	if a.list == nil {
		return errors.New("its adapter has no list: write list, which says how the receiver's records are listed")
	}
	return nil
}

// Entry implements [adapters.Lister].
func (a *Adapter) Entry(msg adapters.Message) (adapters.Entry, error) {
	if err := a.Lists(); err != nil {
		return adapters.Entry{}, err
	}
	to := a.find(msg)
	if n := len(to.then); n > 0 {
		to = to.then[n-1] // what is there after all steps
	}
	e := adapters.Entry{Key: msg.Key, ExternalID: msg.Ref.ExternalID, Version: msg.Version, Fields: map[string]string{}, Absent: to.removes()}
	if a.list.version == nil {
		e.Version = nil
	}
	v := &placeholder.Values{Msg: msg}
	for name, at := range a.list.fields {
		value, err := v.Lookup(name)
		if err != nil && !errors.Is(err, placeholder.ErrNotKnown) {
			return e, err
		}
		e.Fields[name] = canonical(value)
		if c := a.list.cancelled; c != nil && slices.Equal(at, c.path) {
			e.Cancelled = same(value, c.equals)
		}
	}
	e.At = timeOf(e.Fields[a.list.at])
	return e, nil
}

// List implements [adapters.Lister]. It follows links to further pages on the same host only.
func (a *Adapter) List(ctx context.Context, window adapters.Window, yield func(adapters.Entry) error) error {
	if err := a.Lists(); err != nil {
		return err
	}
	bound := func(at, none time.Time) string {
		if at.IsZero() {
			at = none
		}
		return at.UTC().Format(time.RFC3339)
	}
	msg := adapters.Message{IdempotencyKey: "list", Ref: adapters.Ref{Learned: map[string]string{
		"from": bound(window.From, time.Date(1970, 1, 1, 0, 0, 0, 0, time.UTC)),
		"to":   bound(window.To, time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC)),
	}}}
	seen := map[string]bool{}
	var link *url.URL
	for page := range maxPages {
		req, err := a.page(msg, page == 0)
		if err != nil {
			return err
		}
		if link != nil {
			req.URL = link
		}
		next, err := a.read(ctx, req, window, yield)
		if err != nil || next == "" {
			return err
		}
		if seen[next] {
			return fmt.Errorf("%s %s: list.next leads to a page that was read already", req.Method, req.Target)
		}
		seen[next] = true
		if a.list.url.Uses("ref.cursor") {
			msg.Ref.Learned["cursor"] = next
			continue
		}
		to, err := req.URL.Parse(next)
		if err != nil || to.Host != req.URL.Host || to.Scheme != req.URL.Scheme {
			return fmt.Errorf("%s %s: list.next leads to another host, which is not followed", req.Method, req.Target)
		}
		link = to
	}
	return fmt.Errorf("the list has more than %d pages", maxPages)
}

// page builds the request for a page. The first one has no cursor: its parameter is left out.
func (a *Adapter) page(msg adapters.Message, first bool) (exchange.Request, error) {
	const none = "lockstep-first-page"
	if first && a.list.url.Uses("ref.cursor") {
		msg.Ref.Learned = maps.Clone(msg.Ref.Learned)
		msg.Ref.Learned["cursor"] = none
	}
	req, err := a.endpoint.Request(http.MethodGet, a.list.url, &placeholder.Values{Msg: msg}, http.Header{"Accept": {"application/json"}}, nil)
	if err != nil {
		return req, err
	}
	req.Header.Del("Idempotency-Key")
	req.Longest = maxPage
	if first {
		u := *req.URL
		u.RawQuery = strings.Join(slices.DeleteFunc(strings.Split(u.RawQuery, "&"), func(part string) bool { return strings.HasSuffix(part, "="+none) }), "&")
		req.URL = &u
	}
	return req, nil
}

// read yields the records of a page, and returns what leads to the next one.
func (a *Adapter) read(ctx context.Context, req exchange.Request, window adapters.Window, yield func(adapters.Entry) error) (next string, err error) {
	l := a.list
	var records []exchange.Document
	_, err = a.endpoint.Deliver(ctx, l.url, req, func(ans exchange.Answer) (adapters.Receipt, error) {
		fail := func(text string) (adapters.Receipt, error) {
			return adapters.Receipt{}, fmt.Errorf("%s %s: answered %s, but %s", req.Method, req.Target, ans.Code(), text)
		}
		if !ans.OK() {
			_, err := exchange.Rules{}.Judge(req, ans)
			return adapters.Receipt{}, err
		}
		doc := ans.JSON()
		switch {
		case ans.IsPage():
			return fail("its body is an HTML page, which is not the answer of an API: check list.url")
		case ans.Cut != nil:
			return fail("its body ended early")
		case ans.Partial:
			return fail(fmt.Sprintf("its body is longer than %d MiB: ask for smaller pages", maxPage>>20))
		case !doc.IsJSON():
			return fail("its body is not JSON")
		}
		var isList bool
		if records, isList = doc.At(l.items); !isList {
			return fail("list.items (/" + strings.Join(l.items, "/") + ") is not a list in its body")
		}
		if l.next != nil {
			next = l.next.in(doc, ans.Header)
			if l.next.header == "Link" && l.next.match == nil {
				next = linkNext(ans.Header)
			}
		}
		return adapters.Receipt{}, nil
	})
	if err != nil {
		return "", err
	}
	for _, record := range records {
		e := l.entry(record)
		if !e.At.IsZero() && (!window.From.IsZero() && e.At.Before(window.From) || !window.To.IsZero() && !e.At.Before(window.To)) {
			continue
		}
		if err := yield(e); err != nil {
			return "", err
		}
	}
	return next, nil
}

func (l *list) entry(record exchange.Document) adapters.Entry {
	e := adapters.Entry{Fields: map[string]string{}}
	if differs(l.found, record, nil) == "" {
		e.Key, _ = record.Text(l.key)
	}
	if l.id != nil {
		e.ExternalID = l.id.in(record, nil)
	}
	e.ETag = tagOf(l.etag, record, nil)
	if n, ok := record.Integer(l.version); ok {
		e.Version = &n
	}
	for name, at := range l.fields {
		var value any
		if found := record.Find(at); len(found) > 0 {
			value = found[0]
		}
		e.Fields[name] = canonical(value)
	}
	e.Cancelled = l.cancelled != nil && differs([]condition{*l.cancelled}, record, nil) == ""
	e.At = timeOf(e.Fields[l.at])
	return e
}

// canonical is the one form in which values are compared: of a time with an offset the instant
// in UTC, of an object or a list its JSON.
func canonical(value any) string {
	text, err := placeholder.Text(value)
	if err != nil && value != nil {
		object, _ := json.Marshal(value) // it was decoded from JSON
		return string(object)
	}
	if at, err := time.Parse(time.RFC3339Nano, text); err == nil {
		return at.UTC().Format(time.RFC3339Nano)
	}
	return text
}

func timeOf(text string) time.Time {
	for _, layout := range []string{time.RFC3339Nano, time.DateOnly} {
		if at, err := time.Parse(layout, text); err == nil {
			return at
		}
	}
	return time.Time{}
}

// linkNext returns the target of the relation next (RFC 8288, 3): a header has several links, a
// link has parameters in any order and case, and rel has several relations.
func linkNext(h http.Header) string {
	rest := strings.Join(h.Values("Link"), ", ")
	for {
		_, after, found := strings.Cut(rest, "<")
		target, parameters, closed := strings.Cut(after, ">")
		if !found || !closed {
			return ""
		}
		isNext := false
		for more := true; more; {
			parameters = strings.TrimLeft(parameters, " \t")
			if parameters, more = strings.CutPrefix(parameters, ";"); !more {
				break
			}
			end := strings.IndexAny(parameters, "=;,")
			if end < 0 {
				end = len(parameters)
			}
			name, value := strings.TrimSpace(parameters[:end]), ""
			if parameters = parameters[end:]; strings.HasPrefix(parameters, "=") {
				value, parameters = linkValue(strings.TrimLeft(parameters[1:], " \t"))
			}
			isNext = isNext || strings.EqualFold(name, "rel") && slices.Contains(strings.Fields(strings.ToLower(value)), "next")
		}
		if isNext {
			return target
		}
		rest = parameters
	}
}

// linkValue reads the value of a parameter, and returns what follows it.
func linkValue(text string) (value, rest string) {
	if !strings.HasPrefix(text, `"`) {
		end := strings.IndexAny(text, ";,")
		if end < 0 {
			end = len(text)
		}
		return strings.TrimSpace(text[:end]), text[end:]
	}
	var b strings.Builder
	for i := 1; i < len(text); i++ {
		switch {
		case text[i] == '"':
			return b.String(), text[i+1:]
		case text[i] == '\\' && i+1 < len(text):
			i++
		}
		b.WriteByte(text[i])
	}
	return b.String(), ""
}
