// Package telemetry serves a relay's Prometheus metrics and health endpoints.
//
// [Metrics] counts what the relay reports. At each scrape it adds the state of the
// syncs in the database. All scrapes within some seconds share one reading, and a
// reading has a deadline, so /metrics answers even if the database does not.
package telemetry

import (
	"math"
	"runtime"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/hms-mkt/lockstep/outbox"
)

// Metrics are the relay's metrics with a registry of their own. They implement
// relay.Observer and are safe for concurrent use.
type Metrics struct {
	registry *prometheus.Registry
	attempts *prometheus.CounterVec
	took     *prometheus.HistogramVec
	claims   *prometheus.HistogramVec
	claimed  *prometheus.CounterVec
	lost     *prometheus.CounterVec
	noID     *prometheus.CounterVec
	told     *prometheus.CounterVec
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
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	metric := promauto.With(registry)
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return metric.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	}
	histogram := func(name, help string, buckets ...float64) *prometheus.HistogramVec {
		return metric.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets}, []string{"sync"})
	}
	gauge := func(name, help string) prometheus.Gauge {
		return metric.NewGauge(prometheus.GaugeOpts{Name: name, Help: help})
	}
	m := &Metrics{
		registry: registry,
		attempts: counter("lockstep_attempts_total", "Attempts made by this process, by outcome as in the delivery log.", "sync", "outcome"),
		took: histogram("lockstep_attempt_seconds", "Duration of attempts, from the request to the answer.",
			.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 15, 30, 60),
		claims: histogram("lockstep_claim_seconds", "Duration of the statements that claim deliveries.",
			.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 5),
		claimed:  counter("lockstep_claimed_total", "Deliveries claimed by this process.", "sync"),
		lost:     counter("lockstep_leases_lost_total", "Deliveries that another relay took over before this one recorded them.", "sync"),
		noID:     counter("lockstep_missing_ids_total", "Answers without the receiver's id that external_id names, although no id of the key is known.", "sync"),
		told:     counter("lockstep_alerts_told_total", "Operator events that this process told, by type without lockstep: , and counted by what they are about: failed deliveries, escalated keys, or destinations on hold.", "sync", "event"),
		clock:    gauge("lockstep_database_clock_ahead_seconds", "Seconds that the database's clock is ahead of this machine's; negative is behind."),
		logAhead: gauge("lockstep_log_months_ahead", "Months after this one for which the delivery log has a partition: 3 is normal, 0 and -1 are an alarm."),
		reloadOK: gauge("lockstep_config_last_reload_successful", "1 if the configuration that was read last is in use, 0 if it was refused."),
		reloaded: gauge("lockstep_config_last_reload_success_timestamp_seconds", "When the configuration in use was read, in Unix time."),
	}
	m.logAhead.Set(math.NaN()) // not known yet, so there is no alarm
	m.Reloaded(true)
	metric.NewGauge(prometheus.GaugeOpts{
		Name:        "lockstep_build_info",
		Help:        "Always 1; the labels say which program runs.",
		ConstLabels: prometheus.Labels{"version": build.Version, "revision": build.Revision, "goversion": runtime.Version()},
	}).Set(1)
	return m
}

// Expect makes the metrics of these syncs appear before their first event, so
// that a rate includes it.
func (m *Metrics) Expect(syncs ...string) {
	for _, s := range syncs {
		for _, outcome := range []string{"delivered", "retry", "failed", "unknown"} {
			m.attempts.WithLabelValues(s, outcome)
		}
		m.claimed.WithLabelValues(s)
		m.lost.WithLabelValues(s)
		m.noID.WithLabelValues(s)
		for _, event := range []string{"failed", "escalated"} {
			m.told.WithLabelValues(s, event)
		}
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

// LeaseLost counts a delivery that another relay took over.
func (m *Metrics) LeaseLost(sync string) { m.lost.WithLabelValues(sync).Inc() }

// MissingID counts an answer without the receiver's id.
func (m *Metrics) MissingID(sync string) { m.noID.WithLabelValues(sync).Inc() }

// Alert counts what an operator event told.
func (m *Metrics) Alert(event, sync string, n int64) {
	m.told.WithLabelValues(sync, strings.TrimPrefix(event, outbox.OperatorEvents)).Add(float64(n))
}

// Reloaded records that the configuration was read, at the start or later, and whether
// it is in use.
func (m *Metrics) Reloaded(ok bool) {
	if !ok {
		m.reloadOK.Set(0)
		return
	}
	m.reloadOK.Set(1)
	m.reloaded.SetToCurrentTime()
}

// Clock records how far the database's clock is ahead of this machine's.
func (m *Metrics) Clock(ahead time.Duration) { m.clock.Set(ahead.Seconds()) }

// LogAhead records for how many months after this one the delivery log has a partition.
func (m *Metrics) LogAhead(months int) { m.logAhead.Set(float64(months)) }
