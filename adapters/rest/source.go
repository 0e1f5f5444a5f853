package rest

import (
	"cmp"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/adapters/internal/exchange"
	"github.com/hms-mkt/lockstep/adapters/internal/placeholder"
)

// source finds a value in answers.
type source struct {
	from   Source // as configured, for messages
	path   exchange.Pointer
	header string
	match  *regexp.Regexp       // nil: by the kind of header
	chosen placeholder.Template // the sender's own value, if there is neither path nor header
}

var (
	learnName  = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
	headerName = regexp.MustCompile("^[!#$%&'*+.^_`|~0-9A-Za-z-]+$") // RFC 9110, 5.6.2
)

// parseID reads the source of an id.
func (s Source) parseID() (*source, error) {
	if s.Value == "" {
		return s.parse()
	}
	if s != (Source{Value: s.Value}) {
		return nil, errors.New(".value: does not go with path, header and match: keep one of them")
	}
	chosen, err := placeholder.Names{}.Parse(s.Value)
	var errs []error
	for _, mistake := range placeholder.Mistakes(err) {
		errs = append(errs, fmt.Errorf(".value: %w", mistake))
	}
	if slices.ContainsFunc(chosen.Names(), func(name string) bool { return strings.HasPrefix(name, "ref.") }) {
		errs = append(errs, errors.New(".value: has a placeholder {ref.…}, but an id that you choose depends on no answer: use {key} or {fields.NAME}"))
	}
	return &source{from: s, chosen: chosen}, errors.Join(errs...)
}

// choose returns the id that the sender chooses, or nothing if the receiver does.
func (s *source) choose(v *placeholder.Values) (string, error) {
	if s == nil || s.from.Value == "" {
		return "", nil
	}
	id, err := s.chosen.Expand(v, func(value string) (string, error) { return value, nil })
	if err == nil && !exchange.IsRef(id) {
		err = fmt.Errorf("is longer than %d bytes, or has characters that do not print", adapters.MaxRef)
	}
	return id, err
}

// fields are the mapped fields that the value uses.
func (s *source) fields() []string {
	if s == nil {
		return nil
	}
	return s.chosen.Fields()
}

// parse reads a source in answers.
func (s Source) parse() (*source, error) {
	parsed := &source{from: s, header: http.CanonicalHeaderKey(s.Header)}
	var errs []error
	if (s.Path == "") == (s.Header == "") {
		errs = append(errs, errors.New(": name either path, a JSON Pointer into the body such as /id, or header"))
	}
	if s.Value != "" {
		errs = append(errs, errors.New(".value: belongs to external_id: name path or header"))
	}
	var err error
	if parsed.path, err = exchange.ParsePointer(s.Path); err != nil {
		errs = append(errs, fmt.Errorf(": %w", err))
	}
	if s.Header != "" && !headerName.MatchString(s.Header) {
		errs = append(errs, fmt.Errorf(".header: %q is not the name of a header", s.Header))
	}
	if s.Match != "" {
		parsed.match, err = regexp.Compile(s.Match)
		switch {
		case s.Header == "":
			errs = append(errs, errors.New(".match: belongs to header: remove it"))
		case err != nil || parsed.match.NumSubexp() != 1:
			errs = append(errs, errors.New(".match: is not a regular expression with one group, such as /Appointment/([^/]+)"))
		}
	}
	return parsed, errors.Join(errs...)
}

// String says where the value is, for messages.
func (s *source) String() string {
	if s.header != "" {
		return "header " + s.header
	}
	return cmp.Or(s.from.Path, s.from.Value)
}

// find returns the value in an answer, if it can be stored and sent back as it is. A nil
// source finds nothing.
func (s *source) find(ans exchange.Answer) (string, bool) {
	if s == nil {
		return "", false
	}
	if value := s.value(ans); exchange.IsRef(value) {
		return value, true
	}
	return "", false
}

// value returns the value in an answer, or nothing.
func (s *source) value(ans exchange.Answer) string {
	if s.header == "" {
		return s.in(ans.JSON(), nil)
	}
	return s.in(exchange.Document{}, ans.Header)
}

// in returns the value in a record, or in the header of an answer that is about it.
func (s *source) in(record exchange.Document, header http.Header) string {
	if s.header == "" {
		value, _ := record.Text(s.path)
		return value
	}
	value := header.Get(s.header)
	isURL := s.header == "Location" || s.header == "Content-Location"
	switch {
	case s.match != nil:
		m := s.match.FindStringSubmatch(value)
		if m == nil {
			return ""
		}
		value = m[1]
	case isURL:
		u, err := url.Parse(value)
		if err != nil {
			return ""
		}
		path := strings.TrimRight(u.EscapedPath(), "/")
		value = path[strings.LastIndexByte(path, '/')+1:]
	}
	if isURL { // the value is escaped again when a URL is made with it
		unescaped, err := url.PathUnescape(value)
		if err != nil {
			return ""
		}
		return unescaped
	}
	return value
}
