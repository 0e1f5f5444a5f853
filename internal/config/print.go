package config

import (
	"fmt"
	"io"
	"net/url"
	"regexp"
	"strings"

	"go.yaml.in/yaml/v4"
)

const masked = "***"

// byDefault marks what the file leaves out.
const byDefault = "# default"

// mapping returns an empty mapping, as it is printed.
func mappingNode() *yaml.Node { return &yaml.Node{Kind: yaml.MappingNode} }

// put adds what is printed behind key, unless there is nothing.
func put(m *yaml.Node, key string, value *yaml.Node) {
	if value != nil {
		m.Content = append(m.Content, text(key), value)
	}
}

// plain is a scalar that is printed as it is: a number, true, 15s.
func plain(s string) *yaml.Node { return &yaml.Node{Kind: yaml.ScalarNode, Value: s} }

// olderBool is what YAML 1.1 takes for a boolean, and so other programs may.
var olderBool = regexp.MustCompile(`^(?i:y|n|yes|no|on|off)$`)

// text is printed so that it is read back as text.
func text(s string) *yaml.Node {
	n := &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: s}
	if olderBool.MatchString(s) {
		n.Style = yaml.DoubleQuotedStyle
	}
	return n
}

// Print writes the effective configuration as YAML. Secrets are masked; text
// that was put in by ${…} is shown by that reference, except the database's URL,
// which is shown without its password. With withDefaults, values that the file
// leaves out are printed too, marked as defaults.
func (f *File) Print(w io.Writer, withDefaults bool) error {
	b, err := yaml.Dump(visible(f.shown, withDefaults), yaml.WithCompactSeqIndent(false), yaml.WithLineWidth(-1), yaml.WithQuotePreference(yaml.QuoteDouble))
	if err != nil {
		return fmt.Errorf("configuration cannot be printed: %w", err)
	}
	_, err = w.Write(b)
	return err
}

// visible returns n as it is printed, with or without defaults; nil if it is
// one, or has nothing in it but them.
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

// misread are the dollars that do not stand for themselves.
var misread = regexp.MustCompile(`\$+\{|\$\$+`)

// escapeDollars keeps literal text from being taken for a reference.
func escapeDollars(s string) string {
	return misread.ReplaceAllStringFunc(s, func(run string) string { return strings.ReplaceAll(run, "$", "$$") })
}

var (
	// sensitive finds the keys whose values are likely credentials.
	sensitive   = regexp.MustCompile(`(?i)auth|token|secret|passw|key|cookie|signature|credential`)
	urlPassword = regexp.MustCompile(`(://[^/?#@\s:]*:)[^/?#\s]*@`)
	urlQuery    = regexp.MustCompile(`(?i)([?&][^=&#\s]*(?:auth|token|secret|passw|key|signature|sig)[^=&#\s]*=)[^&#\s]*`)
	dsnPassword = regexp.MustCompile(`(?i)(\b(?:ssl)?pass(?:word|file)\s*=\s*)\S+`)
)

// maskURL takes passwords out of text that is, or contains, a URL.
func maskURL(s string) string {
	s = urlPassword.ReplaceAllString(s, "${1}"+masked+"@")
	return urlQuery.ReplaceAllString(s, "${1}"+masked)
}

// maskDatabase shows where a database is. What is neither a URL nor keywords is
// not shown at all.
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
			if sensitive.MatchString(key) {
				q.Set(key, masked)
			}
		}
		u.RawQuery = q.Encode()
		return strings.ReplaceAll(u.String(), "%2A%2A%2A", masked)
	}
	if !strings.Contains(s, "=") || strings.ContainsAny(s, `'\`) {
		return masked // where a quoted password ends is for PostgreSQL to say
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
