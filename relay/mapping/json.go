package mapping

import (
	"encoding/json"
	"maps"
	"reflect"
	"slices"
	"time"
	"unicode/utf8"
)

// result writes a computed value as JSON. Its errors contain no value.
func (e *evaluation) result(v any) ([]byte, error) {
	if v == nil {
		return nil, kindError("the expression is null for this event, and null is never sent: give another value with ??, or add optional: true")
	}
	b, err := e.encode(v)
	if err != nil {
		return nil, err
	}
	return b, e.alloc(len(b))
}

// encode writes v as encoding/json does. If a value cannot be written, the error names its
// kind.
func (e *evaluation) encode(v any) ([]byte, error) {
	w := jsonWriter{most: e.maxBytes - e.bytes}
	w.value(v, 0)
	return w.out, w.err
}

const errNotAValue = kindError("the expression's result is not a JSON value")

// jsonWriter bounds its output. A value may contain the same part many times, so it may be
// small in memory and very large as JSON.
type jsonWriter struct {
	out         []byte
	parts, most int
	err         error // after it, nothing more is written
}

func (w *jsonWriter) value(v any, depth int) {
	w.parts++
	switch {
	case w.err != nil:
		return
	case depth > maxResultDepth:
		w.err = kindError("the expression's result is nested too deeply")
		return
	case partBytes*w.parts+len(w.out) > w.most:
		w.err = errTooMuchMemory
		return
	}
	switch v := v.(type) {
	case nil:
		w.out = append(w.out, "null"...)
	case json.Number:
		if !json.Valid([]byte(v)) { // a part of the digits of a number is not always a number
			w.err = errNotAValue
		}
		w.out = append(w.out, v...)
	case string:
		if !utf8.ValidString(v) {
			w.err = kindError("the expression's result is not UTF-8")
		}
		w.out = appendJSONString(w.out, v)
	case time.Time:
		w.out = appendJSONString(w.out, v.Format(time.RFC3339Nano))
	case time.Duration:
		w.err = kindError("the expression's result is a duration: use its Minutes() or Seconds()")
	default:
		r := reflect.ValueOf(v)
		list, isList := listOf(v)
		switch {
		case r.CanInt() || r.CanUint() || r.CanFloat() || r.Kind() == reflect.Bool:
			b, err := json.Marshal(v)
			if err != nil {
				w.err = kindError("the expression's result is not a finite number")
			}
			w.out = append(w.out, b...)
		case isList:
			w.list(list, depth)
		case r.Kind() == reflect.Map:
			w.object(r, depth)
		default:
			w.err = errNotAValue
		}
	}
}

func (w *jsonWriter) list(list []any, depth int) {
	w.out = append(w.out, '[')
	for i, part := range list {
		if i > 0 {
			w.out = append(w.out, ',')
		}
		w.value(part, depth+1)
	}
	w.out = append(w.out, ']')
}

func (w *jsonWriter) object(r reflect.Value, depth int) {
	members := make(map[string]any, r.Len())
	for k, v := range r.Seq2() {
		name, ok := reflect.TypeAssert[string](k)
		if !ok {
			w.err = kindError("the expression's result is an object whose names are not strings")
		}
		members[name] = v.Interface()
	}
	w.out = append(w.out, '{')
	for i, name := range slices.Sorted(maps.Keys(members)) {
		if i > 0 {
			w.out = append(w.out, ',')
		}
		w.out = append(appendJSONString(w.out, name), ':')
		w.value(members[name], depth+1)
	}
	w.out = append(w.out, '}')
}
