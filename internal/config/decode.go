package config

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v4"

	"github.com/hms-mkt/lockstep/adapters"
)

// Tags describe the fields of a decoded struct:
//
//   - yaml: the key
//   - default: the value if the key is absent, as a file would have it; @workers is
//     the value of relay.workers
//   - min, max: bounds, as a file would have them
//   - oneof: the allowed words, separated by |
//   - check: a case of [decoder.check]
//   - required: the key must exist; without doc only for the schema, because the adapter
//     itself says what is missing
//   - keys: what the keys of a mapping are, one of keyForms
//   - pattern: a regular expression for the schema; the adapter itself checks the text
//   - with: another key that must be given too, for the schema
//   - needed, of: the kinds, separated by |, that need a key, and those that may have it,
//     for the schema
//   - signs: the secret signs requests and is not sent
//   - filled: the mapping or list has at least one entry, for the schema
//   - empty: what to do instead of writing an empty text
//   - short: a text alone, without the struct's keys, is the value of this field
//   - doc: a description

// special is a type that decodes its own node. decode returns the node to print.
type special interface {
	decode(d *decoder, n *node) *yaml.Node
	schema() map[string]any
}

// decoder turns nodes into Go values and reports what does not fit.
type decoder struct {
	name     string // of the file, in messages
	file     *File
	kinds    map[string]adapterKind
	sub      substitution
	lines    []string // of the file
	secrets  []string // the values of ${…} in secrets
	usable   int      // problems of unknown keys, and of words that are not allowed; all other values are there
	unknown  []unknownKey
	problems Problems
	warnings Problems

	routes map[string]*routeParts // by path in the file
}

// unknownKey has the path of a mapping with a key that is not known, and of the key that this
// seems to mean.
type unknownKey struct{ in, meant string }

// explains reports whether another problem of the adapter at path may only be there because of
// the unknown key.
func (u unknownKey) explains(path, adapter string) bool {
	rest, within := strings.CutPrefix(path, u.in)
	return path == u.meant || u.in != adapter && within && (rest == "" || strings.ContainsAny(rest[:1], ".["))
}

// fieldsOf lists the fields of a struct that are keys, embedded ones in place.
func fieldsOf(t reflect.Type) []reflect.StructField {
	return slices.DeleteFunc(reflect.VisibleFields(t), func(f reflect.StructField) bool {
		return keyOf(f) == "" || keyOf(f) == "-" || keyOf(f)[0] == ','
	})
}

func keyOf(f reflect.StructField) string { return f.Tag.Get("yaml") }

// object decodes a mapping into the struct v. The caller reads the keys in also. If the
// mapping is absent, v gets the defaults.
func (d *decoder) object(n *node, v reflect.Value, also ...string) *yaml.Node {
	if n.kind != kindMap && n.kind != kindAbsent {
		return d.wrong(n, aSection)
	}
	fields := fieldsOf(v.Type())
	known := slices.Clone(also)
	for _, f := range fields {
		known = append(known, keyOf(f))
	}
	for _, item := range n.items {
		if !slices.Contains(known, item.key) {
			d.atKey(item, "is not a known key%s Known here: %s", cmp.Or(suggest(item.key, known), "."), strings.Join(known, ", "))
			d.usable++
			d.unknown = append(d.unknown, unknownKey{n.path, join(n.path, similar(item.key, known))})
		}
	}
	out := mappingNode()
	if n.kind == kindAbsent {
		out.LineComment = byDefault
	}
	for _, f := range fields {
		value := n.at(keyOf(f))
		if doc := f.Tag.Get("doc"); f.Tag.Get("required") == "true" && doc != "" && value.kind == kindAbsent { // required:"adapter" is checked by the adapter
			d.at(value, "is missing: %s", doc)
			continue
		}
		put(out, keyOf(f), d.field(f.Tag, value, v.FieldByIndex(f.Index)))
	}
	return out
}

// field decodes one value, or its default.
func (d *decoder) field(tag reflect.StructTag, n *node, v reflect.Value) *yaml.Node {
	text := tag.Get("default")
	_, reads := reflect.TypeAssert[special](v.Addr())
	switch {
	case n.kind != kindAbsent, v.Kind() == reflect.Struct && text == "" && !reads:
		return d.value(tag, n, v)
	case text == "":
		return nil
	case text == "@workers":
		text = strconv.Itoa(d.file.Relay.Workers)
	}
	given := &node{path: n.path, kind: kindText, text: text}
	if s, ok := scalars[v.Type()]; ok {
		given.kind = s.kind
	}
	out := d.value("", given, v) // a test checks defaults against their tags
	out.LineComment = byDefault
	return out
}

// value decodes n into v.
func (d *decoder) value(tag reflect.StructTag, n *node, v reflect.Value) *yaml.Node {
	raw, isJSON := reflect.TypeAssert[*json.RawMessage](v.Addr())
	switch {
	case isJSON:
		return d.json(n, raw)
	case n.kind == kindBroken:
		return nil
	}
	if p, ok := reflect.TypeAssert[special](v.Addr()); ok {
		return p.decode(d, n)
	}
	if s, ok := scalars[v.Type()]; ok {
		return d.scalar(s, tag, n, v)
	}
	if out, ok := d.routePart(n, v); ok {
		return out
	}
	switch v.Kind() {
	case reflect.Struct:
		if f, ok := shortField(v.Type()); ok {
			switch n.kind {
			case kindText:
				return d.value(f.Tag, n, v.FieldByIndex(f.Index))
			case kindMap, kindAbsent:
			default:
				return d.wrong(n, cmp.Or(strings.ReplaceAll(f.Tag.Get("oneof"), "|", ", "), "text")+", or "+aSection)
			}
		}
		return d.object(n, v)
	case reflect.Slice:
		return d.list(tag, n, v)
	case reflect.Map:
		return d.table(tag, n, v)
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		return d.value(tag, n, v.Elem())
	case reflect.String:
		return d.text(tag, n, v)
	default:
		panic(fmt.Sprintf("config: %s has the type %s, which the decoder does not know", n.path, v.Type()))
	}
}

// aSection is what messages call a mapping of YAML, because mapping is a key of the file.
const aSection = "a section (keys and values)"

func (d *decoder) list(tag reflect.StructTag, n *node, v reflect.Value) *yaml.Node {
	if n.kind != kindList {
		if v.Type().Elem().Kind() == reflect.Struct {
			return d.wrong(n, "a list, each entry after a -")
		}
		return d.wrong(n, "a list, such as [a, b]")
	}
	out := &yaml.Node{Kind: yaml.SequenceNode}
	v.Set(reflect.MakeSlice(v.Type(), len(n.items), len(n.items)))
	for i, item := range n.items {
		if s := d.value(tag, item, v.Index(i)); s != nil {
			out.Content = append(out.Content, s)
		}
	}
	return out
}

func (d *decoder) table(tag reflect.StructTag, n *node, v reflect.Value) *yaml.Node {
	if n.kind != kindMap {
		return d.wrong(n, aSection)
	}
	out := mappingNode()
	v.Set(reflect.MakeMapWithSize(v.Type(), len(n.items)))
	for _, item := range n.items {
		key, value := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
		if key.Kind() == reflect.String {
			key.SetString(item.key)
		} else if i, err := strconv.ParseInt(item.key, 10, 0); err == nil {
			key.SetInt(i)
		} else {
			d.atKey(item, "the key is not a number: write one such as 409")
			continue
		}
		s := d.value(tag, item, value)
		v.SetMapIndex(key, value)
		if s != nil && adapters.Sensitive(item.key) && item.kind == kindText && item.ref == "" {
			s.Value = masked
		}
		put(out, item.key, s)
	}
	return out
}

func (d *decoder) text(tag reflect.StructTag, n *node, v reflect.Value) *yaml.Node {
	secret := v.Type() == reflect.TypeFor[adapters.Secret]()
	words := strings.Split(tag.Get("oneof"), "|")
	scalar := n.kind == kindNumber || n.kind == kindBool && !slices.Contains(words, n.text)
	switch {
	case scalar && secret:
		return d.wrong(n, "text: put it in quotes")
	case scalar:
		return d.wrong(n, `text: put it in quotes, "`+n.text+`", if it is meant as text`)
	case n.kind != kindText && n.kind != kindBool:
		return d.wrong(n, "text")
	}
	if words[0] != "" && !slices.Contains(words, n.text) {
		if len(words) == 1 {
			d.at(n, "%s is not possible: only %s is", d.quote(n), words[0])
		} else {
			d.at(n, "%s is not one of %s%s", d.quote(n), strings.Join(words, ", "), n.suggest(words))
		}
		d.usable++
	}
	if instead := tag.Get("empty"); instead != "" && n.text == "" {
		d.at(n, "is empty: %s", instead)
	}
	v.SetString(n.text)
	if secret {
		d.secrets = append(d.secrets, n.substituted...)
	}
	if n.bare && (secret || maskURL(n.text) != n.text) {
		d.at(n, "has a $ and a name without braces, which would be sent as it is: write ${NAME} for the value of a variable, or $$ for a dollar")
	}
	d.check(tag.Get("check"), n)
	if tag.Get("check") == "database" {
		return text(maskDatabase(n.text))
	}
	return showText(n, secret)
}

// scalar decodes booleans, numbers and types with their own notation. The value of a
// ${…} is text, and may be any of them.
func (d *decoder) scalar(s scalar, tag reflect.StructTag, n *node, v reflect.Value) *yaml.Node {
	want, low, high := s.want, tag.Get("min"), tag.Get("max")
	if s.kind == kindNumber && low != "" {
		want += fmt.Sprintf(" from %s to %s", low, high)
	}
	value, err := s.parse(n.text)
	fits := n.kind == s.kind || n.kind == kindText && n.ref != "" || n.kind == kindNumber && s.kind == kindText
	switch {
	case !fits && n.kind == kindText && err == nil:
		return d.wrong(n, want+", without quotes")
	case !fits, err != nil && s.kind != kindText:
		return d.wrong(n, want)
	case errors.Is(err, errNoUnit) && n.ref == "":
		unit := "s"
		if strings.HasSuffix(tag.Get("default"), "ms") {
			unit = "ms"
		}
		d.at(n, "%s has no unit: write for example %s%s", d.quote(n), n.text, unit)
		return nil
	case err != nil:
		d.at(n, "%s %s", d.quote(n), err)
		return nil
	}
	v.Set(reflect.ValueOf(value))
	if low != "" && !s.within(value, low, high) {
		if s.kind == kindText {
			want = fmt.Sprintf("a value from %s to %s", low, high)
		}
		d.at(n, "%s is out of bounds: write %s", d.quote(n), want)
	}
	if s.kind != kindText {
		return plain(fmt.Sprint(value))
	}
	return plain(n.text)
}

// wrong reports a value of another type than the key needs.
func (d *decoder) wrong(n *node, want string) *yaml.Node {
	switch {
	case n.kind == kindBroken:
	case n.kind == kindNull:
		remove := "the key"
		if n.key == "" {
			remove = "the entry"
		}
		d.at(n, "has no value: write %s, or remove %s", want, remove)
	case n.ref != "":
		d.at(n, "%s does not fit: it must be %s", d.quote(n), want)
	case n.kind == kindText:
		d.at(n, "is text, but must be %s", want)
	default:
		d.at(n, "is %s, but must be %s", n.kind, want)
	}
	return nil
}

// quote shows a value of the file, shortened, or the ${…} that it comes from.
func (d *decoder) quote(n *node) string {
	if n.ref != "" {
		return "the value of " + variables(n.ref)
	}
	s := []rune(n.text)
	if len(s) > 60 {
		s = append(s[:60], '…')
	}
	return strconv.Quote(string(s))
}

// suggest is the function of that name for text that may be shown.
func (n *node) suggest(known []string) string {
	if n.ref != "" {
		return ""
	}
	return suggest(n.text, known)
}
