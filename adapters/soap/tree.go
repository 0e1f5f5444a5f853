package soap

import (
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"
)

// maxDepth bounds how deep elements nest.
const maxDepth = 64

// element is an element of a template or of an answer.
type element struct {
	prefix   string
	name     name
	attrs    []attribute // in their order, with declarations of namespaces
	children []node
	scope    *scope // what is declared inside it
	offset   int    // of its tag in the source, in bytes
	end      int    // of the tag
	closed   bool   // its end was read
}

type attribute struct {
	prefix string
	name   name
	value  string
}

// node is an element, or text where element is nil.
type node struct {
	element *element
	text    string
	offset  int // in the source, in bytes
	end     int
}

// tag returns the name as the source has it.
func tag(prefix, local string) string {
	if prefix == "" {
		return local
	}
	return prefix + ":" + local
}

// elements returns the children that are elements.
func (e *element) elements() []*element {
	var all []*element
	for _, n := range e.children {
		if n.element != nil {
			all = append(all, n.element)
		}
	}
	return all
}

// child returns the first child with that local name, in any namespace.
func (e *element) child(local string) *element {
	for _, n := range e.children {
		if n.element != nil && n.element.name.local == local {
			return n.element
		}
	}
	return nil
}

// content returns the text inside e and its descendants, without space at its ends.
func (e *element) content() string {
	var b strings.Builder
	var walk func(*element)
	walk = func(e *element) {
		for _, n := range e.children {
			if n.element != nil {
				walk(n.element)
			} else {
				b.WriteString(n.text)
			}
		}
	}
	walk(e)
	return strings.Trim(b.String(), " \t\r\n")
}

// parser turns text into elements. It knows only the entities of XML itself and refuses
// a DTD.
type parser struct {
	source string
	// template makes it stricter: a prefix must be declared, and the text must have
	// neither a declaration nor a processing instruction.
	template bool

	roots []node
	open  []*element
	scope *scope // outside of all elements
}

// parseXML returns the elements and texts of source in their order. With an error it
// returns what it has read before. Errors name line and column.
func parseXML(source string, known *scope, template bool) ([]node, error) {
	p := &parser{source: source, template: template, scope: known}
	d := xml.NewDecoder(strings.NewReader(source))
	d.CharsetReader = func(_ string, r io.Reader) (io.Reader, error) { return r, nil } // source is UTF-8, even if it declares another encoding
	for {
		start := int(d.InputOffset())
		token, err := d.RawToken()
		switch {
		case errors.Is(err, io.EOF):
			if e := p.inside(); e != nil {
				err = p.at(e.offset, "<%s> is not closed", tag(e.prefix, e.name.local))
			} else {
				err = nil
			}
			return p.roots, err
		case err != nil:
			return p.roots, p.at(min(int(d.InputOffset()), len(source)), "%s", p.syntax(err))
		}
		if err := p.take(token, start, int(d.InputOffset())); err != nil {
			return p.roots, err
		}
	}
}

// syntax returns the text of a syntax error. It does not repeat what follows a & in an
// answer: it may be half of a value that the receiver did not escape.
func (p *parser) syntax(err error) string {
	if s, ok := errors.AsType[*xml.SyntaxError](err); ok {
		msg, _, entity := strings.Cut(s.Msg, " &")
		switch {
		case entity && !p.template:
			return msg
		case strings.HasPrefix(s.Msg, "invalid character entity & "):
			return "write an ampersand as &amp;"
		}
		return s.Msg
	}
	return strings.TrimPrefix(err.Error(), "xml: ")
}

func (p *parser) take(token xml.Token, start, end int) error {
	switch t := token.(type) {
	case xml.StartElement:
		return p.startElement(t, start, end)
	case xml.EndElement:
		e := p.inside()
		written := tag(t.Name.Space, t.Name.Local)
		switch {
		case e == nil:
			return p.at(start, "</%s> closes nothing", written)
		case tag(e.prefix, e.name.local) != written:
			return p.at(start, "</%s> closes <%s>, which was opened in line %d", written, tag(e.prefix, e.name.local), p.line(e.offset))
		}
		e.closed = true
		p.open = p.open[:len(p.open)-1]
	case xml.CharData:
		p.add(node{text: string(t), offset: start, end: end})
	case xml.Directive:
		return p.at(start, "a DTD is not allowed")
	case xml.ProcInst:
		if p.template {
			return p.at(start, "a processing instruction or XML declaration is not allowed: the adapter writes the envelope")
		}
	}
	return nil
}

func (p *parser) inside() *element {
	if len(p.open) == 0 {
		return nil
	}
	return p.open[len(p.open)-1]
}

func (p *parser) add(n node) {
	if e := p.inside(); e != nil {
		e.children = append(e.children, n)
	} else {
		p.roots = append(p.roots, n)
	}
}

func (p *parser) startElement(t xml.StartElement, start, end int) error {
	if len(p.open) == maxDepth {
		return p.at(start, "the elements nest deeper than %d", maxDepth)
	}
	e := &element{prefix: t.Name.Space, name: name{local: t.Name.Local}, scope: p.scope, offset: start, end: end}
	if outer := p.inside(); outer != nil {
		e.scope = outer.scope
	}
	for _, a := range t.Attr {
		switch {
		case a.Name.Space == "xmlns":
			e.scope = &scope{outer: e.scope, prefix: a.Name.Local, uri: a.Value}
		case a.Name.Space == "" && a.Name.Local == "xmlns":
			e.scope = &scope{outer: e.scope, uri: a.Value}
		}
	}
	var err error
	if e.name.space, err = p.resolve(e.scope, t.Name, start); err != nil {
		return err
	}
	seen := make(map[name]bool, len(t.Attr))
	for _, a := range t.Attr {
		at := attribute{prefix: a.Name.Space, name: name{local: a.Name.Local}, value: a.Value}
		if at.prefix != "" && at.prefix != "xmlns" { // without a prefix it has no namespace, not even the default
			if at.name.space, err = p.resolve(e.scope, a.Name, start); err != nil {
				return err
			}
		}
		key := at.name
		if at.prefix == "xmlns" {
			key.space = "xmlns"
		}
		if seen[key] {
			return p.at(start, "<%s> has the attribute %s twice", tag(e.prefix, e.name.local), tag(at.prefix, at.name.local))
		}
		seen[key] = true
		e.attrs = append(e.attrs, at)
	}
	p.add(node{element: e, offset: start, end: end})
	p.open = append(p.open, e)
	return nil
}

func (p *parser) resolve(s *scope, n xml.Name, offset int) (string, error) {
	if strings.Contains(n.Local, ":") {
		return "", p.at(offset, "%s is not a name with one prefix", n.Local)
	}
	uri, ok := s.lookup(n.Space)
	if !ok && p.template {
		return "", p.at(offset, "%w", undeclared(n.Space))
	}
	return uri, nil
}

// at makes an error with the position of offset.
func (p *parser) at(offset int, format string, args ...any) error {
	return place(p.source, offset, fmt.Errorf(format, args...))
}

func (p *parser) line(offset int) int { return 1 + strings.Count(p.source[:offset], "\n") }

// place puts line and column of offset before err.
func place(source string, offset int, err error) error {
	before := source[:offset]
	column := 1 + utf8.RuneCountInString(before[strings.LastIndexByte(before, '\n')+1:])
	return fmt.Errorf("line %d, column %d: %w", 1+strings.Count(before, "\n"), column, err)
}

var errXMLText = errors.New("which XML 1.0 cannot carry")

// inXML reports whether XML 1.0 has the character r (XML 1.0, 2.2).
func inXML(r rune) bool {
	return r >= 0x20 && r != 0xFFFE && r != 0xFFFF || r == '\t' || r == '\n' || r == '\r'
}

// xmlText refuses characters that no XML 1.0 document can have, not even escaped (XML
// 1.0, 2.2). The error does not repeat the text.
func xmlText(s string) error {
	if !utf8.ValidString(s) {
		return fmt.Errorf("has bytes that are not UTF-8, %w", errXMLText)
	}
	for i, r := range s {
		if !inXML(r) {
			return fmt.Errorf("has %U at byte %d, %w", r, i, errXMLText)
		}
	}
	return nil
}
