package telemetry

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/hms-mkt/lockstep/outbox"
)

const (
	fresh     = 10 * time.Second // a reading serves all scrapes for this long
	deadline  = 8 * time.Second  // of one reading
	patience  = time.Second      // how long a scrape waits for a new reading
	worthless = time.Minute      // an older reading is not shown any more
	restraint = 10               // the pause between readings is at least this many times a reading's duration
)

// Read returns how the syncs stand, as outbox.Store.Status does.
type Read func(ctx context.Context) ([]outbox.Status, error)

// Status is the part of the metrics that is read from the database. Close
// waits for a reading under way.
type Status struct {
	read Read
	log  *slog.Logger
	ctx  context.Context // ends readings at Close
	end  context.CancelFunc

	mu      sync.Mutex
	rows    []outbox.Status
	at      time.Time     // of rows
	next    time.Time     // no reading before
	reading chan struct{} // closed at the end of the reading under way, else nil
	failed  bool          // the last reading
}

// Watch adds the syncs' standing to m. Close the result when read may not be
// called any more.
func (m *Metrics) Watch(read Read, log *slog.Logger) *Status {
	ctx, end := context.WithCancel(context.Background())
	s := &Status{read: read, log: log, ctx: ctx, end: end}
	m.registry.MustRegister(s)
	return s
}

// Close ends the reading under way and prevents further ones.
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
func (s *Status) latest() (rows []outbox.Status, at time.Time, ok bool) {
	s.mu.Lock()
	if s.reading == nil && s.ctx.Err() == nil && !time.Now().Before(s.next) {
		s.reading = make(chan struct{})
		go s.refresh(s.reading)
	}
	reading := s.reading
	s.mu.Unlock()
	if reading != nil {
		t := time.NewTimer(patience)
		defer t.Stop()
		select {
		case <-reading:
		case <-t.C:
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.rows, s.at, !s.failed
}

func (s *Status) refresh(done chan struct{}) {
	ctx, cancel := context.WithTimeout(s.ctx, deadline)
	defer cancel()
	began := time.Now()
	rows, err := s.read(ctx)
	took := time.Since(began)

	s.mu.Lock()
	defer s.mu.Unlock()
	defer close(done)
	if err != nil && !s.failed && s.ctx.Err() == nil {
		s.log.WarnContext(ctx, "metrics: cannot read how the syncs stand", "error", err)
	}
	if s.failed = err != nil; !s.failed {
		s.rows, s.at = rows, time.Now()
	}
	s.next = time.Now().Add(max(fresh, restraint*took))
	s.reading = nil
}

// gauge is a metric of each sync.
type gauge struct {
	desc  *prometheus.Desc
	value func(outbox.Status) (float64, bool)
}

func bySync(name, help string, value func(outbox.Status) (float64, bool)) gauge {
	return gauge{prometheus.NewDesc("lockstep_"+name, help, []string{"sync"}, nil), value}
}

func count(of func(outbox.Status) int64) func(outbox.Status) (float64, bool) {
	return func(s outbox.Status) (float64, bool) { return float64(of(s)), true }
}

func gauges() []gauge {
	return []gauge{
		bySync("pending", "Deliveries that can be claimed once due.", count(func(s outbox.Status) int64 { return s.Pending })),
		bySync("queued", "Deliveries behind an earlier event of their key.", count(func(s outbox.Status) int64 { return s.Queued })),
		bySync("retry", "Deliveries that wait for their next attempt.", count(func(s outbox.Status) int64 { return s.Retry })),
		bySync("sending", "Deliveries claimed by a relay.", count(func(s outbox.Status) int64 { return s.Sending })),
		bySync("failed", "Deliveries that wait for an operator.", count(func(s outbox.Status) int64 { return s.Failed })),
		bySync("blocked_keys", "Keys whose first unfinished event is failed or in retry and has others behind it.", count(func(s outbox.Status) int64 { return s.BlockedKeys })),
		bySync("oldest_pending_age_seconds", "Age of the oldest delivery that is neither finished nor failed; 0 when there is none.", func(s outbox.Status) (float64, bool) {
			if s.OldestPendingAge == nil {
				return 0, true
			}
			return s.OldestPendingAge.Seconds(), true
		}),
		bySync("last_delivered_timestamp_seconds", "When something was delivered last, in Unix time.", func(s outbox.Status) (float64, bool) {
			if s.LastDeliveredAt == nil {
				return 0, false
			}
			return float64(s.LastDeliveredAt.UnixNano()) / float64(time.Second), true
		}),
	}
}

func pausedDesc() *prometheus.Desc {
	return prometheus.NewDesc("lockstep_sync_paused", "1 for a sync on hold; kind is the strongest hold, such as operator, auth or throttle.", []string{"sync", "kind"}, nil)
}

func scopesPausedDesc() *prometheus.Desc {
	return prometheus.NewDesc("lockstep_scopes_paused", "Scopes of a sync that are on hold, such as its hosts; kind is their strongest hold. outbox.status names them.", []string{"sync", "kind"}, nil)
}

func unmatchedDesc() *prometheus.Desc {
	return prometheus.NewDesc("lockstep_unmatched_events", "Retained events that no sync matches.", nil, nil)
}

func upDesc() *prometheus.Desc {
	return prometheus.NewDesc("lockstep_status_up", "1 if the last reading of the syncs' standing succeeded, else 0.", nil, nil)
}

// Describe implements [prometheus.Collector].
func (s *Status) Describe(ch chan<- *prometheus.Desc) {
	for _, g := range gauges() {
		ch <- g.desc
	}
	ch <- pausedDesc()
	ch <- scopesPausedDesc()
	ch <- unmatchedDesc()
	ch <- upDesc()
}

// Collect implements [prometheus.Collector].
func (s *Status) Collect(ch chan<- prometheus.Metric) {
	rows, at, ok := s.latest()
	up := 0.0
	if ok && !at.IsZero() {
		up = 1
	}
	ch <- prometheus.MustNewConstMetric(upDesc(), prometheus.GaugeValue, up)
	if at.IsZero() || time.Since(at) > worthless {
		return
	}
	for _, row := range rows {
		if row.Sync == nil {
			ch <- prometheus.MustNewConstMetric(unmatchedDesc(), prometheus.GaugeValue, float64(row.Pending))
			continue
		}
		for _, g := range gauges() {
			if v, ok := g.value(row); ok {
				ch <- prometheus.MustNewConstMetric(g.desc, prometheus.GaugeValue, v, *row.Sync)
			}
		}
		if row.Hold != nil {
			ch <- prometheus.MustNewConstMetric(pausedDesc(), prometheus.GaugeValue, 1, *row.Sync, *row.Hold)
		}
		scopes := map[string]float64{} // by kind: the scopes themselves are as many as data makes them
		for _, h := range row.ScopeHolds {
			scopes[h.Hold]++
		}
		for kind, n := range scopes {
			ch <- prometheus.MustNewConstMetric(scopesPausedDesc(), prometheus.GaugeValue, n, *row.Sync, kind)
		}
	}
}
