package config

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"go.yaml.in/yaml/v4"

	"github.com/hms-mkt/lockstep/adapters"
)

// Bounds of a file.
const (
	maxFileSize = 1 << 20
	maxDepth    = 32
)

type kind int

const (
	kindAbsent kind = iota // the file has no such key
	kindBroken             // a problem was reported in its place
	kindNull
	kindText
	kindNumber
	kindBool
	kindMap
	kindList
)

func (k kind) String() string {
	return [...]string{"nothing", "nothing", "nothing", "text", "a number", "true or false", aSection, "a list"}[k]
}

// node is a value of the file, after substitution.
type node struct {
	kind         kind
	path         string // such as syncs[0].adapter.timeout
	line, column int
	parent       *node
	items        []*node // of a list or a mapping
	key          string  // its name in a mapping
	keyLine      int
	keyColumn    int
	text         string   // of a scalar
	ref          string   // as written in the file, if it has a ${…}
	substituted  []string // the values of its ${…}
	bare         bool     // it has a variable's name after a $, without braces
	block        bool     // its lines are lines of the file, after the one in which it begins
	absent       bool     // the file does not have it, and this is the nearest value around it
	failed       bool     // a problem was reported here or below
}

// at returns the value under keys. A value that the file does not have is of
// kindAbsent, with the position of the nearest value around it.
func (n *node) at(keys ...string) *node {
	for _, key := range keys {
		i := slices.IndexFunc(n.items, func(c *node) bool {
			return n.kind == kindMap && c.key == key || n.kind == kindList && c.path == n.path+"["+key+"]"
		})
		if i >= 0 {
			n = n.items[i]
		} else {
			n = &node{parent: n, path: join(n.path, key), line: n.line, column: n.column}
		}
	}
	return n
}

// find returns the deepest value around path.
func (n *node) find(path string) *node {
	for _, c := range n.items {
		if rest, ok := strings.CutPrefix(path, c.path); ok && (rest == "" || rest[0] == '.' || rest[0] == '[') {
			return c.find(path)
		}
	}
	return n
}

// allSubstituted lists the values of ${…} in n and below.
func (n *node) allSubstituted() (all []adapters.Secret) {
	for _, value := range n.substituted {
		all = append(all, adapters.Secret(value))
	}
	for _, item := range n.items {
		all = append(all, item.allSubstituted()...)
	}
	return all
}

// substitutedIn lists the values of ${…} in all values of a key, in n and below.
func (n *node) substitutedIn(key string) (all []adapters.Secret) {
	for _, item := range n.items {
		if n.kind == kindMap && item.key == key {
			all = append(all, item.allSubstituted()...)
		} else {
			all = append(all, item.substitutedIn(key)...)
		}
	}
	return all
}

var plainKey = regexp.MustCompile(`^[A-Za-z0-9_-]+$`)

func join(path, key string) string {
	switch {
	case !plainKey.MatchString(key):
		return fmt.Sprintf("%s[%q]", path, key)
	case path == "":
		return key
	}
	return path + "." + key
}

// jsonOnly matches what JSON and YAML read differently: a surrogate pair, which YAML
// writes as \U, and characters that end a line in YAML or that YAML refuses. The first
// alternative matches an escaped backslash, which does not begin a surrogate.
var jsonOnly = regexp.MustCompile(`\\\\|(?i:\\ud[89ab][0-9a-f]{2}\\ud[c-f][0-9a-f]{2})|[\x{85}\x{2028}\x{2029}\x{fffe}\x{ffff}]`)

// read reads data into a tree; nil means that there is none.
func (d *decoder) read(data []byte) *node {
	data = bytes.TrimPrefix(data, []byte("\uFEFF"))
	switch {
	case len(data) > maxFileSize:
		d.add(1, 1, "", "the file is larger than 1 MiB: a configuration of that size is a mistake")
		return nil
	case !utf8.Valid(data):
		d.add(1, 1, "", "the file is not UTF-8: save it as UTF-8")
		return nil
	case json.Valid(data):
		data = jsonOnly.ReplaceAllFunc(data, func(found []byte) []byte {
			var s string
			if json.Unmarshal(slices.Concat([]byte{'"'}, found, []byte{'"'}), &s) != nil || s == `\` {
				return found
			}
			r, _ := utf8.DecodeRuneInString(s)
			return fmt.Appendf(nil, `\U%08X`, r)
		})
	}
	loader, err := yaml.NewLoader(bytes.NewReader(data))
	var docs []*yaml.Node
	for err == nil && len(docs) < 2 {
		var doc yaml.Node
		if err = loader.Load(&doc); err == nil && doc.Content[0].Tag != "!!null" {
			docs = append(docs, doc.Content[0])
		}
	}
	switch {
	case err != nil && !errors.Is(err, io.EOF):
		d.syntax(data, err)
		return nil
	case len(docs) == 0:
		d.add(1, 1, "", "the file is empty: it needs at least database and syncs")
		return nil
	case len(docs) == 2:
		d.add(docs[1].Line, docs[1].Column, "", "a second document begins here: a configuration is one document, remove the line ---")
		return nil
	}
	root := &node{}
	d.lines = strings.Split(string(data), "\n")
	d.tree(docs[0], root, 0)
	return root
}

// hints explain the most common syntax errors: a part of the message, a part of the
// line, and what to do.
var hints = []struct{ message, line, hint string }{
	{"',' or", "${", `; between { } and [ ] a ${NAME} needs quotes: "${NAME}"`},
	{"',' or", ":[", "; a colon needs a space after it"},
	{"mapping values are not allowed", ": ", "; text in which a colon is followed by a space needs quotes around it, and the keys of one section begin in the same column"},
	{"expected key", "", "; the keys of one section begin in the same column"},
	{"expected ':'", "", "; a key needs a colon and a space after it"},
	{"cannot start any token", "\t", "; indent with spaces, not with tabs"},
	{"cannot start any token", "", "; text that begins with @, `, % or - needs quotes around it"},
	{"Unicode character escape", "", "; write the character itself"},
	{"an alias", "*", "; text that begins with * needs quotes around it"},
	{"unknown anchor", "", "; anchors (&) and aliases (*) are not supported, and text that begins with * needs quotes around it"},
}

// syntax reports why data is not YAML.
func (d *decoder) syntax(data []byte, err error) {
	syntax, ok := errors.AsType[*yaml.LoadError](err)
	if !ok {
		d.add(1, 1, "", "not valid YAML: check the indentation, brackets and quotes")
		return
	}
	at, text := syntax.Mark, syntax.Message
	switch {
	case strings.Contains(text, "max depth"):
		d.add(at.Line, at.Column, "", tooDeep, maxDepth)
		return
	case syntax.Stage == yaml.ReaderStage: // it has no position
		i := max(0, bytes.IndexFunc(data, func(r rune) bool { return unicode.IsControl(r) && !strings.ContainsRune("\t\r\n", r) }))
		line := data[bytes.LastIndexByte(data[:i], '\n')+1 : i]
		at.Line, at.Column = 1+bytes.Count(data[:i], []byte{'\n'}), 1+utf8.RuneCount(line)
	case strings.HasPrefix(text, "unknown anchor"):
		text = "unknown anchor" // its name may be a secret without quotes
	}
	if syntax.ContextMsg != "" {
		text += " " + syntax.ContextMsg
	}
	if from := syntax.ContextMark; from.Line > 0 && (from.Line != at.Line || from.Column != at.Column) {
		text += fmt.Sprintf(" that begins in line %d, column %d", from.Line, from.Column)
	}
	var line string
	if lines := strings.Split(string(data), "\n"); at.Line > 0 && at.Line <= len(lines) {
		line = lines[at.Line-1]
	}
	for _, h := range hints {
		if strings.Contains(text, h.message) && strings.Contains(line, h.line) {
			text += h.hint
			break
		}
	}
	d.add(max(at.Line, 1), max(at.Column, 1), "", "not valid YAML: %s", text)
}

const tooDeep = "is nested deeper than %d levels: a configuration of that depth is a mistake"

// tree reads y into n.
func (d *decoder) tree(y *yaml.Node, n *node, depth int) {
	n.kind, n.line, n.column = kindBroken, y.Line, y.Column
	if depth > maxDepth {
		d.at(n, tooDeep, maxDepth)
		return
	}
	if why := unsupported(y); why != "" {
		d.at(n, "%s: write the value out", why)
		return
	}
	switch y.Kind {
	case yaml.SequenceNode:
		n.kind = kindList
		for i, item := range y.Content {
			c := &node{parent: n, path: fmt.Sprintf("%s[%d]", n.path, i)}
			n.items = append(n.items, c)
			d.tree(item, c, depth+1)
		}
	case yaml.MappingNode:
		n.kind = kindMap
		first := make(map[string]int)
		for pair := range slices.Chunk(y.Content, 2) {
			key, path := pair[0], join(n.path, pair[0].Value)
			problem := func(path, format string, args ...any) { d.add(key.Line, key.Column, path, format, args...) }
			name, _, colon := strings.Cut(key.Value, ":")
			line, twice := first[key.Value]
			switch why := unsupported(key); {
			case why != "":
				problem(n.path, "%s: write the keys out", why)
			case key.Kind != yaml.ScalarNode:
				problem(n.path, "keys that are lists or mappings are not supported: write the keys out")
			case colon && key.Style == 0 && pair[1].Tag == "!!null" && pair[1].Value == "":
				// The text after the colon may be a secret.
				problem(join(n.path, name), "ends at a colon without a space after it: add the space, or put the key in quotes if the colon is part of it, such as \"scheduling:updated\"")
			case twice:
				problem(path, "is given twice, first in line %d: remove one of them", line)
			default:
				first[key.Value] = key.Line
				c := &node{parent: n, path: path, key: key.Value, keyLine: key.Line, keyColumn: key.Column}
				n.items = append(n.items, c)
				d.tree(pair[1], c, depth+1)
			}
		}
	default:
		n.kind, n.text, n.block = scalarKind(y), y.Value, y.Style&yaml.LiteralStyle != 0
		if n.kind == kindText {
			d.substitute(n)
		}
	}
}

// scalarKind knows the numbers of YAML's core schema, except whole numbers beyond 64
// bits, and except an exponent without a decimal point. Dates are text.
func scalarKind(y *yaml.Node) kind {
	switch y.Tag {
	case "!!null":
		return kindNull
	case "!!bool":
		return kindBool
	case "!!int":
		return kindNumber
	case "!!float":
		if y.Value == "-0" || strings.Contains(y.Value, ".") { // the library reads -0 as a float
			return kindNumber
		}
	}
	return kindText
}

func (d *decoder) substitute(n *node) {
	out, values, err := d.sub.replace(n.text)
	if err != nil {
		n.kind = kindBroken
		d.at(n, "%s", err)
		return
	}
	if values != nil {
		n.ref, n.substituted = n.text, values
	}
	n.bare = bareVariable.MatchString(strings.ReplaceAll(n.text, "$$", ""))
	n.text = out
}

// bareVariable matches a $NAME that a shell would replace. A $$ before NAME is not matched.
var bareVariable = regexp.MustCompile(`(?:^|[^A-Za-z0-9$])\$[A-Z_][A-Z0-9_]*(?:$|[^A-Za-z0-9])`)

func unsupported(y *yaml.Node) string {
	switch {
	case y.Kind == yaml.AliasNode, y.Anchor != "", y.Tag == "!!merge":
		return "anchors (&), aliases (*) and merges (<<) are not supported"
	case y.Style&yaml.TaggedStyle != 0:
		return "tags (!) are not supported"
	}
	return ""
}

func (n *node) fail() {
	for ; n != nil; n = n.parent {
		n.failed = true
	}
}
