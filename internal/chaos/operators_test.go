//go:build linux

package chaos

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/hms-mkt/lockstep/internal/courtsim"
	"github.com/hms-mkt/lockstep/internal/pgtest"
	"github.com/hms-mkt/lockstep/internal/waiting"
)

// watchedCourt is a court that takes a little time for each request. It reports two requests of one key at
// the same time.
type watchedCourt struct {
	url   string
	t     testing.TB
	court http.Handler

	mu       sync.Mutex
	random   *rand.Rand
	inFlight map[string]context.Context // by key
	most     int                        // keys in flight at once
}

// watch puts a watch in front of the court of a sync. Relays must use the address of the watch.
func (w *world) watch(sync string) *watchedCourt {
	w.t.Helper()
	c := &watchedCourt{
		t: w.t, court: w.courts[sync], random: rand.New(rand.NewPCG(w.run.seed, 2)), inFlight: map[string]context.Context{},
	}
	s := httptest.NewServer(c)
	w.t.Cleanup(s.Close)
	c.url = s.URL
	return c
}

func (c *watchedCourt) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	var booking struct {
		Case string `json:"case_reference"`
	}
	if err := json.Unmarshal(body, &booking); err != nil {
		c.t.Errorf("the court got %q: %v", body, err)
	}
	id, key := r.Header.Get("Idempotency-Key"), booking.Case
	c.mu.Lock()
	// A relay that closed the connection does not wait for this answer any more.
	if other := c.inFlight[key]; other != nil && other.Err() == nil {
		c.t.Errorf("I2: two requests of key %s at once, the second is %s", key, id)
	}
	c.inFlight[key] = r.Context()
	c.most = max(c.most, len(c.inFlight))
	pause := time.Duration(c.random.IntN(6000)) * time.Microsecond
	c.mu.Unlock()
	waiting.StallFor(r.Context(), pause)
	c.mu.Lock()
	// Before the answer, because the relay may send the next one at once.
	if c.inFlight[key] == r.Context() {
		delete(c.inFlight, key)
	}
	c.mu.Unlock()
	c.court.ServeHTTP(w, r)
}

// asOperator is a session of a login that is an operator and nothing else.
func (w *world) asOperator() *session {
	w.t.Helper()
	conn, err := pgx.Connect(w.t.Context(), pgtest.AsRole(w.t, w.url, "outbox_operator"))
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return &session{w.t, conn}
}

func (s *session) pid() uint32 { return s.conn.PgConn().PID() }

// delivered waits until an event of a key, and everything before it, is
// delivered to a sync.
func (w *world) delivered(what string, keys ...string) {
	w.t.Helper()
	w.until(what, `SELECT NOT EXISTS (SELECT FROM outbox.delivery WHERE sync = $1 AND key = ANY ($2))`, theSync, keys)
}

// Transactions of other programs stay open: a long reader, a writer of another key, a forgotten BEGIN.
// Claims stay as fast as before, and late events are found after their commit. Only the registration of
// another sync waits, and names the session that it waits for.
func TestFault16TransactionsLeftOpen(t *testing.T) {
	scenario(t, func(r *run) {
		w := newWorld(r)
		second := "SecondSync"
		w.addCourt(second)
		const timeout, lease = 10 * time.Second, 21 * time.Second // a machine that stalls for a second fails no attempt
		p := w.start(relaySpec{Lease: lease, Syncs: []syncSpec{{Name: theSync, Attempts: 3, Timeout: timeout}}})
		w.registered()

		reader := w.tx(`BEGIN ISOLATION LEVEL REPEATABLE READ`)
		reader.exec(`SELECT count(*) FROM outbox.delivery`)
		writer := w.tx(`BEGIN`)
		writer.exec(`INSERT INTO outbox.event (type, key, payload) VALUES ('scheduling:updated', 'H-late', '{"hearingId": "H-late", "scheduledAt": "1", "location": "3A"}')`)
		forgotten := w.tx(`BEGIN`)
		forgotten.exec(`SELECT 1`)

		w.traffic(of(400, 5000))
		before := p.claims()
		dead := of(20_000, 500_000)
		w.leaveDead(dead)
		w.traffic(of(400, 5000))
		after := p.claims()
		r.Logf("claims took %s, and %s with %d dead rows", before, after, dead)
		if after > 10*before {
			r.Errorf("claims took %s, and %s with %d dead rows that the reader keeps", before, after, dead)
		}

		other := w.start(relaySpec{Lease: lease, Syncs: []syncSpec{
			{Name: theSync, Attempts: 3, Timeout: timeout},
			{Name: second, From: "beginning", Attempts: 3, Timeout: timeout},
		}})
		names := func(s *session) {
			r.Helper()
			w.until("the new sync's hold names who it waits for",
				`SELECT coalesce((SELECT reason ~ $2 FROM outbox.hold WHERE sync = $1 AND kind = 'backfill'), false)`,
				second, fmt.Sprintf(`oldest: pid %d `, s.pid()))
		}
		names(reader)
		reader.exec(`COMMIT`)
		names(writer)
		w.book("H-meanwhile")
		w.delivered("the known sync's events pass by the registration of the other", "H-meanwhile")
		if n := ask[int](w, `SELECT count(*) FROM outbox.delivery_log WHERE sync = $1`, second); n != 0 {
			r.Errorf("%d log rows of the new sync before its registration was complete", n)
		}
		writer.exec(`COMMIT`)
		w.delivered("the late row is found and delivered", "H-late")
		w.drain(expected{})
		if failures := ask[string](w, `SELECT coalesce(string_agg(concat_ws(' ', outcome, sync, key, at, error), E'\n'), '') FROM outbox.delivery_log WHERE outcome IN ('retry', 'unknown', 'failed')`); failures != "" {
			r.Errorf("attempts failed:\n%s", failures)
		}
		forgotten.exec(`COMMIT`)
		for _, p := range []*process{p, other} {
			if err := p.stop(); err != nil {
				r.Errorf("%s: %v", p.spec.Name, err)
			}
		}
	})
}

// traffic writes events and waits until the committed ones are delivered.
func (w *world) traffic(events int) {
	w.t.Helper()
	w.begin(loadSpec{writers: 8, keys: 300, events: events}).wait()
	w.until("what was committed is delivered", `SELECT NOT EXISTS (SELECT FROM outbox.delivery)`)
}

// leaveDead makes n deleted deliveries among the latest ones that relays read. While an older snapshot is in
// use, they stay in the index.
func (w *world) leaveDead(n int) {
	w.t.Helper()
	w.exec(`
DO $$
BEGIN
    INSERT INTO outbox.event (type, key, payload) SELECT 'scheduling:updated', 'dead', '{}' FROM generate_series(1, ` + fmt.Sprint(n) + `);
    SET LOCAL session_replication_role = replica; -- as if they had never been
    DELETE FROM outbox.delivery WHERE key = 'dead';
    DELETE FROM outbox.event WHERE key = 'dead';
END
$$`)
}

// operator makes random actions of operators, in transactions that stay open and then commit or roll back. The
// database may refuse some of them.
type operator struct {
	w      *world
	s      *session
	random *rand.Rand
	keys   []string
	linger time.Duration // at most; 0 is one step in each transaction, which commits at once, and no replays
	levels []string
}

// acceptable are the refusals that an operator may get.
var acceptable = map[string]bool{
	"40001": true, // somebody else changed the row since the snapshot
	"40P01": true, // two operators locked rows in opposite order
	"55000": true, // not in a state for it
	"55P03": true, // a relay was at work on the lanes for long
	"P0002": true, // gone meanwhile
}

func (o *operator) transaction(ctx context.Context) error {
	level := o.levels[o.random.IntN(len(o.levels))]
	tx, err := o.s.conn.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.TxIsoLevel(level)})
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
	if _, err := tx.Exec(ctx, `SELECT count(*) FROM outbox.delivery`); err != nil { // takes the snapshot, where one is kept
		return err
	}
	if err := o.act(ctx, tx); err != nil {
		return err
	}
	if o.linger == 0 {
		return tx.Commit(ctx)
	}
	if o.random.IntN(2) == 0 {
		if err := o.act(ctx, tx); err != nil {
			return err
		}
	}
	waiting.StallFor(ctx, time.Duration(float64(o.linger)*o.random.Float64()))
	if o.random.IntN(3) == 0 {
		return tx.Rollback(ctx)
	}
	return tx.Commit(ctx)
}

func (o *operator) act(ctx context.Context, tx pgx.Tx) error {
	key := o.keys[o.random.IntN(len(o.keys))]
	const (
		byHand  = `UPDATE outbox.delivery SET state = 'pending' WHERE sync = $1 AND key = $2 AND state = 'failed'`
		requeue = `SELECT outbox.requeue($1, $2, reason => 'repaired')`
		discard = `
SELECT outbox.discard($1, d.event_id, 'not wanted')
  FROM (SELECT event_id FROM outbox.open_delivery
         WHERE sync = $1 AND key = $2 AND state <> 'sending' ORDER BY random() LIMIT 1) AS d`
		replay = `
SELECT outbox.replay($1, l.event_id, 'the court lost it')
  FROM (SELECT event_id FROM outbox.delivery_log
         WHERE sync = $1 AND key = $2 AND outcome = 'delivered' ORDER BY random() LIMIT 1) AS l`
	)
	statements := []string{byHand, byHand, requeue, requeue, discard}
	if o.linger > 0 {
		statements = append(statements, replay)
	}
	statement := statements[o.random.IntN(len(statements))]
	_, err := tx.Exec(ctx, statement, theSync, key)
	return err
}

// operate lets operators work until the returned function is called.
func (w *world) operate(n int, keys []string, linger time.Duration, levels ...string) (stop func()) {
	w.t.Helper()
	ctx, cancel := context.WithCancel(w.t.Context())
	var working sync.WaitGroup
	for i := range n {
		o := &operator{
			w: w, s: w.asOperator(), keys: keys, linger: linger, levels: levels,
			random: rand.New(rand.NewPCG(w.run.seed, uint64(1000+i))),
		}
		working.Go(func() {
			for ctx.Err() == nil {
				err := o.transaction(context.WithoutCancel(ctx))
				if pgErr, ok := errors.AsType[*pgconn.PgError](err); err != nil && (!ok || !acceptable[pgErr.Code]) {
					w.t.Errorf("an operator's transaction: %v", err)
					return
				}
				waiting.StallFor(ctx, time.Duration(o.random.IntN(20))*time.Millisecond) // between two transactions
			}
		})
	}
	stop = func() { cancel(); working.Wait() }
	w.t.Cleanup(stop)
	return stop
}

// pauses pauses and resumes the sync until the returned function is called, in
// transactions that commit late or roll back.
func (w *world) pauses() (stop func()) {
	w.t.Helper()
	s := w.asOperator()
	ctx, cancel := context.WithCancel(w.t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for n := 0; ctx.Err() == nil; n++ {
			s.exec(`BEGIN`)
			s.exec(`SELECT outbox.pause($1, 'looking at it')`, theSync)
			waiting.StallFor(ctx, 200*time.Millisecond)
			s.exec([]string{`COMMIT`, `ROLLBACK`}[n%2])
			waiting.StallFor(ctx, 100*time.Millisecond)
			s.exec(`BEGIN`)
			s.exec(`SELECT outbox.resume($1)`, theSync)
			waiting.StallFor(ctx, 100*time.Millisecond)
			s.exec(`COMMIT`)
			waiting.StallFor(ctx, 300*time.Millisecond)
		}
	}()
	stop = func() { cancel(); <-done }
	w.t.Cleanup(stop)
	return stop
}

// repairs heals the court and requeues what failed until nothing is open.
func (w *world) repairs() {
	w.t.Helper()
	w.court().faults(w.t)
	s := w.asOperator()
	w.within(patience, "everything has drained after the repair", func() bool {
		s.exec(`SELECT outbox.requeue($1, reason => 'the court is repaired')`, theSync)
		return ask[bool](w, `SELECT NOT EXISTS (SELECT FROM outbox.delivery)`)
	})
}

// happened fails the scenario if the log has no row of one of the outcomes.
func (w *world) happened(outcomes ...string) {
	w.t.Helper()
	var counts []string
	for _, o := range outcomes {
		n := w.logged(`outcome = $1`, o)
		if n == 0 {
			w.t.Errorf("nothing was %s: the scenario shows nothing", o)
		}
		counts = append(counts, fmt.Sprint(n, " ", o))
	}
	w.t.Log(strings.Join(counts, ", "))
}

// Operators requeue, discard, replay, pause and resume while deliveries run.
func TestFault17OperatorsDuringDeliveries(t *testing.T) {
	scenario(t, func(r *run) {
		w := newWorld(r)
		watched := w.watch(theSync)
		w.court().faults(t, courtsim.Fault{Match: courtsim.Match{Key: "H-0"}, Do: courtsim.Action{Status: 422}})
		syncs := []syncSpec{{Name: theSync, Court: watched.url}}
		w.start(relaySpec{Syncs: syncs})
		w.start(relaySpec{Syncs: syncs})
		w.registered()

		// An operator's open transaction about one key delays no other key.
		w.book("H-0", "H-0")
		w.until("the court refuses", `SELECT EXISTS (SELECT FROM outbox.failed WHERE key = 'H-0')`)
		for _, level := range []string{"READ COMMITTED", "REPEATABLE READ"} {
			for _, end := range []string{"ROLLBACK", "COMMIT"} {
				s := w.asOperator()
				s.exec(`BEGIN ISOLATION LEVEL ` + level)
				s.exec(`UPDATE outbox.delivery SET state = 'pending' WHERE state = 'failed'`)
				if level == "READ COMMITTED" { // the sync's row may have changed since the other's snapshot
					s.exec(`SELECT outbox.pause($1, 'not committed yet')`, theSync)
					s.exec(`SELECT outbox.resume($1)`, theSync)
				}
				w.book("H-1", "H-2", "H-1")
				w.delivered("other keys pass by an operator's open transaction", "H-1", "H-2")
				s.exec(end)
			}
		}

		keys := names(8)
		w.court().faults(t,
			courtsim.Fault{Match: courtsim.Match{Key: "H-1", Probability: 0.5}, Do: courtsim.Action{Status: 422}},
			courtsim.Fault{Match: courtsim.Match{Key: "H-2", Probability: 0.2}, Do: courtsim.Action{Status: 422}},
			courtsim.Fault{Match: courtsim.Match{Key: "H-3", Probability: 0.05}, Do: courtsim.Action{Status: 422}},
			courtsim.Fault{Match: courtsim.Match{Probability: 0.01}, Do: courtsim.Action{Status: 500}})
		l := w.begin(loadSpec{writers: 6, keys: len(keys), events: of(600, 10000), rate: 300})
		slow := w.operate(3, keys, 300*time.Millisecond, "read committed", "repeatable read")
		quick := w.operate(2, keys, 0, "read committed")
		pausing := w.pauses()
		l.wait()
		slow()
		quick()
		pausing()
		w.exec(`SELECT outbox.resume($1)`, theSync)
		w.repairs()
		w.drain(expected{})
		w.happened("delivered", "failed", "requeued", "discarded", "replayed", "paused", "resumed")
		if watched.most < 2 {
			r.Error("no two keys were in flight at once: the court's watch shows nothing")
		}
	})
}

// Relays open and close the lanes of a few keys while many sessions insert, requeue, discard and supersede. No
// key is forgotten, and none is sent twice at the same time.
func fewKeys(r *run, onFailed string) {
	w := newWorld(r)
	watched := w.watch(theSync)
	syncs := []syncSpec{{Name: theSync, Court: watched.url, OnFailed: onFailed}}
	for range 2 + r.random.IntN(2) {
		w.start(relaySpec{Syncs: syncs})
	}
	w.registered()
	w.court().faults(r,
		courtsim.Fault{Match: courtsim.Match{Probability: 0.08}, Do: courtsim.Action{Status: 422}},
		courtsim.Fault{Match: courtsim.Match{Probability: 0.02}, Do: courtsim.Action{Status: 500}})
	n := 2 + r.random.IntN(4)
	keys := names(n)
	for i := range n {
		keys = append(keys, fmt.Sprint("E-", i))
	}
	l := w.begin(loadSpec{writers: 12, keys: n, events: of(600, 10000)})
	stop := w.operate(4, keys, 0, "read committed")
	l.wait()
	stop()
	w.repairs()
	w.drain(expected{})
	w.happened("delivered", "failed", "discarded")
}

func TestFault17bLanesWhileOthersFinishInsertRequeueDiscard(t *testing.T) {
	scenario(t, func(r *run) { fewKeys(r, "block") })
}

func TestFault17bLanesUnderSupersede(t *testing.T) {
	scenario(t, func(r *run) {
		fewKeys(r, "supersede")
	})
}

// An event is committed while a recording closes the lane of its key. The recording does not see it. A relay
// finds it and sends it. If the recording knows only one delivery, it closes the lane at once. Otherwise
// it closes the lane when it settles lanes.
func TestFault17bEventWhileTheLaneIsClosed(t *testing.T) {
	for name, before := range map[string]int{"a single event": 1, "the second of two": 2} {
		for _, point := range []string{logging, committing} {
			t.Run(name+", "+point, func(t *testing.T) {
				scenario(t, func(r *run) {
					w := newWorld(r)
					w.register(relaySpec{})
					for range before {
						w.book(theKey)
					}
					last := fmt.Sprint(ask[int](w, `SELECT max(event_seq) FROM outbox.delivery`))
					trigger := `TRIGGER stop_here BEFORE INSERT ON outbox.delivery_log FOR EACH ROW WHEN (NEW.event_seq = ` + last + `)`
					if point == committing {
						trigger = `CONSTRAINT TRIGGER stop_here AFTER DELETE ON outbox.delivery DEFERRABLE INITIALLY DEFERRED
							FOR EACH ROW WHEN (OLD.event_seq = ` + last + `)`
					}
					release := w.stop(trigger)
					w.start(relaySpec{})
					w.stoppedBackend()
					w.book(theKey, "H-1")
					w.within(patience, "the relay has looked at what came meanwhile", func() bool { return w.requests("H-1") > 0 })
					release()
					w.drain(expected{})
					w.want("requests for the key", w.requests(theKey), before+1)
				})
			})
		}
	}
}

// An operator discards a delivery in an open transaction, whose changes are not visible to relays. Relays do not
// send it, and other keys do not wait. The deliveries behind it are sent after the end of the transaction.
func TestFault17DiscardDuringAClaim(t *testing.T) {
	for end, requests := range map[string]int{"COMMIT": 1, "ROLLBACK": 2} {
		t.Run(end, func(t *testing.T) {
			scenario(t, func(r *run) {
				w := newWorld(r)
				w.start(relaySpec{})
				w.registered()
				w.exec(`SELECT outbox.pause($1, 'an event is to be discarded')`, theSync)
				w.book(theKey, theKey)
				s := w.asOperator()
				s.exec(`BEGIN`)
				s.exec(`SELECT outbox.discard($1, event_id, 'not wanted') FROM outbox.delivery ORDER BY event_seq LIMIT 1`, theSync)
				w.exec(`SELECT outbox.resume($1)`, theSync)
				w.book("H-1")
				w.delivered("other keys pass by", "H-1")
				w.want("requests before the end of the transaction", w.requests(theKey), 0)
				s.exec(end)
				w.drain(expected{})
				w.want("requests for the key", w.requests(theKey), requests)
			})
		})
	}
}

// While a sync is paused, relays claim neither existing nor new lanes of it. Another sync delivers.
func TestFault17PauseClaimsNothing(t *testing.T) {
	scenario(t, func(r *run) {
		const other = "other"
		w := newWorld(r)
		w.addCourt(other)
		w.start(relaySpec{Syncs: []syncSpec{{Name: theSync}, {Name: other, Events: []string{"other:*"}}}})
		w.registered()
		w.exec(`
CREATE TABLE claimed (sync text);
CREATE FUNCTION note_claimed() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    INSERT INTO public.claimed VALUES (NEW.sync);
    RETURN NULL;
END
$$;
CREATE TRIGGER note_claimed AFTER INSERT OR UPDATE ON outbox.lane FOR EACH ROW WHEN (NEW.claim IS NOT NULL) EXECUTE FUNCTION note_claimed()`)
		w.exec(`SELECT outbox.pause($1, 'until it is looked at')`, theSync)
		w.bulk(200)
		for n := range 10 { // the relay looks again and again
			w.exec(`INSERT INTO outbox.event (type, key, payload) VALUES ('other:updated', 'O-' || $1::int, '{"hearingId": "1", "scheduledAt": "1", "location": "1"}')`, n)
			w.until("the other sync delivers", `SELECT NOT EXISTS (SELECT FROM outbox.delivery WHERE sync = $1)`, other)
		}
		w.want("claims of the paused sync", ask[int](w, `SELECT count(*) FROM claimed WHERE sync = $1`, theSync), 0)
		w.want("requests for the paused sync", len(w.court().Ledger()), 0)
		w.exec(`SELECT outbox.resume($1)`, theSync)
		w.drain(expected{})
	})
}

// Two relays have different files. The row in the database applies, and the relay whose file differs logs a
// warning. An event that was sent once keeps its mapping.
func TestFault17cRelaysWithDifferentFiles(t *testing.T) {
	scenario(t, func(r *run) {
		w := newWorld(r)
		w.court().faults(r, unreliable()...)
		first := w.start(relaySpec{Syncs: []syncSpec{{Name: theSync}}})
		w.registered()
		other := w.start(relaySpec{Syncs: []syncSpec{{
			Name: theSync, Events: []string{"data:*"}, OnFailed: "supersede", Courtroom: "room",
		}}})
		w.within(patience, "the other relay says that its file differs", func() bool {
			return other.stderr.contains("sync is configured differently in the database, which rules")
		})
		l := w.begin(loadSpec{writers: 6, keys: 50, events: of(600, 10000)})
		l.reaches(int64(of(300, 5000)))
		if err := first.stop(); err != nil {
			r.Errorf("the first relay: %v", err)
		}
		l.wait()
		w.drain(expected{})
		const row = `SELECT patterns = '{scheduling:*}' AND on_failed = 'block' FROM outbox.sync WHERE name = $1`
		if !ask[bool](w, row, theSync) {
			r.Error("a relay with another file changed the sync's row")
		}
		for _, p := range []*process{first, other} {
			if w.logged(`relay = $1 AND outcome = 'delivered'`, p.spec.Name) == 0 {
				r.Errorf("%s delivered nothing", p.spec.Name)
			}
		}
		if strings.Contains(first.stderr.String(), "configured differently") {
			r.Error("the relay whose file is the database's complains")
		}
		if n := ask[int](w, `SELECT count(DISTINCT mapping_version) FROM outbox.delivery_log WHERE outcome = 'delivered'`); n != 2 {
			r.Errorf("%d mapping versions in the log, want both", n)
		}
	})
}

// A sync is registered while writers of every isolation level are open, one of them prepared, and other syncs
// deliver. No event is missed and none is sent twice.
func TestFault17cSyncRegisteredDuringOpenWriters(t *testing.T) {
	scenario(t, func(r *run) {
		w := newWorld(r)
		second := "SecondSync"
		w.addCourt(second)
		w.start(relaySpec{})
		w.registered()
		w.book("H-before")
		insert := func(s *session, key string) {
			s.exec(`INSERT INTO outbox.event (type, key, payload)
			        VALUES ('scheduling:updated', $1, jsonb_build_object('hearingId', $1::text, 'scheduledAt', '1', 'location', '3A'))`, key)
		}
		var open []*session
		for i, level := range []string{"READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"} {
			s := w.tx(`BEGIN ISOLATION LEVEL ` + level)
			insert(s, fmt.Sprint("O-", i))
			open = append(open, s)
		}
		prepared := fmt.Sprint("seed-", r.seed)
		p := w.tx(`BEGIN`)
		insert(p, "O-prepared")
		p.exec(`PREPARE TRANSACTION '` + prepared + `'`)
		r.Cleanup(func() { // it would keep the database from being dropped
			_, _ = w.pool.Exec(context.Background(), `ROLLBACK PREPARED '`+prepared+`'`)
		})

		l := w.begin(loadSpec{writers: 6, keys: 60, rate: 400})
		l.reaches(50)
		w.start(relaySpec{Syncs: []syncSpec{{Name: theSync}, {Name: second, From: "beginning"}}})
		reason := func(what, pattern string) {
			r.Helper()
			w.until(what, `SELECT coalesce((SELECT reason ~ $2 FROM outbox.hold WHERE sync = $1 AND kind = 'backfill'), false)`, second, pattern)
		}
		for i, s := range open {
			reason("the hold names the oldest writer", fmt.Sprintf(`oldest: pid %d `, s.pid()))
			insert(s, fmt.Sprint("O-", i)) // once more, in the knowledge of a sync or not
			s.exec([]string{`COMMIT`, `COMMIT`, `ROLLBACK`}[i])
		}
		reason("the hold says that a prepared transaction is waited for", `one of them is prepared`)
		l.reaches(int64(of(300, 5000)))
		if n := w.logged(`sync = $1`, second); n != 0 {
			r.Errorf("%d log rows of the new sync before its registration was complete", n)
		}
		w.exec(`COMMIT PREPARED '` + prepared + `'`)
		w.registered()
		l.stop()
		w.drain(expected{})
		for _, sync := range []string{theSync, second} {
			if n := w.logged(`sync = $1 AND outcome IN ('delivered', 'duplicate')`, sync); n != ask[int](w, `SELECT count(*) FROM outbox.event`) {
				r.Errorf("%d deliveries to %s", n, sync)
			}
		}
	})
}
