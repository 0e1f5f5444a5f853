package telemetry

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/hms-mkt/lockstep/outbox"
	"github.com/hms-mkt/lockstep/relay"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var _ relay.Observer = (*Metrics)(nil)

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func ready(context.Context) error { return nil }

func alive() error { return nil }

func ask(m *Metrics, ready func(context.Context) error, path string) (int, string) {
	w := httptest.NewRecorder()
	m.Handler(alive, ready).ServeHTTP(w, httptest.NewRequestWithContext(context.Background(), http.MethodGet, path, http.NoBody))
	return w.Code, w.Body.String()
}

func has(t *testing.T, metrics string, lines ...string) {
	t.Helper()
	for _, line := range lines {
		if !strings.Contains("\n"+metrics, "\n"+line+"\n") {
			t.Errorf("metrics lack %q", line)
		}
	}
}

func TestReportsOfTheRelayAreCounted(t *testing.T) {
	m := NewMetrics(Build{Version: "v1.2.3", Revision: "abc"})
	m.Expect("Court")
	m.Attempt("Court", "delivered", 20*time.Millisecond)
	m.Attempt("Court", "delivered", 2*time.Second)
	m.Claim("Court", 7, time.Millisecond)
	m.LeaseLost("Court")
	m.MissingID("Court")
	m.Clock(-1500 * time.Millisecond)
	_, text := ask(m, ready, "/metrics")
	has(t, text, "lockstep_log_months_ahead NaN") // before the first look there is no alarm
	m.LogAhead(3)
	m.Alert("lockstep:escalated", "Court", 4)
	code, text := ask(m, ready, "/metrics")
	if code != http.StatusOK {
		t.Fatalf("status %d", code)
	}
	has(t, text,
		`lockstep_attempts_total{outcome="delivered",sync="Court"} 2`,
		`lockstep_attempts_total{outcome="failed",sync="Court"} 0`,
		`lockstep_attempt_seconds_bucket{sync="Court",le="0.025"} 1`,
		`lockstep_attempt_seconds_count{sync="Court"} 2`,
		`lockstep_claim_seconds_count{sync="Court"} 1`,
		`lockstep_claimed_total{sync="Court"} 7`,
		`lockstep_leases_lost_total{sync="Court"} 1`,
		`lockstep_missing_ids_total{sync="Court"} 1`,
		`lockstep_alerts_told_total{event="escalated",sync="Court"} 4`,
		`lockstep_alerts_told_total{event="failed",sync="Court"} 0`,
		`lockstep_database_clock_ahead_seconds -1.5`,
		`lockstep_log_months_ahead 3`)
	for _, name := range []string{`version="v1.2.3"`, `revision="abc"`, "go_goroutines", "process_start_time_seconds"} {
		if !strings.Contains(text, name) {
			t.Errorf("metrics lack %s", name)
		}
	}
}

func standing() []outbox.Status {
	court, closed, hold, age := "Court", "Closed", "throttle", 90*time.Second
	at := time.Unix(1_800_000_000, 0)
	older, newer := "v1.2.2", "v1.2.3"
	relays := []outbox.RelaySeen{
		{Name: "a", Version: &older, Running: true},
		{Name: "b", Version: &newer, Running: true},
		{Name: "c", Version: &newer, Running: true},
		{Name: "died", Version: &newer},
		{Name: "embedded", Running: true},
	}
	return []outbox.Status{
		{
			Sync: &court, Hold: &hold, Pending: 1, Queued: 2, Retry: 3, Sending: 4, Failed: 5, BlockedKeys: 6, Missed: 7, Unconfirmed: 8, ReconciledAt: &at, Drift: map[string]int64{"missing": 9},
			OldestPendingAge: &age, LastDeliveredAt: &at,
			ScopeHolds: []outbox.ScopeHold{{Scope: "a.example", Hold: "breaker"}, {Scope: "b.example", Hold: "breaker"}, {Scope: "c.example", Hold: "operator"}},
			Relays:     relays[2:4],
		},
		{Sync: &closed, RetiredAt: &at},
		{Pending: 8, Relays: relays},
	}
}

// source is a database with some alerts.
type source func(context.Context) ([]outbox.Status, error)

func (s source) Status(ctx context.Context) ([]outbox.Status, error) { return s(ctx) }

func (source) Alerts(context.Context) ([]outbox.Alert, error) {
	court := "Court"
	return []outbox.Alert{{Name: "held", Severity: "warning", Sync: &court}, {Name: "held", Severity: "warning", Sync: &court}, {Name: "no_relay", Severity: "critical"}}, nil
}

func TestStateOfTheSyncsIsShown(t *testing.T) {
	m := NewMetrics(Build{})
	s := m.Watch(source(func(context.Context) ([]outbox.Status, error) { return standing(), nil }), quiet())
	defer s.Close()
	_, text := ask(m, ready, "/metrics")
	has(t, text,
		`lockstep_pending{sync="Court"} 1`, `lockstep_queued{sync="Court"} 2`, `lockstep_retry{sync="Court"} 3`,
		`lockstep_sending{sync="Court"} 4`, `lockstep_failed{sync="Court"} 5`, `lockstep_blocked_keys{sync="Court"} 6`, `lockstep_missed_events{sync="Court"} 7`, `lockstep_unconfirmed{sync="Court"} 8`, `lockstep_drift{kind="missing",sync="Court"} 9`, `lockstep_reconciled_timestamp_seconds{sync="Court"} 1.8e+09`,
		`lockstep_oldest_pending_age_seconds{sync="Court"} 90`, `lockstep_last_delivered_timestamp_seconds{sync="Court"} 1.8e+09`,
		`lockstep_sync_paused{kind="throttle",sync="Court"} 1`,
		`lockstep_scopes_paused{kind="breaker",sync="Court"} 2`, `lockstep_scopes_paused{kind="operator",sync="Court"} 1`, `lockstep_unmatched_events 8`, `lockstep_alerts{name="held",severity="warning",sync="Court"} 2`, `lockstep_alerts{name="no_relay",severity="critical",sync=""} 1`, `lockstep_status_up 1`,
		`lockstep_relays{version="v1.2.2"} 1`, `lockstep_relays{version="v1.2.3"} 2`, `lockstep_relays{version=""} 1`, `lockstep_sync_relays{sync="Court"} 1`, `lockstep_pending{sync="Closed"} 0`)
	if name := `lockstep_sync_relays{sync="Closed"}`; strings.Contains(text, name) {
		t.Errorf("metrics have %s of a retired sync", name)
	}
}

func TestScrapesShareOneReading(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := NewMetrics(Build{})
		var reads atomic.Int32
		s := m.Watch(source(func(context.Context) ([]outbox.Status, error) {
			reads.Add(1)
			return standing(), nil
		}), quiet())
		defer s.Close()
		for range 20 {
			ask(m, ready, "/metrics")
			time.Sleep(time.Second)
		}
		if got := reads.Load(); got != 2 {
			t.Errorf("%d readings in 20 s, want 2", got)
		}
	})
}

func TestASlowReadingIsRepeatedRarely(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := NewMetrics(Build{})
		var reads atomic.Int32
		s := m.Watch(source(func(context.Context) ([]outbox.Status, error) {
			reads.Add(1)
			time.Sleep(6 * time.Second)
			return standing(), nil
		}), quiet())
		defer s.Close()
		for range 60 {
			ask(m, ready, "/metrics")
			time.Sleep(time.Second)
		}
		if got := reads.Load(); got != 1 {
			t.Errorf("%d readings of 6 s within a minute, want 1", got)
		}
	})
}

func TestMetricsAnswerWhileTheDatabaseIsAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := NewMetrics(Build{})
		var mode atomic.Int32 // 0 answers, 1 hangs, 2 fails
		var logged strings.Builder
		s := m.Watch(source(func(ctx context.Context) ([]outbox.Status, error) {
			switch mode.Load() {
			case 1:
				<-ctx.Done()
				return nil, ctx.Err()
			case 2:
				return nil, errors.New("connection refused")
			}
			return standing(), nil
		}), slog.New(slog.NewTextHandler(&logged, nil)))
		defer s.Close()
		ask(m, ready, "/metrics")

		mode.Store(1)
		time.Sleep(sharedFor)
		began := time.Now()
		_, text := ask(m, ready, "/metrics")
		if took := time.Since(began); took != scrapeWait {
			t.Errorf("the scrape took %s, want %s", took, scrapeWait)
		}
		has(t, text, `lockstep_pending{sync="Court"} 1`) // the last reading
		time.Sleep(readTimeout)
		_, text = ask(m, ready, "/metrics")
		has(t, text, `lockstep_status_up 0`)

		mode.Store(2)
		time.Sleep(2 * time.Minute)
		code, text := ask(m, ready, "/metrics")
		if code != http.StatusOK || strings.Contains(text, "lockstep_pending{") {
			t.Errorf("status %d; an old reading is still shown: %s", code, text)
		}
		has(t, text, `lockstep_status_up 0`)
		if n := strings.Count(logged.String(), "cannot read"); n != 1 {
			t.Errorf("logged %d times, want once per outage: %s", n, logged.String())
		}

		mode.Store(0)
		time.Sleep(2 * time.Minute)
		_, text = ask(m, ready, "/metrics")
		has(t, text, `lockstep_status_up 1`, `lockstep_pending{sync="Court"} 1`)
	})
}

func TestCloseEndsAReading(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := NewMetrics(Build{})
		s := m.Watch(source(func(ctx context.Context) ([]outbox.Status, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}), quiet())
		ask(m, ready, "/metrics")
		s.Close()
		code, text := ask(m, ready, "/metrics")
		if code != http.StatusOK {
			t.Errorf("status %d", code)
		}
		has(t, text, `lockstep_status_up 0`)
	})
}

func TestReadyzSaysWhyARelayIsNotReady(t *testing.T) {
	m := NewMetrics(Build{})
	failing := func(context.Context) error { return errors.New("pipeline of sync \"Court\"\nhas not looked for work") }
	for name, tc := range map[string]struct {
		path  string
		ready func(context.Context) error
		code  int
		text  string
	}{
		"alive":         {"/livez", failing, 200, "ok\n"},
		"ready":         {"/readyz", ready, 200, "ready\n"},
		"not ready":     {"/readyz", failing, 503, "not ready: pipeline of sync \"Court\" has not looked for work\n"},
		"anything else": {"/", ready, 404, "404 page not found\n"},
	} {
		t.Run(name, func(t *testing.T) {
			code, text := ask(m, tc.ready, tc.path)
			if code != tc.code || text != tc.text {
				t.Errorf("got %d %q, want %d %q", code, text, tc.code, tc.text)
			}
		})
	}
}

func TestReadinessHasADeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		code, text := ask(NewMetrics(Build{}), func(ctx context.Context) error {
			<-ctx.Done()
			return ctx.Err()
		}, "/readyz")
		if code != http.StatusServiceUnavailable || !strings.Contains(text, "longer than 3s") {
			t.Errorf("got %d %q", code, text)
		}
	})
}

func TestServeUntilClosed(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := Serve(l, NewMetrics(Build{}).Handler(alive, ready), quiet())
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+l.Addr().String()+"/livez", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(resp.Body)
	_ = resp.Body.Close()
	if err != nil || string(b) != "ok\n" {
		t.Errorf("got %q, %v", b, err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if resp, err := client.Do(req); err == nil {
		_ = resp.Body.Close()
		t.Error("still serves")
	}
}

func TestAStalledProcessIsNotAlive(t *testing.T) {
	stalled := func() error { return errors.New("stalled: recording 1 for sync Court takes 31s") }
	w := httptest.NewRecorder()
	NewMetrics(Build{}).Handler(stalled, ready).ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/livez", http.NoBody))
	if w.Code != http.StatusServiceUnavailable || w.Body.String() != "not alive: stalled: recording 1 for sync Court takes 31s\n" {
		t.Errorf("got %d %s", w.Code, w.Body)
	}
}
