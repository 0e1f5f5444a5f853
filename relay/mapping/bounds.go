package mapping

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/bits"
	"reflect"
	"regexp"
	"regexp/syntax"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/expr-lang/expr"
	"github.com/expr-lang/expr/vm/runtime"
)

// Bounds of an evaluation. They count and do not measure time, so that an event
// that passes on one machine passes on every machine, however busy it is, and
// also in `lockstep map`.
const (
	// The expressions of one event may take this many steps together. A step is
	// a part of a list, or 16 bytes of text, that an operator looks at: 5 to 15
	// ns. Half as many would refuse nested loops over lists of 1,000, twice as
	// many would let one event keep a processor for more than two seconds.
	maxExpressionSteps = 64 << 20

	// The expressions of one event may make this much text, lists and objects,
	// and makingPerByte for each byte of the payload. Half as much would refuse
	// an event of 1 MiB whose list is written anew with other names. Twice as
	// much is twice the memory that events with hostile data take on every
	// worker.
	maxExpressionBytes = 8 << 20
	makingPerByte      = 16

	maxExpressionCells = 1 << 20 // the machine's own budget: parts of lists, of one expression
	maxExpressionDepth = 100     // nesting of a result
	maxExpressionNodes = 500     // of the syntax tree
	maxExpressionLen   = 4 << 10 // bytes of source
	maxPatternSize     = 2000    // instructions of a regular expression
	maxOperandDepth    = 10_000  // nesting of what is compared or looked through; what JSON can have
)

// What things cost, in steps.
const (
	roundCost      = 10     // a round of a predicate, and
	nodeCost       = 4      // for each node of the predicate
	textPerStep    = 16     // bytes of text that an operator looks at for a step
	comparisonCost = 2      // comparing two parts of lists
	conversionCost = 8      // reading a number
	sortedTwice    = 2      // a comparison while sorting
	summingCost    = 8      // adding a part of a list to a sum
	writingCost    = 32     // writing a part of a value as text
	patternShare   = 4      // a pattern looks at each byte as often as a quarter of its size
	patternCost    = 100    // compiling an instruction of a pattern
	zoneCost       = 10_000 // reading a time zone
)

// What is made, in bytes of memory.
const (
	partBytes     = 16  // a part of a list
	keptPartBytes = 40  // a part of a list that grows part by part
	objectBytes   = 300 // an object, and
	memberBytes   = 32  // for each of its members
)

const (
	errMemberOfNumber = kindError("reads a member of a number")

	errTooMuchMemory = kindError("the expression needs too much memory for this event: make it join or build less")
	errTooManySteps  = kindError("the expression takes too many steps for this event: " +
		"look through a long list or text once and not once for each part of another, or let the writer of the event do it")
	errTooDeep = kindError("the expression compares or looks through a value that is nested too deeply")
)

// How an operand is used.
const (
	useNumber   = 1 << iota // numbers become machine numbers
	useDeep                 // it is looked through to any depth
	useSorted               // it is sorted
	useSummed               // its parts are added by the machine
	useWritten              // it is written as text
	useTextOnly             // of a list only the length is asked for
	useMember               // a member of it is read
	useNothing
)

// step counts n steps. It also ends an evaluation that nobody waits for.
func (e *expressionEnv) step(n int) error {
	before := e.steps
	e.steps += n
	switch {
	case n < 0 || e.steps > maxExpressionSteps || e.steps < before:
		return errTooManySteps
	case (before^e.steps)>>12 != 0 && e.watcher != nil && !e.watcher.Continue(): // not each time: it costs more than a step
		return errTooManySteps
	}
	return nil
}

// alloc counts n bytes of memory.
func (e *expressionEnv) alloc(n int) error {
	if e.bytes += n; e.bytes > e.mostBytes || e.bytes < 0 {
		return errTooMuchMemory
	}
	return nil
}

// countRound counts a round of a predicate: what it costs, and the predicate's
// result, which the machine may look at.
func countRound(params ...any) (any, error) {
	return params[2], params[0].(*expressionEnv).step(params[1].(int) + sizeOf(params[2]))
}

// countKeptRound is countRound where the machine keeps every part, or sorts by
// the results.
func countKeptRound(params ...any) (any, error) {
	env := params[0].(*expressionEnv)
	if err := env.alloc(keptPartBytes); err != nil {
		return nil, err
	}
	return params[2], env.step(params[1].(int) + sortingCost(maxExpressionCells, 1+sizeOf(params[2])))
}

// countOperand counts the size of what an operator or a function is given.
func countOperand(params ...any) (any, error) {
	env, use, v := params[0].(*expressionEnv), params[1].(int), params[2]
	if n, ok := v.(json.Number); ok {
		switch {
		case use&useMember != 0:
			return nil, errMemberOfNumber
		case use&useNumber != 0:
			if err := env.step(sizeOf(n)); err != nil {
				return nil, err
			}
			return machineNumber(n)
		}
		return v, env.step(sizeOf(n))
	}
	steps := 0
	switch size := sizeOf(v); {
	case use&useDeep != 0:
		if err := env.look(v, 1, 1, 1); err != nil {
			return nil, err
		}
	case use&useWritten != 0:
		if err := env.look(v, 1, writingCost, 0); err != nil {
			return nil, err
		}
	case use&useSummed != 0:
		steps = summingCost * size
	case use&useSorted != 0:
		texts := 0
		if list, ok := v.([]any); ok {
			for _, e := range list {
				texts += sizeOf(e)
			}
		}
		steps = sortingCost(size, size+texts)
	case use&useMember != 0:
	case use&useTextOnly != 0:
		if _, ok := v.(string); ok {
			steps = size
		}
	default:
		steps = size
	}
	if err := env.step(steps); err != nil {
		return nil, err
	}
	if list, ok := v.([]any); ok && use&useNumber != 0 && len(list) > 0 {
		return env.machineNumbers(list)
	}
	return v, nil
}

// sortingCost is what it costs to sort n values of that size together.
func sortingCost(n, size int) int { return sortedTwice * bits.Len(uint(n)) * size }

// look counts the parts of v at any depth: values can share parts of
// themselves, so that a small one is endless for whoever goes through it. A part
// costs each, and more than that for each level: a function that flattens a
// list copies a part once for each.
func (e *expressionEnv) look(v any, depth, each, more int) error {
	if depth > maxOperandDepth {
		return errTooDeep
	}
	if err := e.step(each * (1 + sizeOf(v))); err != nil {
		return err
	}
	switch v := v.(type) {
	case nil, bool, string, json.Number, int, float64:
		return nil
	case []any:
		for _, part := range v {
			if err := e.look(part, depth+1, each+more, more); err != nil {
				return err
			}
		}
		return nil
	case map[string]any:
		for _, member := range v {
			if err := e.look(member, depth+1, each+more, more); err != nil {
				return err
			}
		}
		return nil
	}
	switch r := reflect.ValueOf(v); r.Kind() {
	case reflect.Slice, reflect.Array:
		return e.look(listOf(r), depth, each, more)
	case reflect.Map:
		for _, member := range r.Seq2() {
			if err := e.look(member.Interface(), depth+1, each+more, more); err != nil {
				return err
			}
		}
	default:
	}
	return nil
}

// sizeOf is what it costs to look through v once, without what its parts hold.
func sizeOf(v any) int {
	switch v := v.(type) {
	case nil, bool, int, float64:
		return 0
	case json.Number:
		return len(v) // reading a digit costs as much as looking at many letters
	case string:
		return len(v) / textPerStep
	case []any:
		return len(v)
	case map[string]any:
		return len(v)
	}
	switch r := reflect.ValueOf(v); r.Kind() {
	case reflect.Slice, reflect.Array, reflect.Map:
		return r.Len()
	default:
		return 0
	}
}

func countText(params ...any) (any, error) {
	s := params[1].(string)
	return s, params[0].(*expressionEnv).step(len(s) / textPerStep)
}

// countMade counts a text or list that has been made, and returns it.
func countMade(params ...any) (any, error) {
	env, size := params[0].(*expressionEnv), 0
	switch v := params[1].(type) {
	case string:
		size = len(v)
	case []any:
		size = partBytes * len(v)
	case map[any]any:
		size = (memberBytes + partBytes) * len(v)
	default:
		size = partBytes * sizeOf(v)
	}
	if err := env.alloc(size); err != nil {
		return nil, err
	}
	return params[1], env.step(1 + size/textPerStep)
}

func countObject(params ...any) (any, error) {
	env := params[0].(*expressionEnv)
	if err := env.alloc(params[1].(int)); err != nil {
		return nil, err
	}
	return params[2], env.step(params[1].(int) / textPerStep)
}

func isEqual(params ...any) (any, error) {
	return params[0].(*expressionEnv).equal(params[1], params[2], 0)
}

// equal compares like the machine, but counts. Numbers are equal by value also
// inside of lists and objects.
func (e *expressionEnv) equal(a, b any, depth int) (bool, error) {
	if depth > maxOperandDepth {
		return false, errTooDeep
	}
	if err := e.step(comparisonCost); err != nil {
		return false, err
	}
	switch x := a.(type) {
	case int:
		if y, ok := b.(int); ok {
			return x == y, nil
		}
	case string:
		if y, ok := b.(string); ok {
			return x == y, e.step(min(len(x), len(y)) / textPerStep)
		}
		return false, nil
	case json.Number:
		return e.equalNumber(x, b)
	case []any:
		if y, ok := b.([]any); ok {
			return e.equalLists(x, y, depth)
		}
	case map[string]any:
		if y, ok := b.(map[string]any); ok {
			return e.equalObjects(x, y, depth)
		}
	}
	if n, ok := b.(json.Number); ok {
		return e.equalNumber(n, a)
	}
	left, right := reflect.ValueOf(a), reflect.ValueOf(b)
	switch {
	case isList(left) && isList(right):
		return e.equalLists(listOf(left), listOf(right), depth)
	case left.Kind() == reflect.Map || right.Kind() == reflect.Map || isList(left) || isList(right):
		if left.IsValid() && right.IsValid() && left.Kind() == reflect.Map && right.Kind() == reflect.Map {
			// Objects whose names are not texts are compared by the machine.
			if err := e.look(a, 1, comparisonCost, 0); err != nil {
				return false, err
			}
			if err := e.look(b, 1, comparisonCost, 0); err != nil {
				return false, err
			}
			return runtime.Equal(a, b), nil
		}
		return false, nil
	}
	return runtime.Equal(a, b), nil
}

func isList(r reflect.Value) bool { return r.Kind() == reflect.Slice || r.Kind() == reflect.Array }

func (e *expressionEnv) equalNumber(n json.Number, other any) (bool, error) {
	if err := e.step(conversionCost + sizeOf(n) + sizeOf(other)); err != nil {
		return false, err
	}
	switch o := other.(type) {
	case json.Number:
		if n == o {
			return true, nil
		}
		v, err := machineNumber(o)
		if err != nil {
			return false, err
		}
		other = v
	case int, float64:
	default:
		return false, nil
	}
	v, err := machineNumber(n)
	return err == nil && runtime.Equal(v, other), err
}

// listOf is a list of numbers or texts as a list of anything.
func listOf(r reflect.Value) []any {
	if list, ok := reflect.TypeAssert[[]any](r); ok {
		return list
	}
	list := make([]any, r.Len())
	for i := range list {
		list[i] = r.Index(i).Interface()
	}
	return list
}

func (e *expressionEnv) equalLists(a, b []any, depth int) (bool, error) {
	if len(a) != len(b) {
		return false, nil
	}
	for i := range a {
		if same, err := e.equal(a[i], b[i], depth+1); err != nil || !same {
			return false, err
		}
	}
	return true, nil
}

// equalObjects compares every member, also after a difference: how many steps
// it takes must not depend on their order, which is random.
func (e *expressionEnv) equalObjects(a, b map[string]any, depth int) (bool, error) {
	if len(a) != len(b) {
		return false, nil
	}
	all := true
	for name, x := range a {
		y, ok := b[name]
		if !ok {
			return false, nil
		}
		same, err := e.equal(x, y, depth+1)
		if err != nil {
			return false, err
		}
		all = all && same
	}
	return all, nil
}

func isIn(params ...any) (any, error) {
	env, needle, in := params[0].(*expressionEnv), params[1], params[2]
	if err := env.step(1 + sizeOf(needle)); err != nil {
		return nil, err
	}
	list, ok := in.([]any)
	if !ok {
		r := reflect.ValueOf(in)
		if !isList(r) {
			return runtime.In(needle, in), nil
		}
		if err := env.step(r.Len()); err != nil {
			return nil, err
		}
		list = listOf(r)
	}
	if n, ok := needle.(json.Number); ok {
		v, err := machineNumber(n)
		if err != nil {
			return nil, err
		}
		needle = v
	}
	if len(list) > 0 {
		var err error
		if list, err = env.machineNumbers(list); err != nil {
			return nil, err
		}
	}
	for _, part := range list {
		if same, err := env.equal(part, needle, 0); err != nil || same {
			return same, err
		}
	}
	return false, nil
}

// withoutRepetition keeps the first of equal values. Texts are looked up, others
// compared with each that was kept.
func withoutRepetition(params ...any) (any, error) {
	env, list := params[0].(*expressionEnv), reflect.ValueOf(params[1])
	if !isList(list) {
		return nil, kindError("uniq() needs a list, not " + kindOf(params[1]))
	}
	kept, texts, others := []any{}, map[string]bool{}, []any{}
	for i := range list.Len() {
		v := list.Index(i).Interface()
		if s, ok := v.(string); ok {
			if err := env.alloc(keptPartBytes); err != nil {
				return nil, err
			}
			if err := env.step(1 + sizeOf(s)); err != nil {
				return nil, err
			}
			if !texts[s] {
				texts[s] = true
				kept = append(kept, v)
			}
			continue
		}
		known, err := isIn(env, v, others)
		if err != nil {
			return nil, err
		}
		if !known.(bool) {
			others, kept = append(others, v), append(kept, v)
		}
	}
	return kept, env.alloc(partBytes * len(kept))
}

// withoutEnds is trim() with letters to be cut off.
func withoutEnds(params ...any) (any, error) {
	env := params[0].(*expressionEnv)
	s, ok1 := params[1].(string)
	cut, ok2 := params[2].(string)
	if !ok1 || !ok2 {
		return nil, kindError("trim() needs a text, and a text of the letters to cut off")
	}
	if err := env.step((1 + len(s)) * (1 + len(cut)/textPerStep)); err != nil {
		return nil, err
	}
	return strings.Trim(s, cut), nil
}

// pattern is a regular expression of which is known what it costs.
type pattern struct {
	*regexp.Regexp
	size int // about its instructions
}

// compilePattern refuses patterns that would take much memory once compiled.
func compilePattern(src string) (*pattern, error) {
	if len(src) > maxPatternSize {
		return nil, errLargePattern
	}
	parsed, err := syntax.Parse(src, syntax.Perl)
	if err != nil {
		return nil, errPattern
	}
	size := patternSize(parsed)
	if size > maxPatternSize {
		return nil, errLargePattern
	}
	re, err := regexp.Compile(src)
	if err != nil {
		return nil, errPattern
	}
	return &pattern{Regexp: re, size: size}, nil
}

const (
	errPattern      = kindError("what stands after matches is not a regular expression")
	errLargePattern = kindError("the regular expression after matches is too large: repeat less in it")
)

// patternSize is about how many instructions a pattern becomes, at most a
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

func doesMatch(params ...any) (any, error) {
	env := params[0].(*expressionEnv)
	if runtime.IsNil(params[1]) || runtime.IsNil(params[2]) {
		return false, nil
	}
	text, ok := params[1].(string)
	if !ok {
		return nil, kindError("matches needs a text, not " + kindOf(params[1]))
	}
	p, ok := params[2].(*pattern)
	if !ok {
		src, ok := params[2].(string)
		if !ok {
			return nil, kindError("matches needs a regular expression, not " + kindOf(params[2]))
		}
		var err error
		if p, err = compilePattern(src); err != nil {
			return nil, err
		}
		if err := env.step(patternCost * (p.size + len(src))); err != nil {
			return nil, err
		}
	}
	if err := env.step(len(text) * (2 + p.size/patternShare)); err != nil {
		return nil, err
	}
	return p.MatchString(text), nil
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
	b, err := encodeJSON(params[0], maxExpressionBytes)
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
	if _, err := (&plainer{most: maxExpressionBytes}).plain(params[0], 0); err != nil {
		if errors.Is(err, errTooMuchMemory) {
			return nil, err
		}
		return nil, kindError("string() needs a JSON value, a time or a duration")
	}
	return fmt.Sprint(params[0]), nil
}

// encodeResult writes a computed value as JSON. Its errors hold no value.
func (e *expressionEnv) encodeResult(v any) ([]byte, error) {
	if v == nil {
		return nil, kindError("the expression is null for this event, and null is never sent: give another value with ??")
	}
	return encodeJSON(v, e.mostBytes)
}

func encodeJSON(v any, most int) ([]byte, error) {
	p := plainer{most: most}
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
type plainer struct{ bytes, most int }

// plain turns what the machine yields into what encoding/json writes
// exactly, or says which kind of value is in the way.
func (p *plainer) plain(v any, depth int) (any, error) {
	if depth > maxExpressionDepth {
		return nil, kindError("the expression's result is nested too deeply")
	}
	p.bytes += partBytes
	switch v := v.(type) {
	case string:
		p.bytes += len(v)
	case json.Number:
		p.bytes += len(v)
	}
	if p.bytes > p.most {
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
