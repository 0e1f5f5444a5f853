package telemetry

import (
	"context"
	"log/slog"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/hms-mkt/lockstep/outbox"
)

const (
	sharedFor   = 10 * time.Second // a reading serves all scrapes for this long
	readTimeout = 8 * time.Second
	scrapeWait  = time.Second // how long a scrape waits for a new reading
	shownFor    = time.Minute // an older reading is not shown any more
	pauseFactor = 10          // the pause between readings is at least this many times the duration of the last one
)

// Source is where the state of the database is read from: an outbox.Store.
type Source interface {
	Status(ctx context.Context) ([]outbox.Status, error)
	Alerts(ctx context.Context) ([]outbox.Alert, error)
}

// Status is the part of the metrics that comes from the database.
type Status struct {
	from Source
	log  *slog.Logger
	ctx  context.Context // ends readings at Close
	end  context.CancelFunc

	up, paused, scopesPaused, unmatched, relays, alert, drift *prometheus.Desc
	gauges                                                    []gauge

	mu      sync.Mutex
	rows    []outbox.Status
	alerts  []outbox.Alert
	at      time.Time     // when rows and alerts were read
	next    time.Time     // no reading before this time
	reading chan struct{} // closed when the current reading ends, nil without one
	failed  bool          // the last reading failed
}

// gauge is a metric of each sync. A value that is not known is NaN.
type gauge struct {
	desc  *prometheus.Desc
	value func(outbox.Status) float64
}

// Watch adds the state of the syncs to m. Close the result before the source becomes
// unusable.
func (m *Metrics) Watch(from Source, log *slog.Logger) *Status {
	ctx, end := context.WithCancel(context.Background())
	metric := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(name, help, labels, nil)
	}
	bySync := func(name, help string, value func(outbox.Status) float64) gauge {
		return gauge{metric(name, help, "sync"), value}
	}
	s := &Status{
		from: from, log: log, ctx: ctx, end: end,
		up:           metric("lockstep_status_up", "1 if the last reading of the syncs' state succeeded, 0 if not."),
		paused:       metric("lockstep_sync_paused", "1 for a sync on hold; kind is the strongest hold, such as operator, auth or throttle.", "sync", "kind"),
		scopesPaused: metric("lockstep_scopes_paused", "Scopes of a sync that are on hold, such as its hosts; kind is their strongest hold. outbox.status names them.", "sync", "kind"),
		alert:        metric("lockstep_alerts", "Rows of outbox.alert: what people must know now. The view has a sentence and a remedy for each.", "name", "severity", "sync"),
		unmatched:    metric("lockstep_unmatched_events", "Retained events that no sync matches."),
		drift:        metric("lockstep_drift", "Keys that differed at the receiver when lockstep reconcile last compared; kind is missing, different, cancelled, newer, doubled or extra.", "sync", "kind"),
		relays:       metric("lockstep_relays", "Running relays of this database, by their version.", "version"),
		gauges: []gauge{
			bySync("lockstep_sync_relays", "Running relays that serve the sync. A retired sync needs none and is not shown.", func(s outbox.Status) float64 {
				if s.RetiredAt != nil {
					return math.NaN()
				}
				return float64(len(running(s.Relays)))
			}),
			bySync("lockstep_pending", "Deliveries that can be claimed once due.", func(s outbox.Status) float64 { return float64(s.Pending) }),
			bySync("lockstep_queued", "Deliveries that wait behind an earlier one of their key.", func(s outbox.Status) float64 { return float64(s.Queued) }),
			bySync("lockstep_retry", "Deliveries that wait for their next attempt.", func(s outbox.Status) float64 { return float64(s.Retry) }),
			bySync("lockstep_sending", "Deliveries claimed by a relay.", func(s outbox.Status) float64 { return float64(s.Sending) }),
			bySync("lockstep_failed", "Deliveries that wait for an operator.", func(s outbox.Status) float64 { return float64(s.Failed) }),
			bySync("lockstep_blocked_keys", "Keys whose first delivery is failed or in retry, with others behind it.", func(s outbox.Status) float64 { return float64(s.BlockedKeys) }),
			bySync("lockstep_reconciled_timestamp_seconds", "Time at which lockstep reconcile last compared, in Unix time.", func(s outbox.Status) float64 {
				if s.ReconciledAt == nil {
					return math.NaN()
				}
				return float64(s.ReconciledAt.UnixNano()) / float64(time.Second)
			}),
			bySync("lockstep_unconfirmed", "Keys whose last event the receiver took for later processing and has not confirmed. outbox.unconfirmed lists them.", func(s outbox.Status) float64 { return float64(s.Unconfirmed) }),
			bySync("lockstep_missed_events", "Events without a delivery, because they were written with triggers off. lockstep repair adds the deliveries.", func(s outbox.Status) float64 { return float64(s.Missed) }),
			bySync("lockstep_oldest_pending_age_seconds", "Age of the oldest delivery that is neither finished nor failed; 0 when there is none.", func(s outbox.Status) float64 {
				if s.OldestPendingAge == nil {
					return 0
				}
				return s.OldestPendingAge.Seconds()
			}),
			bySync("lockstep_last_delivered_timestamp_seconds", "Time of the last delivery, in Unix time.", func(s outbox.Status) float64 {
				if s.LastDeliveredAt == nil {
					return math.NaN()
				}
				return float64(s.LastDeliveredAt.UnixNano()) / float64(time.Second)
			}),
		},
	}
	m.registry.MustRegister(s)
	return s
}

// Close cancels the current reading, waits for its end, and prevents further ones.
func (s *Status) Close() {
	s.end()
	s.mu.Lock()
	reading := s.reading
	s.mu.Unlock()
	if reading != nil {
		<-reading
	}
}

// latest returns the last reading, after asking for a new one if it is due.
func (s *Status) latest() (rows []outbox.Status, alerts []outbox.Alert, at time.Time, ok bool) {
	s.mu.Lock()
	if s.reading == nil && s.ctx.Err() == nil && !time.Now().Before(s.next) {
		s.reading = make(chan struct{})
		go s.refresh(s.reading)
	}
	reading := s.reading
	s.mu.Unlock()
	if reading != nil {
		select {
		case <-reading:
		case <-time.After(scrapeWait):
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.rows, s.alerts, s.at, !s.failed
}

func (s *Status) refresh(done chan struct{}) {
	ctx, cancel := context.WithTimeout(s.ctx, readTimeout)
	defer cancel()
	began := time.Now()
	rows, err := s.from.Status(ctx)
	var alerts []outbox.Alert
	if err == nil {
		alerts, err = s.from.Alerts(ctx)
	}
	took := time.Since(began)

	s.mu.Lock()
	defer s.mu.Unlock()
	defer close(done)
	if err != nil && !s.failed && s.ctx.Err() == nil {
		s.log.WarnContext(ctx, "metrics: cannot read the state of the syncs", "error", err)
	}
	if s.failed = err != nil; !s.failed {
		s.rows, s.alerts, s.at = rows, alerts, time.Now()
	}
	s.next = time.Now().Add(max(sharedFor, pauseFactor*took))
	s.reading = nil
}

// Describe implements [prometheus.Collector].
func (s *Status) Describe(ch chan<- *prometheus.Desc) {
	for _, g := range s.gauges {
		ch <- g.desc
	}
	ch <- s.up
	ch <- s.paused
	ch <- s.scopesPaused
	ch <- s.unmatched
	ch <- s.relays
	ch <- s.alert
	ch <- s.drift
}

// Collect implements [prometheus.Collector].
func (s *Status) Collect(ch chan<- prometheus.Metric) {
	send := func(desc *prometheus.Desc, value float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, value, labels...)
	}
	rows, alerts, at, ok := s.latest()
	if ok && !at.IsZero() {
		send(s.up, 1)
	} else {
		send(s.up, 0)
	}
	if time.Since(at) > shownFor {
		return
	}
	alike := map[[3]string]float64{}
	for _, a := range alerts {
		alike[[3]string{a.Name, a.Severity, aboutSync(a)}]++
	}
	for labels, n := range alike {
		send(s.alert, n, labels[:]...)
	}
	for _, row := range rows {
		if row.Sync == nil {
			send(s.unmatched, float64(row.Pending))
			versions := map[string]float64{}
			for _, r := range running(row.Relays) {
				version := ""
				if r.Version != nil {
					version = *r.Version
				}
				versions[version]++
			}
			for version, n := range versions {
				send(s.relays, n, version)
			}
			continue
		}
		for _, g := range s.gauges {
			if v := g.value(row); !math.IsNaN(v) {
				send(g.desc, v, *row.Sync)
			}
		}
		for kind, n := range row.Drift {
			send(s.drift, float64(n), *row.Sync, kind)
		}
		if row.Hold != nil {
			send(s.paused, 1, *row.Sync, *row.Hold)
		}
		scopes := map[string]float64{} // counted by kind, because data decides how many scopes there are
		for _, h := range row.ScopeHolds {
			scopes[h.Hold]++
		}
		for kind, n := range scopes {
			send(s.scopesPaused, n, *row.Sync, kind)
		}
	}
}

// aboutSync is the sync that an alert is about, empty if it is about the whole database.
func aboutSync(a outbox.Alert) string {
	if a.Sync == nil {
		return ""
	}
	return *a.Sync
}

// running returns the relays that are running, without those that died or hang.
func running(relays []outbox.RelaySeen) []outbox.RelaySeen {
	return slices.DeleteFunc(slices.Clone(relays), func(r outbox.RelaySeen) bool { return !r.Running })
}
