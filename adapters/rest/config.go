package rest

import (
	"encoding/json"
	"maps"
	"time"

	"github.com/hms-mkt/lockstep/adapters"
)

// DefaultMethod is the default of [Config.Method].
const DefaultMethod = "POST"

// Config describes one receiver. URLs, header values and body templates may have
// placeholders: see [Config.URL].
type Config struct {
	// URL is where messages go. Its path and query may have {id}, {idempotency_key},
	// {type}, {key}, {version}, {occurred_at}, {ref.external_id}, {ref.etag}, {ref.NAME}
	// for a value that Learn names, and {fields.NAME}; a dotted NAME reaches into objects.
	// Its host may have {fields.NAME} if Allow lists the possible hosts. Values are
	// escaped, so that they cannot add a path segment or a query. Put credentials into
	// Auth. Required.
	URL string `yaml:"url" required:"adapter" pattern:"^[Hh][Tt][Tt][Pp][Ss]?://." doc:"Where messages go. It may have placeholders such as {key} and {ref.external_id}."`

	// Method is POST, PUT, PATCH or DELETE. Default: POST.
	Method string `yaml:"method" oneof:"POST|PUT|PATCH|DELETE" doc:"Method of the request. Default: POST, or that of the level above."`

	// Headers are sent with every request. Values may have the placeholders of URL. They
	// are never printed, because some are credentials.
	Headers map[string]adapters.Secret `yaml:"headers" keys:"header" doc:"Headers of every request. They are never printed."`

	// Body says how the mapped fields are written. Default: as one JSON object.
	Body Body `yaml:"body" doc:"How the mapped fields are written. Default: one JSON object."`

	// Auth says how requests are authorized. Default: no authorization.
	Auth adapters.Credentials `yaml:"auth" doc:"How requests are authorized. Default: none."`

	// TLS says which certificates to trust and which client certificate to show.
	TLS adapters.TLS `yaml:"tls" doc:"Certificates to trust, and the client certificate."`

	// Proxy is the URL of the proxy for all requests, such as
	// http://user:password@proxy.example:3128, or none. Its scheme is http, https or
	// socks5. Default: the proxy of the environment.
	Proxy adapters.Secret `yaml:"proxy" doc:"URL of the proxy, or none. Default: the proxy of the environment."`

	// Timeout bounds a request, from the name lookup to the end of the answer. It is
	// from 10ms to 10m. Default: 15s.
	Timeout time.Duration `yaml:"timeout" doc:"Longest time of a request, to the end of the answer: 10ms to 10m. Default: 15s."`

	// Allow lists the hosts that data may name, for a URL with a placeholder in its
	// host.
	Allow adapters.Allow `yaml:"allow" doc:"Hosts and networks that a host from data may be in."`

	// Known is used instead of the settings above while the receiver's id of the key is
	// known, for event types without a route.
	Known *Known `yaml:"known" doc:"What is different when the receiver's id is known, such as an update."`

	// Routes give event types their own settings. The key is a type, or a pattern in
	// which * is any number of characters. An exact type wins, then the pattern with the
	// most other characters.
	Routes map[string]Route `yaml:"routes" keys:"event" doc:"What is different for an event type."`

	// ExternalID is where an answer has the receiver's own id, or the id itself if the
	// sender chooses it. Default: no id is read.
	ExternalID Source `yaml:"external_id" doc:"Where the receiver's own id is in its answer."`

	// ETag is where an answer has the ETag for IfMatch. A value without quotes is put in
	// quotes. Default: the header ETag.
	ETag Source `yaml:"etag" doc:"Where the ETag is in the answer. Default: the header ETag."`

	// Learn gives names to other values of an answer that later requests need. They are
	// {ref.NAME} in URLs and headers, and ref.NAME in expressions.
	Learn map[string]Source `yaml:"learn" doc:"Values of the answer that later requests need, by name."`

	// Reference says what a success does to the reference of the key, which is the
	// receiver's id, the ETag and the learnt values:
	//   - update: it takes from the answer what the answer has
	//   - keep: it stays as it is, for requests about a part of the record; no id is
	//     required
	//   - forget: it is forgotten, for requests that remove the record, so that a later
	//     event of the key creates it again; no id is required
	//
	// Default: update.
	Reference string `yaml:"reference" oneof:"update|keep|forget" doc:"What a success does to the stored reference of the key. Default: update."`

	// IfMatch sends the ETag that the receiver answered last for the key as If-Match
	// (RFC 9110, 13.1.1): "false", "true" for strong ETags, "weak" for weak ones too, for
	// receivers such as FHIR servers that compare them, or "any": as "true", and * while
	// the id is known but no strong ETag. Default: false.
	IfMatch string `yaml:"if_match" oneof:"true|false|weak|any" doc:"Whether a request has the stored ETag in If-Match. weak: weak ETags too. any: * while none is known. Default: false."`

	// Outcomes gives statuses another class than the default table has, such as 409:
	// duplicate. Default: the table in docs/adapters.md.
	Outcomes map[int]string `yaml:"outcomes" keys:"status" oneof:"delivered|duplicate|accepted|transient|throttled|auth|forbidden|permanent|conflict|unknown" doc:"Class by status, instead of that of the default table."`

	// Answers give answers a class by what is in their JSON bodies. Default: only the
	// status counts.
	Answers []adapters.Answer `yaml:"answers" doc:"Answers that mean something else than their status. The first that matches counts."`

	// Require is external_id if every success must have the receiver's id, or nothing if
	// none must. Otherwise the result is unknown. Default: with ExternalID, a success
	// must have the id until it is known, but not a 202 or a duplicate. A DELETE never
	// must.
	Require string `yaml:"require" oneof:"external_id|nothing" doc:"external_id: every success must have the receiver's id. nothing: no success must have it."`

	// Reason is a JSON Pointer to the reason in answers. Its text is shown, so it must
	// name nobody. Default: the reason in the known forms.
	Reason string `yaml:"reason" pattern:"^/" doc:"JSON Pointer of the reason in an answer that refuses."`

	// Read says how the receiver is asked what it has, after a lost answer or a conflict.
	// Default: it is not asked.
	Read *Read `yaml:"read" doc:"How the receiver is asked what it has, before a message is sent again whose answer was lost."`

	// List says how the receiver's records are listed, for lockstep reconcile. Default: they
	// cannot be listed.
	List *List `yaml:"list" doc:"How the receiver's records are listed, for lockstep reconcile."`

	// Hidden are values of bodies, such as a key in a template, that no error may
	// repeat. A configuration file has them as ${…} in body.
	Hidden []adapters.Secret `yaml:"-"`
}

// Request are the settings of a route. What it leaves out, it has from the settings
// above it.
type Request struct {
	Method string `yaml:"method" oneof:"POST|PUT|PATCH|DELETE" doc:"Method of the request. Default: POST, or that of the level above."`                    // default: that above
	URL    string `yaml:"url" pattern:"^[Hh][Tt][Tt][Pp][Ss]?://." doc:"Where messages go. It may have placeholders such as {key} and {ref.external_id}."` // default: that above

	// Headers are sent in addition to those above. One of the same name replaces it, or
	// leaves it out if its value is empty.
	Headers map[string]adapters.Secret `yaml:"headers" keys:"header" doc:"Headers of every request. They are never printed."`

	// Mapping and Compute make other fields than those of the sync. A route with one of
	// them has none of the fields above it. See [adapters.Mapped].
	Mapping adapters.Mapped   `yaml:"mapping" doc:"Mapping of this route, in place of the one of the sync."`
	Compute adapters.Computed `yaml:"compute" doc:"Computed fields of this route, in place of those of the sync."`

	Body       Body              `yaml:"body" doc:"How the mapped fields are written. Default: one JSON object."`                                                                                                                // default: that above
	ExternalID Source            `yaml:"external_id" doc:"Where the receiver's own id is in its answer."`                                                                                                                        // default: that above
	ETag       Source            `yaml:"etag" doc:"Where the ETag is in the answer. Default: the header ETag."`                                                                                                                  // default: that above
	Learn      map[string]Source `yaml:"learn" doc:"Values of the answer that later requests need, by name."`                                                                                                                    // in addition to those above
	Reference  string            `yaml:"reference" oneof:"update|keep|forget" doc:"What a success does to the stored reference of the key. Default: update."`                                                                    // default: that above
	IfMatch    string            `yaml:"if_match" oneof:"true|false|weak|any" doc:"Whether a request has the stored ETag in If-Match. weak: weak ETags too. any: * while none is known. Default: false."`                        // default: that above
	Outcomes   map[int]string    `yaml:"outcomes" keys:"status" oneof:"delivered|duplicate|accepted|transient|throttled|auth|forbidden|permanent|conflict|unknown" doc:"Class by status, instead of that of the default table."` // in addition to those above, which they replace by status
	Answers    []adapters.Answer `yaml:"answers" doc:"Answers that mean something else than their status. The first that matches counts."`                                                                                       // default: those above
	Require    string            `yaml:"require" oneof:"external_id|nothing" doc:"external_id: every success must have the receiver's id. nothing: no success must have it."`                                                    // default: that above
	Reason     string            `yaml:"reason" pattern:"^/" doc:"JSON Pointer of the reason in an answer that refuses."`                                                                                                        // default: that above
	Read       *Read             `yaml:"read" doc:"How the receiver is asked what it has, before a message is sent again whose answer was lost."`                                                                                // default: that above
}

// Read is a request that asks what the receiver has of a key. It changes nothing.
//
// Without Version, the receiver has this message if all of Equal hold, and otherwise an
// earlier state. With Version, the numbers decide, and Equal tells whether somebody else
// changed the record. For a message that removes a record (DELETE, or reference: forget), no
// record means that it is done.
type Read struct {
	// URL is asked. It may have the placeholders of [Config.URL]. While one has no value,
	// such as the receiver's id, the receiver is not asked. Required.
	URL string `yaml:"url" required:"adapter" pattern:"^[Hh][Tt][Tt][Pp][Ss]?://." doc:"URL that is asked. It may have placeholders, such as {ref.external_id} or {fields.case_reference}."`

	// Method is GET, or POST for receivers whose searches are POST. Default: GET.
	Method string `yaml:"method" oneof:"GET|POST" doc:"Method of the request: GET, or POST for a search. Default: GET."`

	// Body is that of a POST. Default: none.
	Body Body `yaml:"body" doc:"Body of a POST. Default: none."`

	// Absent are statuses that mean that there is no record, whatever their body says.
	// Default: a 404 or 410 with a reason in its body, so not that of a gateway, and 204.
	Absent []int `yaml:"absent" doc:"Statuses that mean that there is no record. Default: 204, and 404 and 410 with a reason."`

	// Answers give answers a class by what is in their bodies, such as an error in a 200.
	// Default: only the status counts.
	Answers []adapters.Answer `yaml:"answers" doc:"Answers that mean something else than their status. The first that matches counts."`

	// Items is a JSON Pointer to the list of records in the answer, or / for an answer
	// that is a list. An empty list means that there is no record. Default: the answer is
	// the record.
	Items string `yaml:"items" pattern:"^/" doc:"JSON Pointer to the list of records that were found, / if the answer is a list. Default: the answer is the record."`

	// Found are the conditions that the record of this key meets; records that do not meet
	// them are left out. Default: all records count.
	Found []Match `yaml:"found" doc:"Conditions that the record of this key meets. Others are left out."`

	// Equal are the conditions that a record meets if the receiver has this message. Name
	// only what the receiver keeps as it was sent. Required, unless Version is there or the
	// message removes the record.
	Equal []Match `yaml:"equal" doc:"Conditions that the record meets if the receiver has this message."`

	// Version is a JSON Pointer to the version of the event that the record shows. It is
	// compared as a number.
	Version string `yaml:"version" pattern:"^/" doc:"JSON Pointer to the version of the event in the record."`

	ExternalID Source            `yaml:"external_id" doc:"Where the receiver's own id is in the record. Default: as in answers."`         // default: as in answers
	ETag       Source            `yaml:"etag" doc:"Where the ETag is in the record. Default: as in answers, and not of a list's header."` // default: as in answers
	Learn      map[string]Source `yaml:"learn" doc:"Values of the record that later requests need, by name."`                             // in addition to those of answers
}

// List is a request for all records of the receiver, page after page.
type List struct {
	// URL is the first page. It may have {from} and {to}, the bounds of the window as times
	// in UTC, and {cursor}, what Next found on the page before; on the first page, a
	// parameter with it is left out. Required.
	URL string `yaml:"url" required:"adapter" pattern:"^[Hh][Tt][Tt][Pp][Ss]?://." doc:"URL of the list. It may have {from}, {to} and {cursor}."`

	// Items is a JSON Pointer to the list in a page. Default: the page is the list.
	Items string `yaml:"items" pattern:"^/" doc:"JSON Pointer to the list in a page. Default: the page is a list."`

	// Next is where a page has the URL of the next one, or the value of {cursor}. Of the
	// header Link it is the relation next. It is followed only to the same host. Default:
	// there is one page.
	Next Source `yaml:"next" doc:"Where a page has the URL of the next page, or the value of {cursor}. header: Link is its relation next."`

	// Key is a JSON Pointer to the event's key in a record. Required.
	Key string `yaml:"key" required:"adapter" pattern:"^/" doc:"JSON Pointer to the event's key in a record."`

	// Found are the conditions that our records meet. Others are foreign, and left alone.
	Found []Match `yaml:"found" doc:"Conditions that our records meet. Others are left alone."`

	// Fields are the mapped fields that are compared, with the JSON Pointers to them in a
	// record. Name only what the receiver keeps as it was sent. Required.
	Fields map[string]string `yaml:"fields" required:"adapter" keys:"field" pattern:"^/" doc:"Mapped fields that are compared, and where a record has them."`

	// At is the field that has the time of a record, for windows.
	At string `yaml:"at" doc:"Which of fields has the time of a record."`

	// Cancelled is the condition that a cancelled record meets.
	Cancelled Match `yaml:"cancelled" doc:"Condition that a cancelled record meets: path and equals."`

	// Version is a JSON Pointer to the version of the event that the record shows.
	Version string `yaml:"version" pattern:"^/" doc:"JSON Pointer to the version of the event in a record."`

	ExternalID Source `yaml:"external_id" doc:"Where the receiver's own id is in a record. Default: as in answers."` // default: as in answers
	ETag       Source `yaml:"etag" doc:"Where the ETag is in a record. Default: as in answers."`                     // default: as in answers
}

// Match is a condition on a record. Two times with an offset are equal if they are the same
// instant, and a value that is missing is equal to an empty text.
type Match struct {
	// Path is a JSON Pointer (RFC 6901) into the record. Required.
	Path string `yaml:"path" required:"adapter" pattern:"^/" doc:"JSON Pointer into the record."`

	// Field is the mapped field whose value must be there; a dotted name reaches into
	// objects. Set it or Equals.
	Field string `yaml:"field" doc:"Mapped field whose value must be there."`

	// Equals is the value that must be there: a text, a number, true or false, as JSON.
	Equals json.RawMessage `yaml:"equals" doc:"Value that must be there."`
}

// Route is where events of some types go.
type Route struct {
	Request `yaml:",inline"`

	// Known is used instead while the receiver's id of the key is known.
	Known *Known `yaml:"known" doc:"What is different when the receiver's id is known, such as an update."`

	// WithoutID says what happens if {ref.external_id} is needed and not known. With
	// "skip" nothing is sent and the delivery is finished as filtered, for the
	// cancellation of a record that was never created. Default: the delivery fails.
	WithoutID string `yaml:"without_id" oneof:"skip" doc:"skip: without the receiver's id nothing is sent, and the delivery is finished as filtered."`

	// Then are further requests for the same event, for receivers that need several, such
	// as a cancellation and a new booking. Each is sent after the one before has succeeded,
	// as a step of its own with its own idempotency key, also after a crash. What a step
	// leaves out, it has from the settings above the route, not from the step before. Only
	// one of a route and its Known may have it.
	Then []Request `yaml:"then" doc:"Further requests for the same event, one after the other, each after the one before has succeeded."`
}

// Known is what is sent while the receiver's id of the key is known, such as an update.
type Known struct {
	Request `yaml:",inline"`

	// Gone says what happens if the receiver answers that it has no such record (404 or
	// 410). With "create" the id is forgotten, and the next attempt goes where events of
	// unknown id go. Default: the delivery fails.
	Gone string `yaml:"gone" oneof:"create" doc:"create: a record that is gone is created again."`

	// Then are further requests for the same event, see [Route.Then].
	Then []Request `yaml:"then" doc:"Further requests for the same event, one after the other, each after the one before has succeeded."`
}

// Source is where a value is in an answer: in its body or in one of its headers. Set one of
// Path, Header and Value.
type Source struct {
	// Path is a JSON Pointer (RFC 6901), such as /id. A configuration may have it alone.
	Path string `yaml:"path" short:"true" pattern:"^/" empty:"write a JSON Pointer such as /id, or remove the key; a route whose answers are not about the record has reference: keep" doc:"JSON Pointer into the body of the answer."`

	// Header is the name of a header. Of a Location or Content-Location the last segment
	// of the path is the value, of others the whole value.
	Header string `yaml:"header" doc:"Name of a header of the answer."`

	// Match is a regular expression with one group, which is the value that is taken of
	// the header, such as /Appointment/([^/]+). Default: as Header says.
	Match string `yaml:"match" doc:"Regular expression with one group, which is the value that is taken of the header."`

	// Value is the value itself, for an ExternalID that the sender chooses, such as
	// {key}. It may have the placeholders of [Config.URL] but {ref.…}. The receiver knows
	// it after a success.
	Value string `yaml:"value" doc:"Value that the sender chooses, such as {key}."`
}

// Body says how the body of a request is made of the mapped fields.
type Body struct {
	// Kind is
	//   - json: one JSON object
	//   - list: a JSON list of that one object
	//   - form: application/x-www-form-urlencoded; fields with objects are refused
	//   - template: Template
	//   - none: no body and no Content-Type
	//
	// Default: json.
	Kind string `yaml:"kind" oneof:"json|list|form|template|none" short:"true" doc:"Form of the body."`

	// Template is the text of a body, with {fields.NAME} and the other placeholders but
	// {ref.…}. A line with {fields.NAME?} is left out if the field is missing. A word in
	// braces is always a placeholder; other braces are sent as they are.
	Template string `yaml:"template" needed:"template" doc:"Text of the body with placeholders."`

	// ContentType is the header Content-Type. It is required for a template. Default:
	// that of Kind.
	ContentType string `yaml:"content_type" doc:"Content-Type of the body. Default: that of its kind."`

	// Escape says how a template's values are escaped: xml, json (inside a string),
	// calendar (TEXT of RFC 5545; the lines of the body are folded too), form or none.
	// Default: by ContentType.
	Escape string `yaml:"escape" of:"template" oneof:"xml|json|calendar|form|none" doc:"How values are escaped in a template."`

	// Omit are fields that the body leaves out, because only the URL or a header uses
	// them.
	Omit []string `yaml:"omit" doc:"Mapped fields that are only for placeholders, and not in the body."`
}

func (b Body) isZero() bool {
	return b.Kind == "" && b.Template == "" && b.ContentType == "" && b.Escape == "" && len(b.Omit) == 0
}

// request returns the settings of all events without a route.
func (c Config) request() Request {
	r := Request{
		Method: c.Method, URL: c.URL, Headers: c.Headers, Body: c.Body,
		ExternalID: c.ExternalID, ETag: c.ETag, Learn: c.Learn, Reference: c.Reference, IfMatch: c.IfMatch, Outcomes: c.Outcomes,
		Answers: c.Answers, Require: c.Require, Reason: c.Reason, Read: c.Read,
	}
	if r.Method == "" {
		r.Method = DefaultMethod
	}
	return r
}

// isEmpty reports whether the route sets nothing.
func (r Request) isEmpty() bool {
	return r.Method == "" && r.URL == "" && len(r.Headers) == 0 && !bool(r.Mapping) && !bool(r.Compute) && r.Body.isZero() &&
		r.ExternalID == (Source{}) && r.ETag == (Source{}) && len(r.Learn) == 0 && r.Reference == "" && r.IfMatch == "" && len(r.Outcomes) == 0 && len(r.Answers) == 0 && r.Require == "" && r.Reason == "" && r.Read == nil
}

func merged[K comparable, V any](above, own map[K]V) map[K]V {
	if len(own) == 0 {
		return above
	}
	all := make(map[K]V, len(above)+len(own))
	maps.Copy(all, above)
	maps.Copy(all, own)
	return all
}
