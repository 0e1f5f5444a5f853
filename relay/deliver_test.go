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
)

// A panic in the mapping fails that delivery, and the process's log has the
// stack. No configuration is known to cause one, so the mapper is broken here.
func TestPanicInTheMappingFailsTheDelivery(t *testing.T) {
	var log bytes.Buffer
	p := &pipeline{state: &state{log: slog.New(slog.NewTextHandler(&log, nil))}, filter: &Filter{}, scope: &Scope{}}
	p.mapper = &Mapper{}
	p.mapper.scratch.New = func() any { panic("no hearing of Jane Roe") }
	d := &outbox.Delivery{Key: "H-1", Event: outbox.Event{ID: "E-1", Payload: []byte(`{"party":"Jane Roe"}`)}}
	_, result, ok := p.prepare(t.Context(), work{Delivery: d})
	if ok || !result.Failed || result.Class != "mapping" || !strings.Contains(result.Error, "panic in the mapping") {
		t.Errorf("prepared %t, result %+v; want it failed with class mapping", ok, result)
	}
	if said := log.String(); !strings.Contains(said, "mapping panicked") || !strings.Contains(said, "deliver_test.go") || strings.Contains(said, "Jane") {
		t.Errorf("want a stack without names in the log: %s", said)
	}
}

// taker is a receiver that has every message before it was sent.
type taker struct{}

func (taker) Deliver(context.Context, adapters.Message) (adapters.Receipt, error) {
	return adapters.Receipt{Code: "HTTP 201", SHA256: strings.Repeat("8c", 32)}, nil
}

// BenchmarkAttempt is what the relay does around an adapter.
func BenchmarkAttempt(b *testing.B) {
	r, err := New(nil, Config{Logger: slog.New(slog.DiscardHandler), Syncs: []Sync{{Name: "CourtCalendarSync", Events: []string{"*"}, Adapter: taker{}, Mapping: renames()}}})
	if err != nil {
		b.Fatal(err)
	}
	p, end := r.pipelines[0], time.Now().Add(time.Hour)
	doing := r.steps.add("an attempt", time.Hour)
	b.ReportAllocs()
	for b.Loop() {
		d := &outbox.Delivery{Key: "H-1", Event: outbox.Event{ID: "E-1", Key: "H-1", Type: "scheduling:created", Payload: raw(courtPayload)}}
		result := p.deliver(b.Context(), work{Delivery: d, leaseEnd: end}, doing)
		if result.Outcome != outbox.Delivered {
			b.Fatal(result.Outcome, result.Error)
		}
	}
}
