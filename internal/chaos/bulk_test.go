//go:build linux

package chaos

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/hms-mkt/lockstep/internal/courtsim"
	"github.com/hms-mkt/lockstep/internal/operate"
)

// refused writes an event for each of n new keys, and another one behind every fifth. The first
// event of each key has failed for every sync.
func (w *world) refused(n int) {
	w.t.Helper()
	w.exec(`
CREATE FUNCTION refused(n int) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO hearing (key, version) SELECT 'H-' || k, CASE k % 5 WHEN 0 THEN 2 ELSE 1 END FROM generate_series(0, n - 1) AS k;
    INSERT INTO outbox.event (type, key, version, payload)
    SELECT 'scheduling:updated', h.key, v, jsonb_build_object('hearingId', h.key, 'scheduledAt', v::text, 'location', '3A')
      FROM generate_series(1, 2) AS v
      JOIN hearing AS h ON h.version >= v;
    SET LOCAL session_replication_role = replica; -- as if relays had recorded it
    UPDATE outbox.delivery AS d
       SET state = 'failed', due_at = 'infinity', attempts = 1, total_attempts = 1, error_class = 'permanent', error = 'no such courtroom'
      FROM outbox.event AS e
     WHERE e.id = d.event_id AND e.version = 1;
    INSERT INTO outbox.delivery_log (at, sync, event_id, key, attempt, outcome, error_class, error, event_seq, revision, claim, relay)
    SELECT clock_timestamp(), sync, event_id, key, 1, 'failed', error_class, error, event_seq, revision, gen_random_uuid(), 'earlier'
      FROM outbox.delivery
     WHERE state = 'failed';
END
$$`)
	w.exec(`SELECT refused($1)`, n)
	w.exec(`ANALYZE outbox.delivery, outbox.delivery_log, outbox.event`)
}

// requeues lets a person requeue what a filter selects.
func (w *world) requeues(ctx context.Context, name string, o operate.Order) (operate.Result, error) {
	w.t.Helper()
	o.Action = operate.Requeue
	return operate.Apply(ctx, w.asOperator().conn, operate.Actor{Name: name, Reason: "the court knows the courtroom now"}, o)
}

// Three people requeue what has failed at one moment: one is stopped and continues later, one does all of it, and
// one is slow and does one sync. Meanwhile writers write the same keys, relays deliver, one relay is killed, and
// the court refuses some deliveries again. Each delivery of that moment is requeued once. What failed later
// stays as it is.
func TestFault17dBulkRequeueDuringDeliveries(t *testing.T) {
	scenario(t, func(r *run) {
		const clinic = "ClinicSync"
		w := newWorld(r)
		w.addCourt(clinic)
		watched := w.watch(theSync)
		spec := relaySpec{Syncs: []syncSpec{{Name: theSync, Court: watched.url}, {Name: clinic}}}
		w.register(spec)
		keys := of(1500, 50_000)
		w.refused(keys)
		asOf := ask[time.Time](w, `SELECT clock_timestamp()`)

		for _, court := range w.courts {
			court.faults(t,
				courtsim.Fault{Match: courtsim.Match{Probability: 0.05}, Do: courtsim.Action{Status: 422}},
				courtsim.Fault{Match: courtsim.Match{Probability: 0.01}, Do: courtsim.Action{Status: 500}})
		}
		dying := spec
		dying.Name = "dies"
		dies := w.start(dying)
		w.start(spec)
		l := w.begin(loadSpec{writers: 6, keys: keys, events: of(600, 20_000), rate: of(200., 300.)})

		all := operate.Filter{All: true, AsOf: asOf}
		slow := operate.Filter{Sync: theSync, All: true, AsOf: asOf}
		var (
			done     = map[string]int64{}
			pages    []time.Duration
			working  sync.WaitGroup
			count    sync.Mutex
			requeues = func(name string, o operate.Order) {
				result, err := w.requeues(t.Context(), name, o)
				if err != nil {
					t.Errorf("%s: %v", name, err)
				}
				count.Lock()
				defer count.Unlock()
				done[name] += result.Done
			}
		)
		ctx, stop := context.WithCancel(t.Context())
		result, err := w.requeues(ctx, "lena", operate.Order{Filter: all, Rate: of(300., 5000.), Each: func([]operate.Delivery) error { stop(); return nil }})
		if stopped, ok := errors.AsType[*operate.StoppedError](err); !ok || stopped.Done == 0 || stopped.Set.Count != int64(2*keys) {
			t.Fatalf("lena is stopped: %v after %d of %d", err, result.Done, result.Set.Count)
		}
		done["lena"] = result.Done

		began := time.Now()
		first := make(chan struct{}) // of maria's pages: the others do not leave her without one
		working.Go(func() {
			requeues("maria", operate.Order{Filter: all, Each: func([]operate.Delivery) error {
				now := time.Now()
				pages, began = append(pages, now.Sub(began)), now
				if len(pages) == 1 {
					dies.kill()
					r.figures.kills++
					close(first)
				}
				return nil
			}})
		})
		select {
		case <-first:
		case <-t.Context().Done():
		case <-time.After(patience):
			t.Fatal("maria has no page")
		}
		working.Go(func() { requeues("jonas", operate.Order{Filter: slow, Rate: of(400., 1500.)}) })
		w.until("the court refuses again", `SELECT EXISTS (SELECT FROM outbox.failed AS f JOIN outbox.delivery_log AS l USING (event_id) WHERE l.outcome = 'requeued' AND l.sync = f.sync)`)
		working.Go(func() { requeues("lena", operate.Order{Filter: all}) })
		working.Wait()
		dying.Name = "again"
		w.start(dying)
		slices.Sort(pages)
		r.Logf("%d deliveries requeued: %v; maria's pages took %s to %s, half of them at most %s",
			2*keys, done, pages[0].Round(time.Millisecond), pages[len(pages)-1].Round(time.Millisecond), pages[len(pages)/2].Round(time.Millisecond))

		const ofTheThree = `outcome = 'requeued' AND actor ~ '/(lena|maria|jonas)$' AND reason = 'the court knows the courtroom now'`
		w.want("requeued in all", int(done["lena"]+done["maria"]+done["jonas"]), 2*keys)
		w.want("requeues in the log", w.logged(ofTheThree), 2*keys)
		w.want("deliveries in the log", ask[int](w, `SELECT count(DISTINCT (sync, event_id)) FROM outbox.delivery_log WHERE `+ofTheThree), 2*keys)
		for _, name := range []string{"lena", "maria"} {
			if done[name] == 0 {
				t.Errorf("%s has requeued nothing: the scenario shows nothing", name)
			}
		}

		l.wait()
		for _, court := range w.courts {
			court.faults(t)
		}
		w.within(10*patience, "everything has drained after the repair", func() bool {
			if _, err := w.requeues(t.Context(), "anna", operate.Order{Filter: operate.Filter{All: true}}); err != nil {
				t.Fatal(err)
			}
			return ask[bool](w, `SELECT NOT EXISTS (SELECT FROM outbox.delivery)`)
		})
		w.drain(expected{})
		w.happened("delivered", "failed", "requeued")
	})
}
