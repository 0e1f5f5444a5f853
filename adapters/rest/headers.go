package rest

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strings"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/adapters/internal/exchange"
)

// reserved are headers that a configuration cannot set, with the reason.
var reserved = map[string]string{
	"Idempotency-Key":     "is set to the event's id",
	"If-Match":            "is set by if_match",
	"Traceparent":         "comes from the event's headers",
	"Tracestate":          "comes from the event's headers",
	"Accept-Encoding":     "is negotiated",
	"Content-Encoding":    "is negotiated",
	"Content-Length":      "is computed",
	"Host":                "comes from the url",
	"Expect":              "is not supported",
	"Connection":          "belongs to the connection",
	"Keep-Alive":          "belongs to the connection",
	"Proxy-Authorization": "belongs to the connection",
	"Proxy-Connection":    "belongs to the connection",
	"Te":                  "belongs to the connection",
	"Trailer":             "belongs to the connection",
	"Transfer-Encoding":   "belongs to the connection",
	"Upgrade":             "belongs to the connection",
}

// header is one configured header.
type header struct {
	name  string
	value template
}

var token = regexp.MustCompile("^[!#$%&'*+.^_`|~0-9A-Za-z-]+$") // RFC 9110, 5.6.2

func parseHeaders(c Config) ([]header, error) {
	var (
		headers []header
		errs    []error
		seen    = map[string]bool{}
	)
	if name := authHeader(c.Auth); name != "" {
		seen[http.CanonicalHeaderKey(name)] = true
	}
	for _, name := range slices.Sorted(maps.Keys(c.Headers)) {
		wrong := func(format string, args ...any) {
			errs = append(errs, fmt.Errorf("headers[%q]: "+format, append([]any{name}, args...)...))
		}
		canonical := http.CanonicalHeaderKey(name)
		if !token.MatchString(name) {
			wrong("is not a header name")
		}
		if why, ok := reserved[canonical]; ok {
			wrong("cannot be set, it %s", why)
		}
		if seen[canonical] {
			wrong("is set twice, here and by auth or in another spelling")
		}
		seen[canonical] = true
		value := c.Headers[name].Reveal()
		if err := plain(value); err != nil {
			wrong("%w", err)
		}
		t, err := parseTemplate(value, inHeader)
		if err != nil {
			wrong("%w", err)
		}
		headers = append(headers, header{name: canonical, value: t})
	}
	return headers, errors.Join(errs...)
}

// header returns the headers of a request, but for authorization.
func (a *Adapter) header(v *values) (http.Header, error) {
	h := http.Header{
		"Accept":       {"application/json"},
		"Content-Type": {"application/json"},
	}
	for _, configured := range a.headers {
		value, err := configured.value.expand(v, asIs)
		if err != nil {
			return nil, fmt.Errorf("header %s: %w", configured.name, err)
		}
		h.Set(configured.name, value)
	}
	key, err := quoted(v.msg.IdempotencyKey)
	if err != nil {
		return nil, fmt.Errorf("header Idempotency-Key: the key %w", err)
	}
	h.Set("Idempotency-Key", key)
	if tag := v.msg.Ref.ETag; a.ifMatch && validETag(tag) && !strings.HasPrefix(tag, "W/") { // a weak one never matches
		h.Set("If-Match", v.msg.Ref.ETag)
	}
	exchange.Trace(h, v.msg.Headers)
	return h, nil
}

func asIs(value string) (string, error) { return value, plain(value) }

// quoted writes s as a string of a structured field (RFC 8941, 3.3.3).
func quoted(s string) (string, error) {
	if s == "" {
		return "", errNotKnown
	}
	for _, b := range []byte(s) {
		if b < 0x20 || b > 0x7e {
			return "", errors.New("has a byte that is not printable ASCII")
		}
	}
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) + `"`, nil
}

// authHeader returns the name of the header that carries the credentials.
func authHeader(a Auth) string {
	switch a.Kind {
	case AuthNone:
		return ""
	case AuthAPIKey:
		return a.Header
	default:
		return "Authorization"
	}
}

// maxRef bounds what is kept of an answer for the next request, in bytes.
const maxRef = 512

var etag = regexp.MustCompile(`^(W/)?"[\x21\x23-\x7e]*"$`) // RFC 9110, 8.8.3, ASCII only

func validETag(s string) bool { return len(s) <= maxRef && etag.MatchString(s) }

// ref returns what the answer to msg changes in the reference of its key, nil
// for nothing. An accepted change without a new ETag makes the old one stale.
func (a *Adapter) ref(msg adapters.Message, ans exchange.Answer) *adapters.Ref {
	ref := adapters.Ref{ExternalID: msg.Ref.ExternalID, ETag: msg.Ref.ETag, Version: msg.Version}
	if ans.OK() {
		ref.ETag = ""
		if tag := ans.Header.Get("ETag"); validETag(tag) {
			ref.ETag = tag
		}
	}
	if id, ok := a.externalID.find(ans); ok {
		ref.ExternalID = id
	}
	if ref.ExternalID == msg.Ref.ExternalID && ref.ETag == msg.Ref.ETag {
		return nil
	}
	return &ref
}
