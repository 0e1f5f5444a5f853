package relay

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"reflect"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/expr-lang/expr"
)

// Bounds of one evaluation. The machine itself bounds only what its own
// instructions make.
const (
	maxExpressionSteps = 200_000 // rounds of predicates, concatenations and calls
	maxExpressionCells = 1 << 20 // the machine's memory budget
	maxExpressionBytes = 8 << 20 // text and lists that are made, all together
	maxExpressionDepth = 100     // nesting of a result
	maxExpressionParts = 1 << 19 // of one list or object, written out
	maxExpressionLooks = 1 << 24 // parts looked at to find that out, all together
	maxExpressionNodes = 500     // of the syntax tree
	maxExpressionLen   = 4 << 10 // bytes of source
)

const (
	errTooMuchMemory = kindError("the expression needs too much memory for this event")
	errTooManySteps  = kindError("the expression takes too many steps for this event")
)

// countStep charges a step and the size of its result, and returns the result.
func countStep(params ...any) (any, error) {
	env := params[0].(*expressionEnv)
	if env.steps++; env.steps > maxExpressionSteps {
		return nil, errTooManySteps
	}
	switch v := params[1].(type) {
	case string:
		env.bytes += len(v)
	case []any:
		env.bytes += 16 * len(v)
	}
	if env.bytes > maxExpressionBytes {
		return nil, errTooMuchMemory
	}
	return checkSize(params...)
}

// checkSize refuses a value that shares so many parts with itself that nobody
// could compare it or write it out, and returns others.
func checkSize(params ...any) (any, error) {
	env, left := params[0].(*expressionEnv), maxExpressionParts
	var look func(v any)
	look = func(v any) {
		switch v := v.(type) {
		case []any:
			left -= len(v)
			for i := 0; i < len(v) && left > 0; i++ {
				look(v[i])
			}
		case map[string]any:
			left -= len(v)
			for _, member := range v {
				if left > 0 {
					look(member)
				}
			}
		}
	}
	look(params[1])
	switch env.looks += maxExpressionParts - left; {
	case left <= 0:
		return nil, errTooMuchMemory
	case env.looks > maxExpressionLooks:
		return nil, errTooManySteps
	}
	return params[1], nil
}

// boundedBuiltins replaces functions that can make much of little before
// anybody counts.
func boundedBuiltins() []expr.Option {
	return []expr.Option{
		expr.Function("repeat", boundedRepeat, new(func(string, int) string)),
		expr.Function("replace", boundedReplace, new(func(string, string, string) string)),
		expr.Function("join", boundedJoin, new(func(any, ...string) string)),
		expr.Function("toJSON", boundedJSON, new(func(any) string)),
		expr.Function("string", boundedString, new(func(any) string)),
	}
}

func boundedRepeat(params ...any) (any, error) {
	s, ok := params[0].(string)
	n, isInt := params[1].(int)
	switch {
	case !ok || !isInt || n < 0:
		return nil, kindError("repeat() needs a text and a whole number that is not negative")
	case n > maxExpressionBytes || len(s)*n > maxExpressionBytes:
		return nil, errTooMuchMemory
	}
	return strings.Repeat(s, n), nil
}

func boundedReplace(params ...any) (any, error) {
	s, ok1 := params[0].(string)
	from, ok2 := params[1].(string)
	to, ok3 := params[2].(string)
	switch {
	case !ok1 || !ok2 || !ok3:
		return nil, kindError("replace() needs three texts")
	case len(s)+strings.Count(s, from)*len(to) > maxExpressionBytes:
		return nil, errTooMuchMemory
	}
	return strings.ReplaceAll(s, from, to), nil
}

func boundedJoin(params ...any) (any, error) {
	glue := ""
	if len(params) == 2 {
		var ok bool
		if glue, ok = params[1].(string); !ok {
			return nil, kindError("join() needs a list of texts, and a text to put between them")
		}
	}
	var parts []string
	switch list := params[0].(type) {
	case []string:
		parts = list
	case []any:
		for _, e := range list {
			s, ok := e.(string)
			if !ok {
				return nil, kindError("join() needs a list of texts, and found " + kindOf(e) + " in it")
			}
			parts = append(parts, s)
		}
	default:
		return nil, kindError("join() needs a list of texts, not " + kindOf(params[0]))
	}
	size := len(parts) * len(glue)
	for _, s := range parts {
		size += len(s)
	}
	if size > maxExpressionBytes {
		return nil, errTooMuchMemory
	}
	return strings.Join(parts, glue), nil
}

func boundedJSON(params ...any) (any, error) {
	b, err := encodeJSON(params[0])
	return string(b), err
}

// boundedString is the built-in function for what has a text of its own. A
// method such as date(…).Year without its brackets, or a zone, would show
// addresses in memory.
func boundedString(params ...any) (any, error) {
	switch v := params[0].(type) {
	case string:
		return v, nil
	case time.Duration:
		return v.String(), nil
	}
	if _, err := new(plainer).plain(params[0], 0); err != nil {
		if errors.Is(err, errTooMuchMemory) {
			return nil, err
		}
		return nil, kindError("string() needs a JSON value, a time or a duration")
	}
	return fmt.Sprint(params[0]), nil
}

// encodeResult writes a computed value as JSON. Its errors hold no value.
func encodeResult(v any) ([]byte, error) {
	if v == nil {
		return nil, kindError("the expression is null for this event, and null is never sent: give another value with ??")
	}
	return encodeJSON(v)
}

func encodeJSON(v any) ([]byte, error) {
	var p plainer
	v, err := p.plain(v, 0)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, kindError("the expression's result is not a JSON value")
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

// plainer counts what a result comes to: values can share parts of themselves,
// so that a small one is endless when it is written out.
type plainer struct{ bytes int }

// plain turns what the machine yields into what encoding/json writes
// exactly, or says which kind of value is in the way.
func (p *plainer) plain(v any, depth int) (any, error) {
	if depth > maxExpressionDepth {
		return nil, kindError("the expression's result is nested too deeply")
	}
	p.bytes += 16
	switch v := v.(type) {
	case string:
		p.bytes += len(v)
	case json.Number:
		p.bytes += len(v)
	}
	if p.bytes > maxExpressionBytes {
		return nil, errTooMuchMemory
	}
	switch v := v.(type) {
	case nil, bool, json.Number:
		return v, nil
	case string:
		if !utf8.ValidString(v) {
			return nil, kindError("the expression's result is not UTF-8")
		}
		return v, nil
	case float64:
		if math.IsNaN(v) || math.IsInf(v, 0) {
			return nil, kindError("the expression's result is not a finite number")
		}
		return v, nil
	case time.Time:
		return v.Format(time.RFC3339Nano), nil
	case time.Duration:
		return nil, kindError("the expression's result is a duration: use its Minutes() or Seconds()")
	}
	r := reflect.ValueOf(v)
	switch r.Kind() {
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64,
		reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return v, nil
	case reflect.Float32:
		return p.plain(r.Float(), depth)
	case reflect.Slice, reflect.Array:
		return p.list(r, depth)
	case reflect.Map:
		return p.object(r, depth)
	default:
		return nil, kindError("the expression's result is not a JSON value")
	}
}

func (p *plainer) list(r reflect.Value, depth int) (any, error) {
	list := make([]any, r.Len())
	for i := range list {
		var err error
		if list[i], err = p.plain(r.Index(i).Interface(), depth+1); err != nil {
			return nil, err
		}
	}
	return list, nil
}

func (p *plainer) object(r reflect.Value, depth int) (any, error) {
	object := make(map[string]any, r.Len())
	for k, v := range r.Seq2() {
		name, ok := reflect.TypeAssert[string](k)
		if !ok {
			return nil, kindError("the expression's result is an object whose names are not strings")
		}
		var err error
		if object[name], err = p.plain(v.Interface(), depth+1); err != nil {
			return nil, err
		}
	}
	return object, nil
}
