package profiletest

import (
	"context"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/hms-mkt/lockstep/internal/outboxtest"
	"github.com/hms-mkt/lockstep/internal/pgtest"
	"github.com/hms-mkt/lockstep/outbox"
	"github.com/hms-mkt/lockstep/relay"
)

// starts runs a relay until the test ends.
func starts(t *testing.T, database string, syncs ...relay.Sync) {
	t.Helper()
	store, err := outbox.Open(t.Context(), database, outbox.Options{Name: "relay-1"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(store.Close)
	for i := range syncs {
		syncs[i].Retry.Initial = 10 * time.Millisecond
		syncs[i].From = "beginning"
	}
	r, err := relay.New(store, relay.Config{Logger: slog.New(slog.DiscardHandler), Syncs: syncs})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// write commits events, each in a transaction of its own.
func write(t *testing.T, db outboxtest.Session, events ...outbox.Event) {
	t.Helper()
	for _, e := range events {
		if err := pgx.BeginFunc(t.Context(), db.Conn, func(tx pgx.Tx) error { return outbox.Append(t.Context(), tx, e) }); err != nil {
			t.Fatal(err)
		}
	}
}

// A relay on a database sends the same hearings to all three receivers. Some answers are lost.
func TestARelayKeepsAllThreeInStep(t *testing.T) {
	database := pgtest.New(t)
	ecf, ecfURL := newCourt(t, true)
	hmc := newComponent(t)
	hmcAPI, hmcURL := serve(t, "hmc", hmc.answer)
	hmi := &gateway{t: t, hearings: map[string]map[string]any{}}
	hmiAPI, hmiURL := serve(t, "hmi", hmi.answer)
	ecf.lose = func(n int) bool { return n%7 == 0 }
	hmiAPI.lose = func(_ string, n int) loss {
		return []loss{answered, answered, answered, lostRequest, answered, answered, lostAnswer}[n%7]
	}
	hmcAPI.lose = func(method string, n int) loss {
		if method == http.MethodPut { // what a lost POST and DELETE need is in another test
			return loss(n % 3)
		}
		return answered
	}

	starts(t, database, open(t, "ecf5", ecfURL), open(t, "hmc", hmcURL), open(t, "hmi", hmiURL))
	db := outboxtest.Connect(t, database)
	var plans []plan
	events := 0
	for seed := range uint64(30) {
		p := random(seed, names)
		plans = append(plans, p)
		events += len(p.events)
		write(t, db, p.events...)
	}
	db.Until("everything is delivered, or something has failed", `SELECT EXISTS (SELECT FROM outbox.delivery WHERE state = 'failed') OR
		(SELECT count(*) = 3 * $1 FROM outbox.delivery_log WHERE outcome IN ('delivered', 'duplicate', 'accepted'))`, events)
	for _, failed := range outboxtest.List[string](db, `SELECT sync || ': ' || reason FROM outbox.delivery_log WHERE outcome = 'failed'`) {
		t.Fatal(failed)
	}

	var booked []string // the gateway answers 202 to these, and 200 to a cancellation
	for _, p := range plans {
		if !p.cancelled {
			booked = append(booked, p.key)
		}
		ecf.has(p)
		hmc.has(p)
		hmi.has(p)
	}
	if n := outboxtest.One[int](db, `SELECT count(*) FROM outbox.unconfirmed WHERE sync = 'HearingInterface' AND key = ANY ($1)`, booked); n != len(booked) {
		t.Errorf("%d hearings are accepted and not confirmed, want %d", n, len(booked))
	}
	if !outboxtest.One[bool](db, `SELECT outbox.confirm(sync, event_id, 'the listing system has fixed it') FROM outbox.unconfirmed WHERE sync = 'HearingInterface' AND key = $1`, booked[0]) {
		t.Error("a hearing cannot be confirmed")
	}
	if unknown := outboxtest.One[int](db, `SELECT count(*) FROM outbox.delivery_log WHERE outcome = 'unknown'`); unknown == 0 {
		t.Error("no answer was lost")
	}
	if duplicates := outboxtest.One[int](db, `SELECT count(*) FROM outbox.delivery_log WHERE outcome = 'duplicate' AND sync = 'CourtScheduling'`); duplicates == 0 || duplicates != ecf.doubles {
		t.Errorf("the log has %d duplicates, the court said it %d times", duplicates, ecf.doubles)
	}
}

// The component has no key of ours. So after a lost answer it is asked what it has. Where a person must look, the test
// does what docs/recipes/hmc.md says.
func TestALostAnswerOfHMC(t *testing.T) {
	for name, tc := range map[string]struct {
		method string
		loss   loss
		other  bool // the case has another hearing
		want   []string
		repair string   // of a delivery that failed
		after  []string // what the log has then
		booked int      // hearings of the component
	}{
		"a new hearing does not arrive": {
			method: http.MethodPost, loss: lostRequest,
			want: []string{"unknown", "read", "delivered", "delivered", "delivered"}, booked: 1,
		},
		"the answer about a new hearing is lost": {
			method: http.MethodPost, loss: lostAnswer,
			want: []string{"unknown", "read", "failed"},
			repair: `SELECT outbox.set_reference('HearingManagement', 'H-2027-7', '2000000001', NULL, 'looked up', '{"versionNumber": "1"}');
				SELECT outbox.requeue('HearingManagement', reason => 'looked up')`,
			after: []string{"reference_set", "requeued", "read", "duplicate", "delivered", "delivered"}, booked: 1,
		},
		"a new hearing of a case with another one does not arrive": {
			method: http.MethodPost, loss: lostRequest, other: true,
			want:   []string{"unknown", "read", "failed"},
			repair: `SELECT outbox.discard('HearingManagement', '01a00000-0000-7000-8000-000000000001', 'it is not there, and the next event books it')`,
			after:  []string{"discarded", "delivered", "delivered"}, booked: 2,
		},
		"a change does not arrive": {
			method: http.MethodPut, loss: lostRequest,
			want: []string{"delivered", "unknown", "read", "delivered", "delivered"}, booked: 1,
		},
		"the answer to a change is lost": {
			method: http.MethodPut, loss: lostAnswer,
			want: []string{"delivered", "unknown", "read", "duplicate", "delivered"}, booked: 1,
		},
		"a cancellation does not arrive": {
			method: http.MethodDelete, loss: lostRequest,
			want: []string{"delivered", "delivered", "unknown", "read", "delivered"}, booked: 1,
		},
		"the answer to a cancellation is lost": {
			method: http.MethodDelete, loss: lostAnswer,
			want:   []string{"delivered", "delivered", "unknown", "read", "failed"},
			repair: `SELECT outbox.discard('HearingManagement', '01a00000-0000-7000-8000-000000000003', 'it is cancelled')`,
			after:  []string{"discarded"}, booked: 1,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			database := pgtest.New(t)
			hmc := newComponent(t)
			api, url := serve(t, "hmc", hmc.answer)
			lost := false
			api.lose = func(method string, _ int) loss {
				if lost || method != tc.method {
					return answered
				}
				lost = true
				return tc.loss
			}
			if tc.other {
				hmc.answer(http.MethodPost, "/hearing", map[string]any{
					"caseDetails": map[string]any{"caseRef": "1641911514704411"}, "hearingDetails": map[string]any{"hearingType": "ABA5-FHR"},
				})
			}
			starts(t, database, open(t, "hmc", url))
			db := outboxtest.Connect(t, database)
			write(t, db, life()...)
			const settled = `SELECT NOT EXISTS (SELECT FROM outbox.delivery) OR EXISTS (SELECT FROM outbox.delivery WHERE state = 'failed')`
			const log = `SELECT outcome FROM outbox.delivery_log ORDER BY id`
			db.Until("the sync takes events", `SELECT EXISTS (SELECT FROM outbox.sync WHERE backfill_seq IS NULL)`)
			db.Until("everything is delivered, or something has failed", settled)
			if tc.repair != "" {
				if _, err := db.Exec(t.Context(), tc.repair); err != nil {
					t.Fatal(err)
				}
				db.Until("everything is delivered, or something has failed again", settled)
			}
			if got, want := outboxtest.List[string](db, log), append(tc.want, tc.after...); !slices.Equal(got, want) {
				t.Errorf("the log has %v, want %v\n%s", got, want, strings.Join(outboxtest.List[string](db, `SELECT concat(outcome, ' ', reason, ' ', error) FROM outbox.delivery_log ORDER BY id`), "\n"))
			}
			if n := len(hmc.hearings); n != tc.booked {
				t.Errorf("the component has %d hearings, want %d", n, tc.booked)
			}
		})
	}
}
