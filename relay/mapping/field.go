package mapping

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode/utf8"
)

// emitter returns the function that writes f from its slot.
func (f Field) emitter(slot int) (emitter, error) {
	if f.Const != nil {
		constant := compactJSON(f.Const)
		return func(dst []byte, _ *mapScratch) ([]byte, bool, error) {
			return append(dst, constant...), true, nil
		}, nil
	}
	fallback := compactJSON(f.Default)
	convert, err := f.converter(fallback)
	if err != nil {
		return omit, err
	}
	if slot < 0 {
		return omit, nil // reported already
	}
	return func(dst []byte, s *mapScratch) ([]byte, bool, error) {
		v := s.slots[slot]
		switch {
		case v.blocked != "":
			return dst, false, &FieldError{Field: f.From, Reason: v.blocked + " is not an object"}
		case v.raw != nil && v.raw[0] != 'n':
			out, err := convert(dst, v.raw)
			if err != nil {
				return dst, false, &FieldError{Field: f.From, Reason: err.Error()}
			}
			return out, true, nil
		case fallback != nil:
			return append(dst, fallback...), true, nil
		case f.Optional:
			return dst, false, nil
		case v.raw != nil:
			return dst, false, &FieldError{Field: f.From, Reason: "is null, and neither optional nor given a default"}
		}
		return dst, false, &FieldError{Field: f.From, Reason: "is missing, and neither optional nor given a default"}
	}, nil
}

// converter returns the function that writes a value that is not missing. Its errors contain
// the kind of the value, never the value.
func (f Field) converter(fallback []byte) (func(dst, raw []byte) ([]byte, error), error) {
	switch {
	case f.Time != nil:
		t, err := f.Time.compile()
		if err != nil {
			return nil, err
		}
		return t.append, nil
	case f.Values != nil:
		return lookup(f.Values, fallback)
	}
	return func(dst, raw []byte) ([]byte, error) { return appendCompact(dst, raw), nil }, nil
}

func lookup(values map[string]string, fallback []byte) (func(dst, raw []byte) ([]byte, error), error) {
	table := make(map[string][]byte, len(values))
	for _, from := range slices.Sorted(maps.Keys(values)) {
		if !utf8.ValidString(values[from]) {
			return nil, errors.New("values contains text that is not UTF-8")
		}
		table[from] = appendJSONString(nil, values[from])
	}
	return func(dst, raw []byte) ([]byte, error) {
		var code string
		switch raw[0] {
		case '{', '[':
			return dst, fmt.Errorf("is an %s; values needs a string, number or boolean", jsonKind(raw))
		case '"':
			code = unquote(raw)
		default:
			code = string(raw)
		}
		to, ok := table[code]
		switch {
		case ok:
			return append(dst, to...), nil
		case fallback != nil:
			return append(dst, fallback...), nil
		}
		return dst, errors.New("has a value that is not in the values table, and no default")
	}, nil
}

// compactJSON returns raw without white space. It returns nil if raw is empty or no JSON; check
// reports the latter.
func compactJSON(raw json.RawMessage) []byte {
	var b bytes.Buffer
	if raw == nil || json.Compact(&b, raw) != nil {
		return nil
	}
	return b.Bytes()
}

// appendJSONString appends s as a JSON string without escaping HTML.
func appendJSONString(dst []byte, s string) []byte {
	plain := !strings.ContainsFunc(s, func(r rune) bool {
		return r < ' ' || r == '"' || r == '\\' || r >= utf8.RuneSelf
	})
	if plain {
		return append(append(append(dst, '"'), s...), '"')
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(s); err != nil {
		panic(err) // a string always encodes
	}
	return append(dst, bytes.TrimSuffix(b.Bytes(), []byte("\n"))...)
}

func unquote(raw []byte) string {
	if bytes.IndexByte(raw, '\\') < 0 {
		return string(raw[1 : len(raw)-1])
	}
	var s string
	if err := json.Unmarshal(raw, &s); err != nil {
		panic(err) // raw is part of a document that was found valid
	}
	return s
}

func jsonKind(raw []byte) string {
	switch raw[0] {
	case '{':
		return "object"
	case '[':
		return "array"
	case '"':
		return "string"
	case 't', 'f':
		return "boolean"
	case 'n':
		return "null"
	}
	return "number"
}
