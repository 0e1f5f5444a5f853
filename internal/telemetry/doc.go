// Package telemetry shows how a relay is doing: Prometheus metrics and the
// health endpoints.
//
// [Metrics] counts what the relay tells it and adds, at each scrape, how the
// syncs stand in the database. That reading is shared by the scrapes of some
// seconds and has a deadline: /metrics answers also while the database is away.
package telemetry
