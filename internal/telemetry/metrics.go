package telemetry

import (
	"math"
	"runtime"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

// Metrics is a registry of its own with the relay's metrics. It implements
// relay.Observer and is safe for concurrent use.
type Metrics struct {
	registry *prometheus.Registry
	attempts *prometheus.CounterVec
	took     *prometheus.HistogramVec
	claims   *prometheus.HistogramVec
	claimed  *prometheus.CounterVec
	lost     *prometheus.CounterVec
	clock    prometheus.Gauge
	logAhead prometheus.Gauge
	reloadOK prometheus.Gauge
	reloaded prometheus.Gauge
}

// Build says which program runs.
type Build struct {
	Version  string
	Revision string
}

// NewMetrics returns metrics with everything at zero.
func NewMetrics(build Build) *Metrics {
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		attempts: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "lockstep_attempts_total",
			Help: "Attempts made by this process, by outcome as in the delivery log.",
		}, []string{"sync", "outcome"}),
		took: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "lockstep_attempt_seconds",
			Help:    "Duration of attempts, from the request to the answer.",
			Buckets: []float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 15, 30, 60},
		}, []string{"sync"}),
		claims: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "lockstep_claim_seconds",
			Help:    "Duration of the statements that claim deliveries.",
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 5},
		}, []string{"sync"}),
		claimed: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "lockstep_claimed_total",
			Help: "Deliveries claimed by this process.",
		}, []string{"sync"}),
		lost: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "lockstep_leases_lost_total",
			Help: "Deliveries that another relay took over before this one had recorded them.",
		}, []string{"sync"}),
		clock: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "lockstep_database_clock_ahead_seconds",
			Help: "By how much the database's clock is ahead of this machine's; negative is behind.",
		}),
		logAhead: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "lockstep_log_months_ahead",
			Help: "For how many months after this one the delivery log has its partition: 3 is well, 0 and -1 are an alarm.",
		}),
	}
	m.logAhead.Set(math.NaN()) // not known yet: no alarm
	m.reloadOK = prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "lockstep_config_last_reload_successful",
		Help: "1 if the configuration that was read last is the one in force, 0 if it was refused.",
	})
	m.reloaded = prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "lockstep_config_last_reload_success_timestamp_seconds",
		Help: "When the configuration in force was read, in Unix time.",
	})
	m.Reloaded(true)
	info := prometheus.NewGauge(prometheus.GaugeOpts{
		Name:        "lockstep_build_info",
		Help:        "Always 1; the labels say which program runs.",
		ConstLabels: prometheus.Labels{"version": build.Version, "revision": build.Revision, "goversion": runtime.Version()},
	})
	info.Set(1)
	m.registry.MustRegister(m.attempts, m.took, m.claims, m.claimed, m.lost, m.clock, m.logAhead, m.reloadOK, m.reloaded, info,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// Expect makes the metrics of these syncs appear before anything happened, so
// that a rate over the first event is not lost.
func (m *Metrics) Expect(syncs ...string) {
	for _, s := range syncs {
		for _, outcome := range []string{"delivered", "retry", "failed", "unknown"} {
			m.attempts.WithLabelValues(s, outcome)
		}
		m.claimed.WithLabelValues(s)
		m.lost.WithLabelValues(s)
	}
}

// Attempt counts an attempt.
func (m *Metrics) Attempt(sync, outcome string, took time.Duration) {
	m.attempts.WithLabelValues(sync, outcome).Inc()
	m.took.WithLabelValues(sync).Observe(took.Seconds())
}

// Claim counts a claim.
func (m *Metrics) Claim(sync string, claimed int, took time.Duration) {
	m.claims.WithLabelValues(sync).Observe(took.Seconds())
	m.claimed.WithLabelValues(sync).Add(float64(claimed))
}

// LeaseLost counts a delivery that was taken over.
func (m *Metrics) LeaseLost(sync string) { m.lost.WithLabelValues(sync).Inc() }

// Reloaded notes that the configuration was read, at the start or later, and
// whether it was taken over.
func (m *Metrics) Reloaded(ok bool) {
	if !ok {
		m.reloadOK.Set(0)
		return
	}
	m.reloadOK.Set(1)
	m.reloaded.SetToCurrentTime()
}

// Clock notes by how much the database's clock is ahead.
func (m *Metrics) Clock(ahead time.Duration) { m.clock.Set(ahead.Seconds()) }

// LogAhead notes for how many months after this one the log has its partition.
func (m *Metrics) LogAhead(months int) { m.logAhead.Set(float64(months)) }
