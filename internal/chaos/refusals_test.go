//go:build linux

package chaos

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/hms-mkt/lockstep/internal/courtsim"
)

// p99 is the 99th percentile of the time from the writer's insert to the recording, of a sync's events since then.
func (w *world) p99(sync string, since time.Time) time.Duration {
	w.t.Helper()
	seconds := ask[float64](w, `
SELECT coalesce(percentile_disc(0.99) WITHIN GROUP (ORDER BY extract(epoch FROM l.at - e.inserted_at)), 0)::float8
  FROM outbox.delivery_log AS l
  JOIN outbox.event AS e ON e.id = l.event_id
 WHERE l.sync = $1 AND l.outcome = 'delivered' AND e.inserted_at > $2`, sync, since)
	return time.Duration(seconds * float64(time.Second))
}

// refusing are faults for single hearings.
func refusing(status int, keys []string) (faults []courtsim.Fault) {
	for _, key := range keys {
		faults = append(faults, courtsim.Fault{Match: courtsim.Match{Key: key}, Do: courtsim.Action{Status: status}})
	}
	return faults
}

func numbered(prefix string, n int) []string {
	keys := make([]string, n)
	for i := range keys {
		keys[i] = fmt.Sprint(prefix, i)
	}
	return keys
}

// Courts refuse single hearings for ever, one or many at once. These hearings fail with a reason, and the others are
// delivered as usual. Another court refuses the credentials for a while: nothing fails.
func TestFault27RecordsRefused(t *testing.T) {
	scenario(t, func(r *run) {
		w := newWorld(r)
		bad := numbered("bad-", 12)
		cases := map[string][]courtsim.Fault{
			"one-401": refusing(401, bad[:1]), "one-403": refusing(403, bad[:1]),
			"many-401": refusing(401, bad), "many-403": refusing(403, bad),
		}
		syncs := []syncSpec{{Name: theSync}, {Name: "expired", Attempts: 3}}
		w.addCourt("expired")
		for name, faults := range cases {
			w.addCourt(name).faults(r, faults...)
			syncs = append(syncs, syncSpec{Name: name, Attempts: 3})
		}
		w.start(relaySpec{Syncs: syncs, Workers: 64})
		w.registered()
		l := w.begin(loadSpec{writers: 4, keys: 40, rate: 40})
		l.reaches(40)
		began := ask[time.Time](w, `SELECT clock_timestamp()`)
		w.courts["expired"].faults(r, courtsim.Fault{Do: courtsim.Action{Status: 401}})
		w.book(bad...)
		w.until("the sync with the bad credentials is held", `SELECT EXISTS (SELECT FROM outbox.sync WHERE name = 'expired' AND hold_kind = 'auth')`)
		failed := 0
		for name, faults := range cases {
			failed += len(faults)
			w.until("what "+name+" refuses has failed", `
SELECT count(*) = $2 FROM outbox.failed WHERE sync = $1 AND error_class = 'permanent' AND error LIKE 'the receiver refuses this record with HTTP%while it accepts others: %'`,
				name, len(faults))
		}
		l.reaches(l.written.Load() + of[int64](100, 2000))
		w.courts["expired"].faults(r)
		l.stop()
		w.drain(expected{failed: failed})
		alone := w.p99(theSync, began)
		for name := range cases {
			beside := w.p99(name, began)
			r.Logf("%s: p99 of the others %s, %s where nothing is refused", name, beside, alone)
			if beside > 10*alone+busyMachine {
				r.Errorf("%s: p99 of the others is %s, %s where nothing is refused", name, beside, alone)
			}
		}
		if n := w.logged(`outcome = 'failed' AND key NOT LIKE 'bad-%'`); n > 0 {
			r.Errorf("%d failed that no court refused by themselves", n)
		}
	})
}

// The event names the host. One of two hosts refuses everything. Only this host is on hold, and none of its hearings
// fails. Hearings of the other host arrive at once. When the first one accepts again, its hearings arrive.
func TestFault27bOneHostOfTwoRefuses(t *testing.T) {
	for _, status := range []int{http.StatusUnauthorized, http.StatusForbidden} {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			scenario(t, func(r *run) {
				const bad, good = "127.0.0.2", "127.0.0.1"
				w := newWorld(r)
				refused := numbered("bad-", 12)
				everywhere := &court{Court: courtsim.New(courtsim.Options{Faults: refusing(status, refused)})}
				address, err := everywhere.Start("0.0.0.0:0")
				if err != nil {
					r.Fatal(err)
				}
				r.Cleanup(func() { _ = everywhere.Close() })
				at, err := url.Parse(address)
				if err != nil {
					r.Fatal(err)
				}
				w.courts[theSync] = everywhere
				scope := bad + ":" + at.Port()
				w.start(relaySpec{Syncs: []syncSpec{{
					Name: theSync, Court: "http://{fields.courtroom}:" + at.Port(), Hosts: []string{bad, good}, Attempts: 3,
				}}})
				w.registered()
				book := func(host, key string) {
					w.exec(`
INSERT INTO outbox.event (type, key, payload)
VALUES ('scheduling:updated', $1::text, jsonb_build_object('hearingId', $1::text, 'scheduledAt', '1', 'location', $2::text))`, key, host)
				}
				for _, key := range refused {
					book(bad, key)
				}
				w.until("the host is on hold", `SELECT EXISTS (SELECT FROM outbox.hold WHERE kind = 'auth' AND scope = $1)`, scope)
				// No probe is due meanwhile. A longer hold would be corrected as after a clock was set back.
				w.exec(`UPDATE outbox.hold SET until = clock_timestamp() + interval '80 seconds'`)
				began := ask[time.Time](w, `SELECT clock_timestamp()`)
				for n := range 40 {
					key := fmt.Sprint("good-", n)
					book(good, key)
					w.until(key+" is delivered", `SELECT EXISTS (SELECT FROM outbox.delivery_log WHERE key = $1 AND outcome = 'delivered')`, key)
				}
				if got := ask[string](w, `SELECT coalesce(string_agg(kind || ' ' || scope, ', '), '') FROM outbox.hold`); got != "auth "+scope {
					r.Errorf("on hold: %s, want auth %s alone", got, scope)
				}
				everywhere.faults(r)
				w.exec(`UPDATE outbox.hold SET until = clock_timestamp()`)
				w.drain(expected{})
				p99 := w.p99(theSync, began)
				r.Logf("p99 of the other host's hearings %s", p99)
				if p99 > busyMachine {
					r.Errorf("p99 of the other host's hearings is %s", p99)
				}
			})
		})
	}
}

// For seconds a gateway answers instead of the court. Before and after, the court itself refuses some hearings. Exactly
// these fail.
func TestFault28GatewayInFront(t *testing.T) {
	scenario(t, func(r *run) {
		w := newWorld(r)
		gateways := map[string]courtsim.Action{
			"404-text":  {Gateway: "text"},
			"302-page":  {Gateway: "html", Status: 302, Redirect: "/maintenance"},
			"302-empty": {Status: 302, Redirect: "/maintenance"},
			"400-page":  {Gateway: "html", Status: 400},
			"405-empty": {Gateway: "empty", Status: 405},
			"419-page":  {Gateway: "html", Status: 419},
		}
		refused := []courtsim.Fault{
			{Match: courtsim.Match{Key: "bad-422"}, Do: courtsim.Action{Status: 422}},
			{Match: courtsim.Match{Key: "bad-400"}, Do: courtsim.Action{Status: 400}},
			{Match: courtsim.Match{Key: "bad-404"}, Do: courtsim.Action{Status: 404}},
		}
		syncs := []syncSpec{{Name: theSync}}
		for name := range gateways {
			w.addCourt(name).faults(r, refused...)
			syncs = append(syncs, syncSpec{Name: name})
		}
		w.start(relaySpec{Syncs: syncs, Workers: 64})
		w.registered()
		l := w.begin(loadSpec{writers: 4, keys: 60, rate: 60})
		l.reaches(60)
		for name, do := range gateways {
			w.courts[name].faults(r, append(refused, courtsim.Fault{Do: do})...)
		}
		w.book("bad-422", "bad-400", "bad-404")
		for name := range gateways {
			w.until(name+" is taken for down", `SELECT EXISTS (SELECT FROM outbox.sync WHERE name = $1 AND hold_kind = 'breaker')`, name)
		}
		l.reaches(l.written.Load() + of[int64](120, 1200)) // two seconds' worth
		for name := range gateways {
			w.courts[name].faults(r, refused...)
		}
		l.stop()
		w.drain(expected{failed: len(refused) * len(gateways)})
		if n := w.logged(`outcome = 'failed' AND key NOT LIKE 'bad-%'`); n > 0 {
			r.Errorf("%d failed that only a gateway had refused", n)
		}
		if n := w.logged(`outcome = 'failed' AND NOT (key LIKE 'bad-%' AND error_class = 'permanent')`); n > 0 {
			r.Errorf("%d failures say something else than the court did", n)
		}
	})
}

// A relay has no file descriptor left. This costs no budget, and the relay does not try without a pause.
func TestFault35bNoDescriptorLeft(t *testing.T) {
	scenario(t, func(r *run) {
		w := newWorld(r)
		p := w.start(relaySpec{Syncs: []syncSpec{{Name: theSync, Attempts: 1, Concurrency: 8}}})
		w.registered()
		if said := p.asks("poor"); said != "<nil>" {
			r.Fatal(said)
		}
		w.book(names(40)...)
		w.until("several deliveries met it", `SELECT count(*) > 10 FROM outbox.delivery_log WHERE error_class = 'local' AND attempt IS NULL`)
		before := w.logged(`error_class = 'local'`)
		began := time.Now()
		w.until("more met it", `SELECT count(*) > $1 FROM outbox.delivery_log WHERE error_class = 'local'`, before+16)
		if rate := 16 / time.Since(began).Seconds(); rate > 200 {
			r.Errorf("the relay tries %.0f times a second", rate)
		}
		if n := ask[int](w, `SELECT count(*) FROM outbox.delivery WHERE attempts > 0 OR charged > 0 OR spent_ms > 0`); n > 0 {
			r.Errorf("%d deliveries paid for it", n)
		}
		if says := ask[string](w, `SELECT max(error) FROM outbox.delivery_log WHERE error_class = 'local'`); !strings.Contains(says, "nothing was sent: this machine has no file descriptor") {
			r.Errorf("the log says %q", says)
		}
		if said := p.asks("rich"); said != "<nil>" {
			r.Fatal(said)
		}
		w.drain(expected{})
	})
}
