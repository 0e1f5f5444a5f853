package mapping

import (
	"strings"
	"testing"
	"time"

	"github.com/hms-mkt/lockstep/outbox"
)

// Computed fields read the delivery. An optional one is left out if its result is null.
func TestComputedFieldsReadTheDelivery(t *testing.T) {
	ev := outbox.Event{ID: "e-1", Key: "k", Payload: raw(`{}`), OccurredAt: time.Date(2027, 3, 1, 9, 30, 0, 5e8, time.FixedZone("", -5*3600))}
	known := Sending{IdempotencyKey: "e-1:2", Ref: outbox.Ref{ExternalID: "C-7", ETag: `"v"`, Learned: map[string]string{"n": "12"}}}
	for _, tc := range []struct {
		expr     string
		optional bool
		to       Sending
		want     string
	}{
		{expr: "id", want: `{"x":"e-1"}`},
		{expr: "occurred_at", want: `{"x":"2027-03-01T14:30:00.5Z"}`},
		{expr: "idempotency_key", to: known, want: `{"x":"e-1:2"}`},
		{expr: "[ref.external_id, ref.etag, int(ref.n) + 1]", to: known, want: `{"x":["C-7","\"v\"",13]}`},
		{expr: `ref.external_id ?? "none"`, want: `{"x":"none"}`},
		{expr: "ref.external_id", optional: true, want: "{}"},
		{expr: "ref.n", optional: true, to: known, want: `{"x":"12"}`},
		{expr: "ref.n", want: "error: field x: the expression is null for this event"},
	} {
		m := compile(t, Mapping{Compute: []Computed{{To: "x", Expr: tc.expr, Optional: tc.optional}}})
		body, err := m.Map(ev, tc.to, nil)
		got := string(body)
		if err != nil {
			got = "error: " + err.Error()
		}
		if got != tc.want && !strings.HasPrefix(tc.want, "error: ") || !strings.HasPrefix(got, tc.want) {
			t.Errorf("%s: %s, want %s", tc.expr, got, tc.want)
		}
		if m.UsesKey() != (tc.expr == "idempotency_key") {
			t.Errorf("%s: UsesKey is %v", tc.expr, m.UsesKey())
		}
		if m.UsesRef() != strings.Contains(tc.expr, "ref.") {
			t.Errorf("%s: UsesRef is %v", tc.expr, m.UsesRef())
		}
	}
}

// Conditions and scopes must give the same result at every attempt, so they read only the
// event.
func TestConditionsDoNotReadTheDelivery(t *testing.T) {
	for _, expr := range []string{`ref.external_id == "x"`, `idempotency_key == "x"`} {
		if _, err := CompileFilter(expr); err == nil || !strings.Contains(err.Error(), "unknown name") {
			t.Errorf("%s: %v", expr, err)
		}
	}
	for _, expr := range []string{"ref.external_id", "idempotency_key"} {
		if _, err := CompileScope(expr); err == nil || !strings.Contains(err.Error(), "unknown name") {
			t.Errorf("%s: %v", expr, err)
		}
	}
	if _, err := CompileFilter(`id != "" and occurred_at < "2030"`); err != nil {
		t.Error(err)
	}
}

func TestRefsOfAnExpression(t *testing.T) {
	for expr, want := range map[string]string{
		`ref.n ?? ref["m"] ?? ref?.n`:         "m n",
		`event.ref.x + key`:                   "",
		`map(event.a, {ref.external_id + #})`: "external_id",
		`ref.`:                                "",
	} {
		if got := strings.Join(Computed{Expr: expr}.Refs(), " "); got != want {
			t.Errorf("%s: %q, want %q", expr, got, want)
		}
	}
}
