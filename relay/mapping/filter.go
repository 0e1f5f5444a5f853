package mapping

import (
	"strings"

	"github.com/hms-mkt/lockstep/outbox"
)

// Filter decides whether an event is sent to a sync. It is safe for concurrent use. The zero
// Filter matches every event.
type Filter struct {
	expr *expression
}

// CompileFilter compiles a condition, such as event.court == "NY-07". An empty condition
// matches every event.
//
// The language is github.com/expr-lang/expr. Its names are event (the payload), type, key,
// version (null if the writer gave none) and headers. It has no clock, no randomness, and
// nothing that depends on the machine or on the order of a map. CompileFilter refuses other
// names at the top level, and a result that is not a boolean. A payload field that is
// missing is null.
func CompileFilter(src string) (*Filter, error) {
	if strings.TrimSpace(src) == "" {
		return &Filter{}, nil
	}
	e, err := compileExpression(src, "when", forCondition)
	if err != nil {
		return nil, err
	}
	return &Filter{expr: e}, nil
}

// Match reports whether ev is sent. If the condition cannot be evaluated for ev, the error is
// a [*FieldError] with the field "when". The Watcher may be nil.
func (f *Filter) Match(ev outbox.Event, w Watcher) (bool, error) {
	if f.expr == nil {
		return true, nil
	}
	e, err := newEvaluation(ev, Sending{}, w, f.expr)
	if err != nil {
		return false, err
	}
	v, err := e.run(f.expr)
	if err != nil {
		return false, err
	}
	match, ok := v.(bool)
	if !ok {
		return false, &FieldError{Field: f.expr.field, Reason: "the condition is " + kindOf(v) + " for this event, not true or false"}
	}
	return match, nil
}

// IsZero reports whether f matches every event.
func (f *Filter) IsZero() bool { return f.expr == nil }
