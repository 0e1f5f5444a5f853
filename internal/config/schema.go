package config

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/hms-mkt/lockstep/adapters"
)

// Schema returns a JSON Schema (draft 2020-12) of the file, for editors. It has keys,
// types, words, forms, defaults and descriptions. Only [Parse] makes the checks that need
// an expression, another part of the file, or the environment. A text with a ${…} fits
// everywhere.
func Schema() ([]byte, error) {
	s := objectSchema(reflect.TypeFor[File]())
	s["$schema"] = "https://json-schema.org/draft/2020-12/schema"
	s["title"] = "Lockstep configuration"
	s["$defs"] = sharedSchemas()
	b, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("schema: %w", err)
	}
	return append(b, '\n'), nil
}

// shared is the package of the structs that several adapters have. The schema has them once.
var shared = reflect.TypeFor[adapters.Credentials]().PkgPath()

// sharedSchemas returns the schemas of the shared structs, by name.
func sharedSchemas() map[string]any {
	all := make(map[string]any)
	var visit func(reflect.Type)
	visit = func(t reflect.Type) {
		switch t.Kind() {
		case reflect.Pointer, reflect.Slice, reflect.Map:
			visit(t.Elem())
		case reflect.Struct:
			if t.PkgPath() == shared {
				if all[t.Name()] != nil {
					return
				}
				all[t.Name()] = objectSchema(t)
			}
			for _, f := range fieldsOf(t) {
				visit(f.Type)
			}
		default:
		}
	}
	for _, k := range kinds() {
		visit(k.config)
	}
	return all
}

// ruled is a struct with rules that concern more than one key: schemas that must all hold.
type ruled interface{ rules() []any }

func objectSchema(t reflect.Type) map[string]any {
	properties, together := make(map[string]any), make(map[string]any)
	var required []string
	for _, f := range fieldsOf(t) {
		if f.Type == reflect.PointerTo(t) {
			continue
		}
		properties[keyOf(f)] = fieldSchema(f)
		if f.Tag.Get("required") != "" {
			required = append(required, keyOf(f))
		}
		if other := f.Tag.Get("with"); other != "" {
			together[keyOf(f)] = []string{other}
		}
	}
	for _, f := range fieldsOf(t) {
		if f.Type == reflect.PointerTo(t) { // such as a second set of credentials, which has no second one itself
			second := map[string]any{"type": "object", "description": f.Tag.Get("doc"), "properties": maps.Clone(properties), "additionalProperties": false}
			if rules := kindRules(t); rules != nil {
				second["allOf"] = rules
			}
			properties[keyOf(f)] = second
		}
	}
	s := map[string]any{"type": "object", "properties": properties, "additionalProperties": false}
	if required != nil {
		s["required"] = required
	}
	if len(together) > 0 {
		s["dependentRequired"] = together
	}
	if rules := kindRules(t); rules != nil {
		s["allOf"] = rules
	}
	if r, ok := reflect.TypeAssert[ruled](reflect.New(t).Elem()); ok {
		s["allOf"] = r.rules()
	}
	return s
}

// kindRules say which keys each kind of a struct needs, and which it refuses: those that
// belong to other kinds. They come from the tags oneof of kind, needed and of.
func kindRules(t reflect.Type) (rules []any) {
	words := func(tag string) []string { return strings.FieldsFunc(tag, func(r rune) bool { return r == '|' }) }
	kind, ok := t.FieldByName("Kind")
	if !ok {
		return nil
	}
	for i, word := range append(words(kind.Tag.Get("oneof")), "") {
		var required []string
		properties := make(map[string]any)
		for _, f := range fieldsOf(t) {
			needed, allowed := words(f.Tag.Get("needed")), words(f.Tag.Get("of"))
			switch {
			case slices.Contains(needed, word):
				required = append(required, keyOf(f))
			case len(needed)+len(allowed) > 0 && !slices.Contains(allowed, word):
				properties[keyOf(f)] = false
			}
		}
		if len(properties) == 0 && required == nil {
			continue
		}
		is := map[string]any{"required": []string{keyOf(kind)}, "properties": map[string]any{keyOf(kind): map[string]any{"const": word}}}
		then := map[string]any{"properties": properties}
		if word == "" && i > 0 { // without a kind
			is = map[string]any{"not": map[string]any{"required": []string{keyOf(kind)}}}
		}
		if required != nil {
			then["required"] = required
		}
		rules = append(rules, map[string]any{"if": is, "then": then})
	}
	return rules
}

func fieldSchema(f reflect.StructField) map[string]any {
	s := typeSchema(f.Type, f.Tag)
	if doc := f.Tag.Get("doc"); doc != "" {
		s["description"] = doc
	}
	known, ok := scalars[f.Type]
	unquoted := ok && known.kind != kindText
	if def := f.Tag.Get("default"); unquoted && def != "" && def[0] != '@' {
		s["default"] = json.RawMessage(def)
	} else if def != "" && def[0] != '@' {
		s["default"] = def
	}
	low, high := f.Tag.Get("min"), f.Tag.Get("max")
	if doc, ok := s["description"].(string); ok && low != "" && !unquoted { // JSON Schema has no bounds for text
		s["description"] = doc + " From " + low + " to " + high + "."
	}
	if unquoted && low != "" { // the bounds apply to numbers only: ${NAME} is text
		s["minimum"], s["maximum"] = json.RawMessage(low), json.RawMessage(high)
	}
	return s
}

// typeSchema is the schema of a type. The tag is that of the field, and applies to the
// values of lists and mappings.
func typeSchema(t reflect.Type, tag reflect.StructTag) map[string]any {
	if p, ok := reflect.TypeAssert[special](reflect.New(t)); ok {
		return p.schema()
	}
	if s, ok := scalars[t]; ok {
		schema := map[string]any{"type": s.types, "pattern": cmp.Or(s.pattern, variable)}
		if s.kind == kindText {
			schema["minimum"], schema["maximum"] = 0, 0 // the only number that needs no unit
		}
		return schema
	}
	switch {
	case t == reflect.TypeFor[json.RawMessage]():
		return map[string]any{}
	case t.Kind() == reflect.Pointer:
		return typeSchema(t.Elem(), tag)
	case t == reflect.TypeFor[adapters.Mapped]():
		return new(Fields).schema()
	case t == reflect.TypeFor[adapters.Computed]():
		return new(Compute).schema()
	case t.PkgPath() == shared && t.Kind() == reflect.Struct:
		return map[string]any{"$ref": "#/$defs/" + t.Name()}
	case t.Kind() == reflect.Struct:
		if f, ok := shortField(t); ok {
			return map[string]any{"anyOf": []any{fieldSchema(f), objectSchema(t)}}
		}
		return objectSchema(t)
	case t.Kind() == reflect.Slice:
		s := map[string]any{"type": "array", "items": typeSchema(t.Elem(), tag)}
		if tag.Get("check") != "" || tag.Get("required") != "" {
			s["minItems"], s["uniqueItems"] = 1, true
		}
		if tag.Get("filled") != "" {
			s["minItems"] = 1
		}
		return s
	case t.Kind() == reflect.Map:
		values := typeSchema(t.Elem(), tag)
		if tag.Get("keys") == keysAreEvents && t.Elem().Kind() == reflect.Struct { // a route sets something
			values["minProperties"] = 1
		}
		s := map[string]any{"type": "object", "additionalProperties": values}
		if tag.Get("filled") != "" {
			s["minProperties"] = 1
		}
		if form := keyForms[tag.Get("keys")]; form != "" {
			s["propertyNames"] = map[string]any{"pattern": form}
		}
		return s
	case t == reflect.TypeFor[adapters.Secret]():
		s := textSchema(tag)
		s["not"] = map[string]any{"pattern": bareVariable.String()}
		return s
	default:
		return textSchema(tag)
	}
}

// variable matches a text with a ${…}. Its value is not known to an editor.
const variable = `\$\{`

// textSchema is the schema of a text with the words, the check or the pattern of its tag.
func textSchema(tag reflect.StructTag) map[string]any {
	s := map[string]any{"type": "string"}
	pattern := cmp.Or(tag.Get("pattern"), textForms[tag.Get("check")])
	if words := tag.Get("oneof"); words != "" {
		allowed := make([]any, 0, 4)
		for word := range strings.SplitSeq(words, "|") {
			allowed = append(allowed, word)
			if flag, err := strconv.ParseBool(word); err == nil {
				s["type"] = []string{"string", "boolean"}
				allowed = append(allowed, flag)
			}
		}
		s["anyOf"] = []any{map[string]any{"enum": allowed}, map[string]any{"type": "string", "pattern": variable}}
	} else if pattern != "" {
		s["pattern"] = pattern + "|" + variable
	}
	return s
}

// textForms are patterns for the cases of [decoder.check], as far as a pattern can check
// them.
var textForms = map[string]string{
	"address":   `^$|:[0-9]{1,5}$`,
	"database":  `^postgres(ql)?://|^[^:]*=`,
	"name":      `^[A-Za-z0-9_.-]{1,63}$`,
	"event":     `^[^\s]{1,200}$`,
	"condition": `\S`,
	"scope":     `\S`,
	"from":      `^(beginning|now|[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:.]+(Z|[+-][0-9]{2}:[0-9]{2}))$`,
}

// keyForms are patterns for the tag keys.
var keyForms = map[string]string{
	keysAreEvents:   `^[^\s]{1,200}$`,
	keysAreStatuses: `^[2-5][0-9]{2}$`,
	keysAreAcks:     `^([AC][ERA]|[0-9]{3})$`,
	keysAreHeaders:  "^[A-Za-z0-9!#$%&'*+.^_`|~-]+$", // RFC 9110, 5.6.2
}

// The values of the tag keys: what the keys of a mapping are.
const (
	keysAreEvents   = "event" // types of events, or patterns of them
	keysAreStatuses = "status"
	keysAreHeaders  = "header"
	keysAreAcks     = "acknowledgement" // codes of HL7
)

// only is a schema of an object that has exactly one of the keys.
func only(keys ...string) map[string]any {
	var each []any
	for _, key := range keys {
		each = append(each, map[string]any{"required": []string{key}})
	}
	return map[string]any{"oneOf": each}
}

// notBoth is a schema of an object that does not have both keys.
func notBoth(a, b string) map[string]any {
	return map[string]any{"not": map[string]any{"required": []string{a, b}}}
}

// rules say that a sync has either event or events.
func (Sync) rules() []any { return []any{only("event", "events")} }

// rules say which keys of an entry exclude each other.
func (longField) rules() []any {
	notNull := map[string]any{"not": map[string]any{"type": "null"}}
	return []any{
		map[string]any{"properties": map[string]any{"default": notNull, "const": notNull}},
		only("to", "const"), notBoth("default", "optional"), notBoth("time", "values"),
		notBoth("const", "time"), notBoth("const", "values"), notBoth("const", "default"), notBoth("const", "optional"),
	}
}
