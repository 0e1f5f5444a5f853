package operate

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// Set describes the deliveries that a filter selects for an action.
type Set struct {
	Action Action `json:"action"`
	Filter Filter `json:"-"` // with its AsOf
	Words  string `json:"words"`

	AsOf  time.Time `json:"as_of"`
	Count int64     `json:"count"`
	// Oldest and Newest are when the deliveries began to wait, for Replay when they were
	// delivered. They are nil if the set is empty.
	Oldest *time.Time `json:"oldest"`
	Newest *time.Time `json:"newest"`
	// SoonestNeededBy is the time of the soonest hearing, nil if no time is known.
	SoonestNeededBy *time.Time `json:"soonest_needed_by"`
	Groups          []Group    `json:"groups"` // by sync and error class
	First           []Delivery `json:"deliveries"`
	// Fingerprint tells this set from any other.
	Fingerprint string `json:"fingerprint"`

	// Older counts the events of a key that Replay leaves out, because it sends the newest.
	Older int64 `json:"older_left_out,omitempty"`
	// Outdated counts the events that Replay leaves out, because the receiver got a newer one
	// of their key, or will get it. FirstOutdated is one of them, and OutdatedKeys are the
	// first keys, in alphabetical order.
	Outdated      int64          `json:"outdated_left_out,omitempty"`
	OutdatedKeys  []string       `json:"outdated_keys,omitempty"`
	FirstOutdated *OutdatedError `json:"-"`
}

// MostOutdatedKeys bounds [Set.OutdatedKeys].
const MostOutdatedKeys = 10

// Group counts the deliveries of a set that have one sync and one error class.
type Group struct {
	Sync  string `json:"sync"`
	Class string `json:"class"`
	Count int64  `json:"count"`
}

// Delivery is a delivery as it was before the action. For Replay, it is the delivery that
// the action adds, and CreatedAt is when the event was delivered.
type Delivery struct {
	Sync       string     `json:"sync"`
	EventSeq   int64      `json:"event_seq"`
	EventID    string     `json:"event_id"`
	EventType  *string    `json:"event_type"`
	Key        string     `json:"key"`
	State      string     `json:"state"`
	Attempts   int64      `json:"attempts"`
	DueAt      *time.Time `json:"due_at"`
	ClaimedBy  *string    `json:"claimed_by"`
	LeaseUntil *time.Time `json:"lease_until"`
	ErrorClass *string    `json:"error_class"`
	Error      *string    `json:"error"`
	CreatedAt  time.Time  `json:"created_at"`
}

// OutdatedError refuses the replay of an event that is older than one that the receiver
// got, or will get.
type OutdatedError struct {
	Sync, Key      string
	EventID        string // the older event
	Version        *int64
	NewerEventID   string
	NewerVersion   *int64
	NewerDelivered bool
	NewerState     string // of the newer event, unless it is delivered
}

func (e *OutdatedError) Error() string {
	older, newer := eventName(e.Version, e.EventID), eventName(e.NewerVersion, e.NewerEventID)
	if e.NewerDelivered {
		return fmt.Sprintf("%s got %s of key %s after %s: a replay of the older one would undo it", e.Sync, newer, e.Key, older)
	}
	return fmt.Sprintf("%s of key %s is newer than %s and still %s for %s: a replay would be sent after it and would undo what it says",
		newer, e.Key, older, e.NewerState, e.Sync)
}

func eventName(version *int64, id string) string {
	if version != nil {
		return fmt.Sprintf("version %d", *version)
	}
	return "event " + id
}

// ChangedError refuses an action on a set that is no longer what the person saw.
type ChangedError struct{ Now Set }

func (e *ChangedError) Error() string {
	return fmt.Sprintf("nothing was changed: the set has changed: now %d", e.Now.Count)
}

// mostFirst is how many deliveries of a set Choose lists.
const mostFirst = 100

// The statements that select deliveries. Their parameters are those of Filter.args. Each
// has the same columns:
//
//	life       changes when the delivery gets a new life, or the event is replayed
//	at         when the delivery began to wait, or was delivered
//	soonest    the order of pages: the time of the hearing, or infinity
//	seq        the order within soonest
//	newest_seq for Replay: the newest event of the key in the set

// openConditions are those of the filter for open deliveries, without its AsOf. The time of
// a failure is that of the last log row that made it fail. The log is read for it only if
// the filter has a time.
const openConditions = `
       AND ($1::text = '' OR d.sync = $1)
       AND ($2::text = '' OR d.key = $2)
       AND ($3::text = '' OR d.event_id = nullif($3, '')::uuid)
       AND ($4::text = '' OR d.error_class = $4)
       AND ($5::text = '' OR strpos(lower(d.error), lower($5)) > 0)
       AND ($6::timestamptz IS NULL AND $7::timestamptz IS NULL
            OR (SELECT max(l.at) BETWEEN coalesce($6::timestamptz, '-infinity') AND coalesce($7::timestamptz, 'infinity')
                  FROM outbox.delivery_log AS l
                 WHERE l.event_id = d.event_id AND l.sync = d.sync AND l.outcome IN ('failed', 'unknown')))`

// Conditions for deliveries and events that are as they were at $8. If that is now, they
// are, and the log need not be read for each.
const (
	notFailedSince = `
       AND NOT EXISTS (SELECT FROM outbox.delivery_log AS l
                        WHERE l.event_id = d.event_id AND l.sync = d.sync AND l.outcome IN ('failed', 'unknown') AND l.at > $8)`
	notChangedSince = `
       AND NOT EXISTS (SELECT FROM outbox.delivery_log AS later WHERE later.event_id = l.event_id AND later.sync = l.sync AND later.at > $8)`
	asOfNow = `
       AND $8::timestamptz IS NOT NULL`
)

const openColumns = `
    SELECT d.sync, d.key, d.event_seq, d.event_id, d.changed_in::text AS life, d.error_class, d.created_at AS at,
           d.needed_by, coalesce(d.needed_by, 'infinity') AS soonest, d.event_seq AS seq, 0::bigint AS newest_seq`

const failedDeliveries = openColumns + `
      FROM outbox.delivery AS d
     WHERE d.state = 'failed'` + openConditions

// openOfEvent finds the deliveries of event $3 without reading those of other keys.
const openOfEvent = openColumns + `
      FROM outbox.event AS e
      JOIN outbox.sync AS s ON true
      JOIN outbox.delivery AS d ON d.sync = s.name AND d.key = e.key AND d.event_id = e.id
     WHERE e.id = nullif($3, '')::uuid` + openConditions

const openOfSync = openColumns + `
      FROM outbox.delivery AS d
     WHERE true` + openConditions

const gotIt = `('delivered', 'duplicate', 'accepted')`

// deliveredEvents are the events that were delivered until $8 and have no open delivery.
// asOf is a condition for the rows l of the log. All events of a key have the hearing's
// time of the newest one, so that pages keep their order.
func deliveredEvents(asOf string) string {
	return `
    SELECT d.*, coalesce(d.needed_by, 'infinity') AS soonest
      FROM (
    SELECT l.sync, e.key, e.seq AS event_seq, e.id AS event_id, max(l.id)::text AS life, NULL AS error_class, max(l.at) AS at,
           first_value(CASE WHEN s.escalate_at <> '{}' THEN outbox.needed_by(e.type, e.payload, s.escalate_at, s.escalate_zone) END)
             OVER newest_first AS needed_by,
           e.seq, max(e.seq) OVER newest_first AS newest_seq
      FROM outbox.delivery_log AS l
      JOIN outbox.event AS e ON e.id = l.event_id
      JOIN outbox.sync AS s ON s.name = l.sync
     WHERE l.outcome IN ` + gotIt + `
       AND ($1::text = '' OR l.sync = $1)
       AND ($2::text = '' OR l.key = $2)
       AND ($3::text = '' OR l.event_id = nullif($3, '')::uuid)
       AND $4::text = '' AND $5::text = ''
       AND l.at BETWEEN coalesce($6::timestamptz, '-infinity') AND least($7::timestamptz, $8)
       AND NOT EXISTS (SELECT FROM outbox.delivery AS d WHERE d.sync = l.sync AND d.key = e.key AND d.event_id = e.id)` + asOf + `
     GROUP BY l.sync, s.name, e.id
    WINDOW newest_first AS (PARTITION BY l.sync, e.key ORDER BY e.seq DESC)) AS d`
}

// newerEvent finds the newest event of a key that the receiver got, or will get, after
// event k.newest_seq.
const newerEvent = `(
      SELECT n.id, n.version, n.seq, n.delivered, n.state
        FROM (SELECT e.id, e.version, e.seq, true AS delivered, '' AS state
                FROM outbox.delivery_log AS l
                JOIN outbox.event AS e ON e.id = l.event_id
               WHERE l.key = k.key AND l.sync = k.sync AND l.outcome IN ` + gotIt + ` AND e.seq > k.newest_seq
              UNION ALL
              SELECT e.id, e.version, e.seq, false, d.state
                FROM outbox.open_delivery AS d
                JOIN outbox.event AS e ON e.id = d.event_id
               WHERE d.sync = k.sync AND d.key = k.key AND e.seq > k.newest_seq) AS n
       ORDER BY n.seq DESC, n.delivered
       LIMIT 1)`

// chosen returns the CTE that selects a set. For Replay, a second CTE has what the set
// leaves out. isNow says that AsOf is the moment of the transaction that reads.
func (f *Filter) chosen(a Action, isNow bool) string {
	notFailed, notChanged := notFailedSince, notChangedSince
	if isNow {
		notFailed, notChanged = asOfNow, asOfNow
	}
	switch {
	case f.Retired:
		return `WITH chosen AS (` + openOfSync + notFailed + `
)`
	case a == Discard && f.Event != "":
		return `WITH chosen AS (` + openOfEvent + notFailed + `
)`
	case a != Replay:
		return `WITH chosen AS (` + failedDeliveries + notFailed + `
)`
	}
	wanted, force := "true", "false"
	if f.newestOnly(a) {
		wanted = "d.seq = d.newest_seq"
	}
	if f.Force {
		force = "true"
	}
	return `WITH delivered_event AS (` + deliveredEvents(notChanged) + `
), outdated_key AS (
    SELECT k.sync, k.key, n.*
      FROM (SELECT DISTINCT sync, key, newest_seq FROM delivered_event) AS k
     CROSS JOIN LATERAL ` + newerEvent + ` AS n
     WHERE NOT ` + force + `
), chosen AS (
    SELECT d.*
      FROM delivered_event AS d
     WHERE ` + wanted + `
       AND NOT EXISTS (SELECT FROM outdated_key AS o WHERE o.sync = d.sync AND o.key = d.key)
)`
}

// hashed is the part of a set's fingerprint that one delivery has.
const hashed = `hashtextextended(concat_ws(' ', c.sync, c.event_seq, c.life, c.event_id), 0)`

// Choose describes the set that a filter selects. All that it reads is of one moment if tx
// is REPEATABLE READ. It returns an [OutdatedError] if the filter names an event or key
// that must not be replayed, and [ErrTooWide] if the filter selects everything unasked.
func Choose(ctx context.Context, tx pgx.Tx, a Action, f Filter) (Set, error) {
	if err := f.Check(a); err != nil {
		return Set{}, err
	}
	var now time.Time
	if err := tx.QueryRow(ctx, `SELECT clock_timestamp()`).Scan(&now); err != nil {
		return Set{}, err
	}
	if f.AsOf.After(now) {
		return Set{}, fmt.Errorf("a set cannot be of %s, because the database's clock says %s", f.AsOf.UTC().Format(time.RFC3339Nano), now.UTC().Format(time.RFC3339Nano))
	}
	isNow := f.AsOf.IsZero()
	if isNow {
		f.AsOf = now
	}
	s := Set{Action: a, Filter: f, Words: f.Words(a), AsOf: f.AsOf}
	if err := s.leaveOut(ctx, tx, isNow); err != nil {
		return s, err
	}
	groups := `-- lockstep: count a set
` + f.chosen(a, isNow) + `
SELECT c.sync, coalesce(c.error_class, '') AS class, count(*) AS count, min(c.at) AS oldest, max(c.at) AS newest,
       min(c.needed_by) AS needed_by, bit_xor(` + hashed + `) AS hash
  FROM chosen AS c
 GROUP BY c.sync, c.error_class
 ORDER BY c.sync, count DESC, class`
	type counted struct {
		Group
		Oldest, Newest, NeededBy *time.Time
		Hash                     int64
	}
	found, err := collect[counted](ctx, tx, groups, f.args()...)
	if err != nil {
		return s, err
	}
	var hash int64
	for _, g := range found {
		s.Groups = append(s.Groups, g.Group)
		s.Count += g.Count
		hash ^= g.Hash
		s.Oldest, s.Newest = earlier(s.Oldest, g.Oldest), later(s.Newest, g.Newest)
		s.SoonestNeededBy = earlier(s.SoonestNeededBy, g.NeededBy)
	}
	s.Fingerprint = fingerprint(s.Count, hash)
	s.First, err = collect[Delivery](ctx, tx, s.list(isNow), append(f.args(), mostFirst)...)
	return s, err
}

func fingerprint(count, hash int64) string { return fmt.Sprintf("%d-%016x", count, uint64(hash)) }

func earlier(a, b *time.Time) *time.Time {
	if a == nil || b != nil && b.Before(*a) {
		return b
	}
	return a
}

func later(a, b *time.Time) *time.Time {
	if a == nil || b != nil && b.After(*a) {
		return b
	}
	return a
}

// leaveOut finds out what a replay leaves out.
func (s *Set) leaveOut(ctx context.Context, tx pgx.Tx, isNow bool) error {
	if s.Action != Replay {
		return nil
	}
	f := s.Filter
	count := `-- lockstep: events that a replay leaves out
` + f.chosen(s.Action, isNow) + `, outdated AS (
    SELECT d.sync, d.key, d.event_id, d.seq, o.id, o.version, o.delivered, o.state
      FROM delivered_event AS d
      JOIN outdated_key AS o ON o.sync = d.sync AND o.key = d.key
)
SELECT (SELECT count(*) FROM outdated) AS outdated,
       ARRAY(SELECT DISTINCT key FROM outdated ORDER BY key LIMIT $9) AS outdated_keys,
       (SELECT count(*) FROM delivered_event) - (SELECT count(*) FROM outdated) - (SELECT count(*) FROM chosen) AS older,
       o.sync, o.key, o.event_id::text, e.version, o.id::text AS newer_id, o.version AS newer_version, o.delivered, o.state
  FROM (SELECT) AS always
  LEFT JOIN (SELECT * FROM outdated ORDER BY seq DESC, sync LIMIT 1) AS o ON true
  LEFT JOIN outbox.event AS e ON e.id = o.event_id`
	var (
		out                            OutdatedError
		sync, key, event, newer, state *string
		delivered                      *bool
	)
	err := tx.QueryRow(ctx, count, append(f.args(), MostOutdatedKeys)...).Scan(&s.Outdated, &s.OutdatedKeys, &s.Older, &sync, &key, &event, &out.Version, &newer, &out.NewerVersion, &delivered, &state)
	if err != nil || s.Outdated == 0 {
		return err
	}
	out.Sync, out.Key, out.EventID, out.NewerEventID, out.NewerDelivered, out.NewerState = *sync, *key, *event, *newer, *delivered, *state
	s.FirstOutdated = &out
	if f.named() {
		return &out
	}
	return nil
}

// List reads all deliveries of the set, in the order of pages, and calls each with some of
// them at a time, which it must not keep. It sees the set that Choose saw if tx is the same transaction, and is
// REPEATABLE READ.
func (s *Set) List(ctx context.Context, tx pgx.Tx, each func(some []Delivery) error) error {
	rows, err := tx.Query(ctx, s.list(false), append(s.Filter.args(), nil)...)
	if err != nil {
		return err
	}
	defer rows.Close()
	var some []Delivery
	for rows.Next() {
		d, err := pgx.RowToStructByName[Delivery](rows)
		if err != nil {
			return err
		}
		if some = append(some, d); len(some) == PageSize {
			if err := each(some); err != nil {
				return err
			}
			some = some[:0]
		}
	}
	if err := rows.Err(); err != nil || len(some) == 0 {
		return err
	}
	return each(some)
}

// list selects the first $9 deliveries of the set, in the order of pages.
func (s *Set) list(isNow bool) string {
	return `-- lockstep: list a set
` + s.Filter.chosen(s.Action, isNow) + `, page AS MATERIALIZED (
    SELECT * FROM chosen AS c ORDER BY c.soonest, c.seq, c.sync LIMIT $9
)
SELECT ` + s.columns() + `
 ORDER BY c.soonest, c.seq, c.sync`
}

// columns are those of a Delivery, and where they come from: the rows c of a CTE page.
func (s *Set) columns() string {
	if s.Action == Replay {
		return `c.sync, c.event_seq, c.event_id::text AS event_id, e.type AS event_type, c.key, 'delivered' AS state,
       coalesce((SELECT max(l.attempt) FROM outbox.delivery_log AS l WHERE l.event_id = c.event_id AND l.sync = c.sync), 0)::bigint AS attempts,
       NULL::timestamptz AS due_at, NULL AS claimed_by, NULL::timestamptz AS lease_until, NULL AS error_class, NULL AS error, c.at AS created_at
  FROM page AS c
  JOIN outbox.event AS e ON e.id = c.event_id`
	}
	return `d.sync, d.event_seq, d.event_id::text AS event_id, e.type AS event_type, d.key, d.state, d.attempts,
       CASE WHEN d.due_at < 'infinity' THEN d.due_at END AS due_at, d.claimed_by, d.lease_until, d.error_class, d.error, d.created_at
  FROM page AS c
  JOIN outbox.open_delivery AS d ON d.sync = c.sync AND d.key = c.key AND d.event_seq = c.event_seq
  LEFT JOIN outbox.event AS e ON e.id = d.event_id`
}
