package relay

import (
	"bytes"
	"fmt"
	"log/slog"
	"runtime"
	"runtime/metrics"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hms-mkt/lockstep/internal/waiting"
	"github.com/hms-mkt/lockstep/outbox"
	"github.com/hms-mkt/lockstep/relay/mapping"
)

// hangingMapper evaluates an expression that does not return before leave is closed, as if the cost
// of a function were not counted.
type hangingMapper struct {
	mapper
	field string
	leave <-chan struct{}
}

func (m hangingMapper) Map(ev outbox.Event, to mapping.Sending, w mapping.Watcher) ([]byte, error) {
	w.Begin(m.field)
	<-m.leave
	return m.mapper.Map(ev, to, w)
}

func pipelineFor(t *testing.T, log *bytes.Buffer, s Sync, workers int) *pipeline {
	t.Helper()
	s.Name, s.Events, s.Adapter = "CourtCalendarSync", []string{"*"}, taker{}
	r, err := New(nil, Config{Workers: workers, Logger: slog.New(slog.NewTextHandler(log, nil)), Syncs: []Sync{s}})
	if err != nil {
		t.Fatal(err)
	}
	return r.pipelines[0]
}

func claimed(id string, payload []byte) work {
	return work{Delivery: &outbox.Delivery{Key: "H-1", Event: outbox.Event{ID: id, Key: "H-1", Payload: payload}}, leaseEnd: time.Now().Add(time.Hour)}
}

// An evaluation that does not end fails its delivery, and the error names the field. The sync sends
// with fewer workers until the evaluation returns.
func TestAnEvaluationThatDoesNotEndIsAbandoned(t *testing.T) {
	var log bytes.Buffer
	p := pipelineFor(t, &log, Sync{Mapping: Mapping{Compute: []mapping.Computed{{To: "title", Expr: `1`}}}}, 8)
	p.relay.evaluationPeriod = time.Millisecond
	leave := make(chan struct{})
	fine := p.mapper
	doing := p.relay.steps.add("an attempt", time.Hour)
	p.mapper = hangingMapper{fine, "title", leave}
	for i, workers := range []int{4, 0} {
		result := p.deliver(t.Context(), claimed(fmt.Sprint("E-", i), []byte(courtPayload)), doing)
		if !result.Failed || result.Class != "mapping" || !strings.Contains(result.Error, "field title: the evaluation does not end") {
			t.Errorf("result %+v; want it failed with class mapping and the field", result)
		}
		if got := p.slots.workers(); got != workers {
			t.Errorf("%d workers left, want %d", got, workers)
		}
	}
	p.mapper, p.relay.evaluationPeriod = fine, time.Hour // these end, however busy the machine is
	if result := p.deliver(t.Context(), claimed("E-9", []byte(courtPayload)), doing); result.Outcome != "" {
		t.Errorf("with no worker left the outcome is %q, want the claim released", result.Outcome)
	}
	close(leave)
	waiting.For(t, time.Minute, "all workers are back", func() bool { return p.slots.workers() == 8 })
	if result := p.deliver(t.Context(), claimed("E-9", []byte(courtPayload)), doing); result.Outcome != outbox.Delivered {
		t.Errorf("after the evaluations have ended: %+v", result)
	}
}

// An abandoned evaluation ends when it counts its next step.
func TestAnEvaluationThatNobodyWaitsForEnds(t *testing.T) {
	var log bytes.Buffer
	p := pipelineFor(t, &log, Sync{When: `all(1..1000000, # > 0)`}, 8)
	p.relay.evaluationPeriod = time.Millisecond
	var e evaluation
	e.abandoned.Store(true)
	if r := p.render(claimed("E-1", []byte(`{}`)).Delivery, route{mapper: p.mapper}, &e); r.err == nil {
		t.Error("the evaluation went on to its end")
	}
}

// bigPayload is an event of 1 MiB that needs much memory, because it has many small values.
func bigPayload() []byte {
	var b bytes.Buffer
	b.WriteString(`{"l": [0`)
	for i := 1; b.Len() < 1<<20-20; i++ {
		fmt.Fprintf(&b, `,{"n":%d}`, i)
	}
	b.WriteString(`]}`)
	return b.Bytes()
}

// The size of the payloads bounds the memory, not the number of workers: of 12 events of 1 MiB, two
// are decoded at a time.
func TestExpressionsOverLargeEventsTakeTurns(t *testing.T) {
	var log bytes.Buffer
	p := pipelineFor(t, &log, Sync{When: `len(event.l) > 1`}, 32)
	payload := bigPayload()
	if len(payload) > 1<<20 {
		t.Fatal(len(payload))
	}
	runtime.GC()
	sample := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
	heap := func() uint64 { metrics.Read(sample); return sample[0].Value.Uint64() }
	before, most := heap(), uint64(0)
	var all sync.WaitGroup
	for i := range 12 {
		all.Go(func() {
			if _, _, ok := p.prepare(t.Context(), claimed(fmt.Sprint("E-", i), payload)); !ok {
				t.Error("not prepared")
			}
		})
	}
	done := make(chan struct{})
	go func() { all.Wait(); close(done) }()
	for running := true; running; {
		select {
		case <-done:
			running = false
		case <-time.After(time.Millisecond):
		}
		most = max(most, heap()-min(heap(), before))
	}
	t.Logf("at most %d MiB of heap", most>>20)
	if most > 300<<20 {
		t.Errorf("%d MiB of heap, want less than 300", most>>20)
	}
}

// A delivery that waits for memory longer than its lease is released. Small
// events do not wait at all.
func TestWaitingForMemoryEndsWithTheLease(t *testing.T) {
	var log bytes.Buffer
	p := pipelineFor(t, &log, Sync{When: `len(event.l) > 1`}, 32)
	done, ok := p.relay.decoding.acquire(t.Context(), decodedAtATime, time.Now().Add(time.Hour))
	if !ok {
		t.Fatal("no memory at first")
	}
	w := claimed("E-1", bigPayload())
	w.leaseEnd = time.Now().Add(p.sync.AttemptTimeout() + leaseMargin + 20*time.Millisecond)
	if _, result, ok := p.prepare(t.Context(), w); ok || result.Outcome != "" {
		t.Errorf("prepared %t, %+v; want the claim released", ok, result)
	}
	if _, result, ok := p.prepare(t.Context(), claimed("E-2", []byte(`{"l": [1, 2]}`))); !ok {
		t.Errorf("a small event waited: %+v", result)
	}
	done()
	if _, result, ok := p.prepare(t.Context(), claimed("E-1", bigPayload())); !ok {
		t.Errorf("with memory free: %+v", result)
	}
}
