package mapping

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/hms-mkt/lockstep/outbox"
)

// MaxScope is the longest scope, in characters. The database has the same bound.
const MaxScope = 200

// Scope names the part of a receiver that an event goes to, such as a court's code. It is safe
// for concurrent use. The zero Scope gives the empty scope for every event.
type Scope struct {
	expr *expression
}

// CompileScope compiles the expression of limits.per, such as event.court. See
// [CompileFilter] for the language. The result of the expression must be a text. An empty
// expression gives the zero Scope.
func CompileScope(src string) (*Scope, error) {
	if strings.TrimSpace(src) == "" {
		return &Scope{}, nil
	}
	e, err := compileExpression(src, "limits.per", forScope)
	if err != nil {
		return nil, err
	}
	if e.yields != "" && e.yields != "a string" && e.yields != "null" {
		return nil, fmt.Errorf("the scope is %s, and must be a text: write string(…) around what is not a text", e.yields)
	}
	return &Scope{expr: e}, nil
}

// Of returns the scope of ev. It is empty if the result of the expression is null. If the
// expression fails, or its result is no text, too long or not printable, the error is a
// [*FieldError] with the field "limits.per". The Watcher may be nil.
func (s *Scope) Of(ev outbox.Event, w Watcher) (string, error) {
	if s.expr == nil {
		return "", nil
	}
	e, err := newEvaluation(ev, Sending{}, w, s.expr)
	if err != nil {
		return "", err
	}
	v, err := e.run(s.expr)
	if err != nil || v == nil {
		return "", err
	}
	scope, ok := v.(string)
	reason := ""
	switch {
	case !ok:
		reason = "the scope is " + kindOf(v) + " for this event, not a text: write string(…) around it"
	case utf8.RuneCountInString(scope) > MaxScope:
		reason = fmt.Sprintf("the scope is longer than %d characters for this event", MaxScope)
	case strings.ContainsFunc(scope, unicode.IsControl):
		reason = "the scope has a control character for this event"
	case !utf8.ValidString(scope): // for example, cut in the middle of a character
		reason = "the scope is not UTF-8 for this event"
	default:
		return scope, nil
	}
	return "", &FieldError{Field: s.expr.field, Reason: reason}
}

// IsZero reports whether every event has the empty scope.
func (s *Scope) IsZero() bool { return s.expr == nil }
