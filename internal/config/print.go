package config

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"regexp"
	"strings"
)

const masked = "***"

// shown is a value as it may be printed.
type shown struct {
	text      string
	bare      bool // a number or boolean: no quotes
	object    bool
	array     bool
	keys      []string
	items     []*shown
	byDefault bool
}

func (s *shown) put(key string, v *shown) {
	if v != nil {
		s.keys, s.items = append(s.keys, key), append(s.items, v)
	}
}

// Print writes the effective configuration as YAML. Secrets are masked; text
// that was put in by ${…} is shown by that reference, except the database's URL,
// which is shown without its password. With withDefaults, values that the file
// leaves out are printed too, marked as defaults.
func (f *File) Print(w io.Writer, withDefaults bool) error {
	var b bytes.Buffer
	f.shown.print(&b, 0, withDefaults)
	_, err := w.Write(b.Bytes())
	return err
}

// visible says whether s is printed.
func (s *shown) visible(withDefaults bool) bool {
	if s == nil || s.byDefault && s.object && !s.any(withDefaults) {
		return false
	}
	return withDefaults || !s.byDefault
}

func (s *shown) print(b *bytes.Buffer, indent int, withDefaults bool) {
	pad := strings.Repeat("  ", indent)
	for i, key := range s.keys {
		v := s.items[i]
		if !v.visible(withDefaults) {
			continue
		}
		fmt.Fprintf(b, "%s%s:", pad, yamlKey(key))
		v.printValue(b, indent, withDefaults)
	}
}

// printValue writes what stands behind a colon.
func (s *shown) printValue(b *bytes.Buffer, indent int, withDefaults bool) {
	pad := strings.Repeat("  ", indent+1)
	switch {
	case s.object && !s.any(withDefaults):
		b.WriteString(" {}\n")
	case s.object:
		b.WriteByte('\n')
		s.print(b, indent+1, withDefaults)
	case s.array && !s.any(withDefaults):
		b.WriteString(" []\n")
	case s.array:
		b.WriteByte('\n')
		for _, item := range s.items {
			if item == nil {
				continue
			}
			if !item.object || !item.any(withDefaults) {
				b.WriteString(pad + "-")
				item.printValue(b, indent+1, withDefaults)
				continue
			}
			var inner bytes.Buffer
			item.print(&inner, indent+2, withDefaults)
			b.WriteString(pad + "- " + strings.TrimPrefix(inner.String(), pad+"  "))
		}
	default:
		text := s.text
		if !s.bare {
			text = yamlText(text)
		}
		b.WriteString(" " + text)
		if s.byDefault {
			b.WriteString(" # default")
		}
		b.WriteByte('\n')
	}
}

func (s *shown) any(withDefaults bool) bool {
	for _, item := range s.items {
		if item.visible(withDefaults) {
			return true
		}
	}
	return false
}

var (
	plainWord = regexp.MustCompile(`^[A-Za-z_/][A-Za-z0-9_./-]*$`)
	plainText = regexp.MustCompile(`^[A-Za-z_/][A-Za-z0-9_./-]*(:[A-Za-z0-9_./-]+)*$|^[0-9.]+:[0-9]+$|^[0-9]+(\.[0-9]+)?(ns|us|ms|s|m|h|d|mo|%|/s|/m|/h)$`)
)

// yamlKey writes a key.
func yamlKey(s string) string {
	if plainWord.MatchString(s) {
		return yamlText(s)
	}
	return string(quoteJSON(s))
}

// yamlText writes s so that it is read back as the same text.
func yamlText(s string) string {
	switch strings.ToLower(s) {
	case "true", "false", "null", "yes", "no", "on", "off", "y", "n":
		return `"` + s + `"`
	}
	if plainText.MatchString(s) {
		return s
	}
	return string(quoteJSON(s))
}

func quoteJSON(s string) []byte {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(s); err != nil {
		panic(err) // a string always encodes
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n"))
}

var onlyReferences = regexp.MustCompile(`^(\$\{(file:[^}]*|[A-Za-z_][A-Za-z0-9_]*)\})+$`)

// showText is text as it may be printed.
func showText(n *node, secret bool) *shown {
	switch {
	case n.ref != "" && (!secret || onlyReferences.MatchString(n.ref)):
		return &shown{text: maskURL(n.ref)}
	case secret && n.text != "":
		return &shown{text: masked}
	}
	return &shown{text: escapeDollars(maskURL(n.text))}
}

// showJSON is any value as it may be printed.
func showJSON(n *node) *shown {
	switch n.kind {
	case kindList:
		out := &shown{array: true}
		for _, item := range n.items {
			out.items = append(out.items, showJSON(item))
		}
		return out
	case kindMap:
		out := &shown{object: true}
		for _, e := range n.entries {
			out.put(e.key, showJSON(e.value))
		}
		return out
	case kindText:
		return showText(n, false)
	case kindNull:
		return &shown{text: "null", bare: true}
	default:
		return &shown{text: n.text, bare: true}
	}
}

// misread are the dollars that do not stand for themselves.
var misread = regexp.MustCompile(`\$+\{|\$\$+`)

// escapeDollars keeps literal text from being taken for a reference.
func escapeDollars(s string) string {
	return misread.ReplaceAllStringFunc(s, func(run string) string { return strings.ReplaceAll(run, "$", "$$") })
}

// sensitive says whether values under this key are likely credentials.
func sensitive(key string) bool {
	key = strings.ToLower(key)
	for _, word := range []string{"auth", "token", "secret", "passw", "key", "cookie", "signature", "credential"} {
		if strings.Contains(key, word) {
			return true
		}
	}
	return false
}

var (
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
			if sensitive(key) {
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
