package mapping

import (
	"encoding/json"
	"reflect"
)

// Bounds of all expressions of one event together. The package comment has the rules.
const (
	// maxSteps bounds the time. A step takes 5 to 15 ns. With half, nested loops over lists
	// of 1,000 are refused. With double, one event may use a processor for more than two
	// seconds.
	maxSteps = 64 << 20

	// maxBytes is how many bytes of text, lists and objects the expressions may make, plus
	// madePerByte for each byte of the payload. With half, an event of 1 MiB is refused if
	// its list is rebuilt with other names. With double, hostile events take twice the
	// memory on every worker.
	maxBytes    = 8 << 20
	madePerByte = 16

	maxOperandDepth = 5_000 // levels of lists and objects in an operand
)

// Bounds of one expression.
const (
	maxSource      = 4 << 10 // bytes
	maxNodes       = 500     // of the syntax tree
	maxListParts   = 1 << 20 // parts of the lists that the expression language makes
	maxResultDepth = 100     // levels of lists and objects in the result
	maxPatternSize = 2000    // instructions of a regular expression
)

// Costs, in steps. A rate is the cost of each part that an operator reads.
const (
	textPerStep   = 16     // bytes of text that cost one step
	digitsPerStep = 4      // digits of a number that cost one step
	addingRate    = 8      // sum, count, min, max, mean
	copyingRate   = 16     // flatten, string, toJSON, sha256, uuid5
	sortingRate   = 40     // sort, sortBy, groupBy, median: twice the logarithm of maxListParts
	roundCost     = 10     // a round of a predicate
	nodeCost      = 4      // each node of the predicate, in each round
	patternShare  = 4      // a pattern costs a quarter of its size for each byte of text
	patternCost   = 100    // an instruction of a pattern, when it is compiled
	zoneCost      = 10_000 // the read of a time zone
)

// Memory, in bytes.
const (
	partBytes     = 16  // a part of a list
	keptPartBytes = 40  // a part of a list that grows part by part
	objectBytes   = 300 // an object without members
	memberBytes   = 32  // a member of an object
)

const (
	errTooMuchMemory = kindError("the expression needs too much memory for this event: make it join or build less")
	errTooManySteps  = kindError("the expression takes too many steps for this event: " +
		"look through a long list or text once and not once for each part of another, or let the writer of the event do it")
	errTooDeep = kindError("the expression compares or looks through a value that is nested too deeply")
)

// step counts n steps. It also ends the evaluation if the watcher asks for it.
func (e *evaluation) step(n int) error {
	before := e.steps
	e.steps += n
	switch {
	case e.steps > maxSteps:
		return errTooManySteps
	case (before^e.steps)>>12 != 0 && e.watcher != nil && !e.watcher.Continue(): // called once in 4,096 steps, because it costs more than a step
		return errTooManySteps
	}
	return nil
}

// alloc counts n bytes of memory.
func (e *evaluation) alloc(n int) error {
	if e.bytes += n; e.bytes > e.maxBytes {
		return errTooMuchMemory
	}
	return nil
}

// charge counts the steps of an operator that reads all of v. A part of a list within a list
// costs twice as much, and so on, because functions such as flatten copy it once for each
// level. A value may contain the same part many times, so it may be small in memory and
// very large for an operator. charge stops when there are no steps left.
func (e *evaluation) charge(v any, rate, depth int) error {
	size := 1
	switch v := v.(type) {
	case string:
		size += len(v) / textPerStep
	case json.Number:
		size += len(v) / digitsPerStep
	case []int:
		size += len(v)
	}
	if depth > maxOperandDepth {
		return errTooDeep
	}
	if err := e.step(rate * max(depth, 1) * size); err != nil {
		return err
	}
	switch v := v.(type) {
	case nil, bool, int, float64, string, json.Number, []int:
	case []any:
		for _, part := range v {
			if err := e.charge(part, rate, depth+1); err != nil {
				return err
			}
		}
	case map[string]any:
		for name, member := range v {
			if err := e.charge(name, rate, depth+1); err != nil {
				return err
			}
			if err := e.charge(member, rate, depth+1); err != nil {
				return err
			}
		}
	default:
		if list, ok := listOf(v); ok {
			return e.charge(list, rate, depth)
		}
		if r := reflect.ValueOf(v); r.Kind() == reflect.Map {
			for name, member := range r.Seq2() {
				if err := e.charge([]any{name.Interface(), member.Interface()}, rate, depth); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// made counts the memory of a text, list or object.
func (e *evaluation) made(v any) error {
	size := 0
	if s, ok := v.(string); ok {
		size = len(s)
	} else {
		switch r := reflect.ValueOf(v); r.Kind() {
		case reflect.Slice, reflect.Array:
			size = partBytes * r.Len()
		case reflect.Map:
			size = objectBytes + memberBytes*r.Len()
		default:
		}
	}
	if err := e.alloc(size); err != nil {
		return err
	}
	return e.step(1 + size/textPerStep)
}
