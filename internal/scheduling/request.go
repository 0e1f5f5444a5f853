package scheduling

import (
	"encoding/base64"
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
	if err := dec.Decode(into); err != nil {
		return explainDecode(err)
	}
	_, err := dec.Token()
	switch _, tooLarge := errors.AsType[*http.MaxBytesError](err); {
	case errors.Is(err, io.EOF):
		return nil
	case tooLarge:
		return explainDecode(err)
	}
	return newProblem(http.StatusBadRequest, "Something follows the JSON object.")
}

// explainDecode names the field or place. It never quotes a value.
func explainDecode(err error) error {
	if _, tooLarge := errors.AsType[*http.MaxBytesError](err); tooLarge {
		return newProblem(http.StatusRequestEntityTooLarge, fmt.Sprintf("The body is larger than %d bytes.", maxBody))
	}
	var c checks
	if wrong, ok := errors.AsType[*json.UnmarshalTypeError](err); ok && wrong.Field != "" {
		kind := wrong.Type.Kind().String()
		if strings.HasPrefix(kind, "int") {
			kind = "whole number"
		}
		c.add(wrong.Field, "is not a %s", kind)
		return invalid(c)
	}
	if syntax, ok := errors.AsType[*json.SyntaxError](err); ok {
		return newProblem(http.StatusBadRequest, fmt.Sprintf("The body is not JSON: error at byte %d.", syntax.Offset))
	}
	if field, ok := strings.CutPrefix(err.Error(), "json: unknown field "); ok {
		if name, err := strconv.Unquote(field); err == nil {
			c.add(shorten(name), "is not a field of this request")
			return invalid(c)
		}
	}
	return newProblem(http.StatusBadRequest, "The body is not one JSON object.")
}

func shorten(s string) string {
	const limit = 100
	if len(s) > limit {
		return strings.ToValidUTF8(s[:limit], "") + "…"
	}
	return s
}

// ifMatch reads the version that a change expects. It returns nil for no version and
// for any version.
func ifMatch(h http.Header) (*int64, error) {
	values := h.Values("If-Match")
	if len(values) == 0 || len(values) == 1 && values[0] == "*" {
		return nil, nil
	}
	n, err := strconv.ParseInt(strings.Trim(values[0], `"`), 10, 64)
	if err != nil || len(values) > 1 || values[0] != etag(n) {
		return nil, newProblem(http.StatusBadRequest, `If-Match is not one version in quotes, such as "3", nor *.`)
	}
	return &n, nil
}

var traceparentForm = regexp.MustCompile(`^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$`)

// eventHeaders copies the caller's trace to the event (W3C Trace Context).
func eventHeaders(h http.Header) map[string]string {
	if tp := h.Get("traceparent"); traceparentForm.MatchString(tp) {
		return map[string]string{"traceparent": tp}
	}
	return nil
}

// DefaultLimit and MaxLimit bound a page of [Service.List].
const (
	DefaultLimit = 100
	MaxLimit     = 500
)

// Filter chooses hearings.
type Filter struct {
	From, To   Bound // From is included, To is not
	Courthouse string
	Courtroom  string
	Status     Status
	CaseNumber string
	Limit      int // 1 to [MaxLimit]

	afterStart *time.Time // of the last hearing of the page before, nil for the first page
	afterID    string
}

// Bound is one end of a span of starts: an instant, or a wall time at each courthouse.
// The zero value is no bound.
type Bound struct {
	Instant *time.Time
	Wall    *time.Time // in UTC, but its zone has no meaning
}

// parseFilter reads the query of a list.
func parseFilter(q url.Values) (Filter, error) {
	known := []string{"from", "to", "courthouse", "courtroom", "case_number", "status", "limit", "after"}
	var c checks
	for name, values := range q {
		switch {
		case !slices.Contains(known, name):
			c.add(shorten(name), "is not a parameter of this list; known are %s", strings.Join(known, ", "))
		case len(values) > 1:
			c.add(name, "is given more than once; give it once")
		}
	}
	slices.SortFunc(c, func(a, b FieldError) int { return strings.Compare(a.Field, b.Field) })
	f := Filter{
		From: c.bound("from", q.Get("from")), To: c.bound("to", q.Get("to")),
		Courthouse: q.Get("courthouse"), Courtroom: q.Get("courtroom"), Status: Status(q.Get("status")),
		CaseNumber: q.Get("case_number"), Limit: DefaultLimit,
	}
	c.text("courthouse", f.Courthouse, maxText)
	c.text("courtroom", f.Courtroom, maxText)
	c.text("case_number", f.CaseNumber, maxText)
	if f.Status != "" && f.Status != Booked && f.Status != Cancelled {
		c.add("status", "is neither booked nor cancelled")
	}
	if s := q.Get("limit"); s != "" {
		var err error
		if f.Limit, err = strconv.Atoi(s); err != nil || f.Limit < 1 || f.Limit > MaxLimit {
			c.add("limit", "is not between 1 and %d", MaxLimit)
		}
	}
	if s := q.Get("after"); s != "" {
		at, id, ok := parseCursor(s)
		if !ok {
			c.add("after", "is not the field next of an earlier page")
		}
		f.afterStart, f.afterID = &at, id
	}
	return f, invalid(c)
}

// bound reads an instant (RFC 3339), or a day or time on the courthouse's clock.
func (c *checks) bound(field, s string) Bound {
	if s == "" {
		return Bound{}
	}
	// A + that was not escaped arrives as a space. No valid form has a space.
	if t, err := time.Parse(time.RFC3339, strings.ReplaceAll(s, " ", "+")); err == nil {
		return Bound{Instant: &t}
	}
	for _, layout := range []string{time.DateOnly, localLayout} {
		if t, err := time.Parse(layout, s); err == nil {
			return Bound{Wall: &t}
		}
	}
	c.add(field, "is neither a day (2027-03-15), a wall time (2027-03-15T10:00) nor an instant (2027-03-15T10:00:00-04:00)")
	return Bound{}
}

// cursor is the place of a hearing in a list, for the parameter after.
func cursor(h Hearing) string {
	return base64.RawURLEncoding.EncodeToString(fmt.Appendf(nil, "%d %s", h.StartsAt.UnixMicro(), h.ID))
}

func parseCursor(s string) (at time.Time, id string, ok bool) {
	b, err := base64.RawURLEncoding.DecodeString(s)
	if err != nil {
		return at, "", false
	}
	micros, id, ok := strings.Cut(string(b), " ")
	n, err := strconv.ParseInt(micros, 10, 64)
	return time.UnixMicro(n).UTC(), id, ok && err == nil && idForm.MatchString(id)
}
