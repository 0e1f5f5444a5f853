package config

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"unicode/utf8"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/lexer"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"

	"github.com/hms-mkt/lockstep/adapters"
)

// Bounds of a file.
const (
	maxFileSize = 1 << 20
	maxDepth    = 32
)

type kind int

const (
	kindNull kind = iota
	kindText
	kindInt
	kindFloat
	kindBool
	kindMap
	kindList
)

func (k kind) String() string {
	return [...]string{"nothing", "text", "a number", "a number", "true or false", "a mapping", "a list"}[k]
}

// node is a value of the file, after substitution.
type node struct {
	line, column int
	kind         kind
	text         string   // of a scalar
	ref          string   // as written in the file, when something was put in
	put          []string // what was put in
	broken       bool     // a problem was reported; say nothing more about it
	entries      []entry
	items        []*node
}

// puts lists what ${…} put into n and below.
func (n *node) puts() (all []adapters.Secret) {
	if n == nil {
		return nil
	}
	for _, value := range n.put {
		all = append(all, adapters.Secret(value))
	}
	for _, e := range n.entries {
		all = append(all, e.value.puts()...)
	}
	for _, item := range n.items {
		all = append(all, item.puts()...)
	}
	return all
}

type entry struct {
	key          string
	line, column int
	value        *node
}

func (n *node) get(key string) *node {
	for _, e := range n.entries {
		if e.key == key {
			return e.value
		}
	}
	return nil
}

// parse reads data into a tree; nil means that there is none.
func parse(r *report, data []byte, sub *substitution) *node {
	switch {
	case len(data) > maxFileSize:
		r.add(1, 1, "", "the file is larger than 1 MiB: a configuration of that size is a mistake")
		return nil
	case !utf8.Valid(data):
		r.add(1, 1, "", "the file is not UTF-8: save it as UTF-8")
		return nil
	}
	tokens := lexer.Tokenize(string(data))
	if deep := tooDeep(tokens); deep != nil {
		r.add(deep.Position.Line, deep.Position.Column, "", "is nested deeper than %d levels: a configuration of that depth is a mistake", maxDepth)
		return nil
	}
	file, err := parser.Parse(tokens, 0, parser.AllowDuplicateMapKey())
	if err != nil {
		var syntax *yaml.SyntaxError
		if errors.As(err, &syntax) && syntax.Token != nil {
			// A message may quote the file, and so a secret.
			r.add(syntax.Token.Position.Line, syntax.Token.Position.Column, "", "not valid YAML: %s%s",
				quotedText.ReplaceAllString(syntax.Message, `"…"`), hint(data, syntax))
		} else {
			r.add(1, 1, "", "not valid YAML: check the indentation, brackets and quotes")
		}
		return nil
	}
	var docs []*ast.DocumentNode
	for _, d := range file.Docs {
		if d.Body != nil {
			docs = append(docs, d)
		}
	}
	switch len(docs) {
	case 0:
		r.add(1, 1, "", "the file is empty: it needs at least database and syncs")
		return nil
	case 1:
	default:
		line, column := position(docs[1].Body)
		r.add(line, column, "", "a second document begins here: a configuration is one document, remove the line ---")
		return nil
	}
	t := treeReader{report: r, sub: sub}
	return t.read(docs[0].Body, "", 0)
}

// tooDeep finds brackets and dashes that open more levels than a configuration
// has. The parser's time and memory grow with the square of their number.
// Levels that are made by indentation cost as many bytes themselves.
func tooDeep(tokens token.Tokens) *token.Token {
	brackets, dashes, line := 0, 0, 0
	for _, t := range tokens {
		switch t.Type {
		case token.MappingStartType, token.SequenceStartType:
			brackets++
		case token.MappingEndType, token.SequenceEndType:
			brackets--
		case token.SequenceEntryType:
			if t.Position.Line != line {
				dashes, line = 0, t.Position.Line
			}
			dashes++
		default:
		}
		if max(brackets, dashes) > maxDepth {
			return t
		}
	}
	return nil
}

// hint explains the commonest syntax errors: what needs quotes.
func hint(data []byte, err *yaml.SyntaxError) string {
	lines := strings.Split(string(data), "\n")
	at := err.Token.Position.Line
	switch {
	case at < 1 || at > len(lines):
	case strings.Contains(err.Message, "must be specified") && strings.Contains(lines[at-1], "${"):
		return `; between { } and [ ] a ${NAME} needs quotes: "${NAME}"`
	case strings.Contains(err.Message, "not allowed in this context") && strings.Contains(lines[at-1], ": "):
		return "; text in which a colon is followed by a space needs quotes around it, and the keys of one section begin in the same column"
	}
	return ""
}

type treeReader struct {
	report *report
	sub    *substitution
}

func (t *treeReader) read(a ast.Node, path string, depth int) *node {
	line, column := position(a)
	n := &node{line: line, column: column}
	if depth > maxDepth {
		t.report.at(n, path, "is nested deeper than %d levels: a configuration of that depth is a mistake", maxDepth)
		n.broken = true
		return n
	}
	switch a := a.(type) {
	case *ast.NullNode:
	case *ast.BoolNode:
		n.kind, n.text = kindBool, a.Token.Value
	case *ast.IntegerNode:
		n.kind, n.text = kindInt, a.Token.Value
	case *ast.FloatNode:
		n.kind, n.text = kindFloat, a.Token.Value
	case *ast.InfinityNode, *ast.NanNode:
		n.kind, n.text = kindFloat, a.GetToken().Value
	case *ast.StringNode:
		n.kind, n.text = kindText, a.Value
		t.substitute(n, path)
	case *ast.LiteralNode:
		n.kind, n.text = kindText, a.Value.Value
		t.substitute(n, path)
	case *ast.SequenceNode:
		n.kind = kindList
		for i, v := range a.Values {
			n.items = append(n.items, t.read(v, fmt.Sprintf("%s[%d]", path, i), depth+1))
		}
	case *ast.MappingNode:
		n.kind = kindMap
		t.entries(n, a.Values, path, depth)
	case *ast.MappingValueNode:
		n.kind = kindMap
		t.entries(n, []*ast.MappingValueNode{a}, path, depth)
	default:
		t.report.at(n, path, "%s: write the value out", unsupported(a))
		n.broken = true
	}
	return n
}

func (t *treeReader) entries(n *node, values []*ast.MappingValueNode, path string, depth int) {
	first := make(map[string]int)
	for _, v := range values {
		key, ok := keyText(v.Key)
		line, column := position(v.Key)
		if !ok {
			t.report.add(line, column, path, "%s: write the keys out", unsupported(v.Key))
			continue
		}
		if at, twice := first[key]; twice {
			t.report.add(line, column, join(path, key), "is given twice, first in line %d: remove one of them", at)
			continue
		}
		if splits(v) {
			t.report.add(line, column, join(path, key), "ends at a colon without a space behind it: put a space there, or, where the colon is part of the key, quotes around the key, such as \"scheduling:updated\"")
			continue
		}
		first[key] = line
		n.entries = append(n.entries, entry{key: key, line: line, column: column, value: t.read(v.Value, join(path, key), depth+1)})
	}
}

func (t *treeReader) substitute(n *node, path string) {
	out, put, err := t.sub.replace(n.text)
	if err != nil {
		t.report.at(n, path, "%s", err)
		n.broken = true
		return
	}
	if put != nil {
		n.ref, n.put = n.text, put
	}
	n.text = out
}

// splits tells whether a key without quotes, between braces, ends at a colon
// that YAML takes as a part of the key, and the parser does not:
// {scheduling:updated: x}.
func splits(v *ast.MappingValueNode) bool {
	colon := v.Start
	if colon == nil || colon.Next == nil {
		return false
	}
	switch v.Key.GetToken().Type {
	case token.SingleQuoteType, token.DoubleQuoteType:
		return false
	default:
	}
	switch colon.Next.Type {
	case token.MappingStartType, token.MappingEndType, token.SequenceStartType, token.SequenceEndType, token.CollectEntryType:
		return false
	default:
	}
	at, next := colon.Position, colon.Next.Position
	return at.Line == next.Line && at.Column+1 == next.Column
}

func keyText(k ast.MapKeyNode) (string, bool) {
	switch k := k.(type) {
	case *ast.StringNode:
		return k.Value, true
	case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode, *ast.NullNode:
		return k.GetToken().Value, true
	}
	return "", false
}

func unsupported(a ast.Node) string {
	switch a.(type) {
	case *ast.AnchorNode, *ast.AliasNode, *ast.MergeKeyNode:
		return "anchors (&), aliases (*) and merges (<<) are not supported"
	case *ast.TagNode:
		return "tags (!) are not supported"
	}
	return "this kind of YAML is not supported"
}

// position finds where a starts. The token of a block mapping is its first colon.
func position(a ast.Node) (line, column int) {
	switch m := a.(type) {
	case *ast.MappingNode:
		if !m.IsFlowStyle && len(m.Values) > 0 {
			a = m.Values[0].Key
		}
	case *ast.MappingValueNode:
		a = m.Key
	}
	p := a.GetToken().Position
	return p.Line, p.Column
}

var plainKey = regexp.MustCompile(`^[A-Za-z0-9_-]+$`)

func join(path, key string) string {
	if !plainKey.MatchString(key) {
		return fmt.Sprintf("%s[%q]", path, key)
	}
	if path == "" {
		return key
	}
	return path + "." + key
}
