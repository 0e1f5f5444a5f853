package migrations_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/hms-mkt/lockstep/internal/outboxtest"
	"github.com/hms-mkt/lockstep/internal/pgtest"
	"github.com/hms-mkt/lockstep/internal/waiting"
)

func TestFanOutFollowsPatterns(t *testing.T) {
	url := pgtest.New(t)
	admin, w := outboxtest.Connect(t, url), outboxtest.As(t, url, "outbox_writer")
	admin.Sync("all", "*")
	admin.Sync("scheduling", "scheduling:*")
	admin.Sync("two", "scheduling:created", "data:*")
	admin.Sync("percent", "100%")
	admin.Sync("underscore", "a_b")
	admin.Sync("backslash", `c:\*`)
	admin.Sync("middle", "x*z")
	admin.Sync("retired", "*")
	admin.Do("SELECT outbox.retire('retired', 'moved')")
	tests := []struct{ typ, want string }{
		{"scheduling:created", "all scheduling two"},
		{"scheduling:updated", "all scheduling"},
		{"Scheduling:updated", "all"},
		{"data:updated", "all two"},
		{"100%", "all percent"},
		{"1000", "all"},
		{"a_b", "all underscore"},
		{"aXb", "all"},
		{`c:\d`, "all backslash"},
		{"c:d", "all"},
		{"xz", "all middle"},
		{"x\ny:z", "all middle"},
		{"xzy", "all"},
	}
	for _, tt := range tests {
		t.Run(tt.typ, func(t *testing.T) {
			id := outboxtest.One[string](w.With(t), "INSERT INTO outbox.event (type, key, payload) VALUES ($1, 'k', '{}') RETURNING id::text", tt.typ)
			got := outboxtest.List[string](admin.With(t), "SELECT sync FROM outbox.delivery WHERE event_id = $1::text::uuid AND state = 'pending' ORDER BY sync", id)
			if strings.Join(got, " ") != tt.want {
				t.Errorf("type %q went to %v, want %s", tt.typ, got, tt.want)
			}
		})
	}
}

func TestFanOutOfEveryWayToInsert(t *testing.T) {
	url := pgtest.New(t)
	admin, w := outboxtest.Connect(t, url), outboxtest.As(t, url, "outbox_writer")
	admin.Sync("court", "scheduling:*")
	admin.Sync("archive", "*:created")
	tests := []struct {
		name               string
		insert             func(t *testing.T, w outboxtest.Session)
		deliveries, orphan int
	}{
		{"several rows of mixed types", func(_ *testing.T, w outboxtest.Session) {
			w.Do(`INSERT INTO outbox.event (type, key, payload)
			      VALUES ('scheduling:created', 'a', '{}'), ('scheduling:updated', 'a', '{}'), ('data:created', 'b', '{}'), ('data:updated', 'b', '{}'), ('x', 'c', '{}')`)
		}, 4, 2},
		{"no row", func(_ *testing.T, w outboxtest.Session) {
			w.Do("INSERT INTO outbox.event (type, key, payload) SELECT 'scheduling:created', 'k', '{}' WHERE false")
		}, 0, 0},
		{"a subtransaction that is rolled back and one that stays", func(_ *testing.T, w outboxtest.Session) {
			w.Do("BEGIN")
			w.Do("SAVEPOINT s")
			w.Do("INSERT INTO outbox.event (type, key, payload) VALUES ('scheduling:created', 'k', '{}'), ('x', 'k', '{}')")
			w.Do("ROLLBACK TO s")
			w.Do("INSERT INTO outbox.event (type, key, payload) VALUES ('scheduling:updated', 'k', '{}')")
			w.Do("RELEASE s")
			w.Do("COMMIT")
		}, 1, 0},
		{"a block with an exception handler", func(_ *testing.T, w outboxtest.Session) {
			w.Do(`DO $$ BEGIN
			        INSERT INTO outbox.event (type, key, payload) VALUES ('scheduling:updated', 'k', '{}');
			        BEGIN
			          INSERT INTO outbox.event (type, key, payload) VALUES ('scheduling:updated', '', '{}');
			        EXCEPTION WHEN check_violation THEN NULL;
			        END;
			      END $$`)
		}, 1, 0},
		{"COPY", func(t *testing.T, w outboxtest.Session) {
			n, err := w.CopyFrom(t.Context(), pgx.Identifier{"outbox", "event"}, []string{"type", "key", "payload"}, pgx.CopyFromRows([][]any{
				{"scheduling:created", "a", map[string]any{"n": 1}}, {"scheduling:updated", "b", map[string]any{"n": 2}}, {"x", "b", map[string]any{}},
			}))
			if err != nil || n != 3 {
				t.Fatalf("COPY of 3 rows: %d, %v", n, err)
			}
		}, 3, 1},
		{"a conflicting id passed over", func(_ *testing.T, w outboxtest.Session) {
			w.Do(`INSERT INTO outbox.event (id, type, key, payload)
			      SELECT '018f0000-0000-7000-8000-00000000000a', 'scheduling:updated', 'k', '{}' FROM generate_series(1, 3) ON CONFLICT DO NOTHING`)
		}, 1, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			const count = "SELECT (SELECT count(*) FROM outbox.delivery)::int * 1000 + (SELECT pending FROM outbox.status WHERE sync IS NULL)::int"
			d := admin.With(t)
			before := outboxtest.One[int](d, count)
			tt.insert(t, w.With(t))
			got := outboxtest.One[int](d, count) - before
			if want := tt.deliveries*1000 + tt.orphan; got != want {
				t.Errorf("%d deliveries and %d unmatched, want %d and %d", got/1000, got%1000, tt.deliveries, tt.orphan)
			}
		})
	}
}

// TestUnmatchedAreExactlyTheEventsThatNoSyncTook has statements whose number of deliveries does not show
// whether each event has one.
func TestUnmatchedAreExactlyTheEventsThatNoSyncTook(t *testing.T) {
	url := pgtest.New(t)
	admin, w := outboxtest.Connect(t, url), outboxtest.As(t, url, "outbox_writer")
	for _, court := range []string{"court1", "court2", "court3"} {
		admin.Sync(court, "scheduling:*")
	}
	admin.Sync("archive", "*:created")
	admin.Sync("retired", "*")
	admin.Do("SELECT outbox.retire('retired', 'moved')")
	tests := []struct {
		name       string
		types      []string
		deliveries int
		unmatched  []string
	}{
		{"one event, taken once", []string{"data:created"}, 1, nil},
		{"one event, taken by all", []string{"scheduling:created"}, 4, nil},
		{"one event that only a retired sync would take", []string{"x"}, 0, []string{"x"}},
		{"several, none taken", []string{"x", "y"}, 0, []string{"x", "y"}},
		{"several, each taken", []string{"scheduling:updated", "data:created"}, 4, nil},
		{"as many deliveries as events, and one event without", []string{"data:created", "other:created", "more:created", "scheduling:updated", "x", "y", "z"}, 6, []string{"x", "y", "z"}},
		{"more deliveries than events, the last event without", []string{"scheduling:created", "x"}, 4, []string{"x"}},
		{"more deliveries than events, the first event without", []string{"x", "scheduling:updated"}, 3, []string{"x"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d := admin.With(t)
			d.Do("DELETE FROM outbox.delivery")
			d.Do("DELETE FROM outbox.unmatched")
			w.With(t).Do("INSERT INTO outbox.event (type, key, payload) SELECT type, 'k', '{}' FROM unnest($1::text[]) AS type", tt.types)
			if n := outboxtest.One[int](d, "SELECT count(*)::int FROM outbox.delivery"); n != tt.deliveries {
				t.Errorf("%d deliveries, want %d", n, tt.deliveries)
			}
			got := outboxtest.List[string](d, "SELECT e.type FROM outbox.unmatched AS u JOIN outbox.event AS e ON e.seq = u.event_seq AND e.id = u.event_id ORDER BY e.type")
			if named := outboxtest.List[string](d, "SELECT t.type FROM outbox.unmatched_type AS t, generate_series(1, t.events) ORDER BY t.type"); !slices.Equal(named, got) {
				t.Errorf("outbox.unmatched_type has %v, want %v", named, got)
			}
			if !slices.Equal(got, tt.unmatched) {
				t.Errorf("unmatched %v, want %v", got, tt.unmatched)
			}
		})
	}
}

func TestDeliveryIsDueWhenInsertedNotWhenItsTransactionBegan(t *testing.T) {
	d := outboxtest.Connect(t, pgtest.New(t))
	d.Sync("court")
	d.Do("BEGIN")
	started := outboxtest.One[time.Time](d, "SELECT now()")
	waiting.For(t, time.Minute, "the transaction is older than its insert", func() bool {
		return outboxtest.One[time.Time](d, "SELECT clock_timestamp()").After(started)
	})
	d.Event("k")
	if !outboxtest.One[bool](d, "SELECT due_at > now() AND created_at = due_at FROM outbox.delivery") {
		t.Error("due_at is the start of the transaction: a relay would not look for it")
	}
	d.Do("COMMIT")
}

func TestNotifyWakesOncePerTransactionAndOnlyForSyncsThatWantIt(t *testing.T) {
	url := pgtest.New(t)
	admin, w, listener := outboxtest.Connect(t, url), outboxtest.As(t, url, "outbox_writer"), outboxtest.As(t, url, "outbox_relay")
	admin.Sync("quiet", "*")
	admin.Sync("loud", "scheduling:*")
	admin.Sync("louder", "scheduling:created")
	admin.Sync("retired", "*")
	admin.Do("UPDATE outbox.sync SET notify = true WHERE name <> 'quiet'")
	admin.Do("SELECT outbox.retire('retired', 'moved')")
	listener.Do("LISTEN outbox")
	const (
		created = "INSERT INTO outbox.event (type, key, payload) VALUES ('scheduling:created', 'k', '{}')"
		updated = "INSERT INTO outbox.event (type, key, payload) VALUES ('scheduling:updated', 'k', '{}')"
		other   = "INSERT INTO outbox.event (type, key, payload) VALUES ('data:updated', 'k', '{}')"
	)
	tests := []struct {
		name       string
		statements []string
		want       []string
	}{
		{"one event for both", []string{created}, []string{"loud", "louder"}},
		{"one event for one of them", []string{updated}, []string{"loud"}},
		{"one event for a quiet sync", []string{other}, nil},
		{"several events in a statement", []string{created + ", ('scheduling:created', 'k', '{}'), ('data:updated', 'k', '{}')"}, []string{"loud", "louder"}},
		{"several statements in a transaction", []string{updated, other, created, updated}, []string{"loud", "louder"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := w.With(t)
			w.Do("BEGIN")
			for _, statement := range tt.statements {
				w.Do(statement)
			}
			w.Do("COMMIT")
			admin.With(t).Do("NOTIFY outbox, 'end'")
			var got []string
			for {
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				n, err := listener.WaitForNotification(ctx)
				cancel()
				if err != nil {
					t.Fatal(errors.Join(err, ctx.Err()))
				}
				if n.Payload == "end" {
					break
				}
				got = append(got, n.Payload)
			}
			slices.Sort(got)
			if !slices.Equal(got, tt.want) {
				t.Errorf("notifications %v, want %v", got, tt.want)
			}
		})
	}
}
