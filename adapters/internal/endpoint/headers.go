package endpoint

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strings"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/adapters/internal/exchange"
	"github.com/hms-mkt/lockstep/adapters/internal/placeholder"
)

// reserved are headers that a configuration cannot set, with the reason.
var reserved = map[string]string{
	"Idempotency-Key":     "is set to the event's id",
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

// userAgent is the User-Agent of requests, unless the configuration sets one.
const userAgent = "Lockstep"

// header is one configured header.
type header struct {
	name  string
	value placeholder.Template
}

var token = regexp.MustCompile("^[!#$%&'*+.^_`|~0-9A-Za-z-]+$") // RFC 9110, 5.6.2

// parseHeaders reads configured headers. field is put before their names in errors.
func (o Options) parseHeaders(field string, configured map[string]adapters.Secret) ([]header, error) {
	var (
		headers []header
		errs    []error
		seen    = map[string]bool{}
	)
	for _, name := range authHeaders(o.Auth) {
		seen[name] = true
	}
	for _, name := range slices.Sorted(maps.Keys(configured)) {
		wrong := func(format string, args ...any) {
			errs = append(errs, fmt.Errorf("%sheaders[%q]: "+format, append([]any{field, name}, args...)...))
		}
		canonical := http.CanonicalHeaderKey(name)
		if !token.MatchString(name) {
			wrong("is not a header name")
		}
		if why := cmp.Or(o.Reserved[canonical], reserved[canonical]); why != "" {
			wrong("cannot be set, it %s", why)
		}
		if seen[canonical] {
			wrong("is set twice, here and by auth or in another spelling")
		}
		seen[canonical] = true
		value := configured[name].Reveal()
		if err := placeholder.Plain(value); err != nil {
			wrong("%w", err)
		}
		t, err := placeholder.Names{Learned: o.Learned}.Parse(value)
		if err != nil {
			wrong("%w", err)
		}
		headers = append(headers, header{name: canonical, value: t})
	}
	return headers, errors.Join(errs...)
}

// spelling returns the names that are sent in another spelling than the canonical one, by
// the canonical one. User-Agent is not among them: net/http sends one of its own if it finds
// none.
func spelling(names []string) map[string]string {
	spelled := map[string]string{}
	for _, name := range names {
		if canonical := http.CanonicalHeaderKey(name); canonical != name && canonical != "User-Agent" {
			spelled[canonical] = name
		}
	}
	return spelled
}

// With returns an Endpoint that sends further headers, or the same ones with other values. An
// empty value leaves a header out.
// It shares its connections and tokens with e, which the caller closes. field is put
// before the names of the headers in errors.
func (e *Endpoint) With(field string, headers map[string]adapters.Secret) (*Endpoint, error) {
	more, err := e.parse(field, headers)
	if err != nil {
		return e, err
	}
	with := *e
	with.headers = slices.DeleteFunc(slices.Clone(e.headers), func(h header) bool {
		return slices.ContainsFunc(more, func(m header) bool { return m.name == h.name })
	})
	with.spelled = maps.Clone(e.spelled)
	maps.Copy(with.spelled, spelling(slices.Collect(maps.Keys(headers))))
	for _, h := range more {
		if h.value.Text() != "" {
			with.headers = append(with.headers, h)
		}
	}
	return &with, nil
}

// header completes the headers of a request, without authorization.
func (e *Endpoint) header(v *placeholder.Values, h http.Header) error {
	h.Set("User-Agent", userAgent)
	for _, configured := range e.headers {
		value, err := configured.value.Expand(v, asIs)
		if err != nil {
			return fmt.Errorf("header %s: %w", configured.name, err)
		}
		h.Set(configured.name, value)
	}
	key, err := quoted(v.Msg.IdempotencyKey)
	if err != nil {
		return fmt.Errorf("header Idempotency-Key: the key %w", err)
	}
	h.Set("Idempotency-Key", key)
	exchange.Trace(h, v.Msg.Headers)
	return nil
}

// escapeQuoted escapes characters that would end a string of a structured field.
var escapeQuoted = strings.NewReplacer(`\`, `\\`, `"`, `\"`)

func asIs(value string) (string, error) { return value, placeholder.Plain(value) }

// quoted writes s as a string of a structured field (RFC 8941, 3.3.3).
func quoted(s string) (string, error) {
	if s == "" {
		return "", placeholder.ErrNotKnown
	}
	for _, b := range []byte(s) {
		if b < 0x20 || b > 0x7e {
			return "", errors.New("has a byte that is not printable ASCII")
		}
	}
	return `"` + escapeQuoted.Replace(s) + `"`, nil
}
