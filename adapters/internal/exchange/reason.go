package exchange

import (
	"bytes"
	"encoding/json"
	"maps"
	"mime"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/hms-mkt/lockstep/adapters"
)

// maxReason bounds a text taken from an answer, in bytes.
const maxReason = 300

// Bounds of what is read of a reason.
const (
	maxPart        = 200 // bytes of one text
	maxReasons     = 5   // reasons in a list
	maxReasonDepth = 5   // objects in objects
)

// Members of objects in which APIs give their reasons. Names are compared in lower case
// and without - and _. They come from RFC 9457, RFC 6749, JSON:API 1.1, FHIR's
// OperationOutcome, Spring, ASP.NET, Microsoft Graph, Google, Stoplight Prism and HMCTS.
var (
	// codeMembers have codes.
	codeMembers = []string{"errcode", "errorcode", "errorcodes", "code", "statuscode", "status", "severity", "error", "reason"}

	// textMembers have sentences.
	textMembers = []string{
		"title", "errordesc", "errdesc", "errordescription", "message", "errormessage", "defaultmessage", "msg", "detail", "details",
		"description", "diagnostics", "text",
	}

	// placeMembers have the place of the mistake, or a reference for the receiver's support.
	placeMembers = []string{
		"field", "property", "propertyname", "pointer", "parameter", "path", "location", "expression", "target", "domain", "type", "instance",
		"errlinkid", "correlationid", "traceid", "requestid",
	}

	// reasonMembers have further reasons: an object or a list of them.
	reasonMembers = []string{
		"error", "errors", "issue", "validation", "details", "violations", "fielderrors", "validationerrors", "invalidparams", "source",
		"coding", "innererror", "fault",
	}
)

// machine matches what a program names: codes, names of fields, pointers. It has no
// white space.
var machine = regexp.MustCompile(`^[A-Za-z0-9_/#$][A-Za-z0-9_./:#$~*+\[\]-]*$`)

// Reason returns what an answer says about a failure, or "" if it has none of the known
// forms. A part of it for which repeats returns true is not shown.
func (a Answer) Reason(repeats func(string) bool) string {
	if aboutCertificate(a.Body) {
		return "the receiver wants a client certificate, or refuses the one that was shown: check tls.cert_file"
	}
	r := reasons{status: strconv.Itoa(a.Status), repeats: repeats}
	var text string
	if doc := a.JSON(); doc.IsJSON() && !a.Partial {
		text = r.of(doc.root, 0)
	} else if media, _, _ := mime.ParseMediaType(a.Header.Get("Content-Type")); media == "text/plain" && len(a.Body) <= maxPart {
		plain, _ := a.Text("")
		text = r.shown(plain)
	}
	if repeats(text) { // two parts together
		text, r.hidden = "", true
	}
	switch text = adapters.Clean(text, maxReason-len(partHidden)); {
	case !r.hidden:
		return text
	case text == "":
		return "its reason is not shown, because it repeats what was sent"
	}
	return text + partHidden
}

// partHidden follows a reason of which a part is not shown.
const partHidden = " (a part is not shown, because it repeats what was sent)"

// Reason returns the reason of an answer to r, without what r has sent.
func (r Request) Reason(a Answer) string { return a.Reason(r.repeats) }

// repeats reports whether text has a secret of r, or a value of its payload.
func (r Request) repeats(text string) bool {
	if adapters.Repeats(text, nil, r.secrets()...) {
		return true
	}
	if len(r.Key) >= minKey {
		text = strings.ReplaceAll(text, r.Key, " ")
	}
	return adapters.Repeats(text, r.Payload)
}

// minKey is the length of a key that is no part of a word by chance, in bytes.
const minKey = 4

// Redact is [adapters.Redact] for a text about r, short enough for an error.
func (r Request) Redact(text string) string {
	if r.repeats(text) {
		return adapters.Hidden
	}
	return adapters.Redact(text, maxReason, nil)
}

// RedactSecrets is Redact for a text that the operator allows to have values of the
// message.
func (r Request) RedactSecrets(text string) string {
	return adapters.Redact(text, maxReason, nil, r.secrets()...)
}

// reasons reads the reasons of an answer.
type reasons struct {
	status  string // of the answer, which is no news
	repeats func(string) bool
	hidden  bool // something was not shown
}

// shown returns text in one line without its full stop, or "" if it must not be shown.
func (r *reasons) shown(text string) string {
	text = strings.TrimSuffix(strings.Join(strings.Fields(adapters.Clean(text, maxPart)), " "), ".")
	if r.repeats(text) {
		r.hidden = true
		return ""
	}
	return text
}

// of returns the reasons in a value.
func (r *reasons) of(v any, depth int) string {
	if depth > maxReasonDepth {
		return ""
	}
	switch v := v.(type) {
	case string:
		return r.shown(v)
	case []any:
		var all []string
		for _, e := range v[:min(len(v), maxReasons)] {
			if text := r.of(e, depth+1); !slices.Contains(all, text) {
				all = append(all, text)
			}
		}
		return join("; ", all...)
	case map[string]any:
		return r.object(v, depth)
	}
	return ""
}

func (r *reasons) object(object map[string]any, depth int) string {
	members, names := map[string]any{}, map[string]string{}
	for _, name := range slices.Sorted(maps.Keys(object)) {
		members[normal(name)], names[normal(name)] = object[name], name
	}
	var codes, texts, places, below []string
	for _, name := range codeMembers {
		switch text := r.scalar(members[name], ", "); {
		case text == r.status: // the status is in the message already
		case machine.MatchString(strings.ReplaceAll(text, ", ", "")):
			codes = append(codes, text)
		case !slices.Contains(texts, text):
			texts = append(texts, text)
		}
	}
	for _, name := range textMembers {
		if text := r.scalar(members[name], ", "); !slices.Contains(texts, text) {
			texts = append(texts, text)
		}
	}
	for _, name := range placeMembers {
		text, _, _ := strings.Cut(r.scalar(members[name], "/"), "?")
		if machine.MatchString(text) && text != "about:blank" {
			places = append(places, names[name]+" "+text)
		}
	}
	for _, name := range reasonMembers {
		switch v := members[name].(type) {
		case []any:
			if len(v) > 0 && scalar(v[0]) == "" {
				below = append(below, r.of(v, depth+1))
			} else if name == "errors" {
				texts = append(texts, r.scalar(v, "; "))
			}
		case map[string]any:
			below = append(below, r.of(v, depth+1))
			if name == "errors" {
				below = append(below, r.byField(v))
			}
		}
	}
	text := join(": ", join(", ", codes...), join(": ", texts...))
	return join("; ", join(", ", text, join(", ", places...)), join("; ", below...))
}

// byField reads an object that has texts by the names of fields, as ASP.NET's errors.
func (r *reasons) byField(object map[string]any) string {
	var all []string
	for _, field := range slices.Sorted(maps.Keys(object)) {
		known := slices.Concat(codeMembers, textMembers, placeMembers, reasonMembers)
		if slices.Contains(known, normal(field)) || len(all) == maxReasons {
			continue
		}
		if text := r.scalar(object[field], "; "); text != "" {
			name := r.shown(field)
			if !machine.MatchString(name) {
				name = ""
			}
			all = append(all, join(": ", name, text))
		}
	}
	return join("; ", all...)
}

// scalar returns a string or number, or a list of them, if it may be shown.
func (r *reasons) scalar(v any, separator string) string {
	list, ok := v.([]any)
	if !ok {
		list = []any{v}
	}
	var all []string
	for _, e := range list[:min(len(list), maxReasons)] {
		all = append(all, r.shown(scalar(e)))
	}
	return join(separator, all...)
}

// scalar returns a string or number as text, "" for other values.
func scalar(v any) string {
	switch v := v.(type) {
	case string:
		return v
	case json.Number:
		return v.String()
	}
	return ""
}

func normal(name string) string {
	return strings.NewReplacer("_", "", "-", "").Replace(strings.ToLower(name))
}

func join(separator string, parts ...string) string {
	return strings.Join(slices.DeleteFunc(slices.Clone(parts), func(p string) bool { return p == "" }), separator)
}

// Explained reports whether the body has a form in which an API gives its reasons: JSON
// or XML. A gateway whose receiver is down answers with a page, with plain text, or
// with nothing.
func (a Answer) Explained() bool {
	body := bytes.TrimSpace(bytes.TrimPrefix(bytes.TrimSpace(a.Body), []byte("\xef\xbb\xbf")))
	if len(body) == 0 {
		return false
	}
	media, _, _ := mime.ParseMediaType(a.Header.Get("Content-Type"))
	switch body[0] {
	case '{', '[', '"': // a number alone is no reason: a gateway may say "404"
		return isJSON(media) || json.Valid(body)
	case '<':
		return isXML(media) && !page.Match(body)
	}
	return false
}

func isJSON(media string) bool {
	return media == "application/json" || media == "text/json" || strings.HasSuffix(media, "+json")
}

func isXML(media string) bool {
	return media == "application/xml" || media == "text/xml" || strings.HasSuffix(media, "+xml") && media != "application/xhtml+xml"
}

// page matches a text that begins like an HTML page, with any Content-Type.
var page = regexp.MustCompile(`(?i)^(?:<\?[^>]*>|<!--(?s:.*?)-->|\s)*(?:<!doctype html|<html)`)
