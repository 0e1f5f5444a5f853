package config

import (
	"fmt"
	"time"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/relay/mapping"
)

// File is a configuration that was found valid, with its defaults filled in.
type File struct {
	Database  Database
	Relay     RelaySettings
	Listen    string // address of health and metrics
	Retention Retention
	Syncs     []Sync

	shown *shown
}

// Database says where the outbox is.
type Database struct {
	URL            adapters.Secret // may be empty when the command line names the database
	MaxConnections int
}

// RelaySettings are those of one relay process.
type RelaySettings struct {
	Workers int           // deliveries in flight
	Poll    time.Duration // longest pause between polls
	Lease   time.Duration // how long a claim holds
	Drain   time.Duration // how long a stop waits for deliveries under way
	Name    string        // claimed_by; empty lets the process name itself
}

// Retention says how long finished things are kept.
type Retention struct {
	Events Period
	Log    Period
}

// Period is a length of time of which months are calendar months.
type Period struct {
	Months   int
	Duration time.Duration
}

// Interval returns p as PostgreSQL's interval type reads it.
func (p Period) Interval() string {
	return fmt.Sprintf("%d months %d microseconds", p.Months, p.Duration.Microseconds())
}

// Sync is one named connection.
type Sync struct {
	Name        string
	Patterns    []string // event types; * stands for any characters
	When        string   // condition; empty means always
	From        string   // beginning, now, an RFC 3339 time, or empty
	Notify      bool
	AdapterKind string
	Adapter     adapters.Adapter
	Mapping     mapping.Mapping
	OnFailed    string // block or supersede
	Retry       Retry
	Per         string  // expression that names an event's destination; empty means the host
	Concurrency int     // deliveries in flight of this sync, with Per to each destination
	Rate        float64 // deliveries per second, with Per to each destination; 0 means no limit

	// Put is what ${…} put into the condition, the mapping and the computed
	// fields: it may be a secret, and is part of what is sent.
	Put        []adapters.Secret
	AdapterPut []adapters.Secret // the same of the adapter
}

// Retry is the schedule of a sync's retries.
type Retry struct {
	Initial  time.Duration
	Max      time.Duration
	Jitter   float64 // 0 to 1
	MaxAge   time.Duration
	Attempts int // 0 means no bound
}
