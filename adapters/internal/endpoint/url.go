package endpoint

import (
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/adapters/internal/placeholder"
)

// URL is a URL whose host, path and query may hold placeholders.
type URL struct {
	scheme            string
	host, path, query placeholder.Template
	target            string
	fixed             *url.URL // the same for all messages, which must not change it; nil with placeholders
}

// ParseURL makes all checks that need no message. learned are the names of learnt values
// that path and query may have.
func ParseURL(text string, learned ...string) (*URL, error) {
	// A placeholder is not valid in a URL, so a letter replaces it here.
	u, err := url.Parse(placeholder.Replace(text, "x"))
	if err != nil {
		return nil, errors.New("is not a URL") // url.Error would repeat it, with its secrets
	}
	scheme, rest, _ := strings.Cut(text, "://")
	authority, _, _ := strings.Cut(rest, "/")
	authority, _, _ = strings.Cut(authority, "?")
	var errs []error
	switch {
	case strings.ContainsAny(scheme, "{}"):
		errs = append(errs, errors.New("has a placeholder in its scheme; only host, path and query may have one"))
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
		errs = append(errs, errors.New("has . or .. as a path segment; remove it"))
	}
	path, query, _ := strings.Cut(strings.TrimPrefix(rest, authority), "?")
	t := &URL{scheme: u.Scheme}
	names := placeholder.Names{Learned: learned}
	parse := func(text string, parse func(string) (placeholder.Template, error)) placeholder.Template {
		parsed, err := parse(text)
		if err != nil {
			errs = append(errs, err)
		}
		return parsed
	}
	if !strings.ContainsAny(authority, "{}") {
		authority = u.Host // unescaped, as it goes into the header
	}
	t.host = parse(authority, func(text string) (placeholder.Template, error) { return placeholder.Parse(text, placeholder.Field) })
	t.path = parse(path, names.Parse).MapLiterals(escapeLiteral)
	t.query = parse(query, names.Parse).MapLiterals(escapeLiteral)
	t.target = t.host.Text() + t.path.Text()
	if err := errors.Join(errs...); err != nil || strings.Contains(text, "{") {
		return t, err
	}
	t.fixed, err = t.expand(&placeholder.Values{}, nil)
	return t, err
}

// FromData reports whether the host has a placeholder.
func (t *URL) FromData() bool { return len(t.host.Names()) > 0 }

// Destination is the host of msg's request, if data names it. It is empty if the
// operator wrote the host, or if data may not name it.
func (t *URL) Destination(msg adapters.Message, allowed hosts) string {
	if t == nil || !t.FromData() {
		return ""
	}
	host, err := t.expandHost(&placeholder.Values{Msg: msg}, allowed)
	if err != nil {
		return ""
	}
	return host
}

// Fields are the mapped fields that the URL uses. A nil URL uses none.
func (t *URL) Fields() []string {
	if t == nil {
		return nil
	}
	return slices.Concat(t.host.Fields(), t.path.Fields(), t.query.Fields())
}

// Uses reports whether the URL has the placeholder of this name.
func (t *URL) Uses(name string) bool {
	return slices.Contains(t.path.Names(), name) || slices.Contains(t.query.Names(), name)
}

// Target is the URL's name in errors: host and path of the template, nothing from data.
func (t *URL) Target() string { return t.target }

// escapeLiteral escapes characters that a URL cannot have. Otherwise net/url would
// escape the whole path again, and turn the %2F of a value into a slash.
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

// validHost is stricter than url.Parse, which accepts names that are not valid in the
// header Host.
func validHost(hostport string) bool {
	m := hostText.FindStringSubmatch(hostport)
	if m == nil || m[1] == "" {
		return m != nil
	}
	_, err := strconv.ParseUint(m[1], 10, 16)
	return err == nil
}

// expand returns the URL for one message. If data names the host, it must be one of
// allowed.
func (t *URL) expand(v *placeholder.Values, allowed hosts) (*url.URL, error) {
	if t.fixed != nil {
		return t.fixed, nil
	}
	host, err := t.expandHost(v, allowed)
	if err != nil {
		return nil, err
	}
	path, err := t.path.Expand(v, escapeSegment)
	if err != nil {
		return nil, err
	}
	query, err := t.query.Expand(v, escapeQuery)
	if err != nil {
		return nil, err
	}
	u, err := url.Parse(t.scheme + "://x" + path)
	if err != nil {
		return nil, errors.New("the URL cannot be built")
	}
	// The host is not escaped, and the zone of an address would not be parsed.
	u.Host, u.RawQuery = host, query
	if dotted(u.Path) { // /.{key} with the harmless value "/x" makes one
		return nil, errors.New("the values make . or .. a path segment")
	}
	return u, nil
}

func (t *URL) expandHost(v *placeholder.Values, allowed hosts) (string, error) {
	if !t.FromData() {
		return t.host.Text(), nil
	}
	hostport, err := t.host.Expand(v, func(value string) (string, error) { return strings.ToLower(value), nil })
	if err != nil {
		return "", err
	}
	host, _, _ := strings.Cut(hostport, ":") // the port is in the template; a value with a colon is no name
	written, _, _ := strings.Cut(t.host.Text(), ":")
	if strings.Count(hostport, ":") != strings.Count(t.host.Text(), ":") || !name.MatchString(host) || len(host) > maxName {
		return "", fmt.Errorf("the values of %s do not make a host name (write a name beyond ASCII as xn--…)", written)
	}
	if !allowed.has(host) {
		return "", fmt.Errorf("the values of %s name a host that is not in allow.hosts", written)
	}
	return hostport, nil
}

func escapeSegment(value string) (string, error) {
	if err := placeholder.Plain(value); err != nil {
		return "", err
	}
	if dotted(value) {
		return "", errors.New("has . or .. as a path segment")
	}
	return url.PathEscape(value), nil
}

func escapeQuery(value string) (string, error) {
	if err := placeholder.Plain(value); err != nil {
		return "", err
	}
	return url.QueryEscape(value), nil
}

// dotted reports whether a path has a segment . or .., which servers resolve. Some
// servers decode %2F and %5C first, so both count as separators.
func dotted(path string) bool {
	for segment := range strings.FieldsFuncSeq(path, func(r rune) bool { return r == '/' || r == '\\' }) {
		if segment == "." || segment == ".." {
			return true
		}
	}
	return false
}
