package relay

import (
	"bytes"
	"context"
	"testing"
	"time"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/outbox"
)

// After a reload a sync has no worker left. Senders that wait for a slot stop waiting.
func TestResizeBelowTheLostWorkersEndsAllWaits(t *testing.T) {
	all, reserve := newSlots(4, 1)
	s := all.share(reserve, 4)
	s.lose(1)
	for range 3 {
		if !s.acquire() {
			t.Fatal("no slot although three are free")
		}
	}
	got := make(chan bool, 1)
	go func() { got <- s.acquire() }()
	for waits := 0; waits == 0; {
		all.mu.Lock()
		waits = len(s.waiting)
		all.mu.Unlock()
	}
	s.resize(1) // and that one is lost
	select {
	case ok := <-got:
		if ok {
			t.Error("a slot although there is no worker")
		}
	case <-time.After(time.Minute):
		t.Error("the sender still waits although the sync has no worker")
	}
}

// counted is an adapter that counts its attempts.
type counted struct {
	taker
	attempts *int
}

func (c counted) Deliver(ctx context.Context, m adapters.Message) (adapters.Receipt, error) {
	*c.attempts++
	return c.taker.Deliver(ctx, m)
}

// A delivery waits for a slot during a reload. It is sent with the new adapter.
func TestDeliveryThatWaitedForASlotTakesTheNewAdapter(t *testing.T) {
	var log bytes.Buffer
	p := pipelineFor(t, &log, Sync{Concurrency: 1}, 1)
	doing := p.relay.steps.add("an attempt", time.Hour)
	var before, after int
	p.sync.Adapter = counted{attempts: &before}
	if !p.slots.acquire() {
		t.Fatal("no slot")
	}
	done := make(chan outbox.Result, 1)
	go func() { done <- p.now().deliver(t.Context(), claimed("E-1", []byte(`{}`)), doing) }()
	for waits := 0; waits == 0; {
		p.slots.all.mu.Lock()
		waits = len(p.slots.waiting)
		p.slots.all.mu.Unlock()
	}
	s := p.sync
	s.Adapter = counted{attempts: &after}
	if _, err := p.relay.Reload(Config{Workers: 1, Logger: p.relay.log, Syncs: []Sync{s}}); err != nil {
		t.Fatal(err)
	}
	p.slots.release()
	<-done
	if before != 0 || after != 1 {
		t.Errorf("sent %d with the old adapter and %d with the new one, want 0 and 1", before, after)
	}
}

// A relay is ready if each sync has a worker left. This is also true after a reload changes the number
// of workers.
func TestReadinessFollowsTheWorkersThatAreLeft(t *testing.T) {
	var log bytes.Buffer
	p := pipelineFor(t, &log, Sync{Concurrency: 1}, 4)
	returned := make(chan struct{})
	defer close(returned)
	stuck := func() bool {
		at := time.Now() // the bound of the step is 0: some time must pass
		for time.Since(at) == 0 {
		}
		return p.relay.steps.stuck() != nil
	}
	reload := func(concurrency int) {
		t.Helper()
		s := p.sync
		s.Concurrency = concurrency
		if _, err := p.relay.Reload(Config{Workers: 4, Logger: p.relay.log, Syncs: []Sync{s}}); err != nil {
			t.Fatal(err)
		}
	}
	p.abandon("attempt", "E-1", "H-1", 1, returned)
	if !stuck() {
		t.Error("ready without any worker")
	}
	reload(3)
	if stuck() {
		t.Errorf("not ready with %d workers", p.slots.workers())
	}
	reload(1)
	if !stuck() {
		t.Error("ready without any worker after a reload")
	}
}
