package mapping

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/expr-lang/expr"
	"github.com/expr-lang/expr/file"
	"github.com/expr-lang/expr/types"
	"github.com/expr-lang/expr/vm"

	"github.com/hms-mkt/lockstep/outbox"
)

// expression is a compiled condition or computed field.
type expression struct {
	field   string // for errors
	program *vm.Program
	event   bool   // reads the payload
	zones   bool   // uses a time zone
	key     bool   // reads the idempotency key
	ref     bool   // reads the receiver's reference
	yields  string // kind of its result, such as "a string"; empty if it depends on the event

	optional bool // of a computed field: null leaves it out
}

// evaluation evaluates the expressions of one event, and counts their cost.
type evaluation struct {
	vars      map[string]any            // the event as expressions see it
	steps     int                       // steps of all expressions so far
	bytes     int                       // bytes made by all expressions so far
	maxBytes  int                       // most bytes that they may make
	costliest string                    // field of the expression that took most steps
	mostSteps int                       // steps of the costliest expression
	watcher   Watcher                   // may be nil
	zones     map[string]*time.Location // time zones that the event names
}

// use is what an expression is for.
type use int

const (
	forScope     use = iota
	forCondition     // its result is true or false
	forField         // it may also read what is known of the delivery
)

// names are the names that an expression may read, with their types. A condition or scope
// reads only the event, so that its result never changes.
func (u use) names() types.Map {
	names := types.Map{
		"event":       types.Any,
		"id":          types.String,
		"type":        types.String,
		"key":         types.String,
		"version":     types.Any,
		"occurred_at": types.String,
		"headers":     types.Map{types.Extra: types.Any},
	}
	if u == forField {
		names["idempotency_key"] = types.String
		names["ref"] = types.Map{types.Extra: types.Any}
	}
	return names
}

// compileExpression compiles src. Its errors may contain parts of src, which is a part of the
// configuration.
func compileExpression(src, field string, use use) (*expression, error) {
	switch {
	case strings.TrimSpace(src) == "":
		return nil, errors.New("the expression is empty")
	case len(src) > maxSource:
		return nil, fmt.Errorf("the expression is longer than %d bytes", maxSource)
	}
	names := use.names()
	known := strings.Join(slices.Sorted(maps.Keys(names)), ", ")
	names[evaluationName] = types.TypeOf(&evaluation{})
	options := append(languageOptions(), expr.Env(names), expr.MaxNodes(maxNodes))
	// Compile the original expression first, for its messages. With the rewritten one, the checker would name functions of
	// the guard and miss mistakes in their arguments.
	checked, err := expr.Compile(src, options...)
	if err != nil {
		return nil, explainCompile(err, known)
	}
	guard := &guard{known: known}
	program, err := expr.Compile(src, append(options, expr.Patch(guard))...)
	if guard.err != nil {
		err = guard.err
	}
	if err != nil {
		return nil, explainCompile(err, known)
	}
	node := checked.Node()
	yields := ""
	if node.Type().Kind() != reflect.Interface {
		yields = cmp.Or(typeWord(node.Type().String()), "something else")
	}
	if kind := node.Type().Kind(); use == forCondition && kind != reflect.Bool && kind != reflect.Interface {
		return nil, fmt.Errorf("the condition is %s, and must be true or false: compare it with something", yields)
	}
	return &expression{field: field, program: program, event: guard.event, zones: guard.zones, key: guard.key, ref: guard.ref, yields: yields}, nil
}

func explainCompile(err error, known string) error {
	e, ok := errors.AsType[*file.Error](err)
	if !ok {
		return fmt.Errorf("the expression does not compile: %w", err)
	}
	name, unknown := strings.CutPrefix(e.Message, "unknown name ")
	switch {
	case unknown && disabled()[name] != "":
		return fmt.Errorf("the expression does not compile: %s is not available, %s (column %d)", name, disabled()[name], e.Column+1)
	case unknown && name == "null":
		return fmt.Errorf("the expression does not compile: unknown name null: write nil (column %d)", e.Column+1)
	case unknown:
		return fmt.Errorf("the expression does not compile: unknown name %s (column %d); known are %s; payload fields are written event.%s", name, e.Column+1, known, name)
	}
	return fmt.Errorf("the expression does not compile: %s (column %d)", e.Message, e.Column+1)
}

// newEvaluation decodes the payload of ev if one of exprs reads it.
func newEvaluation(ev outbox.Event, to Sending, w Watcher, exprs ...*expression) (*evaluation, error) {
	e := &evaluation{maxBytes: maxBytes + madePerByte*len(ev.Payload), watcher: w}
	var event any
	for _, x := range exprs {
		if !x.event {
			continue
		}
		if err := checkPayload(ev.Payload); err != nil {
			return nil, err
		}
		d := json.NewDecoder(bytes.NewReader(ev.Payload))
		d.UseNumber()
		if err := d.Decode(&event); err != nil {
			return nil, errNotJSON()
		}
		break
	}
	headers := make(map[string]any, len(ev.Headers))
	for k, v := range ev.Headers {
		headers[k] = v
	}
	var version any
	if ev.Version != nil {
		version = int(*ev.Version)
	}
	occurred := ""
	if !ev.OccurredAt.IsZero() {
		occurred = ev.OccurredAt.UTC().Format(time.RFC3339Nano)
	}
	e.vars = map[string]any{
		"event":           event,
		"id":              ev.ID,
		"type":            ev.Type,
		"key":             ev.Key,
		"version":         version,
		"occurred_at":     occurred,
		"headers":         headers,
		"idempotency_key": to.IdempotencyKey,
		"ref":             to.ref(),
		evaluationName:    e,
	}
	return e, nil
}

// run evaluates x. All errors are [*FieldError] values.
func (e *evaluation) run(x *expression) (result any, err error) {
	defer func() {
		if recover() != nil {
			result, err = nil, &FieldError{Field: x.field, Reason: "the expression cannot be evaluated for this event"}
		}
	}()
	before := e.steps
	if e.watcher != nil {
		e.watcher.Begin(x.field)
	}
	machine := vm.VM{MemoryBudget: maxListParts}
	v, err := machine.Run(x.program, e.vars)
	if took := e.steps - before; took > e.mostSteps {
		e.mostSteps, e.costliest = took, x.field
	}
	if errors.Is(err, errTooManySteps) {
		return nil, &FieldError{Field: e.costliest, Reason: explainRun(err)} // x may have taken only the last step
	}
	if err != nil {
		return nil, &FieldError{Field: x.field, Reason: explainRun(err)}
	}
	return v, nil
}

// kindError is a failure whose text is safe to show.
type kindError string

func (e kindError) Error() string { return string(e) }

// mismatch matches the error of the expression language about the operands of an operator,
// which has their Go types. Its other errors may contain values, so they are not shown.
var mismatch = regexp.MustCompile(`^invalid operation: (\S+|map\[string\]interface \{\}|\[\]interface \{\}) ([-+*/%<>=^]+|\w+) (\S+|map\[string\]interface \{\}|\[\]interface \{\})$`)

func explainRun(err error) string {
	if safe, ok := errors.AsType[kindError](err); ok {
		return string(safe)
	}
	e, ok := errors.AsType[*file.Error](err)
	if !ok {
		return "the expression cannot be evaluated for this event"
	}
	at := fmt.Sprintf(" (column %d of the expression)", e.Column+1)
	if m := mismatch.FindStringSubmatch(e.Message); m != nil {
		left, right := typeWord(m[1]), typeWord(m[3])
		if left != "" && right != "" {
			hint := ""
			if m[2] == "+" && left != right && (left == "a string" || right == "a string") {
				hint = "; write string(…) around what is not a string"
			}
			return fmt.Sprintf("cannot apply %s to %s and %s%s%s", m[2], left, right, hint, at)
		}
	}
	switch {
	case strings.HasPrefix(e.Message, "cannot fetch ") && strings.HasSuffix(e.Message, " from <nil>"):
		return "reads a member of a value that is missing or null" + at
	case strings.HasPrefix(e.Message, "reflect: ") && strings.HasSuffix(e.Message, " on zero Value"), // int(nil)
		e.Message == "invalid operation: float(<nil>)":
		return "makes a number of a value that is missing or null" + at
	case strings.HasPrefix(e.Message, "memory budget exceeded"):
		return string(errTooMuchMemory)
	case strings.HasPrefix(e.Message, "index out of range"):
		return "reads an element that the array does not have" + at
	}
	return "the expression cannot be evaluated for this event" + at
}

func typeWord(goType string) string {
	switch goType {
	case "string":
		return "a string"
	case "int", "float64", "json.Number":
		return "a number"
	case "bool":
		return "a boolean"
	case "<nil>":
		return "null"
	case "map[string]interface {}", "map[string]interface":
		return "an object"
	case "[]interface {}", "[]interface":
		return "an array"
	case "time.Time":
		return "a time"
	case "time.Duration":
		return "a duration"
	}
	return ""
}

// kindOf returns the JSON kind of v. It never contains v.
func kindOf(v any) string {
	if v == nil {
		return "null"
	}
	if w := typeWord(fmt.Sprintf("%T", v)); w != "" {
		return w
	}
	return "not a JSON value"
}
