package config

import (
	"errors"
	"maps"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v4"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/adapters/caldav"
	"github.com/hms-mkt/lockstep/adapters/hl7"
	"github.com/hms-mkt/lockstep/adapters/rest"
	"github.com/hms-mkt/lockstep/adapters/soap"
	"github.com/hms-mkt/lockstep/adapters/webhook"
)

// kinds are the adapters that a configuration can name: one line each.
func kinds() map[string]adapterKind {
	return map[string]adapterKind{
		"caldav":  kindOf(caldav.New),
		"hl7":     kindOf(hl7.New),
		"rest":    kindOf(rest.New),
		"soap":    kindOf(soap.New),
		"webhook": kindOf(webhook.New),
	}
}

// adapterKind knows how to read and build one kind of adapter.
type adapterKind struct {
	config reflect.Type
	build  func(config reflect.Value) (adapters.Adapter, error)
}

// kindOf makes an adapterKind of an adapter's constructor. Its configuration is decoded
// strictly, by yaml tags. An error of the constructor that begins with a field's path
// and a colon is reported at that field.
func kindOf[C any, A adapters.Adapter](build func(C) (A, error)) adapterKind {
	return adapterKind{reflect.TypeFor[C](), func(config reflect.Value) (adapters.Adapter, error) {
		return build(config.Interface().(C))
	}}
}

// Adapter is the adapter section of a sync.
type Adapter struct {
	adapters.Adapter
	Kind        string
	Substituted []adapters.Secret // the values of ${…} in it
}

func (a *Adapter) decode(d *decoder, n *node) *yaml.Node {
	if n.kind != kindMap {
		return d.wrong(n, "a section with the key kind")
	}
	names := strings.Join(slices.Sorted(maps.Keys(d.kinds)), ", ")
	kind := n.at("kind")
	known, ok := d.kinds[kind.text]
	switch {
	case kind.kind == kindAbsent:
		d.at(kind, "is missing: write one of %s", names)
		return nil
	case kind.kind != kindText:
		return d.wrong(kind, "one of "+names)
	case !ok:
		d.at(kind, "%s is not a kind of adapter: write one of %s%s", d.quote(kind), names, kind.suggest(strings.Split(names, ", ")))
		return nil
	}
	a.Kind = kind.text
	config := reflect.New(known.config).Elem()
	before, others := n.failed, len(d.problems)-d.usable
	out := d.object(n, config, "kind")
	out.Content = append([]*yaml.Node{text("kind"), text(a.Kind)}, out.Content...)
	if before || len(d.problems)-d.usable > others {
		return nil // the adapter would miss what could not be decoded
	}
	if hidden := config.FieldByName("Hidden"); hidden.IsValid() {
		hidden.Set(reflect.ValueOf(n.substitutedIn("body")))
	}
	adapter, err := known.build(config)
	switch {
	case err == nil && n.failed:
		return nil
	case err == nil:
		a.Adapter = adapter
		d.warnPlainHTTP(n, config)
		if a, ok := adapter.(interface{ Warnings() []string }); ok {
			problems := d.problems
			d.problems = nil
			for _, text := range a.Warnings() {
				d.adapterProblem(n, text, fieldsOf(known.config))
			}
			d.warnings, d.problems = append(d.warnings, d.problems...), problems
		}
		return out
	}
	reported := slices.Clip(d.problems)
	for _, text := range flatten(err, "") {
		d.adapterProblem(n, text, fieldsOf(known.config))
	}
	same := func(p Problem) bool {
		return slices.ContainsFunc(d.unknown, func(u unknownKey) bool { return u.explains(p.Path, n.path) }) ||
			slices.ContainsFunc(reported, func(r Problem) bool { return r.Path == p.Path })
	}
	d.problems = append(reported, slices.DeleteFunc(d.problems[len(reported):], same)...)
	return nil
}

func (a *Adapter) schema() map[string]any {
	var variants []any
	known := kinds()
	for _, name := range slices.Sorted(maps.Keys(known)) {
		variant := objectSchema(known[name].config)
		variant["properties"].(map[string]any)["kind"] = map[string]any{"const": name}
		required, _ := variant["required"].([]string)
		variant["required"] = append([]string{"kind"}, required...)
		variants = append(variants, variant)
	}
	return map[string]any{"type": "object", "required": []string{"kind"}, "oneOf": variants}
}

var (
	fieldPath = regexp.MustCompile(`^([A-Za-z0-9_-]+)(?:\.[A-Za-z0-9_-]+|\[\d+\]|\["(?:[^"\\]|\\.)*"\])*$`)
	quotedKey = regexp.MustCompile(`\["([A-Za-z0-9_-]+)"\]`)
)

// adapterProblem reports an error of an adapter at the fields that it names: the first
// part before a colon that lists paths of fields. If the file has none of them, the error
// is reported once, where the first one would be.
func (d *decoder) adapterProblem(n *node, text string, fields []reflect.StructField) {
	named := func(name string) bool {
		m := fieldPath.FindStringSubmatch(name)
		return m != nil && slices.ContainsFunc(fields, func(f reflect.StructField) bool { return keyOf(f) == m[1] })
	}
	for rest, ok := text, true; ok; {
		var part string
		part, rest, ok = strings.Cut(rest, ": ")
		names := strings.Split(part, ", ")
		if !ok || !named(names[0]) {
			continue
		}
		var all []*node
		for _, name := range names {
			if path := n.path + "." + quotedKey.ReplaceAllString(name, ".$1"); named(name) {
				at := *n.find(path)
				at.absent = at.path != path
				at.path = path
				all = append(all, &at)
			}
		}
		present := slices.DeleteFunc(slices.Clone(all), func(at *node) bool { return at.absent })
		if len(present) == 0 {
			present = all[:1]
		}
		for _, at := range present {
			d.inText(at, rest)
		}
		return
	}
	d.at(n, "%s", d.redact(n, text))
}

var textPosition = regexp.MustCompile(`^line (\d+), column (\d+): `)

// inText reports an error about n. If it begins with a position in the text of n, and the
// file has that line, the error is reported at that position of the file.
func (d *decoder) inText(n *node, text string) {
	if m := textPosition.FindStringSubmatch(text); m != nil {
		line, _ := strconv.Atoi(m[1])
		column, _ := strconv.Atoi(m[2])
		if d.locate(n, line, column) {
			text = text[len(m[0]):]
		}
	}
	d.at(n, "%s", d.redact(n, text))
}

// locate moves the position of n to a line and column of its text, if the file has that
// line.
func (d *decoder) locate(n *node, line, column int) bool {
	content := strings.Split(n.text, "\n")
	at := n.line + line - 1
	if n.block {
		at++
	}
	if line < 1 || line > len(content) || at > len(d.lines) {
		return false
	}
	before, _, ok := strings.Cut(d.lines[at-1], content[line-1])
	if ok {
		n.line, n.column = at, utf8.RuneCountInString(before)+column
	}
	return ok
}

// atUse reports a problem of a mapped field at each text at or below n that uses it, and
// at n if there is none.
func (d *decoder) atUse(n *node, field, problem string) {
	use := regexp.MustCompile(`fields\.` + regexp.QuoteMeta(field) + `(?:[}?"']|$)`)
	found := false
	var visit func(*node)
	visit = func(n *node) {
		if i := use.FindStringIndex(n.text); i != nil {
			found = true
			at := *n
			before := n.text[:i[0]]
			d.locate(&at, 1+strings.Count(before, "\n"), 1+utf8.RuneCountInString(before[strings.LastIndex(before, "\n")+1:]))
			d.at(&at, "%s", d.redact(&at, problem))
		}
		for _, item := range n.items {
			if d.routes[item.path] == nil { // a route with a mapping of its own
				visit(item)
			}
		}
	}
	visit(n)
	if !found {
		d.at(n, "%s", d.redact(n, problem))
	}
}

// flatten returns the texts of the errors that err joins, each with the text that wraps
// them.
func flatten(err error, before string) (all []string) {
	joined, ok := errors.AsType[interface {
		error
		Unwrap() []error
	}](err)
	if !ok {
		return []string{before + err.Error()}
	}
	before += strings.TrimSuffix(err.Error(), joined.Error())
	for _, e := range joined.Unwrap() {
		all = append(all, flatten(e, before)...)
	}
	return all
}

// Adapters repeat a wrong value in quotes, or as a placeholder, tag or entity.
var (
	quotedText   = regexp.MustCompile(`"(?:[^"\\]|\\.)*"`)
	repeatedText = regexp.MustCompile(`\{[^{}]*\}|<[^<>]*>|&[^\s;]*`)
)

// redactExpression is redact for errors of expressions, which repeat names.
func (d *decoder) redactExpression(n *node, text string) string {
	if n.ref == "" {
		return d.redact(n, text)
	}
	return "the expression does not compile; the reason is not shown, because it contains the value of " +
		variables(n.ref) + ": write the expression into the file"
}

// redact removes the values of ${…} from a message about n.
func (d *decoder) redact(n *node, text string) string {
	if n.ref != "" {
		text = repeatedText.ReplaceAllStringFunc(quotedText.ReplaceAllString(text, `"…"`), func(repeated string) string {
			if repeated == "{key}" || repeated == "&amp" { // how to write it, not a value
				return repeated
			}
			return "…"
		}) + " (the value comes from " + variables(n.ref) + ")"
	}
	hide := func(text string, values []string) string {
		for _, v := range values {
			for _, form := range []string{v, strings.Trim(strconv.Quote(v), `"`)} {
				if len(form) >= shortestSecret {
					text = strings.ReplaceAll(text, form, "…")
				}
			}
		}
		return text
	}
	// Values of other ${…} may be words that the message itself uses, such as bearer.
	text = quotedText.ReplaceAllStringFunc(text, func(quoted string) string { return hide(quoted, d.sub.values) })
	text = repeatedText.ReplaceAllStringFunc(text, func(repeated string) string { return hide(repeated, d.sub.values) })
	return hide(hide(text, n.substituted), d.secrets)
}

// shortestSecret is the length of the shortest value that is hidden wherever a message has
// it, in bytes.
const shortestSecret = 4
