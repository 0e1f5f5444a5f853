package rest

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/adapters/internal/endpoint"
	"github.com/hms-mkt/lockstep/adapters/internal/exchange"
	"github.com/hms-mkt/lockstep/adapters/internal/route"
)

// What a success does to the reference of the key.
const (
	updateReference = "update"
	keepReference   = "keep"
	forgetReference = "forget"
)

// target is where some messages go, and what their answers mean.
type target struct {
	route      adapters.Route
	method     string
	url        *endpoint.URL
	endpoint   *endpoint.Endpoint
	body       body
	ifMatch    string
	reference  string
	options    exchange.RuleOptions
	rules      exchange.Rules
	externalID *source
	etag       *source // nil: the header ETag
	learn      map[string]*source
	recreate   bool // 404 and 410 mean that the record is to be created again
	skips      bool // nothing is sent without the receiver's id
	creates    bool // updates of a record whose id is not known are sent by it too, as new records
	read       *reading
	then       []*target // the further steps

	// While the configuration is read: the target above, the place of the route in errors,
	// and its headers.
	above   *target
	field   string
	ownURL  bool
	headers map[string]adapters.Secret
}

// choice are the targets of some event types.
type choice struct {
	unknown *target // used unless the receiver's id of the key is known
	known   *target // nil: unknown is used
}

// find returns the target of a message.
func (a *Adapter) find(msg adapters.Message) *target {
	to := a.routes.Find(msg.Type)
	if then := to.then(); msg.Step > 0 && len(then) > 0 {
		return then[min(msg.Step, len(then))-1]
	}
	if to.known != nil && msg.Ref.ExternalID != "" {
		return to.known
	}
	return to.unknown
}

// then are the further steps, which only one of the two targets has.
func (c choice) then() []*target {
	if c.known != nil && len(c.known.then) > 0 {
		return c.known.then
	}
	return c.unknown.then
}

// more reports whether another step follows the one that the message is at.
func (a *Adapter) more(msg adapters.Message) bool {
	if msg.Step > 0 {
		return msg.Step < len(a.routes.Find(msg.Type).then())
	}
	return len(a.find(msg).then) > 0
}

// routeParser makes targets of a configuration, and collects its mistakes.
type routeParser struct {
	learned  []string // of all routes
	targets  []*target
	warnings []string
	errs     []error
}

// parse reads everything but the headers, which need the endpoint.
func (p *routeParser) parse(c Config) route.Table[choice] {
	top := p.target(nil, adapters.Route{}, "", c.request())
	if c.URL == "" {
		p.fail("url: is required")
	}
	fallback := choice{unknown: top, known: p.known(top, adapters.Route{Name: "known", Keys: []string{"known"}}, "known.", c.Known)}
	routes := map[string]choice{}
	for _, pattern := range slices.Sorted(maps.Keys(c.Routes)) {
		r, field := c.Routes[pattern], fmt.Sprintf("routes[%q].", pattern)
		if pattern == "" {
			p.fail(`routes[""]: name an event type, or a pattern such as "scheduling:*"`)
			continue
		}
		if r.isEmpty() && r.Known == nil && r.WithoutID == "" {
			p.fail("routes[%q]: is empty: set method, url or another key, or remove the route", pattern)
			continue
		}
		if c.Known != nil && r.Known == nil && r.Method == "" && r.URL == "" {
			p.fail("routes[%q]: known is above and not here, so this would be sent as new for a hearing that the receiver has: write known or method here", pattern)
		}
		to := p.target(top, adapters.Route{Name: pattern, Keys: []string{"routes", pattern}}, field, r.Request)
		if r.Method != "" && to.method != http.MethodPost && to.method != top.method {
			p.refusals(to, field, r.Outcomes)
		}
		if to.skips = r.WithoutID == "skip"; r.WithoutID != "" && !to.skips {
			p.fail("%swithout_id: %q is not skip", field, r.WithoutID)
		}
		known := adapters.Route{Name: pattern + "/known", Keys: []string{"routes", pattern, "known"}, Parent: pattern}
		chosen := choice{unknown: to, known: p.known(to, known, field+"known.", r.Known)}
		to.then = p.steps(top, to.route, field, r.Then)
		if r.Known != nil && len(r.Known.Then) > 0 && len(r.Then) > 0 {
			p.fail("%sthen: belongs to the route or to its known, not to both: the next step would not know which it belongs to", field)
		}
		routes[pattern] = chosen
	}
	return route.New(routes, fallback)
}

func (p *routeParser) fail(format string, args ...any) {
	p.errs = append(p.errs, fmt.Errorf(format, args...))
}

// check adds the errors that err joins, each with its field.
func (p *routeParser) check(field string, err error) {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		for _, err := range joined.Unwrap() {
			p.check(field, err)
		}
	} else if err != nil {
		p.fail("%s%w", field, err)
	}
}

func (p *routeParser) known(above *target, as adapters.Route, field string, k *Known) *target {
	if k == nil {
		return nil
	}
	if k.isEmpty() {
		p.fail("%s: is empty: set method, url or another key, or remove known", strings.TrimSuffix(field, "."))
	}
	t := p.target(above, as, field, k.Request)
	p.refusals(t, field, k.Outcomes)
	above.creates = above.method != http.MethodDelete && above.reference == updateReference
	t.then = p.steps(above, as, field, k.Then)
	switch k.Gone {
	case "":
	case "create":
		t.recreate = true
	default:
		p.fail("%sgone: %q is not create", field, k.Gone)
	}
	return t
}

// target reads the settings of one route. It has the others from the target above.
func (p *routeParser) target(above *target, as adapters.Route, field string, own Request) *target {
	t := &target{}
	if above != nil {
		*t = *above
	}
	t.route, t.above, t.field, t.headers, t.ownURL = as, above, field, own.Headers, own.URL != ""
	t.creates, t.skips, t.then = false, false, nil
	p.targets = append(p.targets, t)
	var err error
	if own.Method != "" {
		t.method = own.Method
		if !slices.Contains([]string{"POST", "PUT", "PATCH", "DELETE"}, t.method) {
			p.fail("%smethod: %q cannot carry a message; use POST, PUT, PATCH or DELETE", field, t.method)
		}
	}
	if own.URL != "" {
		t.url, err = endpoint.ParseURL(own.URL, p.learned...)
		p.check(field+"url: ", err)
	}
	if own.IfMatch != "" {
		t.ifMatch = own.IfMatch
		if !slices.Contains([]string{"true", "false", "weak", "any"}, t.ifMatch) {
			p.fail("%sif_match: %q is not true, false, weak or any", field, t.ifMatch)
		}
	}
	t.reference = cmp.Or(own.Reference, t.reference, updateReference)
	switch {
	case !slices.Contains([]string{updateReference, keepReference, forgetReference}, t.reference):
		p.fail("%sreference: %q is not update, keep or forget", field, t.reference)
	case t.reference != updateReference && own.Require == adapters.RequireID:
		p.fail("%srequire: does not go with reference: %s, which needs no id: remove one of them", field, t.reference)
	}
	if above == nil || !own.Body.isZero() {
		t.body, err = own.Body.parse()
		p.check(field+"body.", err)
	}
	t.route.Flat = t.body.kind == formBody
	p.rules(t, field, own)
	if own.ExternalID != (Source{}) {
		t.externalID, err = own.ExternalID.parseID()
		p.check(field+"external_id", err)
	}
	if own.ETag != (Source{}) {
		t.etag, err = own.ETag.parse()
		p.check(field+"etag", err)
	}
	where := ""
	if t.externalID != nil {
		where = t.externalID.String()
	}
	p.check(field, exchange.CheckRequire(own.Require, where))
	learn := make(map[string]*source, len(own.Learn))
	for _, name := range slices.Sorted(maps.Keys(own.Learn)) {
		learn[name], err = own.Learn[name].parse()
		p.check(fmt.Sprintf("%slearn[%q]", field, name), err)
	}
	t.learn = merged(t.learn, learn)
	if own.Read != nil {
		t.read = own.Read.parse(p, t, field)
	} else if t.read != nil && t.reference != keepReference {
		t.read = t.read.of(t)
	} else {
		t.read = nil // it tells nothing about a request for a part of the record
	}
	return t
}

// steps reads the further requests of an event. What they leave out, they have from above.
func (p *routeParser) steps(above *target, as adapters.Route, field string, steps []Request) (then []*target) {
	for i, step := range steps {
		at := fmt.Sprintf("%sthen[%d].", field, i)
		if step.isEmpty() {
			p.fail("%sthen[%d]: is empty: set method, url or another key, or remove it", field, i)
			continue
		}
		then = append(then, p.target(above, adapters.Route{
			Name: fmt.Sprintf("%s/then/%d", as.Name, i+1), Keys: slices.Concat(as.Keys, []string{"then", strconv.Itoa(i)}),
		}, at, step))
	}
	if len(steps) >= maxSteps {
		p.fail("%sthen: has %d steps, but at most %d are sent for an event", field, len(steps), maxSteps-1)
	}
	return then
}

// maxSteps is the most requests for one event. The relay has the same bound.
const maxSteps = 16

// rules reads what the answers mean.
func (p *routeParser) rules(t *target, field string, own Request) {
	_, err := exchange.ParseRules(exchange.RuleOptions{
		Field: field, Outcomes: own.Outcomes, Answers: own.Answers, Reason: own.Reason, Require: own.Require,
	})
	if err != nil {
		p.errs = append(p.errs, err)
		return
	}
	t.options.Outcomes = merged(t.options.Outcomes, own.Outcomes)
	if own.Answers != nil {
		t.options.Answers = own.Answers
	}
	t.options.Reason = cmp.Or(own.Reason, t.options.Reason)
	t.options.Require = cmp.Or(own.Require, t.options.Require)
	t.rules, _ = exchange.ParseRules(t.options) // its parts are right
}

// refusals warns if t, which changes or deletes a record, has an outcome duplicate from above,
// where it is about new records. 404 and 410 may well say that a record is deleted already.
func (p *routeParser) refusals(t *target, field string, own map[int]string) {
	request, done := "an update", "the receiver has this update already"
	if t.method == http.MethodDelete {
		request, done = "a DELETE", "the record is deleted already"
	}
	for _, status := range slices.Sorted(maps.Keys(t.options.Outcomes)) {
		_, named := own[status]
		gone := t.method == http.MethodDelete && (status == http.StatusNotFound || status == http.StatusGone)
		if named || gone || status < http.StatusMultipleChoices || t.options.Outcomes[status] != string(adapters.ClassDuplicate) {
			continue
		}
		p.warnings = append(p.warnings, fmt.Sprintf("%[1]soutcomes: has %[2]d: duplicate from above, so %[3]s that the receiver refuses with %[2]d counts as delivered: "+
			"write outcomes: {%[2]d: conflict} here, or {%[2]d: duplicate} if it means that %[4]s", field, status, request, done))
	}
}

// learnedNames returns the names of learnt values of all routes.
func (c Config) learnedNames() (names []string, err error) {
	var errs []error
	var all []map[string]Source
	add := func(requests ...Request) {
		for _, r := range requests {
			if all = append(all, r.Learn); r.Read != nil {
				all = append(all, r.Read.Learn)
			}
		}
	}
	known := func(k *Known) {
		if k != nil {
			add(k.Request)
			add(k.Then...)
		}
	}
	add(c.request())
	known(c.Known)
	for _, r := range c.Routes {
		add(r.Request)
		add(r.Then...)
		known(r.Known)
	}
	for _, learn := range all {
		names = slices.AppendSeq(names, maps.Keys(learn))
	}
	slices.Sort(names)
	names = slices.Compact(names)
	for _, name := range names {
		if !learnName.MatchString(name) || name == "external_id" || name == "etag" {
			errs = append(errs, fmt.Errorf("learn[%q]: may have only letters, digits and _, and must not be external_id or etag", name))
		}
	}
	if len(names) > adapters.MaxLearned {
		errs = append(errs, fmt.Errorf("learn: has %d names with those of the routes, but at most %d are kept", len(names), adapters.MaxLearned))
	}
	return names, errors.Join(errs...)
}

// unknownIDs warns of settings that need the receiver's id, if no route learns it.
func (p *routeParser) unknownIDs() (warnings []string) {
	if slices.ContainsFunc(p.targets, func(t *target) bool { return t.externalID != nil }) {
		return nil
	}
	const why = "needs the receiver's id, but external_id is not configured, so the id is known only if somebody sets it with lockstep ref set or ref import: write external_id"
	for _, t := range p.targets {
		switch {
		case strings.HasSuffix(t.field, "known."):
			warnings = append(warnings, strings.TrimSuffix(t.field, ".")+": "+why)
		case t.ownURL && t.url.Uses("ref.external_id"):
			warnings = append(warnings, t.field+"url: "+why)
		}
	}
	return warnings
}

// eventIDs warns of a URL of a record that has the event's id where the receiver's is meant.
func (p *routeParser) eventIDs() (warnings []string) {
	for _, t := range p.targets {
		ofRecord := t.method == http.MethodDelete || t.method == http.MethodPatch ||
			t.method == http.MethodPut && strings.HasSuffix(t.field, "known.")
		if ofRecord && t.ownURL && t.url.Uses("id") && !t.url.Uses("ref.external_id") {
			warnings = append(warnings, t.field+"url: {id} is the id of the event, and every event has another: write {ref.external_id} for the receiver's id of the record")
		}
	}
	return warnings
}

// setEndpoints gives each target the endpoint with its headers, and the names of the
// fields that it uses.
func (p *routeParser) setEndpoints(e *endpoint.Endpoint) error {
	var errs []error
	for _, t := range p.targets { // those above first
		t.endpoint = e
		if t.above != nil {
			var err error
			t.endpoint, err = t.above.endpoint.With(t.field, t.headers)
			errs = append(errs, err)
		}
		t.route.Fields = slices.Concat(t.endpoint.Fields(), t.url.Fields(), t.body.fields(), t.externalID.fields(), t.read.fields())
	}
	return errors.Join(errs...)
}
