package placeholder

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
)

// Template is text with placeholders such as {key}. The zero value is empty text.
type Template struct {
	text  string
	parts []part
}

// part is a piece of text, or the name of a placeholder.
type part struct{ literal, name string }

var pattern = regexp.MustCompile(`\{([^{}]*)\}`)

// Parse splits text at its placeholders and refuses names that known does not
// know, and braces that belong to none.
func Parse(text string, known func(name string) bool) (Template, error) {
	t := Template{text: text}
	var errs []error
	literal := func(s string) {
		if strings.ContainsAny(s, "{}") {
			errs = append(errs, errors.New("a brace does not belong to a placeholder such as {key}"))
		}
		if s != "" {
			t.parts = append(t.parts, part{literal: s})
		}
	}
	end := 0
	for _, m := range pattern.FindAllStringSubmatchIndex(text, -1) {
		literal(text[end:m[0]])
		name := text[m[2]:m[3]]
		if !known(name) {
			errs = append(errs, fmt.Errorf("{%s} is not a placeholder that can stand here%s", name, Hint(name)))
		}
		t.parts = append(t.parts, part{name: name})
		end = m[1]
	}
	literal(text[end:])
	return t, errors.Join(errs...)
}

// Text is what t was parsed from.
func (t Template) Text() string { return t.text }

// Names are the placeholders of t, in their order.
func (t Template) Names() []string {
	var names []string
	for _, p := range t.parts {
		if p.name != "" {
			names = append(names, p.name)
		}
	}
	return names
}

// Fields are the names of the mapped fields that t asks for.
func (t Template) Fields() []string {
	var names []string
	for _, p := range t.parts {
		if field, ok := strings.CutPrefix(p.name, fieldPrefix); ok {
			names = append(names, field)
		}
	}
	return names
}

// MapLiterals returns t with everything that is no placeholder changed by f.
func (t Template) MapLiterals(f func(string) string) Template {
	parts := make([]part, len(t.parts))
	for i, p := range t.parts {
		parts[i] = part{literal: f(p.literal), name: p.name}
	}
	return Template{text: t.text, parts: parts}
}

// Expand fills the placeholders; escape gets each value.
func (t Template) Expand(v *Values, escape func(string) (string, error)) (string, error) {
	var b strings.Builder
	for _, p := range t.parts {
		if p.name == "" {
			b.WriteString(p.literal)
			continue
		}
		value, err := v.Get(p.name)
		if err == nil {
			value, err = escape(value)
		}
		if err != nil {
			return "", fmt.Errorf("{%s} %w", p.name, err)
		}
		b.WriteString(value)
	}
	return b.String(), nil
}

// Replace returns text with every placeholder replaced by one text.
func Replace(text, by string) string { return pattern.ReplaceAllLiteralString(text, by) }
