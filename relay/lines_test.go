package relay_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hms-mkt/lockstep/adapters"
)

// lines writes so many events in turn for keys hot0, hot1 and so on, an hour ago.
func lines(w *world, keys, events int) {
	w.exec(`INSERT INTO outbox.event (type, key, payload)
SELECT 'scheduling:updated', 'hot' || n % $1, '{"n":1}' FROM generate_series(1, $2) AS n`, keys, events)
	w.exec(`UPDATE outbox.delivery SET due_at = due_at - interval '1 hour'`)
}

// gone reports whether everything of a key is delivered.
func gone(w *world, key string) func() bool {
	return func() bool {
		return query[bool](w, `SELECT NOT EXISTS (SELECT FROM outbox.delivery WHERE key = $1)`, key)
	}
}

// A transaction keeps the finished rows of a long line in the way. Each look at the
// line's first goes over them: one for a page is enough.
func TestLongLineUnderALongTransaction(t *testing.T) {
	w := newWorld(t)
	config := sync1(newCourt(accepts))
	w.register(config)
	lines(w, 1, 60_000)
	w.emit("other", map[string]any{"n": 1})
	reader, err := w.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = reader.Rollback(context.Background()) }()
	if _, err := reader.Exec(t.Context(), `SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM outbox.sync`); err != nil {
		t.Fatal(err)
	}
	w.exec(`DELETE FROM outbox.delivery WHERE event_seq <= 48000`)
	w.start("relay-1", config)
	w.within(time.Minute, "the other key is delivered", gone(w, "other"))
	w.goesOn("hot")
}

// What commits late is behind the walk, beside what is put aside.
func TestLateCommitIsFoundBesideALongLine(t *testing.T) {
	w := newWorld(t)
	release := make(chan struct{})
	defer close(release)
	c := newCourt(func(ctx context.Context, m adapters.Message, attempt int) (adapters.Receipt, error) {
		if m.Key == "hot0" {
			<-release
		}
		return accepts(ctx, m, attempt)
	})
	config := sync1(c)
	w.register(config)
	lines(w, 1, 25_000) // more than a walk leaves behind
	w.emit("last", map[string]any{"n": 1})
	w.start("relay-1", config)
	w.within(time.Minute, "the walk is over", gone(w, "last"))
	w.eventually("rows of the line are put aside", func() bool {
		return query[int](w, `SELECT count(*) FROM outbox.delivery WHERE state = 'queued'`) > 1000
	})
	w.exec(`BEGIN;
INSERT INTO outbox.event (type, key, payload) VALUES ('scheduling:updated', 'late', '{"n":1}');
UPDATE outbox.delivery SET due_at = due_at - interval '1 minute' WHERE key = 'late';
COMMIT`)
	w.within(time.Minute, "the late one is delivered", gone(w, "late"))
}

// Lines that keep every sender busy leave room for others, also when the receiver
// becomes so slow that fewer would be under way if they were to begin now.
func TestFreshKeyBesideLongLines(t *testing.T) {
	w := newWorld(t)
	var takes atomic.Int64
	takes.Store(int64(5 * time.Millisecond))
	c := newCourt(func(ctx context.Context, m adapters.Message, attempt int) (adapters.Receipt, error) {
		time.Sleep(time.Duration(takes.Load())) // a receiver's work
		return accepts(ctx, m, attempt)
	})
	config := sync1(c)
	w.register(config)
	lines(w, 64, 12_000)
	w.start("relay-1", config)
	w.eventually("all lines are under way", func() bool {
		return query[int](w, `SELECT count(*) FROM outbox.delivery WHERE state = 'sending'`) == 64
	})
	takes.Store(int64(200 * time.Millisecond))
	for n := range 3 {
		key := fmt.Sprint("fresh", n)
		w.emit(key, map[string]any{"n": 1})
		w.within(time.Minute, key+" is delivered", gone(w, key))
	}
	w.goesOn("hot")
}

// A delivery that ends now and then makes room for one other; that is not enough.
func TestFreshKeysBesideLinesThatLeaveLittle(t *testing.T) {
	w := newWorld(t)
	config := sync1(newCourt(func(ctx context.Context, m adapters.Message, attempt int) (adapters.Receipt, error) {
		time.Sleep(50*time.Millisecond + rand.N(100*time.Millisecond))
		return accepts(ctx, m, attempt)
	}))
	w.register(config)
	lines(w, 30, 12_000)
	w.start("relay-1", config)
	w.eventually("all the room is taken", func() bool {
		return query[int](w, `SELECT count(*) FROM outbox.delivery WHERE state = 'sending'`) >= 18
	})
	w.exec(`INSERT INTO outbox.event (type, key, payload)
SELECT 'scheduling:updated', 'fresh' || n, '{"n":1}' FROM generate_series(1, 200) AS n`)
	w.within(time.Minute, "the fresh ones are delivered", func() bool {
		return query[bool](w, `SELECT NOT EXISTS (SELECT FROM outbox.delivery WHERE key LIKE 'fresh%')`)
	})
	w.goesOn("hot")
}

// Lines that make room for others do not wait behind a backlog that is younger.
func TestLinesThatMakeRoomKeepTheirAge(t *testing.T) {
	w := newWorld(t)
	var takes atomic.Int64
	takes.Store(int64(time.Millisecond))
	c := newCourt(func(ctx context.Context, m adapters.Message, attempt int) (adapters.Receipt, error) {
		time.Sleep(time.Duration(takes.Load()))
		return accepts(ctx, m, attempt)
	})
	config := sync1(c)
	w.register(config)
	lines(w, 100, 20_000)
	w.exec(`INSERT INTO outbox.event (type, key, payload)
SELECT 'scheduling:updated', 'single' || n, '{"n":1}' FROM generate_series(1, 8000) AS n`)
	w.exec(`UPDATE outbox.delivery SET due_at = due_at - interval '30 minutes' WHERE key LIKE 'single%'`)
	w.start("relay-1", config)
	w.eventually("single ones are delivered too", func() bool {
		return query[int](w, `SELECT count(*) FROM outbox.delivery WHERE key LIKE 'single%'`) < 7_800
	})
	takes.Store(int64(200 * time.Millisecond))
	sent := c.count()
	w.eventually("all of them have made room", func() bool { return c.count() > sent+900 })
	before := query[int](w, `SELECT count(*) FROM outbox.delivery WHERE key LIKE 'hot%'`)
	w.eventually("lines go on", func() bool {
		return query[int](w, `SELECT count(*) FROM outbox.delivery WHERE key LIKE 'hot%'`) < before-200
	})
}
