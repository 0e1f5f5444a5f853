package rest

import (
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// urlTemplate is a URL whose path and query may hold placeholders.
type urlTemplate struct {
	scheme, host string
	path, query  template
	target       string // host and path template, for errors
}

// parseURL checks all that can be checked without a message.
func parseURL(text string) (*urlTemplate, error) {
	// Placeholders are no valid URL text; a letter in their place is.
	u, err := url.Parse(placeholder.ReplaceAllString(text, "x"))
	if err != nil {
		return nil, errors.New("is not a URL") // url.Error would repeat it, with what is secret in it
	}
	scheme, rest, _ := strings.Cut(text, "://")
	authority, _, _ := strings.Cut(rest, "/")
	authority, _, _ = strings.Cut(authority, "?")
	var errs []error
	switch {
	case strings.ContainsAny(scheme+authority, "{}"):
		errs = append(errs, errors.New("has a placeholder in its scheme or host; only path and query may have one"))
	case u.Scheme != "https" && u.Scheme != "http" || u.Host == "":
		errs = append(errs, errors.New("must start with https:// or http:// and a host"))
	case !validHost(u.Host):
		errs = append(errs, errors.New("has a host that is neither a name nor an address, or a port above 65535"))
	}
	if u.User != nil {
		errs = append(errs, errors.New("holds credentials; put them in auth"))
	}
	if strings.Contains(text, "#") {
		errs = append(errs, errors.New("has a fragment (#), which is never sent"))
	}
	if strings.ContainsAny(text, " \\") {
		errs = append(errs, errors.New("has a space or a backslash; escape it"))
	}
	if dotted(u.Path) {
		errs = append(errs, errors.New("has a path segment of dots"))
	}
	path, query, _ := strings.Cut(strings.TrimPrefix(rest, authority), "?")
	t := &urlTemplate{scheme: u.Scheme, host: u.Host, target: u.Host + path}
	if t.path, err = parseTemplate(path, inURL); err != nil {
		errs = append(errs, err)
	}
	if t.query, err = parseTemplate(query, inURL); err != nil {
		errs = append(errs, err)
	}
	for _, parts := range [][]part{t.path.parts, t.query.parts} {
		for i := range parts {
			parts[i].literal = escapeLiteral(parts[i].literal)
		}
	}
	return t, errors.Join(errs...)
}

// escapeLiteral escapes what cannot stand in a URL as it is. Otherwise net/url
// would escape the whole path anew, and turn the %2F of a value into a slash.
func escapeLiteral(text string) string {
	var b strings.Builder
	for _, c := range []byte(text) {
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("-._~!$&'()*+,;=:@/?[]%", c) >= 0 {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

var hostText = regexp.MustCompile(`^(?:\[[0-9A-Fa-f:.]+(?:%[0-9A-Za-z._~-]+)?\]|[\pL\pM\pN._-]+)(?::([0-9]*))?$`)

// validHost is stricter than url.Parse, which takes names that no header Host can carry.
func validHost(hostport string) bool {
	m := hostText.FindStringSubmatch(hostport)
	if m == nil || m[1] == "" {
		return m != nil
	}
	_, err := strconv.ParseUint(m[1], 10, 16)
	return err == nil
}

// expand returns the URL for one message.
func (t *urlTemplate) expand(v *values) (*url.URL, error) {
	path, err := t.path.expand(v, escapeSegment)
	if err != nil {
		return nil, err
	}
	query, err := t.query.expand(v, escapeQuery)
	if err != nil {
		return nil, err
	}
	u, err := url.Parse(t.scheme + "://" + t.host + path)
	if err != nil {
		return nil, errors.New("the URL cannot be built")
	}
	if dotted(u.Path) { // /.{key} with the harmless value "/x" makes one
		return nil, errors.New("the values make a path segment of dots")
	}
	u.RawQuery = query
	return u, nil
}

func escapeSegment(value string) (string, error) {
	if err := plain(value); err != nil {
		return "", err
	}
	if dotted(value) {
		return "", errors.New("is or holds a path segment of dots")
	}
	return url.PathEscape(value), nil
}

func escapeQuery(value string) (string, error) {
	if err := plain(value); err != nil {
		return "", err
	}
	return url.QueryEscape(value), nil
}

// dotted tells whether a path has a segment that servers resolve instead of
// passing it on. Some decode %2F and %5C before they do, so both divide.
func dotted(path string) bool {
	for segment := range strings.FieldsFuncSeq(path, func(r rune) bool { return r == '/' || r == '\\' }) {
		if segment == "." || segment == ".." {
			return true
		}
	}
	return false
}

// plain refuses what no identifier or header value holds on purpose.
func plain(value string) error {
	if !utf8.ValidString(value) {
		return errors.New("is not valid UTF-8")
	}
	for i, r := range value {
		if unicode.IsControl(r) {
			return fmt.Errorf("has a control character (%U) at byte %d", r, i)
		}
	}
	return nil
}
