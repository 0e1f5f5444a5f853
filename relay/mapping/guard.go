package mapping

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
	"github.com/expr-lang/expr/file"
)

// Names that only the guard can write: the language has no identifiers with a
// space.
const (
	envName      = "expression env"
	roundFunc    = "count round"
	keptFunc     = "count kept round"
	operandFunc  = "count operand"
	textFunc     = "count text"
	madeFunc     = "count made"
	madeTextFunc = "count made text"
	objectFunc   = "count object"
	equalFunc    = "is equal"
	inFunc       = "is in"
	matchFunc    = "does match"
	uniqFunc     = "without repetition"
	trimFunc     = "without ends"
	zoneFunc     = "zone by name"
)

// languageOptions makes the language a function of the event alone, and gives
// it the functions that count what an evaluation costs.
func languageOptions() []expr.Option {
	options := []expr.Option{
		// With two types in one function the checker would pass over errors in
		// the arguments.
		expr.Function(roundFunc, countRound, new(func(*expressionEnv, int, any) any)),
		expr.Function(keptFunc, countKeptRound, new(func(*expressionEnv, int, any) any)),
		expr.Function(operandFunc, countOperand, new(func(*expressionEnv, int, any) any)),
		expr.Function(textFunc, countText, new(func(*expressionEnv, string) string)),
		expr.Function(madeFunc, countMade, new(func(*expressionEnv, any) any)),
		expr.Function(madeTextFunc, countMade, new(func(*expressionEnv, string) string)),
		expr.Function(objectFunc, countObject, new(func(*expressionEnv, int, map[string]any) map[string]any)),
		expr.Function(equalFunc, isEqual, new(func(*expressionEnv, any, any) bool)),
		expr.Function(inFunc, isIn, new(func(*expressionEnv, any, any) bool)),
		expr.Function(matchFunc, doesMatch, new(func(*expressionEnv, any, any) bool)),
		expr.Function(uniqFunc, withoutRepetition, new(func(*expressionEnv, any) []any)),
		expr.Function(trimFunc, withoutEnds, new(func(*expressionEnv, any, any) string)),
		expr.Function(zoneFunc, zoneByName, new(func(*expressionEnv, any) *time.Location)),
		expr.Function("date", parseDate, new(func(string) time.Time)),
		expr.Function("timezone", func(params ...any) (any, error) { return loadZone(params[0]) }, new(func(string) *time.Location)),
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

// expressionGuard rewrites an expression while it is compiled, so that every
// evaluation is bounded although nobody can interrupt the machine: rounds of
// predicates are counted, operators and functions pay for the size of what they
// are given, and those whose cost is more than that size are replaced.
//
// Numbers of the payload are kept as written ([json.Number]) and become machine
// numbers only where an operator or function needs one, so that event.amount
// alone keeps its digits.
type expressionGuard struct {
	event bool // the payload is read
	err   error
	types map[ast.Node]reflect.Type // of rewritten nodes, until types are checked again
}

// Visit implements [ast.Visitor]; children come before their parent.
func (g *expressionGuard) Visit(node *ast.Node) {
	switch n := (*node).(type) {
	case *ast.IdentifierNode:
		g.identifier(n)
	case *ast.BinaryNode:
		g.binary(node, n)
	case *ast.UnaryNode:
		if n.Operator != "not" && n.Operator != "!" {
			g.operand(&n.Node, useNumber)
		}
	case *ast.SliceNode:
		g.operand(&n.From, useNumber|useDeep)
		g.operand(&n.To, useNumber|useDeep)
	case *ast.MemberNode:
		g.member(n)
	case *ast.CallNode:
		g.function(node, n)
	case *ast.MapNode:
		for _, pair := range n.Pairs {
			if p, ok := pair.(*ast.PairNode); ok {
				g.operand(&p.Key, 0)
			}
		}
		g.call(node, objectFunc, reflect.TypeFor[map[string]any](), number(objectBytes+memberBytes*len(n.Pairs)), n)
	case *ast.BuiltinNode:
		g.builtin(node, n)
	}
}

var errLocalTime = errors.New("Local() depends on the machine; use In(timezone(\"America/New_York\"))")

func (g *expressionGuard) identifier(n *ast.IdentifierNode) {
	switch n.Value {
	case "event":
		g.event = true
	case "$env":
		g.err = errors.New("$env is not available; write event, type, key, version or headers")
	}
}

// member hides the methods that a number has as a Go type.
func (g *expressionGuard) member(n *ast.MemberNode) {
	name, index := memberName(n), false
	if _, ok := n.Property.(*ast.IntegerNode); ok {
		index = true
	}
	if n.Node.Type() == reflect.TypeFor[time.Time]() && name == "Local" {
		g.err = errLocalTime
	}
	if _, method := reflect.TypeFor[json.Number]().MethodByName(name); !index && (name == "" || method) {
		g.operand(&n.Node, useMember)
	}
	g.operand(&n.Property, useNumber|useDeep)
}

func (g *expressionGuard) function(node *ast.Node, n *ast.CallNode) {
	use := useNumber
	switch callee := n.Callee.(type) {
	case *ast.MemberNode:
		if memberName(callee) == "Local" {
			g.err = errLocalTime
		}
	case *ast.IdentifierNode:
		switch callee.Value {
		case "toJSON", "string":
			use = useWritten // numbers as they are
		case "timezone":
			g.zone(node, n.Arguments[0])
			return
		}
	}
	for i := range n.Arguments {
		g.operand(&n.Arguments[i], use)
	}
	g.made(node)
}

// zone looks a zone up that does not depend on the event, and lets others be
// looked up once for each event: they are read from files.
func (g *expressionGuard) zone(node *ast.Node, name ast.Node) {
	s, ok := name.(*ast.StringNode)
	if !ok {
		g.call(node, zoneFunc, reflect.TypeFor[*time.Location](), name)
		return
	}
	zone, err := loadZone(s.Value)
	if err != nil {
		g.err = err
		return
	}
	g.replace(node, &ast.ConstantNode{Value: zone}, reflect.TypeFor[*time.Location]())
}

func memberName(n *ast.MemberNode) string {
	if s, ok := n.Property.(*ast.StringNode); ok {
		return s.Value
	}
	return ""
}

// binary replaces the operators whose cost depends on more than the size of
// what they are given: lists are compared to any depth, and a pattern looks at
// each letter many times.
func (g *expressionGuard) binary(node *ast.Node, n *ast.BinaryNode) {
	left, right := g.kind(n.Left), g.kind(n.Right)
	switch n.Operator {
	case "??", "and", "&&", "or", "||":
		return
	case "==", "!=":
		if isShort(n.Left) || isShort(n.Right) {
			break
		}
		if left == reflect.Interface || right == reflect.Interface || left == right && isLarge(left) {
			not := n.Operator == "!="
			g.call(node, equalFunc, reflect.TypeFor[bool](), n.Left, n.Right)
			if not {
				g.replace(node, &ast.UnaryNode{Operator: "not", Node: *node}, reflect.TypeFor[bool]())
			}
			return
		}
	case "in":
		if isLarge(right) && right != reflect.String {
			g.call(node, inFunc, reflect.TypeFor[bool](), n.Left, n.Right)
			return
		}
	case "matches":
		if isText(left) && isText(right) {
			pattern := n.Right
			if s, ok := pattern.(*ast.StringNode); ok {
				p, err := compilePattern(s.Value)
				if err != nil {
					g.err = err
					return
				}
				pattern = &ast.ConstantNode{Value: p}
				pattern.SetLocation(s.Location())
			}
			g.call(node, matchFunc, reflect.TypeFor[bool](), n.Left, pattern)
			return
		}
	}
	g.operand(&n.Left, useNumber)
	g.operand(&n.Right, useNumber)
	if n.Operator == "+" {
		g.made(node)
	}
}

// isShort reports whether a comparison with node looks at no more than a few
// bytes of the other side, which needs no number either.
func isShort(node ast.Node) bool {
	switch node.(type) {
	case *ast.NilNode, *ast.StringNode:
		return true
	}
	return false
}

// isLarge lists the kinds whose values can be large.
func isLarge(kind reflect.Kind) bool {
	return slices.Contains([]reflect.Kind{reflect.Interface, reflect.String, reflect.Slice, reflect.Array, reflect.Map}, kind)
}

func isText(kind reflect.Kind) bool { return kind == reflect.Interface || kind == reflect.String }

func (g *expressionGuard) builtin(node *ast.Node, n *ast.BuiltinNode) {
	for i, arg := range n.Arguments {
		if p, ok := arg.(*ast.PredicateNode); ok {
			g.predicate(n.Name, p)
			continue
		}
		g.operand(&n.Arguments[i], useOf(n.Name, i))
	}
	switch n.Name {
	case "trim":
		if len(n.Arguments) == 2 {
			g.call(node, trimFunc, reflect.TypeFor[string](), n.Arguments[0], n.Arguments[1])
		}
		g.made(node)
	case "uniq":
		if kind := g.kind(n.Arguments[0]); isLarge(kind) && kind != reflect.Map && kind != reflect.String {
			g.call(node, uniqFunc, reflect.TypeFor[[]any](), n.Arguments[0])
		}
	case "concat", "flatten", "reverse", "sort", "fromPairs",
		"upper", "lower", "split", "splitAfter", "toBase64", "fromBase64":
		g.made(node)
	}
}

// predicate counts the rounds. One costs as much as the predicate has nodes.
func (g *expressionGuard) predicate(builtin string, p *ast.PredicateNode) {
	if builtin == "sum" || builtin == "sortBy" {
		g.operand(&p.Node, useNumber)
	}
	var nodes nodeCount
	ast.Walk(&p.Node, &nodes)
	name := roundFunc
	if builtin == "groupBy" || builtin == "sortBy" {
		name = keptFunc
	}
	g.call(&p.Node, name, reflect.TypeFor[any](), number(roundCost+nodeCost*int(nodes)), p.Node)
}

type nodeCount int

// Visit implements [ast.Visitor].
func (c *nodeCount) Visit(*ast.Node) { *c++ }

// useOf says how a function uses its argument i.
func useOf(builtin string, i int) int {
	switch builtin {
	case "all", "none", "any", "one", "filter", "map", "find", "findIndex", "findLast", "findLastIndex",
		"count", "groupBy", "sortBy", "reduce", "first", "last", "take":
		if i == 0 {
			return useNothing // passed on, or paid for by the round
		}
	case "get":
		if i == 0 {
			return useMember
		}
	case "len":
		return useTextOnly
	case "concat", "reverse":
		return 0 // values are passed on as they are
	case "flatten", "fromPairs":
		return useDeep
	case "min", "max", "mean", "median":
		return useNumber | useDeep
	case "sort":
		return useNumber | useSorted
	case "sum":
		if i == 0 {
			return useNumber | useSummed
		}
	}
	return useNumber
}

// kind is the static kind of a node, [reflect.Interface] when it is not known.
func (g *expressionGuard) kind(node ast.Node) reflect.Kind {
	if t, ok := g.types[node]; ok {
		return t.Kind()
	}
	return node.Type().Kind()
}

// operand lets what a node is given pass through the counter. Texts have a
// counter of their own, so that the compiler still knows that they are texts.
func (g *expressionGuard) operand(node *ast.Node, use int) {
	if *node == nil || use == useNothing {
		return
	}
	switch n := (*node).(type) {
	case *ast.NilNode, *ast.StringNode, *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode, *ast.ConstantNode, *ast.PredicateNode:
		return
	case *ast.IdentifierNode:
		if n.Value == "key" || n.Value == "type" {
			return // short
		}
	}
	switch kind := g.kind(*node); {
	case kind == reflect.String:
		g.call(node, textFunc, reflect.TypeFor[string](), *node)
	case isLarge(kind):
		g.call(node, operandFunc, reflect.TypeFor[any](), number(use), *node)
	}
}

// made counts the text or list that a node makes.
func (g *expressionGuard) made(node *ast.Node) {
	switch kind := g.kind(*node); {
	case kind == reflect.String:
		g.call(node, madeTextFunc, reflect.TypeFor[string](), *node)
	case isLarge(kind):
		g.call(node, madeFunc, reflect.TypeFor[any](), *node)
	}
}

func number(n int) ast.Node { return &ast.IntegerNode{Value: n} }

// call replaces a node by a call of one of the functions above.
func (g *expressionGuard) call(node *ast.Node, name string, result reflect.Type, args ...ast.Node) {
	args = append([]ast.Node{&ast.IdentifierNode{Value: envName}}, args...)
	g.replace(node, &ast.CallNode{Callee: &ast.IdentifierNode{Value: name}, Arguments: args}, result)
	at := (*node).Location()
	for _, n := range append([]ast.Node{(*node).(*ast.CallNode).Callee}, args...) {
		if n.Location() == (file.Location{}) {
			n.SetLocation(at)
		}
	}
}

// replace keeps the place of a node, for messages. A type that is set on the node
// itself would keep the checker from looking at the arguments.
func (g *expressionGuard) replace(node *ast.Node, by ast.Node, result reflect.Type) {
	ast.Patch(node, by)
	if g.types == nil {
		g.types = map[ast.Node]reflect.Type{}
	}
	g.types[by] = result
}

// machineNumbers returns list with machine numbers. The last list is remembered:
// a loop asks for the same one again and again.
func (e *expressionEnv) machineNumbers(list []any) ([]any, error) {
	if len(list) == 0 || len(list) == len(e.converted.from) && &list[0] == &e.converted.from[0] {
		return e.converted.to[:len(list)], nil
	}
	if err := e.step(len(list)); err != nil {
		return nil, err
	}
	out, cloned := list, false
	for i, part := range list {
		n, ok := part.(json.Number)
		if !ok {
			continue
		}
		if !cloned {
			out, cloned = slices.Clone(list), true
		}
		v, err := machineNumber(n)
		if err != nil {
			return nil, err
		}
		out[i] = v
		if err := e.step(conversionCost + sizeOf(n)); err != nil {
			return nil, err
		}
	}
	e.converted.from, e.converted.to = list, out
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

func loadZone(v any) (*time.Location, error) {
	const errZone = kindError("timezone() needs an IANA name such as America/New_York")
	name, ok := v.(string)
	if !ok || name == "Local" || name == "" {
		return nil, errZone
	}
	zone, err := time.LoadLocation(name)
	if err != nil {
		return nil, errZone
	}
	return zone, nil
}

func zoneByName(params ...any) (any, error) {
	env := params[0].(*expressionEnv)
	name, _ := params[1].(string)
	if zone, ok := env.zones[name]; ok {
		return zone, env.step(1 + sizeOf(name))
	}
	if err := env.step(zoneCost); err != nil {
		return nil, err
	}
	zone, err := loadZone(params[1])
	if err != nil {
		return nil, err
	}
	if env.zones == nil {
		env.zones = map[string]*time.Location{}
	}
	env.zones[name] = zone
	return zone, nil
}
