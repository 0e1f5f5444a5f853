package placeholder

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// Template is text with placeholders such as {key}. The zero value is empty text.
type Template struct {
	text  string
	parts []part
}

// part is a piece of text, or the name of a placeholder.
type part struct {
	literal, name string
	optional      bool // {name?}
}

// Mistake is what is wrong with one brace or placeholder of a text.
type Mistake struct {
	At string // the brace, or the placeholder with its braces
	error
}

// Mistakes returns the mistakes of an error of Parse.
func Mistakes(err error) (all []Mistake) {
	joined, _ := err.(interface{ Unwrap() []error })
	if joined == nil {
		return nil
	}
	for _, e := range joined.Unwrap() {
		all = append(all, e.(Mistake)) //nolint:errorlint // they are not wrapped
	}
	return all
}

// ErrLeftOut says that an optional value is missing, so the text with it is left out.
var ErrLeftOut = errors.New("is left out")

var pattern = regexp.MustCompile(`\{([^{}]*)\}`)

// inText matches a placeholder in a text that has braces of its own, such as JSON.
var inText = regexp.MustCompile(`\{([A-Za-z][A-Za-z0-9_.:-]*\??)\}`)

// Parse splits text at its placeholders. It refuses names for which known returns
// false, and single braces. A name that ends in ? is optional; known gets it with the
// ?. The error joins one [Mistake] for each problem.
func Parse(text string, known func(name string) bool) (Template, error) {
	return parse(text, pattern, known, func(name string) string {
		if Any(name) { // the caller does not allow it here
			return ""
		}
		return Names{}.hint(name)
	})
}

// Parse is the function of that name for texts with these placeholders, none of them
// optional. Its errors list the names.
func (n Names) Parse(text string) (Template, error) { return parse(text, pattern, n.Known, n.hint) }

// ParseBody is [Names.Parse] for a text that may have braces of its own, such as JSON: only
// braces around a word make a placeholder. Placeholders may be optional.
func (n Names) ParseBody(text string) (Template, error) {
	return parse(text, inText, func(name string) bool { return n.Known(strings.TrimSuffix(name, "?")) }, n.hint)
}

func parse(text string, pattern *regexp.Regexp, known func(name string) bool, hint func(name string) string) (Template, error) {
	t := Template{text: text}
	var errs []error
	literal := func(s string) {
		if i := strings.IndexAny(s, "{}"); i >= 0 && pattern != inText {
			errs = append(errs, Mistake{s[i : i+1], errors.New("a brace does not belong to a placeholder such as {key}")})
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
			at := text[m[0]:m[1]]
			errs = append(errs, Mistake{at, fmt.Errorf("%s is not a placeholder that is allowed here%s", at, hint(name))})
		}
		name, optional := strings.CutSuffix(name, "?")
		t.parts = append(t.parts, part{name: name, optional: optional})
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

// Fields are the names of the mapped fields that t uses.
func (t Template) Fields() []string {
	var names []string
	for _, p := range t.parts {
		if field, ok := strings.CutPrefix(p.name, fieldPrefix); ok {
			names = append(names, field)
		}
	}
	return names
}

// Literals are the texts of t between its placeholders.
func (t Template) Literals() []string {
	var texts []string
	for _, p := range t.parts {
		if p.name == "" {
			texts = append(texts, p.literal)
		}
	}
	return texts
}

// Optional reports whether t has an optional placeholder.
func (t Template) Optional() bool {
	return slices.ContainsFunc(t.parts, func(p part) bool { return p.optional })
}

// MapLiterals returns t with f applied to all texts between placeholders.
func (t Template) MapLiterals(f func(string) string) Template {
	parts := make([]part, len(t.parts))
	for i, p := range t.parts {
		parts[i] = part{f(p.literal), p.name, p.optional}
	}
	return Template{text: t.text, parts: parts}
}

// Expand fills the placeholders with the values of v, each escaped.
func (t Template) Expand(v *Values, escape func(string) (string, error)) (string, error) {
	return t.Fill(func(name string) (string, error) {
		value, err := v.Get(name)
		if err != nil {
			return "", err
		}
		return escape(value)
	})
}

// Fill fills each placeholder with the text that get returns for its name. If get
// returns [ErrNotKnown] for an optional one, Fill returns [ErrLeftOut].
func (t Template) Fill(get func(name string) (string, error)) (string, error) {
	var b strings.Builder
	for _, p := range t.parts {
		if p.name == "" {
			b.WriteString(p.literal)
			continue
		}
		value, err := get(p.name)
		switch {
		case p.optional && errors.Is(err, ErrNotKnown):
			return "", ErrLeftOut
		case err != nil:
			return "", fmt.Errorf("{%s} %w", p.name, err)
		}
		b.WriteString(value)
	}
	return b.String(), nil
}

// Replace returns text with every placeholder replaced by one text.
func Replace(text, by string) string { return pattern.ReplaceAllLiteralString(text, by) }
