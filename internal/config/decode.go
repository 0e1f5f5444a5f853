package config

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hms-mkt/lockstep/adapters"
)

// A field of a decoded struct is described by its tags: yaml (the key), default
// (the value of an absent key, in the file's own notation; @workers means the
// value of relay.workers), min and max (bounds, in the same notation), oneof
// (the words allowed, split by |), required, and doc.

// scalar is a type with a notation of its own. parse reports what is wrong and
// what to write instead, without repeating the text.
type scalar interface {
	parse(text string) error
	schema() map[string]any
}

// special is a type that reads a node by itself.
type special interface {
	decode(d *decoder, n *node, path string) *shown
	schema() map[string]any
}

// decoder turns nodes into Go values and reports what does not fit.
type decoder struct {
	*report
	sub     *substitution
	workers string                 // what @workers means
	kinds   map[string]adapterKind // in place of kinds(), for tests
}

// field is what the tags of a struct field say.
type field struct {
	key, def, min, max string
	oneof              []string
	required           bool
	doc                string
	index              []int
	typ                reflect.Type
}

// fieldsOf lists the keys of a struct in their order, embedded ones in place.
func fieldsOf(t reflect.Type) []field {
	var fields []field
	for i := range t.NumField() {
		f := t.Field(i)
		key, options, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		if strings.Contains(options, "inline") || f.Anonymous && key == "" {
			for _, inner := range fieldsOf(f.Type) {
				inner.index = append([]int{i}, inner.index...)
				fields = append(fields, inner)
			}
			continue
		}
		if key == "" || key == "-" || !f.IsExported() {
			continue
		}
		var oneof []string
		if words := f.Tag.Get("oneof"); words != "" {
			oneof = strings.Split(words, "|")
		}
		fields = append(fields, field{
			key: key, def: f.Tag.Get("default"), min: f.Tag.Get("min"), max: f.Tag.Get("max"),
			oneof: oneof, required: f.Tag.Get("required") == "true", doc: f.Tag.Get("doc"),
			index: []int{i}, typ: f.Type,
		})
	}
	return fields
}

// object decodes a mapping into the struct v. Keys in also are known but read
// elsewhere. A nil n stands for a mapping without keys.
func (d *decoder) object(n *node, v reflect.Value, path string, also ...string) *shown {
	if n != nil && n.kind != kindMap && n.kind != kindNull {
		d.wrong(n, path, "a mapping of keys to values")
		return nil
	}
	fields := fieldsOf(v.Type())
	known := slices.Clone(also)
	for _, f := range fields {
		known = append(known, f.key)
	}
	if n != nil {
		for _, e := range n.entries {
			if !slices.Contains(known, e.key) {
				d.add(e.line, e.column, join(path, e.key), "is not a known key.%s Known here: %s",
					suggest(e.key, known), strings.Join(known, ", "))
			}
		}
	}
	out := &shown{object: true, byDefault: n == nil}
	for _, f := range fields {
		var value *node
		if n != nil {
			value = n.get(f.key)
		}
		if value == nil && f.required {
			if n != nil {
				d.at(n, join(path, f.key), "is missing: %s", f.doc)
			}
			continue
		}
		out.put(f.key, d.field(f, value, v.FieldByIndex(f.index), join(path, f.key)))
	}
	return out
}

// field decodes one value, or its default.
func (d *decoder) field(f field, n *node, v reflect.Value, path string) *shown {
	switch v.Addr().Interface().(type) {
	case special, scalar:
	default:
		if n == nil && v.Kind() == reflect.Struct {
			return d.object(nil, v, path)
		}
	}
	if n == nil {
		if f.def == "" {
			return nil
		}
		given := &node{kind: kindText, text: d.resolve(f.def)}
		switch v.Kind() {
		case reflect.Int:
			given.kind = kindInt
		case reflect.Bool:
			given.kind = kindBool
		default:
		}
		out := d.value(f, given, v, path)
		out.byDefault = true
		return out
	}
	return d.value(f, n, v, path)
}

func (d *decoder) resolve(def string) string {
	if def == "@workers" {
		return d.workers
	}
	return def
}

// value decodes n, which is there, into v.
func (d *decoder) value(f field, n *node, v reflect.Value, path string) *shown {
	if n.broken {
		return nil
	}
	switch p := v.Addr().Interface().(type) {
	case special:
		return p.decode(d, n, path)
	case scalar:
		return d.scalar(f, n, v, path, p)
	case *time.Duration:
		return d.scalar(f, n, v, path, (*duration)(p))
	}
	switch v.Kind() {
	case reflect.Struct:
		return d.object(n, v, path)
	case reflect.Slice:
		return d.list(f, n, v, path)
	case reflect.Map:
		return d.table(f, n, v, path)
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		return d.value(f, n, v.Elem(), path)
	case reflect.String:
		return d.text(f, n, v, path)
	case reflect.Bool, reflect.Int, reflect.Int64, reflect.Float64:
		return d.plain(f, n, v, path)
	default:
		panic(fmt.Sprintf("config: %s has the type %s, which the decoder does not know", path, v.Type()))
	}
}

func (d *decoder) list(f field, n *node, v reflect.Value, path string) *shown {
	if n.kind == kindNull {
		return nil
	}
	if n.kind != kindList {
		want := "a list, such as [a, b]"
		if v.Type().Elem().Kind() == reflect.Struct {
			want = "a list, each entry behind a -"
		}
		d.wrong(n, path, want)
		return nil
	}
	out := &shown{array: true}
	v.Set(reflect.MakeSlice(v.Type(), len(n.items), len(n.items)))
	for i, item := range n.items {
		out.items = append(out.items, d.value(f, item, v.Index(i), fmt.Sprintf("%s[%d]", path, i)))
	}
	return out
}

func (d *decoder) table(f field, n *node, v reflect.Value, path string) *shown {
	if n.kind == kindNull {
		return nil
	}
	if n.kind != kindMap {
		d.wrong(n, path, "a mapping of keys to values")
		return nil
	}
	out := &shown{object: true}
	v.Set(reflect.MakeMapWithSize(v.Type(), len(n.entries)))
	for _, e := range n.entries {
		key := reflect.New(v.Type().Key()).Elem()
		if key.Kind() == reflect.Int {
			i, err := strconv.Atoi(e.key)
			if err != nil {
				d.add(e.line, e.column, join(path, e.key), "the key is not a number: write one such as 409")
				continue
			}
			key.SetInt(int64(i))
		} else {
			key.SetString(e.key)
		}
		value := reflect.New(v.Type().Elem()).Elem()
		s := d.value(f, e.value, value, join(path, e.key))
		v.SetMapIndex(key, value)
		if s != nil && sensitive(e.key) && e.value.kind == kindText && e.value.ref == "" {
			s.text = masked
		}
		out.put(e.key, s)
	}
	return out
}

func (d *decoder) text(f field, n *node, v reflect.Value, path string) *shown {
	if n.kind != kindText {
		want := "text"
		if n.kind == kindInt || n.kind == kindFloat || n.kind == kindBool {
			want = `text: put it in quotes, "` + n.text + `", if it is meant as text`
			if isSecret(v) {
				want = "text: put it in quotes"
			}
		}
		d.wrong(n, path, want)
		return nil
	}
	if len(f.oneof) > 0 && !slices.Contains(f.oneof, n.text) {
		d.at(n, path, "%s is not one of %s%s", d.quote(n), strings.Join(f.oneof, ", "), d.suggest(n, f.oneof))
		return nil
	}
	v.SetString(n.text)
	return showText(n, isSecret(v))
}

func isSecret(v reflect.Value) bool { return v.Type() == reflect.TypeFor[adapters.Secret]() }

// plain decodes booleans and numbers. What comes from outside is text and may
// stand for any of them.
func (d *decoder) plain(f field, n *node, v reflect.Value, path string) *shown {
	put := n.kind == kindText && n.ref != ""
	switch v.Kind() {
	case reflect.Bool:
		b, err := strconv.ParseBool(n.text)
		if err != nil || !put && n.kind != kindBool {
			d.wrong(n, path, "true or false")
			return nil
		}
		v.SetBool(b)
		return &shown{text: strconv.FormatBool(b), bare: true}
	case reflect.Float64:
		x, err := strconv.ParseFloat(n.text, 64)
		if err != nil || !put && n.kind != kindFloat && n.kind != kindInt {
			d.wrong(n, path, "a number")
			return nil
		}
		v.SetFloat(x)
		return &shown{text: strconv.FormatFloat(x, 'g', -1, 64), bare: true}
	default:
		return d.whole(f, n, v, path, put)
	}
}

func (d *decoder) whole(f field, n *node, v reflect.Value, path string, put bool) *shown {
	i, err := strconv.ParseInt(n.text, 10, 32)
	if err != nil || !put && n.kind != kindInt {
		want := "a whole number"
		if f.min != "" {
			want = fmt.Sprintf("a whole number from %s to %s", f.min, f.max)
		}
		if n.kind == kindText && err == nil {
			want += ", without quotes"
		}
		d.wrong(n, path, want)
		return nil
	}
	v.SetInt(i)
	if low, high := atoi(f.min), atoi(f.max); f.min != "" && (i < low || i > high) {
		d.at(n, path, "%s is out of bounds: write a whole number from %s to %s", d.quote(n), f.min, f.max)
	}
	return &shown{text: strconv.FormatInt(i, 10), bare: true}
}

func atoi(s string) int64 {
	i, _ := strconv.ParseInt(s, 10, 64) // a tag; checked by a test
	return i
}

func (d *decoder) scalar(f field, n *node, v reflect.Value, path string, p scalar) *shown {
	if n.kind == kindMap || n.kind == kindList || n.kind == kindNull || n.kind == kindBool {
		d.wrong(n, path, notation(p))
		return nil
	}
	if err := p.parse(n.text); err != nil {
		if errors.Is(err, errNoUnit) && n.ref == "" {
			err = fmt.Errorf("has no unit: write for example %ss", n.text)
		}
		d.at(n, path, "%s %s", d.quote(n), err)
		return nil
	}
	if f.min != "" && !within(v, f.min, f.max) {
		d.at(n, path, "%s is out of bounds: write a value from %s to %s", d.quote(n), f.min, f.max)
	}
	return &shown{text: n.text, bare: n.text == "0"}
}

// within compares by a common measure of scalars.
func within(v reflect.Value, low, high string) bool {
	measure := func(v reflect.Value) float64 {
		switch x := v.Interface().(type) {
		case time.Duration:
			return float64(x)
		case duration:
			return float64(x)
		case Period:
			return float64(x.Duration) + float64(x.Months)*30*24*float64(time.Hour)
		case percent:
			return float64(x)
		case rate:
			return float64(x)
		}
		return 0
	}
	bound := func(text string) float64 {
		b := reflect.New(v.Type())
		switch p := b.Interface().(type) {
		case scalar:
			_ = p.parse(text) // a tag; checked by a test
		case *time.Duration:
			_ = (*duration)(p).parse(text)
		}
		return measure(b.Elem())
	}
	x := measure(v)
	return x >= bound(low) && x <= bound(high)
}

// wrong reports a value of another type than the key needs.
func (d *decoder) wrong(n *node, path, want string) {
	switch {
	case n.broken:
	case n.kind == kindNull:
		d.at(n, path, "has no value: write %s, or remove the key", want)
	case n.ref != "":
		d.at(n, path, "%s does not fit: it must be %s", d.quote(n), want)
	case n.kind == kindText:
		d.at(n, path, "is text, and must be %s", want)
	default:
		d.at(n, path, "is %s, and must be %s", n.kind, want)
	}
}

// quote shows a value of the file, shortened, or where it comes from.
func (d *decoder) quote(n *node) string {
	if n.ref != "" {
		return "the value put in for " + variables(n.ref)
	}
	s := []rune(n.text)
	if len(s) > 60 {
		s = append(s[:60], '…')
	}
	return strconv.Quote(string(s))
}

func (d *decoder) suggest(n *node, known []string) string {
	if n.ref != "" {
		return ""
	}
	if s := suggest(n.text, known); s != "" {
		return "." + s
	}
	return ""
}
