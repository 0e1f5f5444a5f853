package config

import (
	"time"

	"github.com/hms-mkt/lockstep/adapters"
)

// The structs below are the file as it is written; their tags are the single
// source of defaults, bounds and descriptions.

type fileSpec struct {
	Database  databaseSpec  `yaml:"database" doc:"Where the outbox is."`
	Relay     relaySpec     `yaml:"relay" doc:"Settings of one relay process."`
	Listen    string        `yaml:"listen" default:"127.0.0.1:9464" doc:"Address of health and metrics, host:port."`
	Retention retentionSpec `yaml:"retention" doc:"How long finished things are kept. The database's outbox.retention rules where it is longer; only the owner of the tables shortens it."`
	Syncs     []syncSpec    `yaml:"syncs" doc:"The connections, each with a name of its own."`
}

type databaseSpec struct {
	URL            adapters.Secret `yaml:"url" doc:"Connection URL or keyword string of PostgreSQL. May be left out when --database-url is given."`
	MaxConnections int             `yaml:"max_connections" default:"8" min:"1" max:"1000" doc:"Connections this process opens at most."`
}

type relaySpec struct {
	Workers int           `yaml:"workers" default:"32" min:"1" max:"10000" doc:"Deliveries in flight in this process."`
	Poll    time.Duration `yaml:"poll" default:"50ms" min:"1ms" max:"1m" doc:"Longest pause between polls; much shorter while there is work."`
	Lease   time.Duration `yaml:"lease" default:"60s" min:"1s" max:"1h" doc:"How long a claim holds; at least twice the timeout of every adapter."`
	Drain   time.Duration `yaml:"drain" default:"20s" min:"0s" max:"1h" doc:"How long a stop waits for deliveries under way."`
	Name    string        `yaml:"name" doc:"Name of this relay in claimed_by and in the log; by default host name, process id and a random part."`
}

type retentionSpec struct {
	Events Period `yaml:"events" default:"90d" min:"1d" max:"1200mo" doc:"How long an event is kept after everything about it is finished."`
	Log    Period `yaml:"log" default:"84mo" min:"1mo" max:"1200mo" doc:"How long the delivery log is kept; whole months are dropped."`
}

type syncSpec struct {
	Name     string      `yaml:"name" required:"true" doc:"Name of the sync, 1 to 63 characters of A-Z a-z 0-9 _ . -"`
	Event    string      `yaml:"event" doc:"One event type, or a pattern in which * stands for any characters. Use event or events."`
	Events   []string    `yaml:"events" doc:"Event types or patterns. Use event or events."`
	When     string      `yaml:"when" doc:"Condition over event, type, key, version and headers; events that do not meet it are filtered."`
	From     string      `yaml:"from" doc:"Where a sync that is added to others begins: beginning, now, or an RFC 3339 time."`
	Notify   bool        `yaml:"notify" default:"false" doc:"Also wake relays by NOTIFY. Costs the writers and makes PREPARE TRANSACTION fail."`
	Adapter  adapterSpec `yaml:"adapter" required:"true" doc:"The protocol of the receiver and its settings."`
	Mapping  mappingSpec `yaml:"mapping" doc:"Fields of the payload and what they are called at the receiver, in the order they are sent. Without mapping and compute the payload is sent as it is."`
	Compute  computeSpec `yaml:"compute" doc:"Further fields, each with an expression."`
	OnFailed string      `yaml:"on_failed" default:"block" oneof:"block|supersede" doc:"What becomes of a key behind a failed event."`
	Retry    retrySpec   `yaml:"retry" doc:"When a delivery that failed for now is tried again."`
	Limits   limitsSpec  `yaml:"limits" doc:"What this process sends at most."`
}

type retrySpec struct {
	Initial  time.Duration `yaml:"initial" default:"1s" min:"1ms" max:"1h" doc:"Pause before the first retry; it doubles with each."`
	Max      time.Duration `yaml:"max" default:"15m" min:"1ms" max:"7d" doc:"Longest pause."`
	Jitter   percent       `yaml:"jitter" default:"20%" doc:"How far a pause is moved at random, as a share of it."`
	MaxAge   time.Duration `yaml:"max_age" default:"72h" min:"1s" max:"365d" doc:"Time since the first attempt, less the time on hold, after which a delivery is failed."`
	Attempts int           `yaml:"attempts" default:"0" min:"0" max:"1000000" doc:"Attempts after which a delivery is failed; 0 is no bound."`
}

type limitsSpec struct {
	Per         string `yaml:"per" doc:"Expression that names the destination of an event, such as event.court: concurrency and rate are for each destination then, and one that is in trouble does not stop the others. By default the host, where the URL takes it from data."`
	Concurrency int    `yaml:"concurrency" default:"@workers" min:"1" max:"10000" doc:"Deliveries of this sync in flight, or with per to each destination; by default relay.workers."`
	Rate        rate   `yaml:"rate" default:"0" doc:"Deliveries per second (20/s), minute (600/m) or hour, with per to each destination; 0 is no limit."`
}
