package exchange

import (
	"bytes"
	"encoding/json"
	"mime"
	"regexp"
	"strings"

	"github.com/hms-mkt/lockstep/adapters"
)

// maxReason bounds a text taken from an answer, in bytes.
const maxReason = 200

// Reason returns what an answer's body says about a failure, or "" if the body has none
// of the known forms. The caller redacts the text. Other text is not repeated, because
// it may have the payload in it.
//
//   - RFC 9457 problem details: title, type and instance, not detail
//   - HMCTS validation: errCode, errorDesc, errLinkId
//   - Azure AD and RFC 6749: error, error_codes, error_description
//   - HMCTS gateway: statusCode, message
func Reason(body []byte) string {
	var fields map[string]any
	d := json.NewDecoder(bytes.NewReader(body))
	d.UseNumber()
	if err := d.Decode(&fields); err != nil {
		return ""
	}
	return shape(fields)
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

// Redact is [adapters.Redact] for a text about r, short enough for an error.
func (r Request) Redact(text string) string {
	return adapters.Redact(text, maxReason, r.Payload, r.secrets()...)
}

// RedactSecrets is Redact for a text that the operator allows to have values of the
// message.
func (r Request) RedactSecrets(text string) string {
	return adapters.Redact(text, maxReason, nil, r.secrets()...)
}

func shape(fields map[string]any) string {
	f := func(name string) string { return scalar(fields[name]) }
	switch {
	case f("errCode")+f("errorDesc") != "":
		return join(": ", f("errCode"), f("errorDesc"), prefixed("errLinkId ", f("errLinkId")))
	case f("error")+f("error_codes")+f("error_description") != "":
		return join(": ", f("error"), f("error_codes"), f("error_description"))
	case f("message") != "":
		return join(": ", f("statusCode"), f("message"))
	}
	return join(", ", f("title"), prefixed("type ", withoutQuery(f("type"))), prefixed("instance ", withoutQuery(f("instance"))))
}

// scalar returns a string or number, or a list of them, as text; "" for others.
func scalar(v any) string {
	switch v := v.(type) {
	case string:
		return adapters.Clean(v, MaxAnswer)
	case json.Number:
		return v.String()
	case []any:
		parts := make([]string, 0, len(v))
		for _, e := range v {
			if _, nested := e.([]any); !nested {
				parts = append(parts, scalar(e))
			}
		}
		return join(", ", parts...)
	}
	return ""
}

func join(separator string, parts ...string) string {
	kept := parts[:0:0]
	for _, p := range parts {
		if p != "" {
			kept = append(kept, p)
		}
	}
	return strings.Join(kept, separator)
}

func prefixed(prefix, s string) string {
	if s == "" {
		return ""
	}
	return prefix + s
}

func withoutQuery(uri string) string {
	before, _, _ := strings.Cut(uri, "?")
	return before
}
