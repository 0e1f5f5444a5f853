package relay

import (
	"encoding/json"
	"errors"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/expr-lang/expr"
	"github.com/expr-lang/expr/ast"
)

// Names that only the guard can write: the language has no identifiers with a
// space.
const (
	stepsName    = "expression steps"
	stepFunc     = "count step"
	textStepFunc = "count text"
	sizeFunc     = "check size"
	numberFunc   = "exact number"
)

// languageOptions makes the language a function of the event alone.
func languageOptions() []expr.Option {
	options := []expr.Option{
		// With two types in one function the checker would pass over errors in
		// the arguments.
		expr.Function(stepFunc, countStep, new(func(*expressionEnv, any) any)),
		expr.Function(textStepFunc, countStep, new(func(*expressionEnv, string) string)),
		expr.Function(sizeFunc, checkSize, new(func(*expressionEnv, any) any)),
		expr.Function(numberFunc, toNumber, new(func(any) any)),
		expr.Function("date", parseDate, new(func(string) time.Time)),
		expr.Function("timezone", loadZone, new(func(string) *time.Location)),
	}
	options = append(options, boundedBuiltins()...)
	for _, name := range disabledBuiltins() {
		options = append(options, expr.DisableBuiltin(name))
	}
	return options
}

func disabledBuiltins() []string {
	return []string{"now", "keys", "values", "toPairs", "fromJSON"}
}

func disabledWhy(name string) string {
	switch name {
	case "now":
		return "because the same event must give the same bytes at every attempt"
	case "keys", "values", "toPairs":
		return "because the order of an object's members is not fixed"
	case "fromJSON":
		return "because numbers would lose digits"
	}
	return ""
}

// expressionGuard rewrites an expression while it is compiled. Numbers of the
// payload are kept as written ([json.Number]) and become machine numbers only
// where an operator or function needs one, so that event.amount alone keeps its
// digits. Rounds of predicates are counted, so that they can be bounded.
type expressionGuard struct {
	event bool // the payload is read
	err   error
}

// Visit implements [ast.Visitor]; children come before their parent.
func (g *expressionGuard) Visit(node *ast.Node) {
	switch n := (*node).(type) {
	case *ast.IdentifierNode:
		g.identifier(n)
	case *ast.BinaryNode:
		if n.Operator != "??" {
			wrapNumber(&n.Left)
			wrapNumber(&n.Right)
		}
		if kind := n.Type().Kind(); n.Operator == "+" && (kind == reflect.String || kind == reflect.Interface) {
			count(node)
		}
	case *ast.UnaryNode:
		wrapNumber(&n.Node)
	case *ast.SliceNode:
		wrapNumber(&n.From)
		wrapNumber(&n.To)
	case *ast.MemberNode:
		wrapNumber(&n.Property)
		g.localTime(n)
	case *ast.CallNode:
		if callee, ok := n.Callee.(*ast.MemberNode); ok && memberName(callee) == "Local" {
			g.err = errLocalTime
		}
		if callee, ok := n.Callee.(*ast.IdentifierNode); ok && callee.Value != "toJSON" && callee.Value != "string" {
			for i := range n.Arguments {
				wrapNumber(&n.Arguments[i])
			}
		}
		if kind := n.Type().Kind(); kind == reflect.String || kind == reflect.Interface {
			count(node)
		}
	case *ast.ArrayNode:
		for i := range n.Nodes {
			measure(&n.Nodes[i])
		}
	case *ast.PairNode:
		measure(&n.Value)
	case *ast.BuiltinNode:
		g.builtin(n)
		if makesMuch(n.Name) {
			count(node)
		}
	}
}

var errLocalTime = errors.New("the expression does not compile: Local() depends on the machine; use In(timezone(\"America/New_York\"))")

func (g *expressionGuard) identifier(n *ast.IdentifierNode) {
	switch n.Value {
	case "event":
		g.event = true
	case "$env":
		g.err = errors.New("the expression does not compile: $env is not available; write event, type, key, version or headers")
	}
}

func (g *expressionGuard) localTime(n *ast.MemberNode) {
	if n.Node.Type() == reflect.TypeFor[time.Time]() && memberName(n) == "Local" {
		g.err = errLocalTime
	}
}

func memberName(n *ast.MemberNode) string {
	if s, ok := n.Property.(*ast.StringNode); ok {
		return s.Value
	}
	return ""
}

func (g *expressionGuard) builtin(n *ast.BuiltinNode) {
	for i, arg := range n.Arguments {
		if p, ok := arg.(*ast.PredicateNode); ok {
			if slices.Contains([]string{"sum", "sortBy"}, n.Name) {
				wrapNumber(&p.Node)
			}
			count(&p.Node)
			continue
		}
		if i == 0 && keepsDigits(n.Name) || n.Name == "concat" {
			continue
		}
		wrapNumber(&n.Arguments[i])
	}
}

// keepsDigits lists the functions that pass values through, or on to text.
func keepsDigits(name string) bool {
	return slices.Contains([]string{
		"all", "none", "any", "one", "filter", "map", "find", "findIndex", "findLast", "findLastIndex",
		"count", "groupBy", "sortBy", "reduce", "len", "first", "last", "get", "take",
		"reverse", "flatten", "fromPairs",
	}, name)
}

// makesMuch lists the functions whose result is as large as what they are given.
func makesMuch(builtin string) bool {
	return slices.Contains([]string{
		"concat", "flatten", "reverse", "uniq", "sort", "take", "fromPairs",
		"upper", "lower", "trim", "split", "splitAfter", "toBase64", "fromBase64",
	}, builtin)
}

// wrapNumber lets a value of unknown type pass through toNumber. Values of
// known type need not, and stay checked by the compiler.
func wrapNumber(node *ast.Node) {
	if *node == nil {
		return
	}
	switch (*node).(type) {
	case *ast.NilNode, *ast.StringNode, *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode, *ast.PredicateNode:
		return
	}
	switch (*node).Type().Kind() {
	case reflect.Interface, reflect.Slice, reflect.Array:
		patch(node, &ast.CallNode{
			Callee:    &ast.IdentifierNode{Value: numberFunc},
			Arguments: []ast.Node{*node},
		})
	default:
	}
}

func count(node *ast.Node) {
	name := stepFunc
	if (*node).Type().Kind() == reflect.String {
		name = textStepFunc
	}
	watch(node, name)
}

// measure watches a part of a list or object that may be one itself.
func measure(node *ast.Node) {
	switch (*node).Type().Kind() {
	case reflect.Interface, reflect.Slice, reflect.Array, reflect.Map:
		watch(node, sizeFunc)
	default:
	}
}

func watch(node *ast.Node, name string) {
	patch(node, &ast.CallNode{
		Callee:    &ast.IdentifierNode{Value: name},
		Arguments: []ast.Node{&ast.IdentifierNode{Value: stepsName}, *node},
	})
}

func patch(node *ast.Node, call *ast.CallNode) {
	at := (*node).Location()
	call.Callee.SetLocation(at)
	for _, arg := range call.Arguments {
		if _, ok := arg.(*ast.IdentifierNode); ok {
			arg.SetLocation(at)
		}
	}
	if t := (*node).Type(); t.Kind() == reflect.String {
		call.SetType(t) // the parent looks at it before types are checked again
	}
	ast.Patch(node, call)
}

func toNumber(params ...any) (any, error) {
	switch v := params[0].(type) {
	case json.Number:
		return machineNumber(v)
	case []any:
		return machineNumbers(v)
	}
	return params[0], nil
}

func machineNumbers(list []any) (any, error) {
	var out []any
	for i, e := range list {
		n, ok := e.(json.Number)
		if !ok {
			continue
		}
		if out == nil {
			out = slices.Clone(list)
		}
		v, err := machineNumber(n)
		if err != nil {
			return nil, err
		}
		out[i] = v
	}
	if out == nil {
		return list, nil
	}
	return out, nil
}

// machineNumber refuses to calculate with what it cannot hold.
func machineNumber(n json.Number) (any, error) {
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

// parseDate reads an RFC 3339 time, or a date as midnight UTC. Unlike the
// built-in function its result does not know the machine's zone.
func parseDate(params ...any) (any, error) {
	s, ok := params[0].(string)
	if !ok {
		return nil, kindError("date() needs a string, not " + kindOf(params[0]))
	}
	if t, err := time.Parse(time.RFC3339, s); err == nil {
		if _, offset := t.Zone(); offset != 0 {
			return t.In(time.FixedZone("", offset)), nil
		}
		return t.UTC(), nil
	}
	t, err := time.Parse(time.DateOnly, s)
	if err != nil {
		return nil, kindError("date() needs an RFC 3339 time with an offset, or a date")
	}
	return t, nil
}

func loadZone(params ...any) (any, error) {
	name, ok := params[0].(string)
	if !ok || name == "Local" || name == "" {
		return nil, kindError("timezone() needs an IANA name such as America/New_York")
	}
	zone, err := time.LoadLocation(name)
	if err != nil {
		return nil, kindError("timezone() needs an IANA name such as America/New_York")
	}
	return zone, nil
}
