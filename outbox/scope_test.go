package outbox_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hms-mkt/lockstep/outbox"
)

// scoped adds a lane with one event for each "scope/key".
func (d *desk) scoped(lanes ...string) {
	d.t.Helper()
	for i, lane := range lanes {
		scope, key, _ := strings.Cut(lane, "/")
		d.emit(key, i)
		d.exec(`INSERT INTO outbox.lane (sync, scope, key, due_at) VALUES ($1, $2, $3, clock_timestamp() - interval '1 second' + $4 * interval '1 millisecond')`,
			sync, scope, key, i)
	}
}

func (d *desk) holdScope(scope string, kind outbox.HoldKind, until time.Duration) {
	d.t.Helper()
	if err := d.a.Hold(d.t.Context(), sync, scope, kind, until, "r"); err != nil {
		d.t.Fatal(err)
	}
}

func (d *desk) holds() string {
	d.t.Helper()
	return d.text(`SELECT coalesce(string_agg(scope || '/' || kind, ' ' ORDER BY scope, kind), '') FROM outbox.hold`)
}

func TestHoldsOfScopesAreKeptApart(t *testing.T) {
	d := newDesk(t)
	for _, scope := range []string{"", "a", "b"} {
		d.holdScope(scope, outbox.HoldBreaker, time.Hour)
		d.holdScope(scope, outbox.HoldThrottle, time.Hour)
	}
	d.exec(`SELECT outbox.pause($1, 'r', scope => 'a')`, sync)
	if err := d.b.Lift(t.Context(), sync, "a"); err != nil {
		t.Fatal(err)
	}
	if got := d.holds(); got != "/breaker /throttle a/operator a/throttle b/breaker b/throttle" {
		t.Errorf("after the lift of a: %s", got)
	}
	d.exec(`UPDATE outbox.hold SET until = clock_timestamp() WHERE scope = 'b'`)
	if err := d.a.EndHolds(t.Context(), sync, time.Hour); err != nil {
		t.Fatal(err)
	}
	if got := d.holds(); got != "/breaker /throttle a/operator a/throttle b/breaker" {
		t.Errorf("after the end of b's throttle: %s", got)
	}
	if err := d.a.Lift(t.Context(), sync, ""); err != nil {
		t.Fatal(err)
	}
	if got := d.text(`SELECT hold_kind FROM outbox.sync`); got != "throttle" {
		t.Errorf("the sync shows %s", got)
	}
	d.exec(`DELETE FROM outbox.hold WHERE scope = '' AND kind = 'throttle'`)
	if got := d.text(`SELECT coalesce(hold_kind, 'none') FROM outbox.sync`); got != "none" {
		t.Errorf("the sync shows the hold of a scope: %s", got)
	}
	holds, err := d.a.ScopeHolds(t.Context(), sync)
	if err != nil || len(holds) != 2 || holds[0].Scope != "a" || holds[0].Kind != outbox.HoldOperator || !holds[0].Until.IsZero() ||
		holds[1].Scope != "b" || holds[1].Kind != outbox.HoldBreaker || !holds[1].ProbeDue {
		t.Errorf("holds of scopes: %+v, %v", holds, err)
	}
}

// A scope is probed with its own lanes, and not while the whole sync is on hold. The whole sync
// is probed with any lane whose scope is not on hold.
func TestAProbeIsMadeInItsScope(t *testing.T) {
	d := newDesk(t)
	d.scoped("a/A1", "b/B1", "/N1", "c/C1")
	d.holdScope("a", outbox.HoldBreaker, 0)
	d.holdScope("b", outbox.HoldBreaker, time.Hour)
	probe := func(scope string) (int, string) {
		t.Helper()
		p, err := d.a.Probe(t.Context(), sync, scope, time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		slices.Sort(p.With)
		return p.Number, strings.Join(p.With, " ")
	}
	if n, with := probe("b"); n != 0 {
		t.Errorf("b is probed before its time, with %s", with)
	}
	if n, with := probe("a"); n != 1 || with != "A1" {
		t.Errorf("probe %d of a is made with %s", n, with)
	}
	if got := d.text(`SELECT string_agg(scope || probes, ' ' ORDER BY scope) FROM outbox.hold`); got != "a1 b0" {
		t.Errorf("probes: %s", got)
	}
	if err := d.a.ProbeAgain(t.Context(), sync, "a", 1, 0, false); err != nil {
		t.Fatal(err)
	}
	d.holdScope("", outbox.HoldAuth, 0)
	if n, with := probe("a"); n != 0 {
		t.Errorf("a is probed with %s while the whole sync is on hold", with)
	}
	if n, with := probe(""); n != 1 || with != "C1 N1" {
		t.Errorf("probe %d of the sync is made with %s", n, with)
	}
}

func TestAHoldForWhichNothingWaitsIsLifted(t *testing.T) {
	d := newDesk(t)
	d.scoped("a/A1")
	for _, scope := range []string{"", "a", "b"} {
		d.holdScope(scope, outbox.HoldBreaker, 0)
		d.holdScope(scope, outbox.HoldThrottle, time.Hour)
	}
	for scope, want := range map[string]bool{"": false, "a": false, "b": true} {
		if lifted, err := d.a.LiftUnused(t.Context(), sync, scope); err != nil || lifted != want {
			t.Errorf("%q: lifted %t, %v", scope, lifted, err)
		}
	}
	if got := d.holds(); got != "/breaker /throttle a/breaker a/throttle b/throttle" {
		t.Errorf("holds: %s", got)
	}
}

// Lanes of a scope on hold are not claimed or changed. A relay that was told of a scope finds its
// lanes at once. A relay for which the scope is busy does not claim its lanes.
func TestClaimsLeaveScopesOnHold(t *testing.T) {
	d := newDesk(t)
	d.scoped("a/A1", "a/A2", "b/B1", "/N1")
	d.holdScope("a", outbox.HoldBreaker, time.Hour)
	var arrivals outbox.Arrivals
	claim := func(capacity int, busy ...string) (keys string, c outbox.Claims) {
		t.Helper()
		c, err := d.a.Claim(t.Context(), outbox.ClaimRequest{Sync: sync, Capacity: capacity, Lanes: capacity, Lease: time.Minute, Busy: busy}, &arrivals)
		if err != nil {
			t.Fatal(err)
		}
		var list []string
		for _, found := range c.Deliveries {
			list = append(list, found.Key)
		}
		slices.Sort(list)
		return strings.Join(list, " "), c
	}
	before := d.text(`SELECT string_agg(xmin::text, ' ' ORDER BY key) FROM outbox.lane WHERE scope = 'a'`)
	keys, c := claim(10)
	if keys != "B1 N1" || !slices.Equal(c.Held, []string{"a"}) || c.Hold != nil || c.Due {
		t.Errorf("claimed %s, held %v, more are due: %t", keys, c.Held, c.Due)
	}
	if after := d.text(`SELECT string_agg(xmin::text, ' ' ORDER BY key) FROM outbox.lane WHERE scope = 'a'`); after != before {
		t.Error("lanes of a scope on hold were written")
	}
	into := "new"
	for i := range c.Deliveries {
		if r := d.a.Record(t.Context(), sync, []outbox.Result{{Delivery: c.Deliveries[i], Scope: &into}}); r.Err != nil {
			t.Fatal(r.Err)
		}
	}
	if keys, _ := claim(10); keys != "" {
		t.Errorf("%s is claimed of a scope that is not known yet", keys)
	}
	arrivals.Know([]string{into, into})
	if keys, _ := claim(10, into); keys != "" {
		t.Errorf("%s is claimed of a busy scope", keys)
	}
	if keys, c := claim(10); keys != "B1 N1" || c.Deliveries[0].Scope != into {
		t.Errorf("claimed %s of a scope that is known", keys)
	}
}

// A claim locks only the lanes that it claims, and no other due lanes, of any number of scopes.
func TestAClaimLocksOnlyTheLanesItClaims(t *testing.T) {
	d := newDesk(t)
	d.scoped("a/A1", "a/A2", "a/A3", "b/B1", "b/B2", "b/B3")
	tx := d.begin()
	claimed, err := d.a.ClaimIn(t.Context(), tx, outbox.ClaimRequest{Sync: sync, Capacity: 2, Lanes: 2, Lease: time.Minute}, &outbox.Arrivals{})
	if err != nil || len(claimed) != 2 {
		t.Fatalf("claimed %d, %v", len(claimed), err)
	}
	if got := d.text(`SELECT count(*)::text FROM (SELECT FROM outbox.lane FOR UPDATE SKIP LOCKED) AS free`); got != "4" {
		t.Errorf("%s of 6 lanes are left to others, want 4", got)
	}
}

// A suspect of a scope on hold is not reported: no delivery of its sync must wait for it.
func TestASuspectOfAScopeOnHoldWaits(t *testing.T) {
	d := newDesk(t)
	d.scoped("a/A1", "b/B1")
	d.exec(`UPDATE outbox.lane SET crashes = 2`)
	for _, scope := range []string{"a", "b"} {
		d.holdScope(scope, outbox.HoldBreaker, time.Hour)
		if c := d.poll(d.a, 9, time.Minute); c.Suspects != (scope == "a") {
			t.Errorf("on hold: %s; there are suspects: %t", d.holds(), c.Suspects)
		}
	}
}

func TestPauseRefusesScopesThatCannotBe(t *testing.T) {
	d := newDesk(t)
	for _, scope := range []string{strings.Repeat("x", 201), "a\nb"} {
		for _, call := range []string{`SELECT outbox.pause($1, 'r', scope => $2)`, `SELECT outbox.resume($1, $2)`} {
			_, err := d.pool.Exec(t.Context(), call, sync, scope)
			if err == nil || !strings.Contains(err.Error(), "at most 200 characters and no control characters") {
				t.Errorf("%.20q: %v", scope, err)
			}
		}
	}
	d.exec(`SELECT outbox.pause($1, 'r', scope => $2)`, sync, strings.Repeat("ä", 200))
	d.exec(`SELECT outbox.pause($1, 'r', scope => NULL)`, sync) // of the whole sync
	if got := d.text(`SELECT string_agg(length(scope)::text, ' ' ORDER BY scope) FROM outbox.hold`); got != "0 200" {
		t.Errorf("scopes of %s characters", got)
	}
}
