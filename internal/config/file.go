package config

import (
	"fmt"
	"time"

	"go.yaml.in/yaml/v4"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/relay"
	"github.com/hms-mkt/lockstep/relay/mapping"
)

// The structs below have the structure of the file. Their tags are the only source of
// defaults, bounds and descriptions.

// File is a valid configuration, with its defaults filled in.
type File struct {
	Database  Database      `yaml:"database" doc:"Where the outbox is."`
	Relay     RelaySettings `yaml:"relay" doc:"Settings of one relay process."`
	Listen    string        `yaml:"listen" default:"127.0.0.1:9464" check:"address" doc:"Address of the console, health and metrics, host:port. An empty text turns them off."`
	ListenTLS ListenTLS     `yaml:"listen_tls" doc:"Certificate with which listen is served by HTTPS."`
	Console   Console       `yaml:"console" doc:"The pages on which people see what the relays do, and act."`
	Retention Retention     `yaml:"retention" doc:"How long finished events and the log are kept. A longer time in the database's outbox.retention wins. Only the owner of the tables can shorten that."`
	Syncs     []Sync        `yaml:"syncs" doc:"The connections, each with a name of its own."`

	// Warnings are what is allowed and probably a mistake.
	Warnings Problems

	shown *yaml.Node
}

// Database says where the outbox is. URL may be empty if the command line names the
// database.
type Database struct {
	URL            adapters.Secret `yaml:"url" check:"database" doc:"Connection URL or keyword string of PostgreSQL. May be left out when --database-url is given."`
	MaxConnections int             `yaml:"max_connections" default:"8" min:"1" max:"1000" doc:"Most connections of the relay. With notify, it opens one more. The console opens up to three more, and up to three with operator_url."`
}

// RelaySettings are the settings of one relay process.
type RelaySettings struct {
	Workers int           `yaml:"workers" default:"32" min:"1" max:"10000" doc:"Deliveries in flight in this process."`
	Poll    time.Duration `yaml:"poll" default:"50ms" min:"1ms" max:"1m" doc:"Longest pause between polls. It is much shorter while there is work."`
	Lease   time.Duration `yaml:"lease" default:"60s" min:"1s" max:"1h" doc:"How long a claim lasts; at least twice the timeout of every adapter."`
	Drain   time.Duration `yaml:"drain" default:"20s" min:"0s" max:"1h" doc:"How long a stop waits for deliveries in flight."`
	Name    string        `yaml:"name" doc:"Name of this relay in claimed_by and in the log. Default: host name, process id and a random part."`
}

// Retention says how long finished things are kept.
type Retention struct {
	Events Period `yaml:"events" default:"90d" min:"1d" max:"1200mo" doc:"How long an event is kept after everything about it is finished."`
	Log    Period `yaml:"log" default:"84mo" min:"1mo" max:"1200mo" doc:"How long the delivery log is kept; whole months are dropped."`
}

// Period is a length of time. Its months are calendar months.
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
	Name     string       `yaml:"name" required:"true" check:"name" doc:"Name of the sync, 1 to 63 characters of A-Z a-z 0-9 _ . -"`
	Event    string       `yaml:"event" check:"event" doc:"One event type, or a pattern in which * stands for any characters. Use event or events."`
	Events   []string     `yaml:"events" check:"event" doc:"Event types or patterns. Use event or events."`
	When     string       `yaml:"when" check:"condition" doc:"Condition over event, type, key, version and headers. Events that do not meet it are filtered."`
	From     string       `yaml:"from" check:"from" doc:"Where a sync that is added to others starts: beginning, now, or an RFC 3339 time."`
	Notify   bool         `yaml:"notify" default:"false" doc:"Also wake relays by NOTIFY. Costs the writers and makes PREPARE TRANSACTION fail."`
	Adapter  Adapter      `yaml:"adapter" required:"true" doc:"The protocol of the receiver and its settings."`
	Mapping  Fields       `yaml:"mapping" doc:"Fields of the payload and their names at the receiver, in the order in which they are sent. Without mapping and compute the payload is sent as it is."`
	Compute  Compute      `yaml:"compute" doc:"Further fields, each with an expression."`
	OnFailed string       `yaml:"on_failed" default:"block" oneof:"block|supersede" doc:"What happens to a key after one of its deliveries has failed."`
	Escalate Escalate     `yaml:"escalate" doc:"When people are told that an event is not delivered yet: outbox.alert shows it, and an operator event is written. Change it with: lockstep sync apply."`
	Windows  []Window     `yaml:"windows" filled:"true" doc:"When deliveries may start. At other times the sync is on hold. Default: always."`
	Holidays []relay.Date `yaml:"holidays" filled:"true" doc:"Dates such as 2026-12-25 on which no window begins."`
	Retry    Retry        `yaml:"retry" doc:"When a delivery is sent again after a temporary failure."`
	Limits   Limits       `yaml:"limits" doc:"Most that this process sends."`

	// Routes are the mappings of the adapter's routes, by the names that
	// [adapters.Router] gives them.
	Routes map[string]mapping.Mapping

	// TypeNames are the keys of the adapter's sections by event type, without patterns.
	TypeNames []string

	// Substituted are the values of ${…} in the condition, the mapping, the computed
	// fields and the limits. They may be secrets, and may be sent.
	Substituted []adapters.Secret
}

// Escalate says when an open delivery is escalated.
type Escalate struct {
	At     Paths         `yaml:"at" doc:"Where the payload has the time by which the receiver needs the event, such as scheduledAt or hearing.start. Of several paths, the earliest time counts."`
	Zone   string        `yaml:"zone" default:"UTC" check:"zone" doc:"Zone of times without an offset, such as America/New_York."`
	Before time.Duration `yaml:"before" default:"0s" min:"0s" max:"365d" doc:"Escalated when the time is nearer than this. Needs at. 0 means never."`
	After  time.Duration `yaml:"after" default:"0s" min:"0s" max:"365d" doc:"Escalated when the event is not delivered after this. 0 means never."`
}

// Paths are paths into a payload: one text, or a list.
type Paths []string

// Window is a part of the day in which deliveries may start.
type Window struct {
	Days relay.Weekdays  `yaml:"days" default:"Mon-Sun" doc:"Days on which the window begins, such as Mon-Fri or Sat,Sun. Fri-Mon is Friday to Monday."`
	From relay.TimeOfDay `yaml:"from" required:"true" doc:"When it opens, such as \"08:00\"."`
	To   relay.TimeOfDay `yaml:"to" required:"true" doc:"When it closes, such as \"18:00\"; \"24:00\" is midnight. A time before from is on the next day."`
	Zone string          `yaml:"zone" default:"UTC" check:"zone" doc:"Zone of days, times and holidays, such as America/New_York."`
}

// Retry is the schedule of a sync's retries.
type Retry struct {
	Initial  time.Duration `yaml:"initial" default:"1s" min:"1ms" max:"1h" doc:"Pause before the first retry. It doubles with each retry."`
	Max      time.Duration `yaml:"max" default:"15m" min:"1ms" max:"7d" doc:"Longest pause."`
	Jitter   Percent       `yaml:"jitter" default:"20%" doc:"How much a pause varies at random, as a share of it."`
	MaxAge   time.Duration `yaml:"max_age" default:"72h" min:"1s" max:"365d" doc:"Time since the first attempt, without the time on hold, after which a delivery fails."`
	Attempts int           `yaml:"attempts" default:"0" min:"0" max:"1000000" doc:"Attempts after which a delivery fails; 0 means no limit."`
}

// Percent is a share: 20% is 0.2.
type Percent float64

// Limits bound what one process sends for a sync.
type Limits struct {
	Per         string `yaml:"per" check:"scope" doc:"Expression that names the destination of an event, such as event.court. Then concurrency and rate apply to each destination, and one in trouble does not stop the others. Default: the host, if data names it."`
	Concurrency int    `yaml:"concurrency" default:"@workers" min:"1" max:"10000" doc:"Deliveries of this sync in flight; with per, to each destination. Default: relay.workers."`
	MaxInFlight int    `yaml:"max_in_flight" default:"0" min:"0" max:"10000" doc:"Most deliveries of this sync that one relay claims at a time, whatever per, concurrency and the workers allow. 0 means no limit beyond theirs."`
	Rate        Rate   `yaml:"rate" default:"0" doc:"Deliveries per second (20/s), minute (600/m) or hour (1000/h); with per, to each destination. 0 means no limit."`
}

// Rate is a number per second; 0 means no limit.
type Rate float64
