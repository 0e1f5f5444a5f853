package scheduling

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// maxBody is the largest request body, in bytes.
const maxBody = 64 << 10

// decode reads the body as one JSON object with known fields only.
func decode(w http.ResponseWriter, r *http.Request, into any) error {
	if ct, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || ct != "application/json" {
		return newProblem(http.StatusUnsupportedMediaType, "Send the body as Content-Type: application/json.")
	}
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody))
	dec.DisallowUnknownFields()
	err := dec.Decode(into)
	if err == nil {
		if _, err = dec.Token(); errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil || !isTooLarge(err) {
			return newProblem(http.StatusBadRequest, "Something follows the JSON object.")
		}
	}
	return explainDecode(err)
}

func isTooLarge(err error) bool {
	var tooLarge *http.MaxBytesError
	return errors.As(err, &tooLarge)
}

// explainDecode names the field or place. It never quotes a value.
func explainDecode(err error) error {
	var kind *json.UnmarshalTypeError
	var syntax *json.SyntaxError
	switch {
	case isTooLarge(err):
		return newProblem(http.StatusRequestEntityTooLarge, fmt.Sprintf("The body is larger than %d bytes.", maxBody))
	case errors.As(err, &kind) && kind.Field != "":
		// The path leads through embedded structs, of which the caller knows nothing.
		name := kind.Field[strings.LastIndexByte(kind.Field, '.')+1:]
		return &InvalidError{Fields: []FieldError{{Field: name, Detail: "is not a " + kindName(kind.Type.Kind().String())}}}
	case errors.As(err, &syntax):
		return newProblem(http.StatusBadRequest, fmt.Sprintf("The body is not JSON: error at byte %d.", syntax.Offset))
	}
	if field, ok := strings.CutPrefix(err.Error(), "json: unknown field "); ok {
		if name, err := strconv.Unquote(field); err == nil {
			return &InvalidError{Fields: []FieldError{{Field: shorten(name), Detail: "is not a field of this request"}}}
		}
	}
	return newProblem(http.StatusBadRequest, "The body is not one JSON object.")
}

func kindName(kind string) string {
	if strings.HasPrefix(kind, "int") {
		return "whole number"
	}
	return kind
}

func shorten(s string) string {
	const limit = 100
	if len(s) > limit {
		return strings.ToValidUTF8(s[:limit], "") + "…"
	}
	return s
}

// ifMatch reads the version a change is meant for; nil for none or any.
func ifMatch(h http.Header) (*int64, error) {
	values := h.Values("If-Match")
	if len(values) == 0 || len(values) == 1 && values[0] == "*" {
		return nil, nil
	}
	if len(values) == 1 && len(values[0]) > 2 {
		s := values[0]
		n, err := strconv.ParseInt(strings.Trim(s, `"`), 10, 64)
		if err == nil && s == etag(n) {
			return &n, nil
		}
	}
	return nil, newProblem(http.StatusBadRequest, `If-Match is not one version in quotes, such as "3", nor *.`)
}

var traceparentForm = regexp.MustCompile(`^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$`)

// eventHeaders passes the caller's trace on to the event (W3C Trace Context).
func eventHeaders(h http.Header) map[string]string {
	if tp := h.Get("traceparent"); traceparentForm.MatchString(tp) {
		return map[string]string{"traceparent": tp}
	}
	return nil
}

// parseFilter reads the query of a list.
func parseFilter(q url.Values) (Filter, error) {
	known := []string{"from", "to", "courthouse", "courtroom", "status", "limit", "after"}
	var c checks
	for name, values := range q {
		switch {
		case !slices.Contains(known, name):
			c.add(shorten(name), "is not a parameter of this list; known are %s", strings.Join(known, ", "))
		case len(values) > 1:
			c.add(name, "is given more than once")
		}
	}
	slices.SortFunc(c, func(a, b FieldError) int { return strings.Compare(a.Field, b.Field) })
	f := Filter{
		Courthouse: q.Get("courthouse"), Courtroom: q.Get("courtroom"),
		Status: Status(q.Get("status")), After: q.Get("after"),
	}
	f.From = c.bound("from", q.Get("from"))
	f.To = c.bound("to", q.Get("to"))
	if s := q.Get("limit"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil || n < 1 {
			c.add("limit", "is not between 1 and %d", MaxLimit)
		}
		f.Limit = n
	}
	return f, c.err()
}

// bound reads an instant (RFC 3339), or a day or time on the courthouse's clock.
func (c *checks) bound(field, s string) Bound {
	if s == "" {
		return Bound{}
	}
	// A + that was not escaped arrives as a space; no valid form has one.
	if t, err := time.Parse(time.RFC3339, strings.ReplaceAll(s, " ", "+")); err == nil {
		return Bound{Instant: t}
	}
	for _, layout := range []string{time.DateOnly, localLayout} {
		if t, err := time.Parse(layout, s); err == nil {
			return Bound{Wall: t}
		}
	}
	c.add(field, "is neither a day (2027-03-15), a wall time (2027-03-15T10:00) nor an instant (2027-03-15T10:00:00-04:00)")
	return Bound{}
}
