package mapping

import (
	"encoding/json"
	"errors"
	"reflect"
	"slices"
	"time"

	"github.com/expr-lang/expr"
	"github.com/expr-lang/expr/ast"
)

// Names that only the guard can write begin with guardPrefix. The language has no identifiers
// with a space, so an expression cannot contain such a name.
const guardPrefix = "guard "

const evaluationName = guardPrefix + "evaluation"

// languageOptions removes everything from the language that does not depend on the event
// alone, and adds the functions of the guard.
func languageOptions() []expr.Option {
	options := append(boundedFunctions(), idFunctions()...)
	for name, f := range guardFunctions() {
		options = append(options, expr.Function(guardPrefix+name, func(params ...any) (any, error) {
			return f(params[0].(*evaluation), params[1:])
		}))
	}
	for name := range disabled() {
		options = append(options, expr.DisableBuiltin(name))
	}
	return options
}

// disabled returns the functions that an expression cannot use, each with the reason.
func disabled() map[string]string {
	const order = "because the order of an object's members is not fixed"
	return map[string]string{
		"now":  "because the same event must give the same bytes at every attempt",
		"keys": order, "values": order, "toPairs": order,
		"fromJSON": "because numbers would lose digits",
	}
}

// guard rewrites an expression during compilation, so that its evaluation counts steps by the
// rules in the package comment. The expression language itself cannot be interrupted.
//
// guard also converts numbers. A number of the payload is kept as text ([json.Number]). It
// becomes a machine number only as an operand, so event.amount alone keeps its digits.
type guard struct {
	event bool   // the payload is read
	zones bool   // a time zone is used
	key   bool   // the idempotency key is read
	ref   bool   // the receiver's reference is read
	known string // the names that an expression may read
	err   error
}

// Visit implements [ast.Visitor]. It is called for children before their parent.
func (g *guard) Visit(node *ast.Node) {
	switch n := (*node).(type) {
	case *ast.IdentifierNode:
		switch n.Value {
		case "event":
			g.event = true
		case "idempotency_key":
			g.key = true
		case "ref":
			g.ref = true
		case "$env":
			g.err = errors.New("$env is not available; known are " + g.known)
		}
	case *ast.BinaryNode:
		g.binary(node, n)
	case *ast.UnaryNode:
		if n.Operator != "not" && n.Operator != "!" {
			g.around("operand", &n.Node)
		}
	case *ast.SliceNode:
		g.around("operand", &n.From)
		g.around("operand", &n.To)
	case *ast.MemberNode:
		g.member(n)
	case *ast.MapNode:
		for _, pair := range n.Pairs {
			g.around("operand", &pair.(*ast.PairNode).Key)
		}
		g.around("made", node)
	case *ast.CallNode:
		g.call(node, n)
	case *ast.BuiltinNode:
		g.builtin(node, n)
	}
}

// binary wraps the operands, unless the operator reads only a few bytes of them.
func (g *guard) binary(node *ast.Node, n *ast.BinaryNode) {
	left, right := kind(n.Left), kind(n.Right)
	switch n.Operator {
	case "??", "and", "&&", "or", "||":
		return
	case "==", "!=":
		switch {
		case isShort(n.Left) || isShort(n.Right):
			return
		case !isNumber(left) && !isNumber(right):
			g.replace(node, "==", n.Left, n.Right)
			if n.Operator == "!=" {
				ast.Patch(node, &ast.UnaryNode{Operator: "not", Node: *node})
			}
			return
		}
	case "in":
		if hasParts(right) {
			g.replace(node, "in", n.Left, n.Right)
			return
		}
	case "matches":
		constant(g, &n.Right, n.Right, compilePattern)
		g.replace(node, "matches", n.Left, n.Right)
		return
	}
	g.around("operand", &n.Left)
	g.around("operand", &n.Right)
	if n.Operator == "+" {
		g.around("made", node)
	}
}

// isShort reports whether a comparison with node reads at most a few bytes of the other side,
// and does not need it as a number.
func isShort(node ast.Node) bool {
	switch node.(type) {
	case *ast.NilNode, *ast.StringNode:
		return true
	}
	return false
}

// member wraps a value whose member may be a method of a number.
func (g *guard) member(n *ast.MemberNode) {
	name := memberName(n)
	if name == "Local" && n.Node.Type() == reflect.TypeFor[time.Time]() {
		g.err = errLocalTime
	}
	_, index := n.Property.(*ast.IntegerNode)
	if _, method := reflect.TypeFor[json.Number]().MethodByName(name); method || name == "" && !index {
		g.around("member", &n.Node)
	}
	g.around("operand", &n.Property)
}

func memberName(n *ast.MemberNode) string {
	if s, ok := n.Property.(*ast.StringNode); ok {
		return s.Value
	}
	return ""
}

var errLocalTime = errors.New("Local() depends on the machine; use In(timezone(\"America/New_York\"))")

func (g *guard) call(node *ast.Node, n *ast.CallNode) {
	if callee, ok := n.Callee.(*ast.MemberNode); ok && memberName(callee) == "Local" {
		g.err = errLocalTime
	}
	operand := "operand"
	if callee, ok := n.Callee.(*ast.IdentifierNode); ok && isIDFunction(callee.Value) {
		operand = "copied"
	}
	for i := range n.Arguments {
		g.around(operand, &n.Arguments[i])
	}
	g.around("made", node)
}

// constant replaces a node with the result of f if the argument of f does not depend on the
// event.
func constant[T any](g *guard, node *ast.Node, arg ast.Node, f func(string) (T, error)) bool {
	s, ok := arg.(*ast.StringNode)
	if !ok {
		return false
	}
	v, err := f(s.Value)
	if err != nil {
		g.err = err
	}
	ast.Patch(node, &ast.ConstantNode{Value: v})
	return true
}

func (g *guard) builtin(node *ast.Node, n *ast.BuiltinNode) {
	looped, operand := false, "operand"
	for _, arg := range n.Arguments {
		if p, ok := arg.(*ast.PredicateNode); ok {
			g.predicate(n.Name, p)
			looped = true
		}
	}
	args := n.Arguments
	switch {
	case looped:
		return // the rounds of the predicate pay
	case n.Name == "trim" && len(args) == 2, n.Name == "uniq", n.Name == "toJSON", n.Name == "string":
		g.replace(node, n.Name, args...)
		g.around("made", node)
		return
	}
	switch n.Name {
	case "timezone":
		g.zones = true
		if !constant(g, node, args[0], zoneOf) {
			g.replace(node, "timezone", args[0])
		}
		return
	case "first", "last", "take", "get":
		g.around("member", &args[0])
		for i := range args[1:] {
			g.around("operand", &args[i+1])
		}
		return
	case "concat", "reverse": // pay in advance for the copies that they make
		for i := range args {
			g.around("made", &args[i])
		}
		return
	case "len":
		operand = "length"
	case "flatten":
		operand = "copied"
	case "sum", "count", "min", "max", "mean":
		operand = "added"
	case "sort", "median":
		operand = "sorted"
	}
	for i := range args {
		g.around(operand, &args[i])
	}
	g.around("made", node)
}

// predicate makes each round of a predicate pay.
func (g *guard) predicate(builtin string, p *ast.PredicateNode) {
	switch builtin {
	case "sum":
		g.around("operand", &p.Node)
	case "sortBy":
		g.around("operand", &p.Node)
		g.replace(&p.Node, "kept", p.Node)
	case "groupBy":
		g.replace(&p.Node, "kept", p.Node)
	}
	var nodes nodeCount
	ast.Walk(&p.Node, &nodes)
	g.replace(&p.Node, "round", &ast.IntegerNode{Value: roundCost + nodeCost*int(nodes)}, p.Node)
}

type nodeCount int

// Visit implements [ast.Visitor].
func (c *nodeCount) Visit(*ast.Node) { *c++ }

// kind returns the static kind of a node. It is [reflect.Interface] if the kind depends on
// the event.
func kind(node ast.Node) reflect.Kind { return node.Type().Kind() }

// hasParts lists the kinds that may be lists or objects.
func hasParts(kind reflect.Kind) bool {
	return slices.Contains([]reflect.Kind{reflect.Interface, reflect.Slice, reflect.Array, reflect.Map}, kind)
}

func isNumber(kind reflect.Kind) bool { return kind >= reflect.Int && kind <= reflect.Float64 }

// around wraps a node in a call of a function of the guard, unless its value is known to be
// small.
func (g *guard) around(function string, node *ast.Node) {
	switch n := (*node).(type) {
	case nil, *ast.NilNode, *ast.StringNode, *ast.ConstantNode:
		return
	case *ast.IdentifierNode:
		if n.Value == "key" || n.Value == "type" {
			return
		}
	}
	if k := kind(*node); hasParts(k) || k == reflect.String {
		g.replace(node, function, *node)
	}
}

// replace replaces a node with a call of a function of the guard. The type does not change,
// so the checker accepts the same expressions as before.
func (g *guard) replace(node *ast.Node, function string, args ...ast.Node) {
	args = append([]ast.Node{&ast.IdentifierNode{Value: evaluationName}}, args...)
	call := &ast.CallNode{Callee: &ast.IdentifierNode{Value: guardPrefix + function}, Arguments: args}
	call.SetNature(*(*node).Nature())
	ast.Patch(node, call)
}
