package relay_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/relay"
)

// A receiver that may accept a message with every attempt gets it only a few times.
func TestADeliveryFailsAfterFiveAnswersThatDoNotSayWhetherItArrived(t *testing.T) {
	w := newWorld(t)
	unclear := adapters.Unclear(errors.New("answered HTTP 200, but without the id"))
	c := badOnes("HTTP 200", unclear)
	w.start("relay-1", sync1(c))
	w.emit("bad-1", map[string]any{"n": 1})
	w.emit("good", map[string]any{"n": 1})
	w.eventually("it has failed", func() bool {
		return query[int](w, `SELECT count(*) FROM outbox.failed WHERE error_class = 'unknown'`) == 1
	})
	if n := query[int](w, `SELECT count(*) FROM outbox.delivery_log WHERE key = 'bad-1' AND outcome = 'unknown'`); n != 5 {
		t.Errorf("%d attempts, want 5", n)
	}
	says := query[string](w, `SELECT error FROM outbox.failed`)
	if want := "gave up after 5 answers that do not say whether the receiver has it: " + unclear.Error(); says != want {
		t.Errorf("reason %q, want %q", says, want)
	}
	w.exec(`UPDATE outbox.delivery SET state = 'pending' WHERE state = 'failed'`)
	w.eventually("a requeue counts anew", func() bool {
		return query[bool](w, `SELECT (SELECT count(*) FROM outbox.failed) = 1 AND (SELECT count(*) FROM outbox.delivery_log WHERE key = 'bad-1' AND outcome = 'unknown') = 10`)
	})
}

// The database counts these answers: a restart does not begin anew.
func TestUnclearAnswersCountForAllRelays(t *testing.T) {
	w := newWorld(t)
	c := badOnes("HTTP 200", adapters.Unclear(errors.New("no id")))
	slow := sync1(c, func(s *relay.Sync) { s.Retry.Initial, s.Retry.Max = time.Hour, time.Hour })
	sent := func() int {
		return query[int](w, `SELECT count(*) FROM outbox.delivery_log WHERE key = 'bad-1' AND outcome = 'unknown'`)
	}
	w.emit("bad-1", map[string]any{"n": 1})
	for n := range 5 {
		r := w.start(fmt.Sprint("relay-", n), slow)
		w.eventually("it is sent once more", func() bool { return sent() == n+1 })
		if err := r.stop(); err != nil {
			t.Fatal(err)
		}
		w.makeDue("bad-1")
	}
	if n := query[int](w, `SELECT count(*) FROM outbox.failed WHERE error LIKE 'gave up after 5 answers%'`); n != 1 {
		t.Errorf("it has not failed:\n%s", w.dump())
	}
}

// All keys get such answers: the breaker holds the sync, and a probe counts as an attempt.
func TestUnclearAnswersToAllKeysHoldTheSync(t *testing.T) {
	w := newWorld(t)
	c := badOnes("HTTP 200", adapters.Unclear(errors.New("no id")))
	w.start("relay-1", sync1(c))
	for n := range 12 {
		w.emit(fmt.Sprint("bad-", n), map[string]any{"n": n})
	}
	w.eventually("held", func() bool { return query[bool](w, `SELECT EXISTS (SELECT FROM outbox.hold WHERE kind = 'breaker')`) })
	w.eventually("a probe is the fifth attempt", func() bool {
		w.exec(`UPDATE outbox.hold SET until = clock_timestamp() WHERE until > clock_timestamp()`)
		return query[bool](w, `SELECT EXISTS (SELECT FROM outbox.failed WHERE error LIKE 'gave up after 5 answers%')`)
	})
	if n := query[int](w, `SELECT coalesce(max(n), 0) FROM (SELECT count(*) AS n FROM outbox.delivery_log WHERE outcome = 'unknown' GROUP BY key) AS per`); n > 5 {
		t.Errorf("a key was sent %d times", n)
	}
}

// An HTML page may be a gateway's: the receiver may have the message, but nothing fails for it.
func TestPagesAreUnknownAndFailNothing(t *testing.T) {
	w := newWorld(t)
	var healed atomic.Bool
	c := newCourt(func(context.Context, adapters.Message, int) (adapters.Receipt, error) {
		if healed.Load() {
			return adapters.Receipt{Code: "HTTP 201"}, nil
		}
		return adapters.Receipt{Code: "HTTP 200"}, adapters.Unexplained(adapters.Unknown(errors.New("a page")))
	})
	w.start("relay-1", sync1(c))
	w.emit("H-1", map[string]any{"n": 1})
	w.eventually("sent often", func() bool {
		return query[int](w, `SELECT count(*) FROM outbox.delivery_log WHERE outcome = 'unknown' AND error_class = 'unknown'`) > 7
	})
	healed.Store(true)
	w.drained()
	if n := query[int](w, `SELECT count(*) FROM outbox.delivery_log WHERE outcome NOT IN ('unknown', 'delivered')`); n > 0 {
		t.Errorf("%d other rows:\n%s", n, w.dump())
	}
}

// The relay's own words stay, even if the message has the same ones.
func TestOwnWordsAreShown(t *testing.T) {
	for name, tc := range map[string]struct {
		err  error
		want string
	}{
		"own words": {adapters.Redacted(adapters.Permanent(errors.New("connection reset by peer"))), "connection reset by peer"},
		"others":    {adapters.Permanent(errors.New("connection reset by peer")), adapters.Hidden},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.start("relay-1", sync1(newCourt(func(context.Context, adapters.Message, int) (adapters.Receipt, error) {
				return adapters.Receipt{Code: "HTTP 400"}, tc.err
			})))
			w.emit("reset", map[string]any{"button": "reset"})
			w.eventually("failed", func() bool { return query[int](w, `SELECT count(*) FROM outbox.failed`) == 1 })
			if got := query[string](w, `SELECT error FROM outbox.failed`); got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}

// idCounter counts answers without an id.
type idCounter struct {
	claimCounter
	missing atomic.Int64
}

func (c *idCounter) MissingID(string) { c.missing.Add(1) }

func TestASuccessWithoutAnIDIsSaidAtOnce(t *testing.T) {
	w := newWorld(t)
	c := newCourt(func(context.Context, adapters.Message, int) (adapters.Receipt, error) {
		return adapters.Receipt{Code: "HTTP 202", Accepted: true, NoID: true}, nil
	})
	var counter idCounter
	var log bytes.Buffer
	config := sync1(c)
	config.Observer, config.Logger = &counter, slog.New(slog.NewTextHandler(&log, nil))
	r := w.start("relay-1", config)
	w.emit("H-1", map[string]any{"n": 1})
	w.drained()
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	if n := counter.missing.Load(); n != 1 {
		t.Errorf("counted %d", n)
	}
	if !strings.Contains(log.String(), "the answer lacks the receiver's id") {
		t.Errorf("the log does not say so:\n%s", log.String())
	}
}

var _ relay.Observer = (*idCounter)(nil)

func TestAnswersWithoutAnETagAreSaidOnce(t *testing.T) {
	w := newWorld(t)
	c := newCourt(func(context.Context, adapters.Message, int) (adapters.Receipt, error) {
		return adapters.Receipt{Code: "HTTP 200", NoETag: true}, nil
	})
	var log bytes.Buffer
	config := sync1(c)
	config.Logger = slog.New(slog.NewTextHandler(&log, nil))
	r := w.start("relay-1", config)
	w.emit("H-1", map[string]any{"n": 1})
	w.emit("H-2", map[string]any{"n": 1})
	w.drained()
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(log.String(), "the answer has no ETag"); n != 1 {
		t.Errorf("said %d times:\n%s", n, log.String())
	}
}

// Something that all destinations need is away, such as a proxy: nothing was sent, and no record
// is the cause.
func TestWhatAllDestinationsNeedIsAway(t *testing.T) {
	w := newWorld(t)
	var healed atomic.Bool
	c := newCourt(func(context.Context, adapters.Message, int) (adapters.Receipt, error) {
		if healed.Load() {
			return adapters.Receipt{Code: "HTTP 201"}, nil
		}
		return adapters.Receipt{}, adapters.Common(errors.New("the proxy cannot be reached"))
	})
	w.start("relay-1", sync1(c, func(s *relay.Sync) { s.Retry.Attempts = 1 }))
	w.emit("H-1", map[string]any{"n": 1})
	w.eventually("held, and probed", func() bool {
		return query[bool](w, `SELECT EXISTS (SELECT FROM outbox.hold WHERE kind = 'breaker' AND probes > 0 AND reason = 'the proxy cannot be reached')`)
	})
	if n := query[int](w, `SELECT count(*) FROM outbox.delivery WHERE charged > 0 OR state = 'failed'`); n > 0 {
		t.Errorf("%d deliveries have used up budget:\n%s", n, w.dump())
	}
	healed.Store(true)
	w.drained()
}
