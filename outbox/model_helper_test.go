package outbox_test

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"pgregory.net/rapid"

	"github.com/hms-mkt/lockstep/outbox"
)

// Functions that the actions and the rules of the model share.

// forever is longer than a test.
const forever = time.Hour

// tune sets a flag of rapid's unless the command line does.
func tune(t *testing.T, name, value string) {
	t.Helper()
	given := false
	flag.Visit(func(f *flag.Flag) { given = given || f.Name == name })
	if given {
		return
	}
	before := flag.Lookup(name).Value.String()
	if err := flag.Set(name, value); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = flag.Set(name, before) })
}

// id is the id of an event with that number, which is easier to read in a trace.
func id(n int) string { return fmt.Sprintf("00000000-0000-0000-0000-%012d", n) }

func number(id string) int {
	n, _ := strconv.Atoi(id[strings.LastIndex(id, "-")+1:])
	return n
}

// logMayBeEmptied turns off what keeps the log append-only: it is emptied between runs.
func (d *desk) logMayBeEmptied() {
	d.t.Helper()
	d.exec(`DO $$
DECLARE guarded regclass;
BEGIN
    FOR guarded IN SELECT tgrelid FROM pg_trigger WHERE tgname = 'append_only' LOOP
        EXECUTE format('ALTER TABLE %s DISABLE TRIGGER append_only', guarded);
    END LOOP;
END $$`)
}

// empty resets the database to its state after the registration of the syncs.
func (d *desk) empty() {
	d.t.Helper()
	d.exec(`TRUNCATE outbox.event, outbox.delivery, outbox.lane, outbox.delivery_log, outbox.external_ref, outbox.hold, outbox.unmatched RESTART IDENTITY`)
	d.exec(`UPDATE outbox.sync SET hold_kind = NULL, hold_until = NULL, hold_reason = NULL, hold_by = NULL`)
}

func (h *heldClaim) String() string {
	if h.d.Position == 0 {
		return fmt.Sprintf("%s:%s/%s", h.relay.name, h.d.Sync, h.d.Key)
	}
	return fmt.Sprintf("%s:e%d>%s", h.relay.name, number(h.d.Event.ID), h.d.Sync)
}

func (h *heldClaim) laneID() laneID { return laneID{h.d.Sync, h.d.Key} }

// release gives the lane back.
func (l *lane) release() { l.claim, l.sends, l.leaseEnded = "", nil, false }

func (r *relay) known(sync string) *outbox.Arrivals {
	if r.arrivals == nil {
		r.arrivals = map[string]*outbox.Arrivals{}
	}
	if r.arrivals[sync] == nil {
		r.arrivals[sync] = &outbox.Arrivals{}
	}
	return r.arrivals[sync]
}

// say adds a line to the trace that a failure prints.
func (m *model) say(format string, args ...any) {
	m.trace = append(m.trace, fmt.Sprintf("%3d  "+format, append([]any{m.step}, args...)...))
}

// pick draws one of a list, which must not be empty.
func pick[T any](t *rapid.T, label string, list []T) T {
	return list[rapid.IntRange(0, len(list)-1).Draw(t, label)]
}

func (m *model) relay(t *rapid.T) *relay {
	return pick(t, "relay", m.relays)
}

// nobodyWaits runs a function that must not wait for an open transaction. The bound is long
// enough for a busy machine.
func nobodyWaits(t *rapid.T, what string, do func(ctx context.Context) error) {
	ctx, cancel := context.WithTimeoutCause(t.Context(), 20*time.Second, errors.New("it waited for somebody's open transaction"))
	defer cancel()
	if err := do(ctx); err != nil {
		t.Fatalf("%s: %v (%v)", what, err, context.Cause(ctx))
	}
}

func (m *model) sql(t *rapid.T, statement string, args ...any) {
	nobodyWaits(t, statement, func(ctx context.Context) error {
		_, err := m.pool.Exec(ctx, statement, args...)
		return err
	})
}

// refused runs a statement that the database must refuse with that code.
func (m *model) refused(t *rapid.T, code, statement string, args ...any) {
	_, err := m.pool.Exec(t.Context(), statement, args...)
	if pgErr, ok := errors.AsType[*pgconn.PgError](err); !ok || pgErr.Code != code {
		t.Fatalf("%s %v: %v, want it refused with %s", statement, args, err, code)
	}
}

// of lists the open deliveries of a lane in order.
func (m *model) of(l laneID) []*delivery {
	var list []*delivery
	for _, o := range m.open {
		if o.laneID == l {
			list = append(list, o)
		}
	}
	slices.SortFunc(list, func(a, b *delivery) int { return cmp.Compare(a.place, b.place) })
	return list
}

// first is the first open delivery of a lane, nil if there is none.
func (m *model) first(l laneID) *delivery {
	if row := m.of(l); len(row) > 0 {
		return row[0]
	}
	return nil
}

// lane is the lane with that name.
func (m *model) lane(l laneID) *lane {
	if m.lanes[l] == nil {
		m.lanes[l] = &lane{}
	}
	return m.lanes[l]
}

func (m *model) filter(keep func(*delivery) bool) []*delivery {
	var list []*delivery
	for _, o := range m.open {
		if keep(o) {
			list = append(list, o)
		}
	}
	return list
}

func (m *model) remove(o *delivery) {
	m.open = slices.DeleteFunc(m.open, func(other *delivery) bool { return other == o })
}

// at is the open delivery at a position, nil if there is none.
func (m *model) at(sync string, place int64) *delivery {
	for _, o := range m.open {
		if o.sync == sync && int64(o.place) == place {
			return o
		}
	}
	return nil
}

func (m *model) find(sync string, event int) *delivery {
	for _, o := range m.open {
		if o.sync == sync && o.event == event {
			return o
		}
	}
	return nil
}

func (m *model) begin(t *rapid.T, options pgx.TxOptions) *session {
	tx, err := m.pool.BeginTx(context.WithoutCancel(t.Context()), options)
	if err != nil {
		t.Fatal(err)
	}
	m.begun = append(m.begun, tx)
	return &session{
		tx: tx, snapshot: options.IsoLevel == pgx.RepeatableRead,
		keys: map[string]bool{}, syncs: map[string]bool{}, touched: map[string]bool{}, paused: map[string]bool{},
		replays: map[laneID][]int{},
	}
}

// end commits or rolls back a session.
func (m *model) end(t *rapid.T, s *session, who string) {
	if rapid.IntRange(0, 2).Draw(t, "end") == 0 {
		m.say("%s rolls back", who)
		if err := s.tx.Rollback(t.Context()); err != nil {
			t.Fatal(err)
		}
		return
	}
	m.say("%s commits", who)
	if err := s.tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, f := range s.commit {
		f()
	}
}

// close ends the open transactions of a run, and prints the trace if the run failed.
func (m *model) close(t *rapid.T) {
	if t.Failed() {
		t.Logf("what happened, by step:\n%s", strings.Join(m.trace, "\n"))
	}
	for _, tx := range m.begun {
		_ = tx.Rollback(context.Background())
	}
}
