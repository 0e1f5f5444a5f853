//go:build linux

package chaos

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/hms-mkt/lockstep/internal/courtsim"
)

// A receiver asks for a pause, in every possible way. Its sync waits, and no other.
func TestFault18ReceiverAsksForQuiet(t *testing.T) {
	scenario(t, func(r *run) {
		date := func(d time.Duration) string { return time.Now().Add(d).UTC().Format(http.TimeFormat) }
		const soon = -1 // held, for as long as the backoff says
		cases := []struct {
			name   string
			status int
			after  string
			held   time.Duration
		}{
			{"429-seconds", 429, "600", 10 * time.Minute},
			{"429-date", 429, date(10 * time.Minute), 10 * time.Minute},
			{"429-garbage", 429, "in a while", soon},
			{"429-negative", 429, "-600", soon},
			{"429-huge", 429, "1000000000", time.Hour},
			{"429-nothing", 429, "", soon},
			{"503-seconds", 503, "600", 10 * time.Minute},
			{"503-date", 503, date(10 * time.Minute), 10 * time.Minute},
			{"503-garbage", 503, "in a while", 0},
			{"503-negative", 503, "-600", 0},
			{"503-huge", 503, "1000000000", time.Hour},
		}
		w := newWorld(r)
		syncs := []syncSpec{{Name: theSync}, {Name: "brief", Concurrency: 1}}
		w.addCourt("brief").faults(r, courtsim.Fault{Match: courtsim.Match{First: 1}, Do: courtsim.Action{Status: 429, RetryAfter: "2"}})
		for _, c := range cases {
			w.addCourt(c.name).faults(r, courtsim.Fault{Do: courtsim.Action{Status: c.status, RetryAfter: c.after}})
			s := syncSpec{Name: c.name}
			if c.held != 0 {
				s.Attempts = 3 // what asks for quiet costs none of it
			}
			syncs = append(syncs, s)
		}
		w.start(relaySpec{Syncs: syncs, Workers: 64})
		w.registered()
		w.book(names(of(12, 40))...)
		for _, c := range cases {
			switch c.held {
			case 0:
				w.until(c.name+" is tried again", `SELECT count(*) > 3 FROM outbox.delivery_log WHERE sync = $1 AND error_class = 'transient'`, c.name)
			case soon: // more often than the budget allows, if it counted
				w.until(c.name+" asks again", `SELECT count(*) > 4 FROM outbox.delivery_log WHERE sync = $1 AND error_class = 'throttled'`, c.name)
			default:
				w.until(c.name+" waits", `SELECT EXISTS (SELECT FROM outbox.status WHERE sync = $1 AND hold = 'throttle' AND sending = 0 AND retry > 0)`, c.name)
				left := time.Duration(ask[float64](w, `SELECT extract(epoch FROM hold_until - clock_timestamp())::float8 FROM outbox.status WHERE sync = $1`, c.name) * float64(time.Second))
				if left > c.held || left < c.held-patience {
					r.Errorf("%s is held for another %s, want a little less than %s", c.name, left, c.held)
				}
			}
		}

		// The other syncs deliver, and the sync that waits sends nothing.
		asked := map[string]int{}
		for _, c := range cases {
			asked[c.name] = len(w.courts[c.name].Ledger())
		}
		w.book(names(of(12, 40))...)
		w.until("another sync flows", `SELECT NOT EXISTS (SELECT FROM outbox.delivery WHERE sync = $1)`, theSync)
		for _, c := range cases {
			if n := len(w.courts[c.name].Ledger()); c.held > 0 && n > asked[c.name] {
				r.Errorf("%s was asked %d times while it wanted quiet", c.name, n-asked[c.name])
			}
			used := ask[int](w, `SELECT count(*) FROM outbox.delivery WHERE sync = $1 AND (charged > 0 OR spent_ms > 0)`, c.name)
			if (used > 0) != (c.held == 0) {
				r.Errorf("%s: %d deliveries used retry budget", c.name, used)
			}
		}

		for _, c := range cases {
			w.courts[c.name].faults(r)
		}
		w.exec(`UPDATE outbox.hold SET until = clock_timestamp() WHERE kind = 'throttle' AND sync <> 'brief'`)
		w.exec(`UPDATE outbox.delivery SET due_at = clock_timestamp() WHERE state = 'retry' AND sync <> 'brief'`)
		w.exec(`UPDATE outbox.lane SET due_at = clock_timestamp() WHERE claim IS NULL AND due_at < 'infinity' AND sync <> 'brief'`)
		w.drain(expected{})
		quiet := w.courts["brief"].Ledger()
		if waited := quiet[1].Time.Sub(quiet[0].Time); waited < 2*time.Second {
			r.Errorf("a receiver that wanted 2s of quiet was asked again after %s", waited)
		}
	})
}

// A receiver asks for a pause. A claim that the relay had sent to its slow database before does not end that pause.
func TestFault18bQuietWhileTheDatabaseIsSlow(t *testing.T) {
	scenario(t, func(r *run) {
		w := newWorld(r)
		database := newLink(r, w.address())
		w.start(relaySpec{Database: w.through(database), Syncs: []syncSpec{{Name: theSync, Concurrency: 1, Attempts: 3}}})
		w.registered()
		const before = 10
		w.court().faults(r, courtsim.Fault{Match: courtsim.Match{After: before, First: 2}, Do: courtsim.Action{Status: 429, RetryAfter: "2"}})
		database.harm("latency", answers, map[string]any{"latency": 40})
		w.pace(of(20, 200))
		database.heal()
		w.drain(expected{})
		asked := w.court().Ledger()
		for i := before; i < before+2; i++ {
			if waited := asked[i+1].Time.Sub(asked[i].Time); waited < 2*time.Second {
				r.Errorf("a receiver that wanted 2s of quiet was asked again after %s", waited)
			}
		}
	})
}

// misbehaviour is a fault of a receiver, with its expected effect.
type misbehaviour struct {
	name    string
	faults  []courtsim.Fault
	raw     string // answered to the letter
	arrange func(w *world, name string) (heal func())

	outcome string // of the log rows
	class   string
	says    string // part of the error
}

func TestFault19ReceiverMisbehaves(t *testing.T) {
	scenario(t, misbehave)
}

const aSecret = "a-token-that-nobody-else-may-see"

func misbehave(r *run) {
	w := newWorld(r)
	trap := newTrap(r)
	ca := newAuthority(r)
	always := func(do courtsim.Action) []courtsim.Fault { return []courtsim.Fault{{Do: do}} }
	megabyte := strings.Repeat("x", 1<<20)
	zeros := strings.Repeat("\x00", 1<<20)
	handshake := func(wrong func() (from *authority, name string, ends time.Duration, newest uint16)) func(*world, string) func() {
		return func(w *world, name string) func() {
			from, host, ends, newest := wrong()
			bad := from.server(host, ends)
			bad.MinVersion, bad.MaxVersion = 0x0301, newest
			f := w.addFront(name, bad)
			return func() { f.tls.Store(ca.server("127.0.0.1", time.Hour)) }
		}
	}
	var gigabytes *front
	cases := []misbehaviour{
		{
			name: "never-answers", faults: always(courtsim.Action{Hang: courtsim.Duration(time.Hour)}),
			outcome: "unknown", class: "unknown", says: "sent, but no answer: the timeout of 1s is up",
		},
		{
			name: "drips", faults: always(courtsim.Action{Drip: courtsim.Duration(time.Second)}),
			outcome: "unknown", class: "unknown", says: "its body ended before the id: the timeout of 1s is up",
		},
		{
			name: "one-gigabyte", faults: always(courtsim.Action{Status: 500, Body: &megabyte, Repeat: 1024}),
			arrange: func(w *world, name string) func() { gigabytes = w.addFront(name, nil); return func() {} },
			outcome: "retry", class: "transient", says: "answered HTTP 500, without a reason that can be shown",
		},
		{
			name: "gzip-bomb", faults: always(courtsim.Action{Status: 500, Body: &zeros, Repeat: 1024, Gzip: true}),
			outcome: "retry", class: "transient", says: "answered HTTP 500, without a reason",
		},
		{
			name: "control-characters", faults: always(courtsim.Action{Status: 422, Body: new(`{"title":"N\u0000UL \u001b[31mred \u202eleft\nline"}`)}),
			outcome: "failed", class: "permanent", says: "answered HTTP 422: NUL red left line",
		},
		{
			name: "raw-control-characters", faults: always(courtsim.Action{Status: 422, Body: new("\x00\x1b[31m{\"title\":\"\x00\"}")}),
			outcome: "failed", class: "permanent", says: "without a reason that can be shown",
		},
		{
			name: "invalid-utf-8", faults: always(courtsim.Action{Status: 422, Body: new("{\"title\":\"caf\xff\xfe closed\"}")}),
			outcome: "failed", class: "permanent", says: "answered HTTP 422: caf closed",
		},
		{
			name: "endless-reason", faults: always(courtsim.Action{Status: 422, Body: new(`{"title":"` + strings.Repeat("all of the record ", 3000) + `"}`)}),
			outcome: "failed", class: "permanent", says: "…",
		},
		{
			name: "malformed-json", faults: always(courtsim.Action{Status: 422, Body: new(`{"title": "x", `)}),
			outcome: "failed", class: "permanent", says: "without a reason that can be shown",
		},
		{
			name: "malformed-json-accepted", faults: always(courtsim.Action{Body: new(`{"id": `)}),
			outcome: "unknown", class: "unknown", says: "without the id that external_id names (/id)",
		},
		{
			name: "id-with-control-characters", faults: always(courtsim.Action{Body: new(`{"id": "CAL\u0000-\u001b[31m7\u202e"}`)}),
			outcome: "unknown", class: "unknown", says: "without the id that external_id names (/id)",
		},
		{
			name: "redirect", faults: always(courtsim.Action{Redirect: trap.url + "/api/calendar"}),
			outcome: "retry", class: "transient", says: "a redirect to " + strings.TrimPrefix(trap.url, "http://") + ", which is not followed",
		},
		{
			name: "redirect-302", faults: always(courtsim.Action{Status: 302, Redirect: trap.url + "/api/calendar"}),
			outcome: "retry", class: "transient", says: "which is not followed",
		},
		{
			name: "redirect-link-local", faults: always(courtsim.Action{Status: 308, Redirect: "http://169.254.169.254/latest/meta-data/"}),
			outcome: "retry", class: "transient", says: "a redirect to 169.254.169.254, which is not followed",
		},
		{
			name: "cut-keep-alive", faults: []courtsim.Fault{{Match: courtsim.Match{Every: 2}, Do: courtsim.Action{Drop: courtsim.DropBefore}}},
			outcome: "unknown", class: "unknown", says: "sent, but no answer: the connection was closed",
		},
		{
			name: "truncated-answer", faults: always(courtsim.Action{Drop: courtsim.DropDuring}),
			outcome: "unknown", class: "unknown", says: "its body ended before the id: the connection was closed",
		},
		{
			name: "no-http", raw: "\x1b[31m\x00\xff all of the record\r\n\r\n",
			outcome: "unknown", class: "unknown", says: "sent, but no answer: a malformed answer",
		},
		{
			name: "half-a-header", raw: "HTTP/1.1 200 OK\r\nContent-Le",
			outcome: "unknown", class: "unknown", says: "sent, but no answer: a malformed answer",
		},
		{
			name: "tls-expired", arrange: handshake(func() (*authority, string, time.Duration, uint16) { return ca, "127.0.0.1", -time.Hour, 0 }),
			outcome: "retry", class: "auth", says: "nothing was sent: TLS: the receiver's certificate has expired",
		},
		{
			name: "tls-wrong-host", arrange: handshake(func() (*authority, string, time.Duration, uint16) { return ca, "court.example", time.Hour, 0 }),
			outcome: "retry", class: "auth", says: "nothing was sent: TLS: the receiver's certificate is for another host name",
		},
		{
			name: "tls-unknown-authority", arrange: handshake(func() (*authority, string, time.Duration, uint16) {
				return newAuthority(r), "127.0.0.1", time.Hour, 0
			}),
			outcome: "retry", class: "auth", says: "nothing was sent: TLS: the receiver's certificate comes from an unknown authority",
		},
		{
			name: "tls-1.1", arrange: handshake(func() (*authority, string, time.Duration, uint16) { return ca, "127.0.0.1", time.Hour, 0x0302 }),
			outcome: "retry", class: "transient", says: "nothing was sent: TLS: the receiver ended the connection: tls: protocol version not supported",
		},
		{
			name: "http-behind-https", arrange: func(w *world, name string) func() {
				f := w.addFront(name, ca.server("127.0.0.1", time.Hour))
				plain := w.addFront(name+"-plain", nil)
				l := newLink(w.t, plain.url)
				good := strings.TrimPrefix(f.url, "https://")
				f.url = "https://" + l.Listen
				return func() { l.cut(); l.Upstream = good; l.restore() }
			},
			outcome: "retry", class: "transient", says: "nothing was sent: TLS: the receiver does not speak TLS on this port",
		},
		{
			name: "dns", arrange: func(w *world, name string) func() {
				c := w.addCourt(name)
				good := c.url
				c.url = "http://court.invalid"
				return func() { c.url = good } // the operator's repair, obeyed after a restart
			},
			outcome: "retry", class: "transient", says: "nothing was sent: ",
		},
		{
			name: "refused", arrange: func(w *world, name string) func() {
				c := w.addCourt(name)
				l := newLink(w.t, c.url)
				c.url = "http://" + l.Listen
				l.cut()
				return l.restore
			},
			outcome: "retry", class: "transient", says: "nothing was sent: connection refused",
		},
	}
	heal := map[string]func(){}
	for _, c := range cases {
		switch {
		case c.arrange != nil:
			heal[c.name] = c.arrange(w, c.name)
		case c.raw != "":
			f := w.addFront(c.name, nil)
			f.raw.Store(&c.raw)
			heal[c.name] = func() { f.raw.Store(nil) }
		default:
			w.addCourt(c.name)
			heal[c.name] = func() {}
		}
		w.courts[c.name].faults(r, c.faults...)
	}
	spec := func() relaySpec {
		s := relaySpec{Workers: 2 * len(cases), Syncs: []syncSpec{{Name: theSync}}}
		for _, c := range cases {
			s.Syncs = append(s.Syncs, syncSpec{Name: c.name, Court: w.courts[c.name].url, Token: aSecret, CAFile: ca.file})
		}
		return s
	}
	p := w.start(spec())
	w.registered()
	keys := names(of(3, 8)) // fewer than open the breaker: each attempt is judged by itself
	w.book(keys...)
	w.book(keys...)
	for _, c := range cases {
		w.until(c.name+" is judged", `
SELECT EXISTS (SELECT FROM outbox.delivery_log
                WHERE sync = $1 AND outcome = $2 AND coalesce(error_class, '') = $3 AND strpos(coalesce(error, ''), $4) > 0)`,
			c.name, c.outcome, c.class, c.says)
	}
	w.book(keys...)
	w.until("another sync flows", `SELECT NOT EXISTS (SELECT FROM outbox.delivery WHERE sync = $1)`, theSync)

	for _, c := range cases {
		// The machine may be too slow for any answer.
		if n := w.logged(`sync = $1 AND outcome NOT IN ('delivered', 'duplicate') AND error_class IS DISTINCT FROM $2 AND error NOT LIKE '%the timeout of 1s is up'`, c.name, c.class); n > 0 {
			r.Errorf("%s: %d attempts were judged otherwise than %s", c.name, n, c.class)
		}
	}
	w.textsAreClean()
	if n := trap.calls.Load(); n > 0 {
		r.Errorf("%d redirects were followed", n)
	}
	if attempts := len(gigabytes.Ledger()); gigabytes.sent.Load() > int64(attempts)<<26 {
		r.Errorf("the court could send %d bytes of its gigabytes in %d attempts", gigabytes.sent.Load(), attempts)
	}
	if peak := p.peakMemory(); peak > 200<<20 {
		r.Errorf("the relay needed %d MiB", peak>>20)
	}
	if p.stderr.contains(aSecret) || p.stderr.contains("\x1b") {
		r.Errorf("the relay's own log has a secret or an escape sequence:\n%q", p.stderr)
	}

	for _, c := range cases {
		w.courts[c.name].faults(r)
		heal[c.name]()
	}
	if err := p.stop(); err != nil {
		r.Errorf("stop: %v", err)
	}
	w.start(spec())
	w.exec(`UPDATE outbox.delivery SET state = 'pending' WHERE state = 'failed'`)
	w.drain(expected{})
}

// textsAreClean checks the texts of receivers in the database: they are bounded, have one line, no control characters
// and no secret.
func (w *world) textsAreClean() {
	w.t.Helper()
	rows, _ := w.pool.Query(w.t.Context(), `
SELECT DISTINCT sync, unnest(ARRAY[error, code, external_id]) FROM outbox.delivery_log
 UNION SELECT sync, error FROM outbox.delivery
 UNION SELECT sync, reason FROM outbox.hold
 UNION SELECT sync, unnest(ARRAY[external_id, etag]) FROM outbox.external_ref`)
	var sync string
	var text *string
	_, err := pgx.ForEachRow(rows, []any{&sync, &text}, func() error {
		if text == nil {
			return nil
		}
		unclean := func(c rune) bool { return !unicode.IsGraphic(c) || c == unicode.ReplacementChar }
		if len(*text) > 1200 || strings.ContainsFunc(*text, unclean) || strings.Contains(*text, aSecret) {
			w.t.Errorf("%s: the database has the text %q", sync, *text)
		}
		return nil
	})
	if err != nil {
		w.t.Fatal(err)
	}
}

// Four receivers are down for a day, in four ways. A fifth one is healthy.
func TestFault20ReceiverDownForADay(t *testing.T) {
	scenario(t, func(r *run) {
		w := newWorld(r)
		events := of(100, 2000)
		only := w.start(relaySpec{Workers: 32})
		w.registered()
		w.pace(events) // warms up
		alone := w.pace(events)
		if err := only.stop(); err != nil {
			r.Fatal(err)
		}

		dead := map[string]*deadCourt{"refused": nil, "blackhole": nil, "answers-500": nil, "hangs": nil}
		syncs := []syncSpec{{Name: theSync}}
		for name := range dead {
			dead[name] = w.addDeadCourt(name)
			syncs = append(syncs, syncSpec{Name: name, From: "beginning"})
		}
		relays := []*process{w.start(relaySpec{Syncs: syncs, Workers: 32}), w.start(relaySpec{Syncs: syncs, Workers: 32})}
		w.registered()
		for name, d := range dead {
			w.until("the breaker of "+name+" opens", `SELECT EXISTS (SELECT FROM outbox.status WHERE sync = $1 AND hold = 'breaker')`, name)
			// A claim that began before it does not see the hold.
			w.until("claims that began before have ended",
				`SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() AND xact_start < $1)`,
				ask[time.Time](w, `SELECT clock_timestamp()`))
			w.until("the attempt in flight at "+name+" ends",
				`SELECT EXISTS (SELECT FROM outbox.status WHERE sync = $1 AND hold = 'breaker' AND sending = 0)`, name)
			d.opened = w.standing(name)
			if reason := ask[string](w, `SELECT hold_reason FROM outbox.status WHERE sync = $1 AND hold_until IS NOT NULL`, name); !strings.Contains(reason, "each of another key, all failed") {
				r.Errorf("%s: the hold's reason is %q", name, reason)
			}
		}
		goroutines := relays[0].goroutines()
		beside := w.pace(events)
		if most := 10*alone + busyMachine; beside > most {
			r.Errorf("%d deliveries took %s with dead courts, %s alone", events, beside, alone)
		}
		r.Logf("%d deliveries: %s alone, %s with four dead courts", events, alone, beside)

		// A day passes. Whenever a probe is due, one of the two relays sends one delivery.
		for range of(6, 20) {
			before := map[string]standing{}
			for name := range dead {
				w.until("no probe of "+name+" is in flight", `SELECT NOT EXISTS (SELECT FROM outbox.lane WHERE sync = $1 AND claim IS NOT NULL)`, name)
				before[name] = w.standing(name)
			}
			w.exec(`UPDATE outbox.delivery SET created_at = created_at - interval '4 hours', due_at = due_at - interval '4 hours' WHERE state IN ('pending', 'retry') AND sync <> $1`, theSync)
			w.exec(`UPDATE outbox.lane SET due_at = due_at - interval '4 hours' WHERE claim IS NULL AND due_at < 'infinity' AND sync <> $1`, theSync)
			w.exec(`UPDATE outbox.hold SET since = since - interval '4 hours', until = least(until, clock_timestamp())`)
			for name := range dead {
				w.until(name+" is probed", `SELECT EXISTS (SELECT FROM outbox.hold WHERE sync = $1 AND probes > $2) AND (SELECT count(*) FROM outbox.delivery_log WHERE sync = $1 AND took_ms IS NOT NULL) > $3 AND NOT EXISTS (SELECT FROM outbox.lane WHERE sync = $1 AND claim IS NOT NULL)`,
					name, before[name].Probes, before[name].Attempts)
			}
		}
		if next := ask[float64](w, `SELECT min(extract(epoch FROM until - clock_timestamp()))::float8 FROM outbox.hold`); next < 10 {
			r.Errorf("after a day the next probe comes in %.0f s: the pauses between probes of two relays do not grow", next)
		}
		for name, d := range dead {
			now := w.standing(name)
			// A probe that was counted before d.opened was read may have been sent after it. The lease allows one.
			if sent, probes := now.Attempts-d.opened.Attempts, now.Probes-d.opened.Probes; sent > probes+1 || sent == 0 {
				r.Errorf("%s got %d requests for %d probes", name, sent, probes)
			}
			if now.Charged != d.opened.Charged || now.Failed > 0 {
				r.Errorf("%s: the outage cost retry budget: %d attempts when the breaker opened, %d now, %d failed", name, d.opened.Charged, now.Charged, now.Failed)
			}
		}
		if age := ask[float64](w, `SELECT min(extract(epoch FROM oldest_pending_age))::float8 FROM outbox.status WHERE sync <> $1`, theSync); age < 23*3600 {
			r.Errorf("outbox.status calls the oldest delivery %.0f s old after a day", age)
		}
		for _, p := range relays {
			if n := ask[int](w, `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = $1`, p.spec.Name); n > p.spec.Connections || n == 0 {
				r.Errorf("%s has %d connections, of %d", p.spec.Name, n, p.spec.Connections)
			}
			if peak := p.peakMemory(); peak > 200<<20 {
				r.Errorf("%s needed %d MiB", p.spec.Name, peak>>20)
			}
		}
		if n := relays[0].goroutines(); n > goroutines+100 {
			r.Errorf("a relay has %d goroutines, %d when the outage began", n, goroutines)
		}

		// The receivers recover, and are slow at first.
		for name, d := range dead {
			w.until("no probe of "+name+" is in flight", `SELECT NOT EXISTS (SELECT FROM outbox.lane WHERE sync = $1 AND claim IS NOT NULL)`, name)
			d.faults(r, courtsim.Fault{Match: courtsim.Match{}, Do: courtsim.Action{Delay: courtsim.Duration(20 * time.Millisecond)}})
			d.measure()
			d.revive()
		}
		w.exec(`UPDATE outbox.hold SET until = least(until, clock_timestamp())`)
		w.drain(expected{})
		for name, d := range dead {
			most, beyond := d.measured()
			if beyond > len(relays) {
				r.Errorf("%s had %d more requests in progress than it had answered since it came back: traffic did not ramp up", name, beyond)
			}
			if most < 4 {
				r.Errorf("%s never had more than %d requests in progress: traffic did not come back", name, most)
			}
		}
	})
}

// deadCourt is a court that is down.
type deadCourt struct {
	*front
	revive func()
	opened standing // when its breaker was open
}

// addDeadCourt starts a court that is down. The name of its sync says in which way.
func (w *world) addDeadCourt(sync string) *deadCourt {
	w.t.Helper()
	d := &deadCourt{front: w.addFront(sync, nil), revive: func() {}}
	l := newLink(w.t, d.url)
	d.url = "http://" + l.Listen
	switch sync {
	case "refused":
		l.cut()
		d.revive = l.restore
	case "blackhole": // takes connections and swallows what comes
		l.harm("timeout", requests, map[string]any{"timeout": 0})
		d.revive = l.heal
	case "answers-500":
		d.faults(w.t, courtsim.Fault{Do: courtsim.Action{Status: 500}})
	case "hangs":
		d.faults(w.t, courtsim.Fault{Do: courtsim.Action{Hang: courtsim.Duration(time.Hour)}})
	}
	return d
}

// standing is the progress of a sync.
type standing struct {
	Attempts, Charged, Failed, Probes int
}

func (w *world) standing(sync string) standing {
	w.t.Helper()
	rows, _ := w.pool.Query(w.t.Context(), `
SELECT (SELECT count(*) FROM outbox.delivery_log WHERE sync = $1 AND took_ms IS NOT NULL) AS attempts, -- not what a takeover writes
       (SELECT coalesce(sum(charged), 0) FROM outbox.delivery WHERE sync = $1) AS charged,
       (SELECT count(*) FROM outbox.delivery WHERE sync = $1 AND state = 'failed') AS failed,
       (SELECT coalesce(sum(probes), 0) FROM outbox.hold WHERE sync = $1) AS probes`, sync)
	s, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByName[standing])
	if err != nil {
		w.t.Fatal(err)
	}
	return s
}

// pace writes n events of 50 keys, and returns how long it took until the healthy sync had delivered them all.
func (w *world) pace(n int) time.Duration {
	w.t.Helper()
	began := time.Now()
	w.exec(`
INSERT INTO outbox.event (type, key, payload)
SELECT 'scheduling:updated', 'P-' || n % 50, jsonb_build_object('hearingId', 'P-' || n % 50, 'scheduledAt', n::text, 'location', '3A')
  FROM generate_series(1, $1) AS n`, n)
	w.until("the healthy sync has everything", `SELECT NOT EXISTS (SELECT FROM outbox.delivery WHERE sync = $1)`, theSync)
	return time.Since(began)
}

// Fewer keys fail than the breaker needs. Each follows its own schedule, and its attempts count.
func TestFault20bFewKeysOfADeadReceiver(t *testing.T) {
	scenario(t, func(r *run) {
		w := newWorld(r)
		w.court().faults(r, courtsim.Fault{Do: courtsim.Action{Status: 500}})
		w.addCourt("healthy")
		w.start(relaySpec{Syncs: []syncSpec{{Name: theSync}, {Name: "healthy"}}})
		w.registered()
		keys := names(9)
		for range 3 {
			w.book(keys...)
		}
		w.until("each key was tried often", `
SELECT count(*) = $2 FROM outbox.delivery WHERE sync = $1 AND state = 'retry' AND attempts >= 6`, theSync, len(keys))
		if n := ask[int](w, `SELECT count(*) FROM outbox.delivery WHERE sync = $1 AND state = 'retry' AND charged <> attempts`, theSync); n > 0 {
			r.Errorf("%d deliveries have attempts that did not count", n)
		}
		if n := ask[int](w, `SELECT count(*) FROM outbox.hold`); n > 0 {
			r.Errorf("%d keys opened the breaker", len(keys))
		}
		if n := ask[int](w, `SELECT count(*) FROM outbox.open_delivery WHERE sync = $1 AND state <> 'queued'`, theSync); n != len(keys) {
			r.Errorf("%d deliveries are in flight, of %d keys", n, len(keys))
		}
		w.until("another sync flows", `SELECT NOT EXISTS (SELECT FROM outbox.delivery WHERE sync = 'healthy')`)
		w.court().faults(r)
		w.drain(expected{})
	})
}

// Keys with many events take turns on a few workers, the newer ones too. Their events do not wait until all events of
// the older keys are sent.
func TestFault32KeysTakeTurns(t *testing.T) {
	scenario(t, func(r *run) {
		const older, younger = 8, 4
		w := newWorld(r)
		w.register(relaySpec{})
		w.court().faults(r, courtsim.Fault{Do: courtsim.Action{Delay: courtsim.Duration(50 * time.Millisecond)}})
		write := func(prefix string, keys, each int) {
			w.exec(`INSERT INTO outbox.event (type, key, payload)
SELECT 'scheduling:updated', k, jsonb_build_object('hearingId', k, 'scheduledAt', n::text, 'location', '3A')
  FROM generate_series(0, $2::int * $3 - 1) AS n
 CROSS JOIN LATERAL (SELECT $1 || n % $2) AS key (k)`, prefix, keys, each)
		}
		write("older-", older, of(60, 300))
		write("younger-", younger, of(12, 60))
		w.start(relaySpec{Workers: 4})
		w.until("the younger keys are done", `SELECT NOT EXISTS (SELECT FROM outbox.delivery WHERE key LIKE 'younger-%')`)
		w.want("older keys that are not done", ask[int](w, `SELECT count(DISTINCT key) FROM outbox.delivery WHERE key LIKE 'older-%'`), older)
		w.court().faults(r)
		w.drain(expected{})
	})
}

// odd are keys, and values, that writers may well have.
var odd = map[string]string{
	"zero-width":    "H\u200b\u200d-\ufeff1",
	"right-to-left": "\u202eH-\u0645\u062d\u0643\u0645\u0629",
	"emoji":         "H-👩‍⚖️🏛",
	"combining":     "H-e\u0301\u0323 and \u00e9", // not normalised on the way
	"longest":       strings.Repeat("é", 256),
	"quotes":        `H-'"` + "`" + `\"\\`,
	"slashes":       "../../H-1/..//?a=b#c&d",
	"percent":       "%2e%2F%00%s%d%%",
	"SQL":           `'; DROP TABLE outbox.event; --`,
	"JSON":          `{"hearingId":"x"}`,
	"template":      "{ref.external_id}{key}${HOME}",
	"lines":         "H-1\r\nX-Injected: yes\n\tat",
	"escapes":       "\x1b[31mH\x07\u2028\u0085\x7f",
	"markup":        "<script>alert(1)&amp;</script>",
	"space":         " ",
	"not a number":  "00017",
}

// Events that cannot be sent fail, and the error names the field, or the database refuses them. All others arrive
// unchanged.
func TestFault21OddRows(t *testing.T) {
	scenario(t, func(r *run) {
		w := newWorld(r)
		w.start(relaySpec{})
		w.registered()
		insert := func(key, payload string) error {
			_, err := w.pool.Exec(r.Context(), `INSERT INTO outbox.event (type, key, payload) VALUES ('scheduling:updated', $1, $2::text::jsonb)`, key, payload)
			return err
		}
		payload := func(id any, padding any) string {
			raw, err := json.Marshal(map[string]any{"hearingId": id, "scheduledAt": id, "location": "3A", "padding": padding})
			if err != nil {
				r.Fatal(err)
			}
			return string(raw)
		}
		// The size is that of jsonb's text, which has a space after each colon and comma, and not of the writer's text.
		largest := 1<<20 - len(payload("H-large", "")) - 7
		refused := map[string]struct{ key, payload, by string }{
			"a byte too large":       {"H-1", payload("H-large", strings.Repeat("x", largest+1)), "event_payload_size"},
			"large when written out": {"H-1", `{"hearingId":1e131071,"padding":[` + strings.Repeat("1e131071,", 8) + `0]}`, "event_payload_size"},
			"no object":              {"H-1", `[1]`, "event_payload_is_object"},
			"null":                   {"H-1", `null`, "event_payload_is_object"},
			"no key":                 {"", payload("H-1", ""), "event_key_not_empty"},
			"a key too long":         {strings.Repeat("é", 256) + "x", payload("H-1", ""), "event_key_size"},
			"NUL in a key":           {"H-\x00", payload("H-1", ""), "22021"},
			"NUL in a payload":       {"H-1", payload("H-\x00", ""), "22P05"},
			"invalid UTF-8":          {"H-\xff", payload("H-1", ""), "22021"},
			"half a surrogate":       {"H-1", `{"hearingId":"\ud800"}`, "22P02"},
			"bottomless JSON":        {"H-1", `{"hearingId":` + strings.Repeat("[", 200_000) + strings.Repeat("]", 200_000) + `}`, "54001"},
		}
		for name, c := range refused {
			var refusal *pgconn.PgError
			switch err := insert(c.key, c.payload); {
			case !errors.As(err, &refusal):
				r.Errorf("%s: %v, want a refusal", name, err)
			case refusal.ConstraintName != c.by && refusal.Code != c.by:
				r.Errorf("%s: refused by %q, SQLSTATE %s, want %s", name, refusal.ConstraintName, refusal.Code, c.by)
			}
		}

		sent := map[string]string{} // payloads by case reference
		write := func(key, id string, padding any) {
			sent[id] = payload(id, padding)
			if err := insert(key, sent[id]); err != nil {
				r.Fatalf("%q: %v", key, err)
			}
		}
		for name, text := range odd {
			write(text, text, name)
			write(text, text+"!", map[string]string{text: text}) // behind the first
		}
		write("H-large", "H-large", strings.Repeat("x", largest))
		write("H-deep", "H-deep", json.RawMessage(strings.Repeat(`[`, 2000)+strings.Repeat(`]`, 2000)))
		write("H-number", "H-number", json.RawMessage(`[0.10, 12345678901234567890.000, 1.0, -0.0]`))
		unmappable := map[string]string{
			"payload":     `{"hearingId":` + strings.Repeat("[", 11_000) + strings.Repeat("]", 11_000) + `}`,
			"hearingId":   `{"scheduledAt":"x","location":"3A"}`,
			"scheduledAt": `{"hearingId":"H-1","scheduledAt":null,"location":"3A"}`,
			"location":    `{"hearingId":"H-1","scheduledAt":"x","Location":"3A"}`,
		}
		for field, p := range unmappable {
			if err := insert("U-"+field, p); err != nil {
				r.Fatal(err)
			}
			if err := insert("U-"+field, payload("behind", "")); err != nil {
				r.Fatal(err)
			}
		}
		w.until("everything was sent that can be", `SELECT count(*) = $1 AND count(*) FILTER (WHERE state NOT IN ('failed', 'queued')) = 0 FROM outbox.open_delivery`, 2*len(unmappable))

		for field := range unmappable {
			if n := ask[int](w, `SELECT count(*) FROM outbox.failed WHERE key = $1 AND error_class = 'mapping' AND strpos(error, $2) > 0 AND attempts = 0`, "U-"+field, field); n != 1 {
				r.Errorf("no delivery failed for the field %s", field)
			}
		}
		if n := ask[int](w, `SELECT count(*) FROM outbox.delivery_log AS l JOIN outbox.event AS e ON e.id = l.event_id AND e.key = l.key WHERE l.outcome = 'delivered'`); n != len(sent) {
			r.Errorf("the log has %d deliveries under the key of their event, want %d", n, len(sent))
		}
		calendar := w.court().Calendar()
		for id, want := range sent {
			var got struct {
				ID      string          `json:"case_reference"`
				Start   string          `json:"start_time"`
				Padding json.RawMessage `json:"padding"`
			}
			if err := json.Unmarshal(calendar[id].Fields, &got); err != nil || got.ID != id || got.Start != id {
				r.Errorf("%q arrived as %q and %q: %v", id, got.ID, got.Start, err)
			}
			// The same tokens. The database sorts them, and adds spaces.
			if padding := ask[string](w, `SELECT ($1::text::jsonb -> 'padding')::text`, want); tokens(padding) != tokens(string(got.Padding)) {
				r.Errorf("%q: the rest arrived as %.200s, want %.200s", id, got.Padding, padding)
			}
		}
		for _, e := range w.court().Ledger() {
			if w.logged(`event_id = $1 AND request_sha256 = $2`, e.IdempotencyKey, e.BodySHA256) == 0 {
				r.Errorf("the log has another digest of %s than the court", e.IdempotencyKey)
			}
		}
		w.exec(`SELECT outbox.discard(sync, event_id, 'cannot be sent') FROM outbox.failed`)
		w.drain(expected{})
	})
}

// tokens is a JSON text without the space between its tokens.
func tokens(text string) string {
	var b bytes.Buffer
	if err := json.Compact(&b, []byte(text)); err != nil {
		return err.Error()
	}
	return b.String()
}

// A delivery that was tried 400 times waits for the longest delay, and no longer.
func TestFault23BackoffAtAttempt400(t *testing.T) {
	scenario(t, func(r *run) {
		w := newWorld(r)
		w.register(relaySpec{})
		w.book("H-1")
		w.exec(`UPDATE outbox.delivery SET charged = 400, attempts = 400, total_attempts = 400`)
		w.court().faults(r, courtsim.Fault{Do: courtsim.Action{Status: 500}})
		w.start(relaySpec{})
		w.until("it failed once more", `SELECT count(*) = 1 FROM outbox.delivery WHERE state = 'retry' AND attempts > 400`)
		// The cap of these relays is half a second, and a fifth of it the jitter.
		if n := ask[int](w, `SELECT count(*) FROM outbox.delivery WHERE due_at > clock_timestamp() + interval '600 milliseconds'`); n > 0 {
			r.Error("the delivery waits for longer than the cap")
		}
		w.until("and again", `SELECT count(*) >= 3 FROM outbox.delivery_log WHERE attempt > 400`)
		if n := w.logged(`attempt = 401`); n != 1 {
			r.Errorf("the log has %d rows of attempt 401", n)
		}
		w.court().faults(r)
		w.drain(expected{})
	})
}

// Each court is behind a link with another fault. Meanwhile writers write events that all courts get.
func TestFault19bLinkToReceiver(t *testing.T) {
	toxic := func(kind, direction string, attributes map[string]any) func(*link) {
		return func(l *link) { l.harm(kind, direction, attributes) }
	}
	lost := courtsim.Fault{Match: courtsim.Match{Every: 4}, Do: courtsim.Action{Drop: courtsim.DropAfter}}
	cases := []struct {
		name  string
		harm  func(*link)
		court []courtsim.Fault
		shown string // condition on a row of the log: the fault was felt
	}{
		{name: "latency", harm: toxic("latency", answers, map[string]any{"latency": 100, "jitter": 80}), shown: `took_ms > 50`},
		{name: "slow-close", harm: toxic("slow_close", answers, map[string]any{"delay": 300}), court: []courtsim.Fault{lost}, shown: `outcome = 'unknown' AND took_ms >= 300`},
		{name: "bandwidth", harm: toxic("bandwidth", answers, map[string]any{"rate": 1}), shown: `took_ms > 100`},
		{name: "reset", harm: toxic("reset_peer", answers, map[string]any{"timeout": 0}), shown: `outcome = 'unknown'`},
		{name: "reset-requests", harm: toxic("reset_peer", requests, map[string]any{"timeout": 0}), shown: `outcome = 'unknown'`},
		{name: "slices", harm: toxic("slicer", answers, map[string]any{"average_size": 10, "size_variation": 5, "delay": 200}), shown: `outcome = 'delivered' AND attempt = 1`},
		{name: "limit", harm: toxic("limit_data", answers, map[string]any{"bytes": 700}), shown: `outcome = 'unknown'`},
		{name: "half-open", harm: toxic("timeout", answers, map[string]any{"timeout": 0}), shown: `outcome = 'unknown' AND error LIKE '%timeout%'`},
		{name: "swallowed", harm: toxic("timeout", requests, map[string]any{"timeout": 200}), shown: `outcome = 'unknown'`},
		{name: "cut", harm: (*link).cut, shown: `outcome = 'retry' AND error LIKE '%nothing was sent: connection refused'`},
	}
	scenario(t, func(r *run) {
		w := newWorld(r)
		links := map[string]*link{}
		syncs := []syncSpec{{Name: theSync}}
		for _, c := range cases {
			court := w.addCourt(c.name)
			links[c.name] = newLink(r, court.url)
			court.url = "http://" + links[c.name].Listen
			court.faults(r, c.court...)
			syncs = append(syncs, syncSpec{Name: c.name})
		}
		w.start(relaySpec{Syncs: syncs, Workers: 64})
		w.registered()
		l := w.begin(loadSpec{writers: 6, keys: 15, rate: 100})
		w.until("traffic everywhere", `SELECT count(DISTINCT sync) = $1 FROM outbox.delivery_log WHERE outcome = 'delivered'`, len(syncs))
		began := ask[time.Time](w, `SELECT clock_timestamp()`)
		for _, c := range cases {
			c.harm(links[c.name])
		}
		for _, c := range cases {
			w.until(c.name+" is felt", `SELECT EXISTS (SELECT FROM outbox.delivery_log WHERE sync = $1 AND at > $2 AND `+c.shown+`)`, c.name, began)
		}
		l.reaches(l.written.Load() + of[int64](50, 1000))
		for _, c := range cases {
			if c.name == "cut" {
				links[c.name].restore()
			} else {
				links[c.name].heal()
			}
			w.courts[c.name].faults(r)
		}
		l.reaches(l.written.Load() + of[int64](30, 300))
		l.stop()
		w.drain(expected{})
		if n := w.logged(`sync = 'slices' AND outcome <> 'delivered' AND error NOT LIKE '%timeout%'`); n > 0 {
			r.Errorf("%d attempts failed because answers came in slices", n)
		}
	})
}
