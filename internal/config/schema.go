package config

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strconv"
	"time"
)

// Schema returns a JSON Schema (draft 2020-12) of the file, for editors. It
// knows keys, types, words, defaults and descriptions; what needs more than one
// key or the environment is checked by [Parse] only.
func Schema() ([]byte, error) {
	s := objectSchema(reflect.TypeFor[fileSpec]())
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
		properties[f.key] = fieldSchema(f)
		if f.required {
			required = append(required, f.key)
		}
	}
	s := map[string]any{"type": "object", "properties": properties, "additionalProperties": false}
	if required != nil {
		s["required"] = required
	}
	return s
}

func fieldSchema(f field) map[string]any {
	s := typeSchema(f.typ)
	if f.doc != "" {
		s["description"] = f.doc
	}
	if f.oneof != nil {
		s["enum"] = f.oneof
	}
	if f.def != "" && f.def[0] != '@' {
		s["default"] = defaultValue(f)
	}
	if f.typ.Kind() == reflect.Int && f.min != "" {
		// Bounds count for numbers only; ${NAME} is text.
		s["minimum"], s["maximum"] = atoi(f.min), atoi(f.max)
	}
	return s
}

func defaultValue(f field) any {
	switch f.typ.Kind() {
	case reflect.Int:
		return atoi(f.def)
	case reflect.Bool:
		b, _ := strconv.ParseBool(f.def) // a tag; checked by a test
		return b
	default:
		return f.def
	}
}

func typeSchema(t reflect.Type) map[string]any {
	switch p := reflect.New(t).Interface().(type) {
	case special:
		return p.schema()
	case scalar:
		return p.schema()
	case *time.Duration:
		return (*duration)(p).schema()
	}
	switch t.Kind() {
	case reflect.Pointer:
		return typeSchema(t.Elem())
	case reflect.Struct:
		return objectSchema(t)
	case reflect.Slice:
		return map[string]any{"type": "array", "items": typeSchema(t.Elem())}
	case reflect.Map:
		return map[string]any{"type": "object", "additionalProperties": typeSchema(t.Elem())}
	case reflect.Bool:
		return map[string]any{"type": []string{"boolean", "string"}, "pattern": `\$\{`}
	case reflect.Int, reflect.Int64:
		return map[string]any{"type": []string{"integer", "string"}, "pattern": `\$\{`}
	case reflect.Float64:
		return map[string]any{"type": []string{"number", "string"}, "pattern": `\$\{`}
	default:
		return map[string]any{"type": "string"}
	}
}
