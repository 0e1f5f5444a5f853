package relay

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/outbox"
	"github.com/hms-mkt/lockstep/relay/mapping"
)

// brokenMapper panics. No configuration is known to cause that.
type brokenMapper struct{}

func (brokenMapper) UsesKey() bool { return false }
func (brokenMapper) UsesRef() bool { return false }

func (brokenMapper) Map(outbox.Event, mapping.Sending, mapping.Watcher) ([]byte, error) {
	panic("no hearing of Jane Roe")
}
func (brokenMapper) Computes() bool  { return false }
func (brokenMapper) Version() string { return "0123456789ab" }

// A panic in the mapping fails that delivery, and the log of the process has the stack.
func TestPanicInTheMappingFailsTheDelivery(t *testing.T) {
	var log bytes.Buffer
	p := &pipeline{state: &state{log: slog.New(slog.NewTextHandler(&log, nil))}, filter: &mapping.Filter{}, scope: &mapping.Scope{}, mapper: brokenMapper{}}
	d := &outbox.Delivery{Key: "H-1", Event: outbox.Event{ID: "E-1", Payload: []byte(`{"party":"Jane Roe"}`)}}
	_, result, ok := p.prepare(t.Context(), work{Delivery: d})
	if ok || !result.Failed || result.Class != "mapping" || !strings.Contains(result.Error, "panic in the mapping") {
		t.Errorf("prepared %t, result %+v; want it failed with class mapping", ok, result)
	}
	if said := log.String(); !strings.Contains(said, "mapping panicked") || !strings.Contains(said, "deliver_test.go") || strings.Contains(said, "Jane") {
		t.Errorf("want a stack without names in the log: %s", said)
	}
}

const courtPayload = `{"hearingId": "H-1", "location": "3A", "scheduledAt": "2027-03-01T19:30:00Z"}`

// taker is a receiver that accepts everything.
type taker struct{}

func (taker) Deliver(context.Context, adapters.Message) (adapters.Receipt, error) {
	return adapters.Receipt{Code: "HTTP 201", SHA256: strings.Repeat("8c", 32)}, nil
}

// BenchmarkAttempt measures the relay's own work for an attempt.
func BenchmarkAttempt(b *testing.B) {
	r, err := New(nil, Config{Logger: slog.New(slog.DiscardHandler), Syncs: []Sync{{Name: "CourtCalendarSync", Events: []string{"*"}, Adapter: taker{}, Mapping: Mapping{Fields: []Field{{From: "hearingId", To: "case_reference"}, {From: "location", To: "courtroom"}}}}}})
	if err != nil {
		b.Fatal(err)
	}
	p, end := r.pipelines[0], time.Now().Add(time.Hour)
	doing := r.steps.add("an attempt", time.Hour)
	b.ReportAllocs()
	for b.Loop() {
		d := &outbox.Delivery{Key: "H-1", Event: outbox.Event{ID: "E-1", Key: "H-1", Type: "scheduling:created", Payload: []byte(courtPayload)}}
		result := p.deliver(b.Context(), work{Delivery: d, leaseEnd: end}, doing)
		if result.Outcome != outbox.Delivered {
			b.Fatal(result.Outcome, result.Error)
		}
	}
}

// An id that cannot be kept as it is, is not kept: cut or cleaned, it would address
// another record.
func TestAReferenceIsKeptAsItIsOrNotAtAll(t *testing.T) {
	for name, test := range map[string]struct{ id, want string }{
		"short":            {"CAL-000001", "CAL-000001"},
		"the longest":      {strings.Repeat("x", adapters.MaxRef), strings.Repeat("x", adapters.MaxRef)},
		"longer":           {strings.Repeat("x", adapters.MaxRef+1), ""},
		"a line break":     {"CAL\n1", ""},
		"not UTF-8":        {"CAL\xff1", ""},
		"another alphabet": {"дело-7", "дело-7"},
	} {
		got := reference(&adapters.Ref{ExternalID: test.id, ETag: test.id}, &outbox.Delivery{})
		if got.ExternalID != test.want || got.ETag != test.want {
			t.Errorf("%s: kept %q and %q, want %q", name, got.ExternalID, got.ETag, test.want)
		}
	}
}
