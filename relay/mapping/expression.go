package mapping

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"regexp"
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
	yields  string // what kind of value it gives, such as "a string"; empty if that is known only for an event
}

// expressionEnv is what expressions see of an event.
type expressionEnv struct {
	vars      map[string]any
	steps     int     // taken so far by all expressions
	bytes     int     // made so far by all expressions
	mostBytes int     // that they may make
	most      int     // steps that one of them took
	costliest string  // the field of that one
	watcher   Watcher // may be nil
	converted struct{ from, to []any }
	zones     map[string]*time.Location
}

// compileExpression compiles src; its errors show the source, which is the
// operator's own text.
func compileExpression(src, field string, condition bool) (*expression, error) {
	switch {
	case strings.TrimSpace(src) == "":
		return nil, errors.New("the expression is empty")
	case len(src) > maxExpressionLen:
		return nil, fmt.Errorf("the expression is longer than %d bytes", maxExpressionLen)
	}
	options := append(languageOptions(),
		expr.Env(types.Map{
			"event":   types.Any,
			"type":    types.String,
			"key":     types.String,
			"version": types.Any,
			"headers": types.Map{types.Extra: types.Any},
			envName:   types.TypeOf(&expressionEnv{}),
		}),
		expr.MaxNodes(maxExpressionNodes),
	)
	// First as it is written: with what the guard adds, the checker would name
	// functions that nobody wrote and pass over mistakes inside of them.
	checked, err := expr.Compile(src, options...)
	if err != nil {
		return nil, explainCompile(err)
	}
	guard := &expressionGuard{}
	program, err := expr.Compile(src, append(options, expr.Patch(guard))...)
	if guard.err != nil {
		err = guard.err
	}
	if err != nil {
		return nil, explainCompile(err)
	}
	node := checked.Node()
	yields := ""
	if node.Type().Kind() != reflect.Interface {
		yields = cmp.Or(typeWord(node.Type().String()), "something else")
	}
	if kind := node.Type().Kind(); condition && kind != reflect.Bool && kind != reflect.Interface {
		return nil, fmt.Errorf("the condition is %s, and must be true or false: compare it with something", yields)
	}
	return &expression{field: field, program: program, event: guard.event, yields: yields}, nil
}

func explainCompile(err error) error {
	e, ok := errors.AsType[*file.Error](err)
	if !ok {
		return fmt.Errorf("the expression does not compile: %w", err)
	}
	name, unknown := strings.CutPrefix(e.Message, "unknown name ")
	switch {
	case unknown && disabledWhy(name) != "":
		return fmt.Errorf("the expression does not compile: %s is not available, %s (column %d)", name, disabledWhy(name), e.Column+1)
	case unknown:
		return fmt.Errorf("the expression does not compile: unknown name %s (column %d); known are event, type, key, version, headers; payload fields are written event.%s", name, e.Column+1, name)
	}
	return fmt.Errorf("the expression does not compile: %s (column %d)", e.Message, e.Column+1)
}

// newExpressionEnv decodes of ev what exprs need.
func newExpressionEnv(ev outbox.Event, w Watcher, exprs ...*expression) (*expressionEnv, error) {
	env := &expressionEnv{mostBytes: maxExpressionBytes + makingPerByte*len(ev.Payload), watcher: w}
	var event any
	for _, e := range exprs {
		if !e.event {
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
	env.vars = map[string]any{
		"event":   event,
		"type":    ev.Type,
		"key":     ev.Key,
		"version": version,
		"headers": headers,
		envName:   env,
	}
	return env, nil
}

// run evaluates e. Whatever goes wrong becomes a [*FieldError] without values.
func (e *expression) run(env *expressionEnv) (result any, err error) {
	defer func() {
		if recover() != nil {
			result, err = nil, &FieldError{Field: e.field, Reason: "the expression cannot be evaluated for this event"}
		}
	}()
	before := env.steps
	if env.watcher != nil {
		env.watcher.Begin(e.field)
	}
	machine := vm.VM{MemoryBudget: maxExpressionCells}
	v, err := machine.Run(e.program, env.vars)
	if took := env.steps - before; took > env.most {
		env.most, env.costliest = took, e.field
	}
	if errors.Is(err, errTooManySteps) {
		return nil, &FieldError{Field: env.costliest, Reason: explainRun(err)} // not the one that only took the last step
	}
	if err != nil {
		return nil, &FieldError{Field: e.field, Reason: explainRun(err)}
	}
	return v, nil
}

// kindError is a failure whose text is safe to show.
type kindError string

func (e kindError) Error() string { return string(e) }

// mismatch is the machine's complaint about an operator. Its operands are Go
// types; anything else it says may contain values and is dropped.
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

// kindOf names the JSON kind of v, never v.
func kindOf(v any) string {
	if v == nil {
		return "null"
	}
	if w := typeWord(fmt.Sprintf("%T", v)); w != "" {
		return w
	}
	return "not a JSON value"
}
