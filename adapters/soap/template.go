package soap

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/hms-mkt/lockstep/adapters/internal/exchange"
	"github.com/hms-mkt/lockstep/adapters/internal/placeholder"
)

// template is an element of the envelope with placeholders in its text and attribute
// values. All its markup comes from the configuration.
type template struct {
	tag      string // as it was written, such as cal:NotifyHearing
	attrs    []attrTemplate
	each     string // lockstep:each, the name of a list
	ifThere  bool   // the list is optional
	when     string // lockstep:if, the placeholder's name
	children []child
}

type attrTemplate struct {
	tag   string
	value placeholder.Template
}

// child is an element, or text where element is nil.
type child struct {
	element *template
	text    placeholder.Template
}

// compiled is a template of several elements.
type compiled struct {
	elements []*template
	prefixes map[string]bool // that it needs declared
}

// parseTemplate reads the elements of one key of the configuration. Its error reports
// every mistake with line and column.
func parseTemplate(source string, known *scope) (compiled, error) {
	roots, err := parseXML(source, known, true)
	if err != nil {
		return compiled{}, err
	}
	c := &compiler{source: source, prefixes: map[string]bool{}}
	var out compiled
	for _, n := range roots {
		if n.element != nil {
			if e := n.element; ofEnvelope(e.name) {
				c.wrong(e.offset, "<%s> is written by the adapter: write only its content", tag(e.prefix, e.name.local))
			}
			out.elements = append(out.elements, c.element(n.element, nil, false))
		} else if i := strings.IndexFunc(n.text, notSpace); i >= 0 {
			c.wrong(n.offset, "text is outside of an element: put it inside one")
		}
	}
	out.prefixes = c.prefixes
	return out, errors.Join(c.errs...)
}

func notSpace(r rune) bool { return !strings.ContainsRune(" \t\r\n", r) }

// parseOperation is parseTemplate for the one element of the Body.
func parseOperation(source string, known *scope) (compiled, error) {
	c, err := parseTemplate(source, known)
	if err != nil {
		return c, err
	}
	if len(c.elements) != 1 {
		return c, fmt.Errorf("holds %d elements; write one, the operation", len(c.elements))
	}
	op := c.elements[0]
	if op.each != "" || op.when != "" || op.leftOut() {
		return c, fmt.Errorf("<%s> may be repeated or left out, but the operation is sent exactly once: put ?, lockstep:each and lockstep:if on elements inside it", op.tag)
	}
	return c, nil
}

// leftOut reports whether a missing value removes the whole element.
func (t *template) leftOut() bool {
	return slices.ContainsFunc(t.children, func(c child) bool { return c.element == nil && c.text.Optional() })
}

// literals returns the texts of t that are not from data, without namespaces. Some are
// credentials.
func (t *template) literals() []string {
	var all []string
	for _, a := range t.attrs {
		if a.tag != "xmlns" && !strings.HasPrefix(a.tag, "xmlns:") {
			all = append(all, a.value.Literals()...)
		}
	}
	for _, c := range t.children {
		if c.element != nil {
			all = append(all, c.element.literals()...)
		} else {
			all = append(all, c.text.Literals()...)
		}
	}
	return all
}

// fields appends to names the mapped fields that t uses.
func (t *template) fields(names []string) []string {
	for _, name := range []string{t.each, t.when} {
		if field, ok := strings.CutPrefix(name, "fields."); ok {
			names = append(names, field)
		}
	}
	for _, a := range t.attrs {
		names = append(names, a.value.Fields()...)
	}
	for _, c := range t.children {
		if c.element != nil {
			names = c.element.fields(names)
		}
		names = append(names, c.text.Fields()...)
	}
	return names
}

// compiler turns the elements of one source into templates.
type compiler struct {
	source   string
	prefixes map[string]bool
	errs     []error
}

func (c *compiler) wrong(offset int, format string, args ...any) {
	c.errs = append(c.errs, place(c.source, offset, fmt.Errorf(format, args...)))
}

// element compiles e. declared are the prefixes that the elements around e declare.
// item reports whether one of these elements has lockstep:each.
func (c *compiler) element(e *element, declared map[string]bool, item bool) *template {
	t := &template{tag: tag(e.prefix, e.name.local)}
	declared = maps.Clone(declared)
	for _, a := range e.attrs {
		if prefix, ok := a.declares(); ok {
			if declared == nil {
				declared = map[string]bool{}
			}
			declared[prefix] = true
		}
	}
	use := func(prefix string) {
		if prefix != "" && !declared[prefix] {
			c.prefixes[prefix] = true
		}
	}
	if e.name.space == nsLockstep {
		c.wrong(e.offset, "<%s>: there are no elements of lockstep, only the attributes lockstep:each and lockstep:if", t.tag)
	}
	use(e.prefix)

	if list := c.directive(e, "each"); list != "" {
		t.each, t.ifThere = strings.CutSuffix(list, "?")
		if !listName(t.each, item) {
			c.wrong(e.offset, "lockstep:each=%q: write the name of a list, such as fields.parties", list)
		}
		item = true
	}
	if t.when = c.directive(e, "if"); t.when != "" && !knownName(t.when, item) {
		c.wrong(e.offset, "lockstep:if=%q is not the name of a value, such as fields.remarks", t.when)
	}
	for _, a := range e.attrs {
		if a.name.space == nsLockstep {
			if a.name.local != "each" && a.name.local != "if" {
				c.wrong(e.offset, "lockstep:%s is not known; there are lockstep:each and lockstep:if", a.name.local)
			}
			continue
		}
		t.attrs = append(t.attrs, c.attribute(e, a, item))
		if _, ok := a.declares(); !ok {
			use(a.prefix)
		}
	}
	for _, n := range e.children {
		if n.element != nil {
			t.children = append(t.children, child{element: c.element(n.element, declared, item)})
		} else {
			t.children = append(t.children, child{text: c.text(n.text, n.offset, n.end, item)})
		}
	}
	return t
}

// declares returns the prefix that an attribute xmlns or xmlns:p declares.
func (a attribute) declares() (prefix string, ok bool) {
	if a.prefix == "xmlns" {
		return a.name.local, true
	}
	return "", a.prefix == "" && a.name.local == "xmlns"
}

// directive returns the value of an attribute of lockstep, or "" if there is none.
func (c *compiler) directive(e *element, local string) string {
	for _, a := range e.attrs {
		if a.name == (name{space: nsLockstep, local: local}) {
			if a.value == "" {
				c.wrong(e.offset, "lockstep:%s is empty", local)
			}
			return a.value
		}
	}
	return ""
}

func (c *compiler) attribute(e *element, a attribute, item bool) attrTemplate {
	t := attrTemplate{tag: tag(a.prefix, a.name.local)}
	prefix, declaration := a.declares()
	switch {
	case declaration && slices.Contains(taken, prefix):
		c.wrong(e.offset, "the prefix %s is taken: choose another", prefix)
	case declaration && prefix != "" && a.value == "":
		c.wrong(e.offset, "%s declares no namespace", t.tag)
	case declaration && strings.ContainsAny(a.value, "{}"):
		c.wrong(e.offset, "%s has a placeholder, but a namespace never comes from data: write its URI", t.tag)
	default:
		t.value = c.text(a.value, e.offset, e.end, item)
	}
	return t
}

// text parses text, which is between start and end of the source, escaped.
func (c *compiler) text(text string, start, end int, item bool) placeholder.Template {
	t, err := placeholder.Parse(text, func(name string) bool { return knownName(strings.TrimSuffix(name, "?"), item) })
	for _, e := range exchange.Flatten(err) {
		var m placeholder.Mistake
		if errors.As(e, &m) && strings.HasPrefix(strings.Trim(m.At, "{?}")+".", "item.") {
			e = fmt.Errorf("%s is outside of an element with lockstep:each", m.At)
		}
		// The source does not have it here if it was written with a character
		// reference.
		c.wrong(start+max(0, strings.Index(c.source[start:end], m.At)), "%w", e)
	}
	return t
}
