package mapping

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"unicode/utf8"

	"github.com/expr-lang/expr/ast"
	"github.com/expr-lang/expr/parser"

	"github.com/hms-mkt/lockstep/outbox"
)

// Mapping says how the fields of a payload become the fields of the receiver. Fields are
// written in the order given, and computed ones last. The zero Mapping sends the payload
// unchanged.
type Mapping struct {
	Fields  []Field    `json:"fields,omitempty"`
	Compute []Computed `json:"compute,omitempty"`
}

// Field copies one value of the payload to a field of the receiver. Names are paths:
// "place.room" is the member room of the object place.
//
// Set at most one of Time, Values and Const, and at most one of Default and Optional. Const
// needs no From, and excludes Default and Optional.
type Field struct {
	From     string            `json:"from,omitempty"`     // path in the payload
	To       string            `json:"to"`                 // path in the result
	Time     *TimeFormat       `json:"time,omitempty"`     // the value is a time: convert and format it
	Values   map[string]string `json:"values,omitempty"`   // the value is a code: look it up
	Default  json.RawMessage   `json:"default,omitempty"`  // JSON that is sent if the value is missing, null, or not in Values
	Const    json.RawMessage   `json:"const,omitempty"`    // JSON that is always sent
	Optional bool              `json:"optional,omitempty"` // leave the field out if the value is missing or null
}

// Computed is a field whose value is the result of an expression. See [CompileFilter] for the
// language.
type Computed struct {
	To       string `json:"to"`
	Expr     string `json:"expr"`
	Optional bool   `json:"optional,omitempty"` // leave the field out if the result is null
}

// Refs are the names of the values of ref that the expression reads, such as etag of
// ref.etag. An expression that does not compile has none.
func (c Computed) Refs() []string {
	tree, err := parser.Parse(c.Expr)
	if err != nil {
		return nil
	}
	var names refNames
	ast.Walk(&tree.Node, &names)
	return slices.Compact(slices.Sorted(slices.Values(names)))
}

// refNames collects the names of the values of ref.
type refNames []string

// Visit implements [ast.Visitor].
func (r *refNames) Visit(node *ast.Node) {
	member, ok := (*node).(*ast.MemberNode)
	if !ok {
		return
	}
	of, isName := member.Node.(*ast.IdentifierNode)
	name, isFixed := member.Property.(*ast.StringNode)
	if isName && isFixed && of.Value == "ref" {
		*r = append(*r, name.Value)
	}
}

// Sending is what computed fields may read besides the event: the variables
// idempotency_key and ref. A body that was made with it is kept for all attempts.
type Sending struct {
	IdempotencyKey string
	Ref            outbox.Ref // ref.external_id, ref.etag, and ref.NAME for each learnt value; null if it is not known
}

func (s Sending) ref() map[string]any {
	known := map[string]any{"external_id": nil, "etag": nil}
	if s.Ref.ExternalID != "" {
		known["external_id"] = s.Ref.ExternalID
	}
	if s.Ref.ETag != "" {
		known["etag"] = s.Ref.ETag
	}
	for name, value := range s.Ref.Learned {
		known[name] = value
	}
	return known
}

// FieldError is the reason why an event cannot be mapped. It names the field and the kind of
// problem, and never contains a value of the payload.
type FieldError struct {
	Field  string // source path, target of a computed field, or "when"
	Reason string
}

func (e *FieldError) Error() string { return "field " + e.Field + ": " + e.Reason }

// MappingError is a problem of one entry of a [Mapping].
type MappingError struct {
	Computed bool   // true for an entry of Mapping.Compute, false for one of Mapping.Fields
	Index    int    // index of the entry
	Field    string // source of the entry, or its target
	Err      error
}

func (e *MappingError) Error() string { return "field " + e.Field + ": " + e.Err.Error() }
func (e *MappingError) Unwrap() error { return e.Err }

// Mapper is a compiled [Mapping]. It is safe for concurrent use.
type Mapper struct {
	version string
	source  *sourceNode // nil when no field reads the payload
	slots   int
	target  *targetNode
	exprs   []*expression
	empty   bool
	scratch sync.Pool // *mapScratch
}

// mapScratch is the working memory of one call of Map.
type mapScratch struct {
	slots []slot
	out   []byte
}

// emitter appends the JSON of one field to dst. It reports false if the field is left out.
type emitter func(dst []byte, s *mapScratch) (out []byte, ok bool, err error)

// targetNode is an object of the result, or one of its fields.
type targetNode struct {
	path  string
	key   []byte // `"name":`
	kids  []*targetNode
	field emitter // nil for an object
	expr  int     // index into exprs; -1 if the value is in field or kids
}

// Compile checks m and makes a [Mapper]. It reports all problems at once, as joined
// [*MappingError] values.
func (m Mapping) Compile() (*Mapper, error) {
	c := mappingCompiler{
		source: &sourceNode{slot: -1},
		target: &targetNode{expr: -1},
	}
	for i, f := range m.Fields {
		c.at.Index = i
		c.field(f)
	}
	c.at.Computed = true
	var exprs []*expression
	for i, f := range m.Compute {
		c.at.Index = i
		if f.To == "" {
			c.fail("compute", errors.New("a computed field needs a name"))
			continue
		}
		e, err := compileExpression(f.Expr, f.To, forField)
		if err != nil {
			c.fail(f.To, err)
		}
		if n := c.place(f.To); n != nil {
			n.expr = len(exprs)
		}
		if e != nil {
			e.optional = f.Optional
		}
		exprs = append(exprs, e)
	}
	if len(c.errs) > 0 {
		return nil, errors.Join(c.errs...)
	}
	mapper := &Mapper{
		version: m.version(exprs),
		target:  c.target,
		slots:   c.slots,
		exprs:   exprs,
		empty:   len(m.Fields) == 0 && len(m.Compute) == 0,
	}
	if c.slots > 0 {
		mapper.source = c.source
	}
	mapper.scratch.New = func() any {
		return &mapScratch{slots: make([]slot, mapper.slots), out: make([]byte, 0, 512)}
	}
	return mapper, nil
}

// version is computed from the canonical JSON of the mapping: the order of the struct, sorted
// tables, constants without white space. If the mapping uses time zones, the version of their
// database is a part of it.
func (m Mapping) version(exprs []*expression) string {
	b, err := json.Marshal(m)
	if err != nil {
		// This cannot happen: Compile has checked that every RawMessage is JSON.
		panic(err)
	}
	if slices.ContainsFunc(m.Fields, Field.usesZone) || slices.ContainsFunc(exprs, func(e *expression) bool { return e.zones }) {
		z, _ := currentZones() // Compile has used it
		b = append(b, z.version...)
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:6])
}

// Version identifies the mapping: 12 hex digits of the SHA-256 of its canonical form. It is in
// the delivery log.
func (m *Mapper) Version() string { return m.version }

// Computes reports whether the mapping has computed fields.
func (m *Mapper) Computes() bool { return len(m.exprs) > 0 }

// UsesKey reports whether a computed field reads the idempotency key.
func (m *Mapper) UsesKey() bool {
	return slices.ContainsFunc(m.exprs, func(x *expression) bool { return x.key })
}

// UsesRef reports whether a computed field reads the receiver's reference.
func (m *Mapper) UsesRef() bool {
	return slices.ContainsFunc(m.exprs, func(x *expression) bool { return x.ref })
}

// Map renders the receiver's fields of ev as one JSON object. The same event and the same
// Sending give the same bytes. If ev cannot be mapped, the error is a [*FieldError]. The
// Watcher may be nil.
func (m *Mapper) Map(ev outbox.Event, to Sending, w Watcher) ([]byte, error) {
	if m.empty {
		return passPayload(ev.Payload)
	}
	s := m.scratch.Get().(*mapScratch)
	defer m.scratch.Put(s)
	if m.source != nil {
		if err := checkPayload(ev.Payload); err != nil {
			return nil, err
		}
		clear(s.slots)
		scanObject(ev.Payload, m.source, s.slots)
	}
	results, err := m.compute(ev, to, w)
	if err != nil {
		return nil, err
	}
	out, _, err := m.target.append(s.out[:0], s, results)
	s.out = out
	clear(s.slots) // keep no payload while s is in the pool
	if err != nil {
		return nil, err
	}
	return bytes.Clone(out), nil
}

func (m *Mapper) compute(ev outbox.Event, to Sending, w Watcher) ([][]byte, error) {
	if len(m.exprs) == 0 {
		return nil, nil
	}
	e, err := newEvaluation(ev, to, w, m.exprs...)
	if err != nil {
		return nil, err
	}
	return m.evaluate(e)
}

func (m *Mapper) evaluate(e *evaluation) ([][]byte, error) {
	results := make([][]byte, len(m.exprs))
	for i, x := range m.exprs {
		v, err := e.run(x)
		if err != nil {
			return nil, err
		}
		if v == nil && x.optional {
			continue
		}
		if results[i], err = e.result(v); err != nil {
			return nil, &FieldError{Field: x.field, Reason: err.Error()}
		}
	}
	return results, nil
}

// append writes the value of the node. If all fields of an object are left out, the object is
// left out too. The result as a whole is never left out.
func (n *targetNode) append(dst []byte, s *mapScratch, results [][]byte) ([]byte, bool, error) {
	switch {
	case n.expr >= 0 && results[n.expr] == nil: // optional
		return dst, false, nil
	case n.expr >= 0:
		return append(dst, results[n.expr]...), true, nil
	case n.field != nil:
		return n.field(dst, s)
	}
	dst = append(dst, '{')
	empty := true
	for _, kid := range n.kids {
		before := len(dst)
		if !empty {
			dst = append(dst, ',')
		}
		dst = append(dst, kid.key...)
		out, ok, err := kid.append(dst, s, results)
		if err != nil {
			return out, false, err
		}
		if !ok {
			dst = out[:before]
			continue
		}
		dst, empty = out, false
	}
	return append(dst, '}'), !empty || n.key == nil, nil
}

func passPayload(payload []byte) ([]byte, error) {
	if err := checkPayload(payload); err != nil {
		return nil, err
	}
	return appendCompact(make([]byte, 0, len(payload)), payload[skipSpace(payload, 0):]), nil
}

// checkPayload checks the conditions that the scanner needs. Stored events meet them. Files
// that are given to `lockstep map` may not.
func checkPayload(payload []byte) error {
	switch {
	case !json.Valid(payload):
		return errNotJSON()
	case !utf8.Valid(payload):
		return &FieldError{Field: "payload", Reason: "is not UTF-8"}
	case payload[skipSpace(payload, 0)] != '{':
		return &FieldError{Field: "payload", Reason: "is not a JSON object"}
	}
	return nil
}

func errNotJSON() error {
	return &FieldError{Field: "payload", Reason: "is not valid JSON, or nested deeper than 10,000 levels"}
}

// mappingCompiler builds the two trees of a mapper, and collects problems.
type mappingCompiler struct {
	source *sourceNode
	target *targetNode
	slots  int
	at     MappingError // the current entry
	errs   []error
}

func (c *mappingCompiler) fail(field string, err error) {
	e := c.at
	e.Field, e.Err = field, err
	c.errs = append(c.errs, &e)
}

func (c *mappingCompiler) field(f Field) {
	name := f.From
	if name == "" {
		name = f.To
	}
	if name == "" {
		c.fail("mapping", errors.New("a field needs a target name (to)"))
		return
	}
	for _, err := range f.check() {
		c.fail(name, err)
	}
	slot := -1
	if f.From != "" {
		slot = c.read(f.From)
	}
	emit, err := f.emitter(slot)
	if err != nil {
		c.fail(name, err)
	}
	if f.To == "" {
		c.fail(name, errors.New("has no target name (to)"))
		return
	}
	if n := c.place(f.To); n != nil {
		n.field = emit
	}
}

// check returns an error for each pair of settings that exclude each other.
func (f Field) check() []error {
	var errs []error
	bad := func(cond bool, msg string) {
		if cond {
			errs = append(errs, errors.New(msg))
		}
	}
	hasConst, hasDefault := f.Const != nil, f.Default != nil
	bad(f.From == "" && !hasConst, "needs a source field, or const")
	bad(hasConst && (f.Time != nil || f.Values != nil || hasDefault || f.Optional),
		"const stands alone: remove time, values, default and optional")
	bad(f.Time != nil && f.Values != nil, "has both time and values: choose one")
	bad(hasDefault && f.Optional, "has both default and optional: with a default it is never left out, remove one")
	bad(f.Values != nil && len(f.Values) == 0, "values is an empty table")
	bad(hasConst && !validJSON(f.Const), "const is not JSON")
	bad(hasDefault && !validJSON(f.Default), "default is not JSON")
	bad(hasDefault && string(f.Default) == "null", "default is null, and null is never sent: use optional to leave the field out")
	bad(hasConst && string(f.Const) == "null", "const is null, and null is never sent: remove the field")
	return errs
}

func (f Field) usesZone() bool { return f.Time != nil && f.Time.Zone != "" }

func validJSON(raw json.RawMessage) bool { return json.Valid(raw) && utf8.Valid(raw) }

// read registers a source path and returns its slot.
func (c *mappingCompiler) read(path string) int {
	if err := checkPath(path); err != nil {
		c.fail(path, fmt.Errorf("source name %w", err))
		return -1
	}
	n := c.source
	for name := range strings.SplitSeq(path, ".") {
		n = n.child(name)
	}
	if n.slot < 0 {
		n.slot = c.slots
		c.slots++
	}
	return n.slot
}

// place adds a target path to the tree. It returns nil if the path was refused.
func (c *mappingCompiler) place(path string) *targetNode {
	if err := checkPath(path); err != nil {
		c.fail(path, fmt.Errorf("target name %w", err))
		return nil
	}
	n := c.target
	for part := range strings.SplitSeq(path, ".") {
		if n.leaf() {
			c.fail(path, fmt.Errorf("lies inside %s, which is a field already: rename one of them", n.path))
			return nil
		}
		n = n.child(part)
	}
	switch {
	case n.leaf():
		c.fail(path, errors.New("is the target of two fields: rename one of them"))
		return nil
	case len(n.kids) > 0:
		c.fail(path, fmt.Errorf("is an object already, because of %s: rename one of them", n.kids[0].path))
		return nil
	}
	// A field with a problem is added too, so that a second field of that name is also reported.
	n.field = omit
	return n
}

func omit(dst []byte, _ *mapScratch) ([]byte, bool, error) { return dst, false, nil }

func (n *targetNode) leaf() bool { return n.field != nil || n.expr >= 0 }

func (n *targetNode) child(name string) *targetNode {
	path := name
	if n.path != "" {
		path = n.path + "." + name
	}
	for _, kid := range n.kids {
		if kid.path == path {
			return kid
		}
	}
	kid := &targetNode{path: path, key: append(appendJSONString(nil, name), ':'), expr: -1}
	n.kids = append(n.kids, kid)
	return kid
}

func checkPath(path string) error {
	if !utf8.ValidString(path) {
		return errors.New("is not UTF-8")
	}
	for part := range strings.SplitSeq(path, ".") {
		if part == "" {
			return errors.New("has an empty part: write names joined by single dots, such as place.room")
		}
	}
	return nil
}
