package config

import (
	"fmt"
	"io"
	"net/url"
	"regexp"
	"strings"

	"go.yaml.in/yaml/v4"

	"github.com/hms-mkt/lockstep/adapters"
)

const masked = "***"

// byDefault marks a value that is not in the file.
const byDefault = "# default"

// mappingNode returns an empty mapping for printing.
func mappingNode() *yaml.Node { return &yaml.Node{Kind: yaml.MappingNode} }

// put adds key and value to m, unless value is nil.
func put(m *yaml.Node, key string, value *yaml.Node) {
	if value != nil {
		m.Content = append(m.Content, text(key), value)
	}
}

// plain is a scalar that is printed as it is: a number, true, 15s.
func plain(s string) *yaml.Node { return &yaml.Node{Kind: yaml.ScalarNode, Value: s} }

// olderBool matches the booleans of YAML 1.1, which other programs may use.
var olderBool = regexp.MustCompile(`^(?i:y|n|yes|no|on|off)$`)

// text is printed so that it is read back as text.
func text(s string) *yaml.Node {
	n := &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: s}
	if olderBool.MatchString(s) {
		n.Style = yaml.DoubleQuotedStyle
	}
	return n
}

// Print writes the effective configuration as YAML. Secrets are masked. Text with a
// ${…} is shown as the file has it, except the database's URL, which is shown without
// its password. With withDefaults, default values are printed too, and marked.
func (f *File) Print(w io.Writer, withDefaults bool) error {
	b, err := yaml.Dump(visible(f.shown, withDefaults), yaml.WithCompactSeqIndent(false), yaml.WithLineWidth(-1), yaml.WithQuotePreference(yaml.QuoteDouble))
	if err != nil {
		return fmt.Errorf("configuration cannot be printed: %w", err)
	}
	_, err = w.Write(b)
	return err
}

// visible returns n as it is printed, with or without defaults. It returns nil if n has
// only defaults and these are not wanted.
func visible(n *yaml.Node, withDefaults bool) *yaml.Node {
	out := *n
	if n.Kind == yaml.ScalarNode {
		if n.LineComment == byDefault && !withDefaults {
			return nil
		}
		return &out
	}
	out.Content, out.LineComment = nil, ""
	for i, c := range n.Content {
		switch c = visible(c, withDefaults); {
		case c != nil:
			out.Content = append(out.Content, c)
		case n.Kind == yaml.MappingNode && i%2 == 1:
			out.Content = out.Content[:len(out.Content)-1] // the key
		}
	}
	if n.LineComment == byDefault && len(out.Content) == 0 {
		return nil
	}
	return &out
}

var onlyReferences = regexp.MustCompile(`^(\$\{(file:[^}]*|[A-Za-z_][A-Za-z0-9_]*)\})+$`)

// showText is text as it may be printed.
func showText(n *node, secret bool) *yaml.Node {
	switch {
	case n.ref != "" && (!secret || onlyReferences.MatchString(n.ref)):
		return text(maskURL(n.ref))
	case secret && n.text != "":
		return text(masked)
	}
	return text(escapeDollars(maskURL(n.text)))
}

// misread matches dollars that would be read as a reference or an escape.
var misread = regexp.MustCompile(`\$+\{|\$\$+`)

// escapeDollars keeps literal text from being taken for a reference.
func escapeDollars(s string) string {
	return misread.ReplaceAllStringFunc(s, func(run string) string { return strings.ReplaceAll(run, "$", "$$") })
}

var (
	urlPassword = regexp.MustCompile(`(://[^/?#@\s:]*:)[^/?#\s]*@`)
	dsnPassword = regexp.MustCompile(`(?i)(\b(?:ssl)?pass(?:word|file)\s*=\s*)\S+`)
)

// maskURL takes passwords out of text that is, or contains, a URL.
func maskURL(s string) string {
	s = urlPassword.ReplaceAllString(s, "${1}"+masked+"@")
	return adapters.MaskQuery(s)
}

// maskDatabase shows where a database is, without its password. A text that is neither
// a URL nor keywords is masked completely.
func maskDatabase(s string) string {
	if s == "" {
		return ""
	}
	if strings.Contains(s, "://") {
		u, err := url.Parse(s)
		if err != nil {
			return masked
		}
		if u.User != nil {
			if _, has := u.User.Password(); has {
				u.User = url.UserPassword(u.User.Username(), masked)
			}
		}
		q := u.Query()
		for key := range q {
			if adapters.Sensitive(key) {
				q.Set(key, masked)
			}
		}
		u.RawQuery = q.Encode()
		return strings.ReplaceAll(u.String(), "%2A%2A%2A", masked)
	}
	if !strings.Contains(s, "=") || strings.ContainsAny(s, `'\`) {
		return masked // only PostgreSQL knows where a quoted password ends
	}
	return dsnPassword.ReplaceAllString(s, "${1}"+masked)
}

var reference = regexp.MustCompile(`\$\{(file:[^}]*|[A-Za-z_][A-Za-z0-9_]*)`)

// variables names what text refers to, without defaults.
func variables(text string) string {
	var names []string
	for _, m := range reference.FindAllStringSubmatch(strings.ReplaceAll(text, "$$", ""), -1) {
		names = append(names, "${"+m[1]+"}")
	}
	return strings.Join(names, " and ")
}
