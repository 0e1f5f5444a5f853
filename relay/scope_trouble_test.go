package relay_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hms-mkt/lockstep/adapters"
)

// A hold of a scope for which only suspects wait is probed with one of them.
func TestAScopeForWhichOnlySuspectsWaitIsProbed(t *testing.T) {
	w := newWorld(t)
	c := &courts{calls: map[string]int{}, says: func(string, string, int) error { return nil }}
	config := sync1(c, per("event.court"))
	w.register(config)
	w.emit("S-1", toHost{Court: "a"})
	w.diedWith(2, "true")
	w.exec(`UPDATE outbox.lane SET scope = 'a'`)
	w.exec(`INSERT INTO outbox.hold (sync, scope, kind, until, reason, by) VALUES ('CourtCalendarSync', 'a', 'breaker', clock_timestamp(), 'r', 'test')`)
	w.start("relay", config)
	w.drained()
}

// The whole sync is on hold, and so is every scope with deliveries. Probes are still sent.
func TestTheWholeSyncAndAllItsScopesOnHold(t *testing.T) {
	for _, restarts := range []bool{false, true} {
		t.Run(fmt.Sprint("restarts ", restarts), func(t *testing.T) { wholeAndAllScopesOnHold(t, restarts) })
	}
}

func wholeAndAllScopesOnHold(t *testing.T, restarts bool) {
	w := newWorld(t)
	var healed atomic.Bool
	c := adapterFunc(func(_ context.Context, m adapters.Message) (adapters.Receipt, error) {
		if !healed.Load() {
			if m.Key == "C-1" {
				return adapters.Receipt{}, adapters.Common(adapters.Auth(fmt.Errorf("the token endpoint refuses")))
			}
			return adapters.Receipt{}, fmt.Errorf("away")
		}
		return adapters.Receipt{Code: "HTTP 200"}, nil
	})
	config := sync1(c, per("event.court"))
	w.register(config)
	for i := range 20 {
		w.emit(fmt.Sprint("D-", i), toHost{Court: "down"})
	}
	r := w.start("relay", config)
	w.eventually("scope hold", func() bool { return query[int](w, `SELECT count(*) FROM outbox.hold WHERE scope = 'down'`) == 1 })
	w.emit("C-1", toHost{Court: "c"})
	w.eventually("whole hold", func() bool { return query[int](w, `SELECT count(*) FROM outbox.hold WHERE scope = ''`) == 1 })
	w.eventually("nothing else waits", func() bool { // it may just be sent as a probe
		_, err := w.pool.Exec(t.Context(), `SELECT outbox.discard('CourtCalendarSync', event_id, 'r') FROM outbox.delivery WHERE key = 'C-1'`)
		return err == nil
	})
	if restarts {
		_ = r.stop()
		probes := query[int](w, `SELECT sum(probes) FROM outbox.hold`)
		w.start("again", config)
		w.eventually("it probes", func() bool { return query[int](w, `SELECT sum(probes) FROM outbox.hold`) > probes })
	}
	healed.Store(true)
	defer func() {
		t.Log(query[string](w, `SELECT coalesce(string_agg(format('%s/%s probes %s', scope, kind, probes), '; '), 'no holds') FROM outbox.hold`))
	}()
	w.within(2*patience, "drained", func() bool { return query[bool](w, `SELECT NOT EXISTS (SELECT FROM outbox.delivery)`) })
}

// Many destinations do not answer. One that has recovered is still probed.
func TestManyDeadScopesLeaveAProbeToTheHealed(t *testing.T) {
	w := newWorld(t)
	var probed atomic.Int64
	c := adapterFunc(func(ctx context.Context, m adapters.Message) (adapters.Receipt, error) {
		f, _ := m.Fields()
		if f["court"] == "z" {
			probed.Add(1)
			return adapters.Receipt{Code: "HTTP 200"}, nil
		}
		select { // a black hole: the timeout
		case <-ctx.Done():
		case <-time.After(4 * time.Second):
		}
		return adapters.Receipt{}, fmt.Errorf("timeout")
	})
	config := sync1(c, per("event.court"))
	config.Workers = 8 // two probes at once
	w.register(config)
	// 40 dead courts, each with due lanes, as relays release them.
	for i := range 40 {
		for k := range 20 {
			w.emit(fmt.Sprintf("D-%d-%d", i, k), toHost{Court: fmt.Sprintf("dead-%02d", i)})
		}
		w.exec(`INSERT INTO outbox.hold (sync, scope, kind, until, reason, by, probes) VALUES ('CourtCalendarSync', $1, 'breaker', clock_timestamp(), 'r', 'test', 5)`, fmt.Sprintf("dead-%02d", i))
	}
	w.emit("Z-1", toHost{Court: "z"})
	w.exec(`INSERT INTO outbox.hold (sync, scope, kind, until, reason, by, probes) VALUES ('CourtCalendarSync', 'z', 'breaker', clock_timestamp() - interval '1 minute', 'r', 'test', 5)`)
	w.exec(`INSERT INTO outbox.lane (sync, key, scope, due_at) SELECT d.sync, d.key, e.payload ->> 'court', clock_timestamp() FROM outbox.delivery AS d JOIN outbox.event AS e ON e.id = d.event_id`)
	w.start("relay", config)
	defer func() {
		t.Logf("%d of 41 scopes were probed", query[int](w, `SELECT count(*) FROM outbox.hold WHERE probes > 5`))
	}()
	w.within(2*patience, "z is probed", func() bool { return probed.Load() > 0 })
}

// A scope that is cut in the middle of a character fails its delivery. No recording fails.
func TestAScopeThatIsNoUTF8FailsItsDelivery(t *testing.T) {
	w := newWorld(t)
	c := &courts{calls: map[string]int{}, says: func(string, string, int) error { return nil }}
	config := sync1(c, per("event.court[0:1]"))
	w.register(config)
	w.emit("U-1", toHost{Court: "Übersee"})
	w.emit("A-1", toHost{Court: "Amt"})
	w.start("relay", config)
	w.eventually("it has failed, and the other is delivered", func() bool {
		return query[string](w, `SELECT coalesce(string_agg(key || ' ' || error_class, ', '), '') FROM outbox.delivery`) == "U-1 mapping"
	})
}
