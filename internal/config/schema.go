package config

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"strings"
)

// Schema returns a JSON Schema (draft 2020-12) of the file, for editors. It has keys,
// types, words, defaults and descriptions. Only [Parse] makes the checks that need more
// than one key, or the environment.
func Schema() ([]byte, error) {
	s := objectSchema(reflect.TypeFor[File]())
	s["$schema"] = "https://json-schema.org/draft/2020-12/schema"
	s["title"] = "Lockstep configuration"
	b, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("schema: %w", err)
	}
	return append(b, '\n'), nil
}

func objectSchema(t reflect.Type) map[string]any {
	properties := make(map[string]any)
	var required []string
	for _, f := range fieldsOf(t) {
		if f.Type == reflect.PointerTo(t) {
			continue
		}
		properties[keyOf(f)] = fieldSchema(f)
		if f.Tag.Get("required") != "" {
			required = append(required, keyOf(f))
		}
	}
	for _, f := range fieldsOf(t) {
		if f.Type == reflect.PointerTo(t) { // such as a second set of credentials, which has no second one itself
			properties[keyOf(f)] = map[string]any{"type": "object", "properties": maps.Clone(properties), "additionalProperties": false}
		}
	}
	s := map[string]any{"type": "object", "properties": properties, "additionalProperties": false}
	if required != nil {
		s["required"] = required
	}
	return s
}

func fieldSchema(f reflect.StructField) map[string]any {
	s := typeSchema(f.Type)
	if doc := f.Tag.Get("doc"); doc != "" {
		s["description"] = doc
	}
	if words, ok := f.Tag.Lookup("oneof"); ok {
		s["enum"] = strings.Split(words, "|")
	}
	known, ok := scalars[f.Type]
	unquoted := ok && known.kind != kindText
	if def := f.Tag.Get("default"); unquoted && def != "" && def[0] != '@' {
		s["default"] = json.RawMessage(def)
	} else if def != "" && def[0] != '@' {
		s["default"] = def
	}
	if low := f.Tag.Get("min"); unquoted && low != "" { // the bounds apply to numbers only: ${NAME} is text
		s["minimum"], s["maximum"] = json.RawMessage(low), json.RawMessage(f.Tag.Get("max"))
	}
	return s
}

func typeSchema(t reflect.Type) map[string]any {
	if p, ok := reflect.TypeAssert[special](reflect.New(t)); ok {
		return p.schema()
	}
	if s, ok := scalars[t]; ok {
		return map[string]any{"type": s.types, "pattern": cmp.Or(s.pattern, `\$\{`)}
	}
	switch {
	case t == reflect.TypeFor[json.RawMessage]():
		return map[string]any{}
	case t.Kind() == reflect.Pointer:
		return typeSchema(t.Elem())
	case t.Kind() == reflect.Struct:
		return objectSchema(t)
	case t.Kind() == reflect.Slice:
		return map[string]any{"type": "array", "items": typeSchema(t.Elem())}
	case t.Kind() == reflect.Map:
		return map[string]any{"type": "object", "additionalProperties": typeSchema(t.Elem())}
	default:
		return map[string]any{"type": "string"}
	}
}
