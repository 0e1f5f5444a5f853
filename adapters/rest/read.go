package rest

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/adapters/internal/endpoint"
	"github.com/hms-mkt/lockstep/adapters/internal/exchange"
	"github.com/hms-mkt/lockstep/adapters/internal/placeholder"
)

// reading says how a receiver is asked what it has.
type reading struct {
	target  *target
	method  string
	url     *endpoint.URL
	body    body
	rules   exchange.Rules
	absent  []int
	items   exchange.Pointer // nil: the answer is the record
	found   []condition
	equal   []condition
	version exchange.Pointer
	id      *source
	etag    *source
	learn   map[string]*source
}

// condition is one of [Match].
type condition struct {
	path   exchange.Pointer
	equals any    // nil: field
	field  string // name of a mapped field; empty: equals
	name   string // for people
}

// parse reads the settings. t is the target whose messages it reads.
func (r Read) parse(p *routeParser, t *target, field string) *reading {
	field += "read."
	parsed := &reading{target: t, method: cmp.Or(r.Method, http.MethodGet), absent: r.Absent, id: t.externalID, etag: t.etag, learn: t.learn}
	if parsed.method != http.MethodGet && parsed.method != http.MethodPost {
		p.fail("%smethod: %q may change something at the receiver; use GET, or POST for a search", field, parsed.method)
	}
	if r.URL == "" {
		p.fail("%surl: is required", field)
	}
	var err error
	parsed.url, err = endpoint.ParseURL(r.URL, p.learned...)
	if r.URL != "" {
		p.check(field+"url: ", err)
	}
	if r.Body.Kind == "" && r.Body.Template == "" {
		r.Body.Kind = noBody
	}
	parsed.body, err = r.Body.parse()
	p.check(field+"body.", err)
	if parsed.method == http.MethodGet && parsed.body.kind != noBody {
		p.fail("%sbody: belongs to method POST: remove it", field)
	}
	parsed.rules, err = exchange.ParseRules(exchange.RuleOptions{Field: field, Answers: r.Answers, Reason: t.options.Reason})
	p.check("", err)
	pointer := func(key, text string) exchange.Pointer {
		at, err := exchange.ParsePointer(text)
		if err != nil {
			p.fail("%s%s: %w", field, key, err)
		}
		return at
	}
	for _, status := range r.Absent {
		if status < 200 || status > 499 {
			p.fail("%sabsent: %d is not a status from 200 to 499", field, status)
		}
	}
	parsed.items, parsed.version = pointer("items", r.Items), pointer("version", r.Version)
	parsed.found, parsed.equal = p.conditions(field+"found", r.Found), p.conditions(field+"equal", r.Equal)
	if len(parsed.equal) == 0 && parsed.version == nil && !t.removes() {
		p.fail("%sequal: is required, unless version is there: name the values that tell whether the receiver has this event", field)
	}
	if r.ExternalID != (Source{}) {
		parsed.id, err = r.ExternalID.parse()
		p.check(field+"external_id", err)
	}
	if r.ETag != (Source{}) {
		parsed.etag, err = r.ETag.parse()
		p.check(field+"etag", err)
	}
	learn := make(map[string]*source, len(r.Learn))
	for _, name := range slices.Sorted(maps.Keys(r.Learn)) {
		learn[name], err = r.Learn[name].parse()
		p.check(fmt.Sprintf("%slearn[%q]", field, name), err)
	}
	parsed.learn = merged(parsed.learn, learn)
	return parsed
}

func (p *routeParser) conditions(field string, matches []Match) (conditions []condition) {
	for i, m := range matches {
		at := fmt.Sprintf("%s[%d]", field, i)
		c := condition{field: m.Field, name: cmp.Or(m.Field, m.Path)}
		var err error
		if c.path, err = exchange.ParsePointer(m.Path); err != nil {
			p.fail("%s.path: %w", at, err)
		}
		switch {
		case m.Path == "":
			p.fail("%s.path: is required", at)
		case (m.Field == "") == (m.Equals == nil):
			p.fail("%s: write either field, the name of a mapped field, or equals, a value", at)
		case m.Equals != nil:
			if c.equals, err = decoded(m.Equals); err != nil || isContainer(c.equals) {
				p.fail("%s.equals: is not a single value: write a text, a number, true or false", at)
			}
		}
		conditions = append(conditions, c)
	}
	return conditions
}

func decoded(raw json.RawMessage) (v any, err error) {
	d := json.NewDecoder(strings.NewReader(string(raw)))
	d.UseNumber()
	err = d.Decode(&v)
	return v, err
}

func isContainer(v any) bool {
	switch v.(type) {
	case map[string]any, []any:
		return true
	}
	return false
}

// of returns the reading for the messages of another target, which has it from above.
func (r *reading) of(t *target) *reading {
	same := *r
	same.target = t
	return &same
}

// fields are the mapped fields that the reading uses.
func (r *reading) fields() (names []string) {
	if r == nil {
		return nil
	}
	names = slices.Concat(r.url.Fields(), r.body.fields())
	for _, c := range slices.Concat(r.found, r.equal) {
		if c.field != "" {
			names = append(names, c.field)
		}
	}
	return names
}

// removes reports whether a success of t means that the receiver has no record any more.
func (t *target) removes() bool {
	return t.method == http.MethodDelete || t.reference == forgetReference
}

// Reads implements [adapters.Reader]. A message cannot be read without a value for each
// placeholder of the URL, such as the receiver's id.
func (a *Adapter) Reads(msg adapters.Message) bool {
	to := a.find(msg)
	if to.read == nil {
		return false
	}
	_, err := to.read.request(&placeholder.Values{Msg: msg})
	return err == nil
}

// Read implements [adapters.Reader].
func (a *Adapter) Read(ctx context.Context, msg adapters.Message) (adapters.Reading, error) {
	to := a.find(msg)
	if to.read == nil {
		return adapters.Reading{}, adapters.Permanent(errors.New("read is not configured"))
	}
	v := &placeholder.Values{Msg: msg}
	req, err := to.read.request(v)
	if err != nil {
		return adapters.Reading{}, err
	}
	var found adapters.Reading
	receipt, err := to.endpoint.Deliver(ctx, to.read.url, req, func(ans exchange.Answer) (receipt adapters.Receipt, err error) {
		receipt.Code = ans.Code()
		found, err = to.read.judge(req, ans, v)
		return receipt, err
	})
	found.Code = receipt.Code
	found.More = found.Standing == adapters.Equal && a.more(msg)
	return found, err
}

// request builds the request, without authorization.
func (r *reading) request(v *placeholder.Values) (req exchange.Request, err error) {
	body, err := r.body.render(v)
	if err != nil {
		return req, adapters.Redacted(adapters.Permanent(fmt.Errorf("%s %s: body: %w", r.method, r.url.Target(), err)))
	}
	h := http.Header{"Accept": {"application/json"}}
	if req, err = r.target.endpoint.Request(r.method, r.url, v, h, body); err != nil {
		return req, err
	}
	req.Header.Del("Idempotency-Key") // a read needs none
	req.Header.Del("Content-Type")
	if r.body.contentType != "" {
		req.Header.Set("Content-Type", r.body.contentType)
	}
	return req, nil
}

// judge compares the answer with the message.
func (r *reading) judge(req exchange.Request, ans exchange.Answer, v *placeholder.Values) (adapters.Reading, error) {
	gone := ans.Status == http.StatusNotFound || ans.Status == http.StatusGone
	if slices.Contains(r.absent, ans.Status) || gone && r.rules.Explains(ans) || ans.Status == http.StatusNoContent {
		return r.none(v.Msg), nil
	}
	fail := func(text string) (adapters.Reading, error) {
		return adapters.Reading{}, fmt.Errorf("%s %s: answered %s, but %s", req.Method, req.Target, ans.Code(), text)
	}
	if ans.OK() && ans.IsPage() {
		return fail("its body is an HTML page, which is not the answer of an API: check url")
	}
	if receipt, err := r.rules.Judge(req, ans); err != nil {
		return adapters.Reading{}, err
	} else if receipt.Accepted {
		return fail("that is no answer to a read")
	}
	doc := ans.JSON()
	switch {
	case !doc.IsJSON():
		return fail("its body is not JSON, so nobody knows what the receiver has")
	case ans.Cut != nil:
		return fail("its body ended early")
	case ans.Partial:
		return adapters.Reading{}, adapters.Permanent(fmt.Errorf("%s %s: answered %s, but its body is longer than %d KiB: make url find only the record of this key",
			req.Method, req.Target, ans.Code(), exchange.MaxAnswer>>10))
	}
	records := []exchange.Document{doc}
	if r.items != nil {
		list, isList := doc.At(r.items)
		if !isList {
			return adapters.Reading{}, adapters.Permanent(fmt.Errorf("%s %s: answered %s, but items (%s) is not a list in its body",
				req.Method, req.Target, ans.Code(), "/"+strings.Join(r.items, "/")))
		}
		records = list
	}
	records = slices.DeleteFunc(records, func(record exchange.Document) bool { return differs(r.found, record, v) != "" })
	switch len(records) {
	case 0:
		return r.none(v.Msg), nil
	case 1:
		return r.compare(records[0], ans, v), nil
	}
	return adapters.Reading{Standing: adapters.Foreign, Differs: fmt.Sprintf("it has %d records of this key", len(records))}, nil
}

// none is the reading if the receiver has no record.
func (r *reading) none(msg adapters.Message) adapters.Reading {
	switch {
	case r.target.removes():
		return adapters.Reading{Standing: adapters.Equal, Ref: &adapters.Ref{Version: msg.Version}}
	case r.target.recreate:
		return adapters.Reading{Standing: adapters.Absent, Ref: &adapters.Ref{}}
	}
	return adapters.Reading{Standing: adapters.Absent}
}

// compare compares a record with the message.
func (r *reading) compare(record exchange.Document, ans exchange.Answer, v *placeholder.Values) adapters.Reading {
	reading := adapters.Reading{Standing: adapters.Older, Ref: r.ref(record, ans, v.Msg)}
	if r.target.removes() {
		return reading
	}
	what := differs(r.equal, record, v)
	theirs, known := record.Integer(r.version)
	switch {
	case !known || v.Msg.Version == nil:
		if what == "" && len(r.equal) > 0 {
			reading.Standing = adapters.Equal
		}
	case theirs > *v.Msg.Version:
		reading.Standing = adapters.Newer
	case theirs < *v.Msg.Version:
	case what == "":
		reading.Standing = adapters.Equal
	default:
		reading.Standing = adapters.Foreign
	}
	if reading.Standing != adapters.Equal && what != "" {
		reading.Differs = "it differs in " + what
	}
	return reading
}

// ref addresses the record that was read.
func (r *reading) ref(record exchange.Document, ans exchange.Answer, msg adapters.Message) *adapters.Ref {
	ref := &adapters.Ref{ExternalID: msg.Ref.ExternalID, Version: msg.Version, Learned: maps.Clone(msg.Ref.Learned)}
	header := ans.Header
	if r.items != nil {
		header = nil // it is not about this record
	}
	if r.id != nil {
		if r.id.from.Value != "" {
			ref.ExternalID, _ = r.id.choose(&placeholder.Values{Msg: msg})
		} else if id := r.id.in(record, header); exchange.IsRef(id) {
			ref.ExternalID = id
		}
	}
	ref.ETag = tagOf(r.etag, record, header)
	for name, from := range r.learn {
		if value := from.in(record, header); exchange.IsRef(value) {
			if ref.Learned == nil {
				ref.Learned = map[string]string{}
			}
			ref.Learned[name] = value
		}
	}
	return ref
}

// differs returns the names of the conditions that a record does not meet.
func differs(conditions []condition, record exchange.Document, v *placeholder.Values) string {
	var names []string
	for _, c := range conditions {
		want := c.equals
		if c.field != "" {
			want, _ = v.Lookup(c.field) // nil if it is missing
		}
		found := record.Find(c.path)
		if len(found) == 0 {
			found = []any{nil}
		}
		if !slices.ContainsFunc(found, func(theirs any) bool { return same(theirs, want) }) {
			names = append(names, c.name)
		}
	}
	return strings.Join(names, ", ")
}

// same compares two values. Two times with an offset are equal if they are the same instant
// (RFC 3339), two numbers if their values are, and a number is equal to a text of its digits.
// A value that is missing is equal to an empty text.
func same(a, b any) bool {
	if isContainer(a) || isContainer(b) {
		return reflect.DeepEqual(a, b)
	}
	textA, _ := placeholder.Text(a) // a value that is missing has none
	textB, _ := placeholder.Text(b)
	if textA == textB {
		return true
	}
	_, isNumberA := a.(json.Number)
	_, isNumberB := b.(json.Number)
	if isNumberA && isNumberB {
		return exchange.SameNumber(json.Number(textA), json.Number(textB))
	}
	timeA, errA := time.Parse(time.RFC3339Nano, textA)
	timeB, errB := time.Parse(time.RFC3339Nano, textB)
	return errA == nil && errB == nil && timeA.Equal(timeB)
}
