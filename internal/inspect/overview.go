package inspect

import (
	"context"
	"slices"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
)

// Bounds of an [Overview].
const (
	MostCounted = 10_000 // deliveries that are counted for each number
	MostAtRisk  = 50     // keys at risk
	mostSyncs   = 200
	mostRelays  = 100
	mostOldest  = 1000 // deliveries among which the oldest is searched, if there are too many to count
)

// Count is a number of rows, counted up to [MostCounted].
type Count int

// String returns the number, such as 1,234, or 10,000+.
func (n Count) String() string {
	if n > MostCounted {
		return Count(MostCounted).String() + "+"
	}
	if n >= 1000 {
		return strconv.Itoa(int(n)/1000) + "," + strconv.Itoa(1000 + int(n)%1000)[1:]
	}
	return strconv.Itoa(int(n))
}

// Overview is the state of all syncs at one moment.
type Overview struct {
	At        time.Time // the moment, by the database's clock
	Syncs     []Sync    // by name
	MoreSyncs bool      // some are left out
	Relays    []Relay   // those that are running first
	AtRisk    []Stuck   // keys with a hearing or the like in the future, the soonest first
	MoreRisk  bool      // some are left out
	Past      Count     // open deliveries whose hearing or the like is in the past
}

// Running counts the running relays.
func (o *Overview) Running() (n int) {
	for _, r := range o.Relays {
		if r.Running {
			n++
		}
	}
	return n
}

// Timed reports whether events of some sync may be at risk, or there is no sync.
func (o *Overview) Timed() bool {
	return len(o.Untimed()) == 0 || slices.ContainsFunc(o.Syncs, func(s Sync) bool { return !s.Untimed })
}

// Untimed returns the names of the syncs whose events are never listed as at risk, because nothing
// says where they have a time. Retired syncs are left out, and those that take only operator events.
func (o *Overview) Untimed() (names []string) {
	for _, s := range o.Syncs {
		if s.Untimed && s.RetiredAt == nil {
			names = append(names, s.Name)
		}
	}
	return names
}

// Sync is the state of one sync.
type Sync struct {
	Name            string
	OnFailed        string
	RetiredAt       *time.Time
	LastDeliveredAt *time.Time
	Backfill        string   // what a backfill does or waits for
	ServedBy        []string // names of the running relays that serve it
	Untimed         bool     // nothing says where its events have the time of the hearing or the like

	Holds   []Hold  `db:"-"` // what stops it, or one destination of it: the strongest first
	Backlog Backlog `db:"-"`
}

// Stopped returns the hold of the whole sync, nil if there is none.
func (s *Sync) Stopped() *Hold {
	if len(s.Holds) > 0 && s.Holds[0].Scope == "" {
		return &s.Holds[0]
	}
	return nil
}

// Orphaned reports whether the sync has work, or will get some, and nobody sends it.
func (s *Sync) Orphaned() bool {
	return len(s.ServedBy) == 0 && (s.RetiredAt == nil || s.Backlog.Open > 0)
}

// State says in a few words how the sync stands.
func (s *Sync) State() string {
	h := s.Stopped()
	switch {
	case s.RetiredAt != nil && s.Backlog.Open == 0:
		return "retired"
	case s.Orphaned():
		return "no relay"
	case h != nil && h.Kind == "auth":
		return "credentials refused"
	case h != nil:
		return "on hold"
	case s.RetiredAt != nil:
		return "retired, still sending"
	case s.Backlog.Failed > 0:
		return "some failed"
	case len(s.Holds) > 0:
		return "partly on hold"
	case s.Backlog.Open > 0:
		return "sending"
	}
	return "up to date"
}

// Backlog are the open deliveries of a sync.
type Backlog struct {
	Open   Count
	Failed Count

	// These are only counted if at most [MostCounted] deliveries are open.
	Pending, Queued, Retry, Sending int
	Blocked                         int // keys whose first delivery is failed or in retry, with others behind it

	Oldest *time.Time // when the oldest delivery that has not failed was written; nil: there is none
}

// Counted reports whether the deliveries were counted by state. If not, Oldest is the
// oldest of a part of them.
func (b Backlog) Counted() bool { return b.Open <= MostCounted }

// Relay is a relay of the database.
type Relay struct {
	Name      string
	Host      string
	Version   string
	Syncs     []string
	StartedAt time.Time
	SeenAt    time.Time
	Running   bool // it was seen in the last 30 seconds
}

// ReadOverview reads the state of all syncs.
func ReadOverview(ctx context.Context, db Beginner) (o Overview, err error) {
	err = read(ctx, db, func(tx pgx.Tx) error {
		o, err = readOverview(ctx, tx)
		return err
	})
	return o, err
}

func readOverview(ctx context.Context, tx pgx.Tx) (o Overview, err error) {
	if err := tx.QueryRow(ctx, `SELECT clock_timestamp()`).Scan(&o.At); err != nil {
		return o, err
	}
	const relays = `-- lockstep overview: relays
SELECT r.name, coalesce(r.host, '') AS host, coalesce(r.version, '') AS version, r.syncs, r.started_at, r.seen_at, r.running
  FROM outbox.relay AS r
 ORDER BY NOT r.running, r.name, r.started_at
 LIMIT $1`
	if o.Relays, err = collect[Relay](ctx, tx, relays, mostRelays); err != nil {
		return o, err
	}
	if o.Syncs, err = readSyncs(ctx, tx, ""); err != nil {
		return o, err
	}
	if o.MoreSyncs = len(o.Syncs) > mostSyncs; o.MoreSyncs {
		o.Syncs = o.Syncs[:mostSyncs]
	}
	if o.AtRisk, err = readAtRisk(ctx, tx, o.At, "", MostAtRisk+1); err != nil {
		return o, err
	}
	if o.MoreRisk = len(o.AtRisk) > MostAtRisk; o.MoreRisk {
		o.AtRisk = o.AtRisk[:MostAtRisk]
	}
	o.Past, err = countPast(ctx, tx, o.At)
	return o, err
}

// readSyncs reads the state of one sync, or of all.
func readSyncs(ctx context.Context, tx pgx.Tx, name string) ([]Sync, error) {
	const list = `-- lockstep overview: syncs
SELECT s.name, s.on_failed, s.retired_at, s.last_delivered_at, coalesce(s.backfill_reason, '') AS backfill,
       ARRAY(SELECT r.name FROM outbox.relay AS r WHERE r.running AND s.name = ANY (r.syncs) ORDER BY r.name LIMIT 10) AS served_by,
       s.escalate_at = '{}' AND EXISTS (SELECT FROM unnest(s.patterns) AS p (pattern) WHERE p.pattern NOT LIKE 'lockstep:%') AS untimed
  FROM outbox.sync AS s
 WHERE $1 = '' OR s.name = $1
 ORDER BY s.name
 LIMIT $2`
	syncs, err := collect[Sync](ctx, tx, list, name, mostSyncs+1)
	for i := range syncs {
		s := &syncs[i]
		if err == nil {
			s.Holds, err = HoldsOf(ctx, tx, []string{s.Name})
		}
		if err == nil {
			s.Backlog, err = readBacklog(ctx, tx, s.Name)
		}
	}
	return syncs, err
}

// readBacklog counts the open deliveries of a sync. The keys are read in the order of the
// primary key, so that the first delivery of each is known without a lookup.
func readBacklog(ctx context.Context, tx pgx.Tx, name string) (b Backlog, err error) {
	const count = `-- lockstep overview: deliveries by state
WITH counted AS MATERIALIZED (
    SELECT d.key, d.event_seq, d.state, d.error_class, d.created_at
      FROM outbox.delivery AS d
     WHERE d.sync = $1
     ORDER BY d.key, d.event_seq
     LIMIT $2
), placed AS (
    SELECT c.*, lag(c.event_seq) OVER lane IS NULL AS is_first, lead(c.event_seq) OVER lane IS NOT NULL AS has_next
      FROM counted AS c
    WINDOW lane AS (PARTITION BY c.key ORDER BY c.event_seq)
), delivery AS (
    SELECT p.*, CASE WHEN p.state = 'failed' THEN 'failed'
                     WHEN NOT p.is_first OR p.error_class = 'backfill' THEN 'queued'
                     WHEN l.claim IS NOT NULL THEN 'sending'
                     ELSE p.state END AS shown
      FROM placed AS p
      -- OFFSET 0: one lookup for each key. The planner might read all lanes of a sync whose statistics are old.
      LEFT JOIN LATERAL (SELECT n.claim FROM outbox.lane AS n WHERE p.is_first AND n.sync = $1 AND n.key = p.key OFFSET 0) AS l ON true
)
SELECT count(*) AS open,
       count(*) FILTER (WHERE shown = 'failed')  AS failed,
       count(*) FILTER (WHERE shown = 'pending') AS pending,
       count(*) FILTER (WHERE shown = 'queued')  AS queued,
       count(*) FILTER (WHERE shown = 'retry')   AS retry,
       count(*) FILTER (WHERE shown = 'sending') AS sending,
       count(*) FILTER (WHERE is_first AND has_next AND state IN ('failed', 'retry')) AS blocked,
       min(created_at) FILTER (WHERE state <> 'failed') AS oldest
  FROM delivery`
	const first = `-- lockstep overview: whether there are too many deliveries to count
SELECT count(*) FROM (SELECT FROM outbox.delivery AS d WHERE d.sync = $1 ORDER BY d.key, d.event_seq LIMIT $2) AS counted`
	if err = tx.QueryRow(ctx, first, name, MostCounted+1).Scan(&b.Open); err != nil {
		return b, err
	}
	if b.Counted() {
		rows, err := collect[Backlog](ctx, tx, count, name, MostCounted+1)
		if err != nil {
			return b, err
		}
		return rows[0], nil
	}
	const failed = `-- lockstep overview: failed deliveries
SELECT count(*) FROM (SELECT FROM outbox.delivery AS d WHERE d.sync = $1 AND d.state = 'failed' LIMIT $2) AS counted`
	if err = tx.QueryRow(ctx, failed, name, MostCounted+1).Scan(&b.Failed); err != nil {
		return b, err
	}
	// Deliveries get their changed_in when they are written. Only a requeue and a backfill change it.
	const oldest = `-- lockstep overview: the oldest delivery
SELECT min(created_at)
  FROM (SELECT d.created_at, d.state FROM outbox.delivery AS d WHERE d.sync = $1 ORDER BY d.changed_in, d.event_seq LIMIT $2) AS early
 WHERE state <> 'failed'`
	err = tx.QueryRow(ctx, oldest, name, mostOldest).Scan(&b.Oldest)
	return b, err
}

// Sync returns a sync by its name, nil if the overview does not have it.
func (o *Overview) Sync(name string) *Sync {
	for i := range o.Syncs {
		if o.Syncs[i].Name == name {
			return &o.Syncs[i]
		}
	}
	return nil
}

// SyncPage is one sync with what waits for a person.
type SyncPage struct {
	At      time.Time
	Sync    *Sync // nil: there is no sync of this name
	AtRisk  []Stuck
	Trouble StuckPage
}

// ReadSync reads one sync, and its deliveries that have failed or are retried as f selects
// them. f.Sync names the sync. If its state is known already, it is not read again.
func ReadSync(ctx context.Context, db Beginner, f StuckFilter, known *Sync) (p SyncPage, err error) {
	err = read(ctx, db, func(tx pgx.Tx) error {
		if err := tx.QueryRow(ctx, `SELECT clock_timestamp()`).Scan(&p.At); err != nil {
			return err
		}
		if p.Sync = known; known == nil {
			syncs, err := readSyncs(ctx, tx, f.Sync)
			if err != nil || len(syncs) == 0 {
				return err
			}
			p.Sync = &syncs[0]
		}
		if p.AtRisk, err = readAtRisk(ctx, tx, p.At, f.Sync, 10); err != nil {
			return err
		}
		p.Trouble, err = readStuck(ctx, tx, f)
		return err
	})
	return p, err
}
