package outbox_test

import (
	"testing"
	"time"

	"github.com/hms-mkt/lockstep/outbox"
)

// window is the hold of the sync's window, empty without one.
func (d *desk) window() string {
	d.t.Helper()
	return d.text(`SELECT coalesce((SELECT hold_kind || ': ' || hold_reason || ' by ' || hold_by FROM outbox.sync WHERE hold_kind = 'window'), '')`)
}

// testsBegan is the time around which the periods are.
var testsBegan = time.Now()

// keepWindow reports what KeepWindow reports, for a period from and until so long after the begin of the
// tests. Tests and database have one clock.
func (d *desk) keepWindow(s *outbox.Store, open bool, from, until time.Duration, reason string) bool {
	d.t.Helper()
	kept, clock, err := s.KeepWindow(d.t.Context(), sync, outbox.Window{Open: open, From: testsBegan.Add(from), Until: testsBegan.Add(until), Reason: reason})
	if err != nil {
		d.t.Fatal(err)
	}
	if apart := time.Since(clock).Abs(); apart > time.Minute {
		d.t.Errorf("the database's clock is %s, which is %s apart", clock, apart)
	}
	return kept
}

// Each call has its effect only if the database's clock is within its period.
func TestAWindowIsKeptByTheDatabasesClock(t *testing.T) {
	d := newDesk(t)
	for _, step := range []struct {
		by          *outbox.Store
		open        bool
		from, until time.Duration
		reason      string
		kept        bool
		hold        string // then
	}{
		{d.a, false, -2 * time.Hour, -time.Hour, "too late", false, ""},
		{d.a, false, time.Hour, 2 * time.Hour, "too early", false, ""},
		{d.a, true, -time.Hour, time.Hour, "", true, ""},
		{d.a, false, -time.Hour, time.Hour, "night", true, "window: night by a"},
		{d.b, false, -time.Hour, time.Hour, "night", true, "window: night by a"}, // it agrees, and changes nothing
		{d.b, true, -2 * time.Hour, -time.Hour, "", false, "window: night by a"},
		{d.b, false, -time.Hour, 2 * time.Hour, "longer night", true, "window: longer night by b"},
		{d.b, false, -time.Hour, 30 * time.Minute, "shorter night", true, "window: shorter night by b"},
		{d.a, true, -time.Hour, time.Hour, "", true, ""},
	} {
		if kept := d.keepWindow(step.by, step.open, step.from, step.until, step.reason); kept != step.kept {
			t.Errorf("%q: kept is %t, want %t", step.reason, kept, step.kept)
		}
		if hold := d.window(); hold != step.hold {
			t.Errorf("%q: the hold is %q, want %q", step.reason, hold, step.hold)
		}
	}
}

// The hold lasts from the closing, even if its end changes.
func TestAWindowsHoldRemembersItsBegin(t *testing.T) {
	d := newDesk(t)
	d.keepWindow(d.a, false, -time.Hour, time.Hour, "night")
	const began = `SELECT since::text FROM outbox.hold WHERE kind = 'window'`
	first := d.text(began)
	d.keepWindow(d.a, false, -time.Hour, 2*time.Hour, "longer night")
	if got := d.text(began); got != first {
		t.Errorf("since %s, want %s", got, first)
	}
	d.exec(`UPDATE outbox.hold SET until = clock_timestamp() - interval '1 second'`)
	d.keepWindow(d.a, false, -time.Hour, 2*time.Hour, "next night")
	if got := d.text(began); got == first {
		t.Error("the next hold has the begin of the one before")
	}
}

// A lock on the sync's row does not make a relay wait. It is told that the hold is not there yet.
func TestAWindowDoesNotWaitForALock(t *testing.T) {
	d := newDesk(t)
	other := d.begin(`SELECT FROM outbox.sync FOR UPDATE`)
	if d.keepWindow(d.a, false, -time.Hour, time.Hour, "night") {
		t.Error("the hold was kept in spite of a lock")
	}
	if !d.keepWindow(d.a, true, -time.Hour, time.Hour, "") {
		t.Error("without a change there is nothing to lock")
	}
	d.end(other, "ROLLBACK")
	if !d.keepWindow(d.a, false, -time.Hour, time.Hour, "night") || d.window() == "" {
		t.Error("the hold was not kept after the lock")
	}
}
