package mapping

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"regexp"
	"regexp/syntax"
	"strconv"
	"strings"
	"time"

	"github.com/expr-lang/expr"
	"github.com/expr-lang/expr/vm/runtime"
)

// function is a function that only the guard can write into an expression.
type function func(e *evaluation, args []any) (any, error)

// counted charges for the arguments of f before f runs.
func counted(rate int, f function) function {
	return func(e *evaluation, args []any) (any, error) {
		for _, arg := range args {
			if err := e.charge(arg, rate, 0); err != nil {
				return nil, err
			}
		}
		return f(e, args)
	}
}

// guardFunctions returns the functions that the guard writes into expressions. The functions
// above the empty line are called with operands, results and the bodies of predicates. The
// others replace operators and functions. Their cost is higher than the size of their
// operands shows, or they must handle numbers that are kept as text.
func guardFunctions() map[string]function {
	same := func(_ *evaluation, args []any) (any, error) { return args[0], nil }
	return map[string]function{
		"operand": counted(1, func(_ *evaluation, args []any) (any, error) { return number(args[0]) }),
		"added":   counted(addingRate, numbers),
		"copied":  counted(copyingRate, same),
		"sorted":  counted(sortingRate, numbers),
		"kept":    counted(sortingRate, func(e *evaluation, args []any) (any, error) { return args[0], e.alloc(keptPartBytes) }),
		"made":    func(e *evaluation, args []any) (any, error) { return args[0], e.made(args[0]) },
		"round":   func(e *evaluation, args []any) (any, error) { return args[1], e.step(args[0].(int)) },
		"length":  textOnly,
		"member":  notANumber,

		"==":       counted(1, func(_ *evaluation, args []any) (any, error) { return equal(args[0], args[1]) }),
		"in":       isIn,
		"matches":  counted(1, matches),
		"uniq":     counted(1, uniq),
		"trim":     counted(1, trim),
		"toJSON":   counted(copyingRate, toJSON),
		"string":   counted(copyingRate, toText),
		"timezone": counted(1, zoneByName),
	}
}

// boundedFunctions replace functions that can make very large results from small operands
// before these are counted. They also replace date, which depends on the machine.
func boundedFunctions() []expr.Option {
	return []expr.Option{
		expr.Function("repeat", repeat, new(func(string, int) string)),
		expr.Function("replace", replace, new(func(string, string, string) string)),
		expr.Function("join", join, new(func(any, ...string) string)),
		expr.Function("date", parseDate, new(func(string) time.Time)),
	}
}

// textOnly charges for the operand of len, which reads all of a text, but not of a list.
func textOnly(e *evaluation, args []any) (any, error) {
	if s, ok := args[0].(string); ok {
		return s, e.charge(s, 1, 0)
	}
	return args[0], nil
}

// notANumber hides the methods of json.Number.
func notANumber(_ *evaluation, args []any) (any, error) {
	if _, ok := args[0].(json.Number); ok {
		return nil, kindError("reads a member of a number")
	}
	return args[0], nil
}

// number converts a number of the payload, which is kept as text, to a machine number. Other
// values do not change. If the number does not fit, number returns an error.
func number(v any) (any, error) {
	n, ok := v.(json.Number)
	if !ok {
		return v, nil
	}
	s := n.String()
	if !strings.ContainsAny(s, ".eE") {
		i, err := strconv.Atoi(s)
		if err != nil {
			return nil, kindError("calculates with an integer of more than 64 bits")
		}
		return i, nil
	}
	f, err := strconv.ParseFloat(s, 64)
	if err != nil {
		return nil, kindError("calculates with a number that is out of range")
	}
	return f, nil
}

// numbers applies number to a value, and to the parts of a list.
func numbers(_ *evaluation, args []any) (any, error) {
	list, ok := args[0].([]any)
	if !ok {
		return number(args[0])
	}
	out := make([]any, len(list))
	for i, part := range list {
		var err error
		if out[i], err = number(part); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// listOf converts any list to []any.
func listOf(v any) (list []any, ok bool) {
	if list, ok = v.([]any); ok {
		return list, true
	}
	r := reflect.ValueOf(v)
	if r.Kind() != reflect.Slice && r.Kind() != reflect.Array {
		return nil, false
	}
	list = make([]any, r.Len())
	for i := range list {
		list[i] = r.Index(i).Interface()
	}
	return list, true
}

// equal compares as the expression language does, but it also compares numbers inside lists
// and objects by value. It reads each of the two values once.
func equal(a, b any) (same bool, err error) {
	if n, ok := b.(json.Number); ok {
		return equalNumber(n, a)
	}
	switch x := a.(type) {
	case nil, bool, string:
		return runtime.Equal(a, b), nil
	case json.Number:
		return equalNumber(x, b)
	case map[string]any:
		if y, ok := b.(map[string]any); ok {
			same = len(x) == len(y)
			for name, member := range x { // read all of them: the order is random, and each may give an error
				other, ok := y[name]
				equals, err := equal(member, other)
				if err != nil {
					return false, err
				}
				same = same && ok && equals
			}
			return same, nil
		}
	}
	if x, ok := listOf(a); ok {
		if y, ok := listOf(b); ok {
			same = len(x) == len(y)
			for i := 0; same && err == nil && i < len(x); i++ {
				same, err = equal(x[i], y[i])
			}
			return same, err
		}
	}
	return runtime.Equal(a, b), nil
}

func equalNumber(n json.Number, v any) (bool, error) {
	switch v.(type) {
	case json.Number, int, float64:
	default:
		return false, nil
	}
	if n == v {
		return true, nil
	}
	a, err := number(n)
	if err != nil {
		return false, err
	}
	b, err := number(v)
	return err == nil && runtime.Equal(a, b), err
}

func contains(list []any, v any) (found bool, err error) {
	for i := 0; !found && err == nil && i < len(list); i++ {
		found, err = equal(list[i], v)
	}
	return found, err
}

func isIn(e *evaluation, args []any) (any, error) {
	needle, err := number(args[0])
	if err != nil {
		return nil, err
	}
	list, ok := listOf(args[1])
	if err := e.charge(list, 1, 0); err != nil {
		return nil, err
	}
	if err := e.charge(needle, 1+len(list), 0); err != nil { // compared with each
		return nil, err
	}
	if !ok {
		return runtime.In(needle, args[1]), nil
	}
	return contains(list, needle)
}

// uniq keeps the first of equal values. It uses a table for texts. It compares each other
// value with all values that it has kept.
func uniq(e *evaluation, args []any) (any, error) {
	list, ok := listOf(args[0])
	if !ok {
		return nil, kindError("uniq() needs a list, not " + kindOf(args[0]))
	}
	texts, others, result := map[string]bool{}, []any{}, []any{}
	for _, part := range list {
		v, err := number(part)
		if err != nil {
			return nil, err
		}
		s, isText := v.(string)
		known := isText && texts[s]
		if isText {
			texts[s], err = true, e.alloc(keptPartBytes)
		} else if err = e.charge(v, len(list), 0); err == nil {
			known, err = contains(others, v)
		}
		switch {
		case err != nil:
			return nil, err
		case known:
			continue
		case !isText:
			others = append(others, v)
		}
		result = append(result, v)
	}
	return result, nil
}

// texts returns params as texts, or an error if one is no text.
func texts(params []any, otherwise kindError) ([]string, error) {
	list := make([]string, len(params))
	for i, v := range params {
		var ok bool
		if list[i], ok = v.(string); !ok {
			return nil, otherwise
		}
	}
	return list, nil
}

// trim is trim() with two arguments.
func trim(e *evaluation, args []any) (any, error) {
	s, err := texts(args, "trim() needs a text, and a text of the letters to cut off")
	if err != nil {
		return nil, err
	}
	if err := e.step(len(s[0]) * (1 + len(s[1])/textPerStep)); err != nil {
		return nil, err
	}
	return strings.Trim(s[0], s[1]), nil
}

func repeat(params ...any) (any, error) {
	s, ok := params[0].(string)
	n, isInt := params[1].(int)
	switch {
	case !ok || !isInt || n < 0:
		return nil, kindError("repeat() needs a text and a whole number that is not negative")
	case n > maxBytes || len(s)*n > maxBytes:
		return nil, errTooMuchMemory
	}
	return strings.Repeat(s, n), nil
}

func replace(params ...any) (any, error) {
	s, err := texts(params, "replace() needs three texts")
	if err != nil {
		return nil, err
	}
	if len(s[0])+strings.Count(s[0], s[1])*len(s[2]) > maxBytes {
		return nil, errTooMuchMemory
	}
	return strings.ReplaceAll(s[0], s[1], s[2]), nil
}

func join(params ...any) (any, error) {
	glue := ""
	if len(params) == 2 {
		var ok bool
		if glue, ok = params[1].(string); !ok {
			return nil, kindError("join() needs a list of texts, and a text to put between them")
		}
	}
	list, ok := listOf(params[0])
	if !ok {
		return nil, kindError("join() needs a list of texts, not " + kindOf(params[0]))
	}
	var parts []string
	size := 0
	for _, part := range list {
		s, ok := part.(string)
		if !ok {
			return nil, kindError("join() needs a list of texts, and found " + kindOf(part) + " in it")
		}
		parts = append(parts, s)
		size += len(s) + len(glue)
	}
	if size > maxBytes {
		return nil, errTooMuchMemory
	}
	return strings.Join(parts, glue), nil
}

func toJSON(e *evaluation, args []any) (any, error) {
	b, err := e.encode(args[0])
	return string(b), err
}

// toText is string() for values that have a text. It refuses others: the text of a zone, or
// of a method such as date(…).Year without its parentheses, would contain memory addresses.
func toText(e *evaluation, args []any) (any, error) {
	switch v := args[0].(type) {
	case string:
		return v, nil
	case time.Duration:
		return v.String(), nil
	}
	switch _, err := e.encode(args[0]); {
	case errors.Is(err, errTooMuchMemory):
		return nil, err
	case err != nil:
		return nil, kindError("string() needs a JSON value, a time or a duration")
	}
	return fmt.Sprint(args[0]), nil
}

// pattern is a regular expression and its cost.
type pattern struct {
	*regexp.Regexp
	size int // about the number of its instructions
}

// compilePattern refuses patterns that would take much memory when compiled.
func compilePattern(src string) (*pattern, error) {
	const (
		errPattern = kindError("what stands after matches is not a regular expression")
		errLarge   = kindError("the regular expression after matches is too large: repeat less in it")
	)
	if len(src) > maxPatternSize {
		return nil, errLarge
	}
	parsed, err := syntax.Parse(src, syntax.Perl)
	if err != nil {
		return nil, errPattern
	}
	size := patternSize(parsed)
	if size > maxPatternSize {
		return nil, errLarge
	}
	re, err := regexp.Compile(src)
	if err != nil {
		return nil, errPattern
	}
	return &pattern{Regexp: re, size: size}, nil
}

// patternSize estimates the number of instructions of a pattern. The result is at most a
// little more than maxPatternSize.
func patternSize(re *syntax.Regexp) int {
	size := 1 + len(re.Rune)/2
	for _, sub := range re.Sub {
		size = min(size+patternSize(sub), 2*maxPatternSize)
	}
	if re.Op == syntax.OpRepeat {
		size = min(size*max(re.Min, re.Max, 1), 2*maxPatternSize)
	}
	return size
}

// matches is the operator matches. Its arguments are a text, and a pattern or the source of
// one. Null matches nothing.
func matches(e *evaluation, args []any) (any, error) {
	if args[0] == nil || args[1] == nil {
		return false, nil
	}
	text, ok := args[0].(string)
	if !ok {
		return nil, kindError("matches needs a text, not " + kindOf(args[0]))
	}
	p, ok := args[1].(*pattern)
	if src, isText := args[1].(string); isText {
		var err error
		if p, err = compilePattern(src); err != nil {
			return nil, err
		}
		if err := e.step(patternCost * (p.size + len(src))); err != nil {
			return nil, err
		}
	} else if !ok {
		return nil, kindError("matches needs a regular expression, not " + kindOf(args[1]))
	}
	if err := e.step(len(text) * (2 + p.size/patternShare)); err != nil {
		return nil, err
	}
	return p.MatchString(text), nil
}

// parseDate reads a time, or a date as midnight UTC. Its result does not depend on the
// machine's zone, as that of the built-in function does.
func parseDate(params ...any) (any, error) {
	s, ok := params[0].(string)
	if !ok {
		return nil, kindError("date() needs a string, not " + kindOf(params[0]))
	}
	if t, ok := parseTime(s); ok {
		return t, nil
	}
	t, err := time.Parse(time.DateOnly, s)
	if err != nil {
		return nil, kindError("date() needs a time with an offset, or a date: " + acceptedTimes)
	}
	return t, nil
}

// zoneOf returns the zone of an expression.
func zoneOf(name string) (*time.Location, error) {
	zone, err := loadZone(name)
	if errors.Is(err, errNoZone) {
		return nil, kindError("timezone() needs an IANA name such as America/New_York")
	}
	return zone, err
}

// zoneByName returns a time zone. It reads each zone once per event.
func zoneByName(e *evaluation, args []any) (any, error) {
	name, _ := args[0].(string)
	if zone, ok := e.zones[name]; ok {
		return zone, nil
	}
	if err := e.step(zoneCost); err != nil {
		return nil, err
	}
	zone, err := zoneOf(name)
	if err != nil {
		return nil, err
	}
	if e.zones == nil {
		e.zones = map[string]*time.Location{}
	}
	e.zones[name] = zone
	return zone, nil
}
