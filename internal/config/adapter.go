package config

import (
	"errors"
	"fmt"
	"maps"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/relay"
)

// adapterKind knows how to read and build one kind of adapter.
type adapterKind struct {
	config reflect.Type
	build  func(d *decoder, n *node, path string) (adapters.Adapter, *shown)
}

// kindOf makes an adapterKind of an adapter's constructor. Its configuration is
// decoded strictly by yaml tags; errors of the constructor that begin with a
// field's path and a colon are reported at that field.
func kindOf[C any, A adapters.Adapter](build func(C) (A, error)) adapterKind {
	return adapterKind{
		config: reflect.TypeFor[C](),
		build: func(d *decoder, n *node, path string) (adapters.Adapter, *shown) {
			var config C
			before := len(d.problems)
			s := d.object(n, reflect.ValueOf(&config).Elem(), path, "kind")
			if len(d.problems) > before || brokenBelow(n) {
				return nil, s
			}
			adapter, err := build(config)
			if err != nil {
				for _, e := range flatten(err) {
					d.adapterProblem(n, path, e.Error(), fieldsOf(reflect.TypeFor[C]()))
				}
				return nil, s
			}
			return adapter, s
		},
	}
}

// adapterSpec is the adapter section of a sync.
type adapterSpec struct {
	kind    string
	adapter adapters.Adapter
	node    *node
}

func (a *adapterSpec) decode(d *decoder, n *node, path string) *shown {
	known := kinds()
	if d.kinds != nil {
		known = d.kinds
	}
	names := slices.Sorted(maps.Keys(known))
	if n.kind != kindMap {
		d.wrong(n, path, "a mapping with the key kind")
		return nil
	}
	a.node = n
	kind := n.get("kind")
	switch {
	case kind == nil:
		d.at(n, join(path, "kind"), "is missing: write one of %s", strings.Join(names, ", "))
		return nil
	case kind.broken:
		return nil
	case kind.kind != kindText:
		d.wrong(kind, join(path, "kind"), "one of "+strings.Join(names, ", "))
		return nil
	}
	k, ok := known[kind.text]
	if !ok {
		d.at(kind, join(path, "kind"), "%s is not a kind of adapter: write one of %s%s", d.quote(kind), strings.Join(names, ", "), d.suggest(kind, names))
		return nil
	}
	adapter, s := k.build(d, n, path)
	a.kind, a.adapter = kind.text, adapter
	if s != nil {
		s.keys = append([]string{"kind"}, s.keys...)
		s.items = append([]*shown{{text: kind.text}}, s.items...)
	}
	return s
}

func (a *adapterSpec) schema() map[string]any {
	var variants []any
	known := kinds()
	for _, name := range slices.Sorted(maps.Keys(known)) {
		variant := objectSchema(known[name].config)
		variant["properties"].(map[string]any)["kind"] = map[string]any{"const": name}
		variant["required"] = []string{"kind"}
		variants = append(variants, variant)
	}
	return map[string]any{"oneOf": variants}
}

// timeout returns how long the relay takes an attempt to last, 0 if there is no
// adapter.
func (a *adapterSpec) timeout() time.Duration {
	if a.adapter == nil {
		return 0
	}
	return relay.Sync{Adapter: a.adapter}.AttemptTimeout()
}

// adapterProblem reports an error of an adapter at the field it names, which is
// the first of fields that stands in front of a colon.
func (d *decoder) adapterProblem(n *node, path, text string, fields []field) {
	for rest, ok := text, true; ok; {
		var names string
		names, rest, ok = strings.Cut(rest, ": ")
		name, _, _ := strings.Cut(names, ", ")
		first := pathStep.FindStringSubmatch(name)
		if first == nil || !slices.ContainsFunc(fields, func(f field) bool { return f.key == first[1] }) {
			continue
		}
		if at, full, found := locate(n, path, name); ok && found {
			d.at(at, full, "%s", d.redact(at, rest))
			return
		}
	}
	d.at(n, path, "%s", d.redact(n, text))
}

var pathStep = regexp.MustCompile(`^\.?([A-Za-z0-9_-]+)|^\[(\d+)\]|^\[("(?:[^"\\]|\\.)*")\]`)

// locate finds the value that name, such as routes["a"].url, speaks of: itself
// or the nearest one around it.
func locate(n *node, path, name string) (*node, string, bool) {
	found := n
	for name != "" {
		m := pathStep.FindStringSubmatch(name)
		if m == nil {
			return n, path, false
		}
		name = name[len(m[0]):]
		key := m[1]
		if m[3] != "" {
			if unquoted, err := strconv.Unquote(m[3]); err == nil {
				key = unquoted
			}
		}
		var next *node
		if m[2] != "" {
			path += m[0]
			if i, err := strconv.Atoi(m[2]); err == nil && found != nil && i < len(found.items) {
				next = found.items[i]
			}
		} else {
			path = join(path, key)
			if found != nil {
				next = found.get(key)
			}
		}
		if next != nil {
			n = next
		}
		found = next
	}
	return n, path, true
}

func brokenBelow(n *node) bool {
	if n.broken {
		return true
	}
	for _, e := range n.entries {
		if brokenBelow(e.value) {
			return true
		}
	}
	return slices.ContainsFunc(n.items, brokenBelow)
}

// flatten returns the errors that err joins. Text around joined errors is put
// before each of them.
func flatten(err error) []error {
	var joined interface{ Unwrap() []error }
	if err == nil {
		return nil
	}
	if !errors.As(err, &joined) {
		return []error{err}
	}
	var all []error
	for _, e := range joined.Unwrap() {
		all = append(all, flatten(e)...)
	}
	if text, ok := joined.(error); ok && text.Error() != err.Error() {
		before := strings.TrimSuffix(err.Error(), text.Error())
		for i, e := range all {
			all[i] = fmt.Errorf("%s%w", before, e)
		}
	}
	return all
}

// Adapters repeat what is wrong in quotes, or as the placeholder, tag or entity
// that they take it for.
var (
	quotedText   = regexp.MustCompile(`"(?:[^"\\]|\\.)*"`)
	repeatedText = regexp.MustCompile(`\{[^{}]*\}|<[^<>]*>|&[^\s;]*`)
)

// redactExpression is redact for compile errors, which repeat names.
func (d *decoder) redactExpression(n *node, text string) string {
	if n.ref == "" {
		return d.redact(n, text)
	}
	return "the expression does not compile; why is not shown, because it contains what was put in for " +
		variables(n.ref) + ": write the expression into the file"
}

// redact takes out of a message about n what was put in from outside.
func (d *decoder) redact(n *node, text string) string {
	if n.ref != "" {
		text = repeatedText.ReplaceAllStringFunc(quotedText.ReplaceAllString(text, `"…"`), func(repeated string) string {
			if repeated == "{key}" || repeated == "&amp" { // how to write it, not what was put in
				return repeated
			}
			return "…"
		}) + " (the value comes from " + variables(n.ref) + ")"
	}
	for _, v := range d.sub.values {
		for _, form := range []string{v, strings.Trim(strconv.Quote(v), `"`)} {
			if !strings.Contains(text, form) {
				continue
			}
			if len(form) < 4 {
				return "is not accepted; the reason is not shown, because it contains a value put in by ${…}"
			}
			text = strings.ReplaceAll(text, form, "…")
		}
	}
	return text
}
