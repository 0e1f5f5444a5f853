package inspect

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
)

// Bounds of a [Story]. What is older is left out, and the story says so.
const (
	MostEvents   = 50  // events of a key
	MostEntries  = 200 // rows of the log about a key
	mostActions  = 50  // rows of the log about whole syncs
	mostOpen     = 50  // open deliveries that are read for each sync; their number is counted up to mostBehind
	mostBehind   = 1000
	mostSearched = 2000   // newest rows of the log about a key that are searched for what the receivers have
	mostRecent   = 10_000 // newest events that are searched for a key that nothing else knows
)

// Story is what is known about one key, such as a hearing, at one moment. It has no
// payload.
type Story struct {
	Key          string
	At           time.Time // the moment, by the database's clock
	Lanes        []Lane    // the syncs that have something to do with the key, by name
	Unmatched    []Event   // events that no sync takes, the newest first
	RelayRunning bool
	Before       int64 // only rows of the log with smaller ids were read; 0: the newest
	OlderThan    int64 // id of the oldest row of the log that was read, if older ones are left out; otherwise 0
}

// Known reports whether anything is known of the key.
func (s *Story) Known() bool { return len(s.Lanes) > 0 || len(s.Unmatched) > 0 }

// Lane is the part of a story that is about one sync.
type Lane struct {
	Sync      string
	OnFailed  string
	RetiredAt *time.Time
	Served    bool        // a running relay serves the sync
	Events    []LaneEvent // the newest first, at most MostEvents and that of First
	Older     int         // events of this lane that are left out
	Open      int         // open deliveries, counted up to 1,000
	First     *Delivery   // the open delivery that is sent next; nil: nothing is open
	Holds     []Hold      // what stops this key, the strongest first
	Has       *Entry      // the newest row that says that the receiver has an event of the key; nil: none is among the newest rows, or an older part of the log was read
	Reference *Reference  // nil: the receiver has not answered, or there is no such sync any more
	Zone      string      // time zone of the receiver, as escalate_zone of the sync says; UTC by default
	Actions   []Entry     // what people did to the whole sync since the first event, the newest first
	Why       string      // for the newest event, if nothing is open and the log has no end of it; outbox.why_not_delivered

	heldAbove bool // what stops the whole sync is said above
}

// LaneEvent is an event in one lane.
type LaneEvent struct {
	Event
	Delivery *Delivery // nil: it is finished, or never had a delivery
	Entries  []Entry   // the newest first
}

// Event is an event without its payload. After its retention, the log still knows its id,
// type and version.
type Event struct {
	ID         string
	Seq        int64 // after the retention: its place in the lane
	Type       string
	Key        string
	Version    *int64
	OccurredAt time.Time // zero after the retention
	InsertedAt time.Time // zero after the retention
}

// Delivery is an open delivery.
type Delivery struct {
	Sync       string
	EventSeq   int64
	EventID    string
	State      string // as in outbox.open_delivery
	Attempts   int
	DueAt      *time.Time // nil: failed, or it waits for a backfill
	ClaimedBy  string
	LeaseUntil *time.Time
	ErrorClass string
	Error      string
	CreatedAt  time.Time
	NeededBy   *time.Time // the time of the hearing; nil: not known
}

// Entry is a row of the delivery log.
type Entry struct {
	ID         int64
	At         time.Time
	AnsweredAt *time.Time
	Sync       string
	EventID    string
	EventType  string
	Key        string
	Version    *int64
	EventSeq   *int64
	Attempt    *int
	Outcome    string
	Code       string
	ErrorClass string
	Error      string
	ExternalID string
	TookMS     *int
	Relay      string
	Actor      string
	Reason     string
}

// When returns when the receiver answered or, without an answer, when the row was recorded.
func (e *Entry) When() time.Time {
	if e.AnsweredAt != nil {
		return *e.AnsweredAt
	}
	return e.At
}

// Delivered reports whether the row says that the receiver has the event.
func (e *Entry) Delivered() bool {
	return e.Outcome == "delivered" || e.Outcome == "duplicate" || e.Outcome == "accepted"
}

// Finished reports whether the row is the end of a delivery.
func (e *Entry) Finished() bool {
	return e.Delivered() || e.Outcome == "filtered" || e.Outcome == "superseded" || e.Outcome == "discarded"
}

// Hold is a reason why a sync, or one destination of it, sends nothing for now.
type Hold struct {
	Sync   string
	Scope  string // empty: the whole sync
	Kind   string
	Until  *time.Time // nil: until it is lifted
	Reason string
	By     string
	Since  time.Time
}

// Reference is what a receiver answered last for a key, or what a person has set.
type Reference struct {
	ExternalID string
	ETag       string
	Version    *int64
	Learned    []Learned
	UpdatedAt  time.Time
	BySomebody bool // set by a person or read from the receiver, and not answered since
}

// Learned is another value of the receiver's answer.
type Learned struct{ Name, Value string }

const entryColumns = `l.id, l.at, l.answered_at, l.sync, coalesce(l.event_id::text, '') AS event_id, coalesce(l.event_type, '') AS event_type,
       coalesce(l.key, '') AS key, l.version, l.event_seq, l.attempt, l.outcome, coalesce(l.code, '') AS code, coalesce(l.error_class, '') AS error_class,
       coalesce(l.error, '') AS error, coalesce(l.external_id, '') AS external_id, l.took_ms, coalesce(l.relay, '') AS relay,
       coalesce(l.actor, '') AS actor, coalesce(l.reason, '') AS reason`

// ReadStory reads what is known about a key. Of the log, it reads the newest rows with ids
// below before; 0 means the newest of all. The reads are one snapshot, so that a delivery
// that is finished meanwhile is either open or in the log.
func ReadStory(ctx context.Context, db Beginner, key string, before int64) (story Story, err error) {
	err = read(ctx, db, func(tx pgx.Tx) error {
		story, err = readStory(ctx, tx, key, before)
		return err
	})
	return story, err
}

func readStory(ctx context.Context, tx pgx.Tx, key string, before int64) (Story, error) {
	story := Story{Key: key, Before: before}
	const moment = `-- lockstep story: the moment
SELECT clock_timestamp(), EXISTS (SELECT FROM outbox.relay AS r WHERE r.running)`
	if err := tx.QueryRow(ctx, moment).Scan(&story.At, &story.RelayRunning); err != nil {
		return story, err
	}
	const entries = `-- lockstep story: log
SELECT ` + entryColumns + `
  FROM outbox.delivery_log AS l
 WHERE l.key = $1 AND ($2 = 0 OR l.id < $2)
 ORDER BY l.id DESC
 LIMIT $3`
	log, err := collect[Entry](ctx, tx, entries, key, before, MostEntries+1)
	if err != nil {
		return story, err
	}
	if len(log) > MostEntries {
		log = log[:MostEntries]
		story.OlderThan = log[MostEntries-1].ID
	}
	// The first deliveries of each lane decide what happens next. The last one has the newest version.
	const open = `-- lockstep story: open deliveries
SELECT s.name AS sync, d.event_seq, d.event_id::text AS event_id, d.state, d.attempts, CASE WHEN d.due_at < 'infinity' THEN d.due_at END AS due_at,
       coalesce(d.claimed_by, '') AS claimed_by, d.lease_until, coalesce(d.error_class, '') AS error_class, coalesce(d.error, '') AS error, d.created_at, d.needed_by
  FROM outbox.sync AS s
 CROSS JOIN LATERAL (
       SELECT event_seq FROM (SELECT o.event_seq FROM outbox.delivery AS o WHERE o.sync = s.name AND o.key = $1 ORDER BY o.event_seq LIMIT $2) AS begins
        UNION
       SELECT event_seq FROM (SELECT o.event_seq FROM outbox.delivery AS o WHERE o.sync = s.name AND o.key = $1 ORDER BY o.event_seq DESC LIMIT 1) AS ends) AS n
  JOIN outbox.open_delivery AS d ON d.sync = s.name AND d.key = $1 AND d.event_seq = n.event_seq
 ORDER BY d.sync, d.event_seq`
	deliveries, err := collect[Delivery](ctx, tx, open, key, mostOpen)
	if err != nil {
		return story, err
	}
	events, err := readEvents(ctx, tx, key, log, deliveries)
	if err != nil {
		return story, err
	}
	lanes, err := readLanes(ctx, tx, key)
	if err != nil {
		return story, err
	}
	b := builder{log: log, deliveries: deliveries, events: events, newest: before == 0}
	for _, l := range lanes {
		lane := b.lane(l)
		if len(lane.Events) > 0 || lane.Reference != nil {
			story.Lanes = append(story.Lanes, lane)
		}
	}
	if err := completeLanes(ctx, tx, &story); err != nil {
		return story, err
	}
	// A sync whose row is gone still has its rows in the log.
	for _, e := range log {
		if !slices.ContainsFunc(lanes, func(l laneRow) bool { return l.Name == e.Sync }) &&
			!slices.ContainsFunc(story.Lanes, func(l Lane) bool { return l.Sync == e.Sync }) {
			story.Lanes = append(story.Lanes, b.lane(laneRow{Name: e.Sync}))
		}
	}
	for _, e := range events {
		if len(e.Takers) == 0 {
			story.Unmatched = append(story.Unmatched, e.Event)
		}
	}
	return story, nil
}

// KeyOfEvent returns the key of an event, "" if neither the outbox nor the log knows the
// event. id is a UUID.
func KeyOfEvent(ctx context.Context, db Beginner, id string) (key string, err error) {
	const find = `-- lockstep story: the key of an event
SELECT coalesce((SELECT e.key FROM outbox.event AS e WHERE e.id = $1::text::uuid),
                (SELECT l.key FROM outbox.delivery_log AS l WHERE l.event_id = $1::text::uuid AND l.key IS NOT NULL LIMIT 1), '')`
	err = read(ctx, db, func(tx pgx.Tx) error { return tx.QueryRow(ctx, find, id).Scan(&key) })
	return key, err
}

// knownEvent is an event with the syncs that take its type.
type knownEvent struct {
	Event
	Takers []string
}

// readEvents reads the newest events of a key. outbox.event has no index by key, because
// each writer would pay for it. The log, the open deliveries and the unmatched events know
// the ids.
func readEvents(ctx context.Context, tx pgx.Tx, key string, log []Entry, deliveries []Delivery) ([]knownEvent, error) {
	ids := []string{}
	for _, d := range deliveries {
		ids = append(ids, d.EventID)
	}
	for _, e := range log {
		if e.EventID != "" {
			ids = append(ids, e.EventID)
		}
	}
	const find = `-- lockstep story: events
WITH recent AS MATERIALIZED (
    SELECT u.event_id FROM outbox.unmatched AS u ORDER BY u.event_seq DESC LIMIT $3
), newest AS MATERIALIZED (
    SELECT e.id, e.key FROM outbox.event AS e WHERE cardinality($2::uuid[]) = 0 ORDER BY e.seq DESC LIMIT $3
), id AS (
    SELECT unnest($2::uuid[]) AS id
    UNION
    SELECT e.id FROM recent AS r JOIN outbox.event AS e ON e.id = r.event_id WHERE e.key = $1
    UNION
    SELECT n.id FROM newest AS n WHERE n.key = $1
)
SELECT e.id::text AS id, e.seq, e.type, e.key, e.version, e.occurred_at, e.inserted_at,
       ARRAY(SELECT s.name FROM outbox.sync AS s WHERE outbox.takes(s.name, s.likes, s.operator_likes, e.type, e.key)) AS takers
  FROM id
  JOIN outbox.event AS e ON e.id = id.id
 ORDER BY e.seq DESC
 LIMIT $4`
	return collect[knownEvent](ctx, tx, find, key, ids, mostRecent, MostEvents+mostOpen+MostEntries)
}

// laneRow is a sync with what it knows of a key.
type laneRow struct {
	Name       string
	OnFailed   string
	RetiredAt  *time.Time
	Zone       string
	Served     bool
	Open       int
	ExternalID *string
	ETag       *string
	Version    *int64
	Learned    map[string]string
	UpdatedAt  *time.Time // nil: no reference
	EventSeq   *int64
}

func readLanes(ctx context.Context, tx pgx.Tx, key string) ([]laneRow, error) {
	const lanes = `-- lockstep story: lanes
SELECT s.name, s.on_failed, s.retired_at, s.escalate_zone AS zone, EXISTS (SELECT FROM outbox.relay AS r WHERE r.running AND s.name = ANY (r.syncs)) AS served,
       (SELECT count(*) FROM (SELECT FROM outbox.delivery AS d WHERE d.sync = s.name AND d.key = $1 LIMIT $2) AS counted)::int AS open,
       f.external_id, f.etag AS e_tag, f.version, f.learned, f.updated_at, f.event_seq
  FROM outbox.sync AS s
  LEFT JOIN outbox.external_ref AS f ON f.sync = s.name AND f.key = $1
 ORDER BY s.name`
	return collect[laneRow](ctx, tx, lanes, key, mostBehind)
}

// HoldsOf reads the holds of syncs, as a whole or of one destination, by sync and with the
// strongest first: at most twenty.
func HoldsOf(ctx context.Context, tx pgx.Tx, syncs []string) ([]Hold, error) {
	const holds = `-- lockstep: holds of syncs
SELECT h.sync, h.scope, h.kind, h.until, h.reason, h.by, h.since
  FROM outbox.hold AS h
 WHERE h.sync = ANY ($1)
   AND (h.kind IN ('auth', 'breaker') OR h.until IS NULL OR h.until > clock_timestamp())
 ORDER BY h.sync, h.scope <> '', outbox.hold_rank(h.kind), h.scope
 LIMIT 20`
	return collect[Hold](ctx, tx, holds, syncs)
}

// completeLanes reads what needs to know which lanes exist. Each statement reads it for all of
// them, so that a story takes as many statements for a hundred syncs as for one.
func completeLanes(ctx context.Context, tx pgx.Tx, story *Story) error {
	lanes := map[string]*Lane{}
	var syncs, unfound, unsure, newest []string
	var began []time.Time
	for i := range story.Lanes {
		l := &story.Lanes[i]
		if len(l.Events) == 0 {
			continue
		}
		lanes[l.Sync] = l
		syncs, began = append(syncs, l.Sync), append(began, l.began())
		if l.Has == nil && story.OlderThan != 0 && story.Before == 0 {
			unfound = append(unfound, l.Sync)
		}
		if l.First == nil && !slices.ContainsFunc(l.Events[0].Entries, func(e Entry) bool { return e.Finished() }) {
			unsure, newest = append(unsure, l.Sync), append(newest, l.Events[0].ID)
		}
	}
	if len(syncs) == 0 {
		return nil
	}
	const has = `-- lockstep story: what the receivers have
SELECT DISTINCT ON (l.sync) ` + entryColumns + `
  FROM (SELECT * FROM outbox.delivery_log AS k WHERE k.key = $1 ORDER BY k.id DESC LIMIT $3) AS l
 WHERE l.sync = ANY ($2) AND l.outcome IN ('delivered', 'duplicate', 'accepted')
 ORDER BY l.sync, l.id DESC`
	found, err := collect[Entry](ctx, tx, has, story.Key, unfound, mostSearched)
	if err != nil {
		return err
	}
	for i := range found {
		lanes[found[i].Sync].Has = &found[i]
	}
	const onHold = `-- lockstep story: holds
SELECT h.sync, h.scope, h.kind, h.until, h.reason, h.by, h.since
  FROM outbox.hold AS h
 WHERE h.sync = ANY ($1)
   AND (h.kind IN ('auth', 'breaker') OR h.until IS NULL OR h.until > clock_timestamp())
   AND (h.scope = '' OR h.scope = (SELECT n.scope FROM outbox.lane AS n WHERE n.sync = h.sync AND n.key = $2))
 ORDER BY outbox.hold_rank(h.kind), h.scope`
	holds, err := collect[Hold](ctx, tx, onHold, syncs, story.Key)
	if err != nil {
		return err
	}
	for _, h := range holds {
		lanes[h.Sync].Holds = append(lanes[h.Sync].Holds, h)
	}
	// The index by key finds the rows without a key, which are few. $4 leaves out earlier partitions.
	const actions = `-- lockstep story: what people did to the syncs
SELECT ` + entryColumns + `
  FROM (SELECT l.*, row_number() OVER (PARTITION BY l.sync ORDER BY l.id DESC) AS nth
          FROM outbox.delivery_log AS l
          JOIN unnest($1::text[], $2::timestamptz[]) AS s (name, began) ON s.name = l.sync AND s.began <= l.at
         WHERE l.key IS NULL AND l.event_id IS NULL AND l.actor IS NOT NULL AND l.at >= $4) AS l
 WHERE l.nth <= $3`
	whole, err := collect[Entry](ctx, tx, actions, syncs, began, mostActions, slices.MinFunc(began, time.Time.Compare))
	if err != nil {
		return err
	}
	for _, e := range whole {
		lanes[e.Sync].Actions = append(lanes[e.Sync].Actions, e)
	}
	for _, l := range lanes {
		slices.SortFunc(l.Actions, func(a, b Entry) int { return cmp.Compare(b.ID, a.ID) })
	}
	const why = `-- lockstep story: why
SELECT s.name, string_agg(w.says, '; ')
  FROM unnest($1::text[], $2::text[]::uuid[]) AS s (name, event)
 CROSS JOIN LATERAL outbox.why_not_delivered(s.event, s.name) AS w (says)
 GROUP BY s.name`
	rows, _ := tx.Query(ctx, why, unsure, newest) // ForEachRow returns its error
	var sync, says string
	_, err = pgx.ForEachRow(rows, []any{&sync, &says}, func() error {
		lanes[sync].Why = says
		return nil
	})
	return err
}

// began returns when the lane's oldest event was written, as far as it is known.
func (l *Lane) began() time.Time {
	oldest := l.Events[len(l.Events)-1]
	if !oldest.InsertedAt.IsZero() || len(oldest.Entries) == 0 {
		return oldest.InsertedAt
	}
	return oldest.Entries[len(oldest.Entries)-1].At
}

// builder orders what was read by lane and event.
type builder struct {
	log        []Entry    // the newest first
	deliveries []Delivery // by sync and place
	events     []knownEvent
	newest     bool // log has the newest rows
}

func (b *builder) lane(row laneRow) Lane {
	lane := Lane{Sync: row.Name, OnFailed: row.OnFailed, RetiredAt: row.RetiredAt, Zone: row.Zone, Served: row.Served, Open: row.Open}
	if row.UpdatedAt != nil {
		lane.Reference = &Reference{Version: row.Version, UpdatedAt: *row.UpdatedAt, BySomebody: *row.EventSeq == 0}
		if row.ExternalID != nil {
			lane.Reference.ExternalID = *row.ExternalID
		}
		if row.ETag != nil {
			lane.Reference.ETag = *row.ETag
		}
		for name, value := range row.Learned {
			lane.Reference.Learned = append(lane.Reference.Learned, Learned{name, value})
		}
		slices.SortFunc(lane.Reference.Learned, func(a, b Learned) int { return cmp.Compare(a.Name, b.Name) })
	}
	byID := map[string]*LaneEvent{}
	var order []string
	at := func(id string, e Event) *LaneEvent {
		if byID[id] == nil {
			byID[id] = &LaneEvent{Event: e}
			order = append(order, id)
		}
		return byID[id]
	}
	for _, e := range b.events {
		if slices.Contains(e.Takers, row.Name) {
			at(e.ID, e.Event)
		}
	}
	known := func(id string) (Event, bool) {
		i := slices.IndexFunc(b.events, func(e knownEvent) bool { return e.ID == id })
		if i < 0 {
			return Event{ID: id}, false
		}
		return b.events[i].Event, true
	}
	for _, d := range b.deliveries {
		if d.Sync != row.Name {
			continue
		}
		if lane.First == nil {
			lane.First = &d
		}
		if e, ok := known(d.EventID); ok {
			at(d.EventID, e).Delivery = &d
		}
	}
	for _, entry := range b.log {
		if entry.Sync != row.Name {
			continue
		}
		if entry.EventID == "" { // the reference was set
			lane.Actions = append(lane.Actions, entry)
			continue
		}
		e, ok := known(entry.EventID)
		if !ok {
			e = Event{ID: entry.EventID, Type: entry.EventType, Key: entry.Key, Version: entry.Version}
			if entry.EventSeq != nil {
				e.Seq = *entry.EventSeq
			}
		}
		if lane.Has == nil && b.newest && entry.Delivered() {
			lane.Has = &entry
		}
		event := at(entry.EventID, e)
		event.Entries = append(event.Entries, entry)
	}
	for _, id := range order {
		lane.Events = append(lane.Events, *byID[id])
	}
	slices.SortStableFunc(lane.Events, func(a, b LaneEvent) int { return cmp.Compare(b.Seq, a.Seq) })
	if len(lane.Events) > MostEvents {
		lane.Older = len(lane.Events) - MostEvents
		oldest := lane.Events[MostEvents-1].Seq
		lane.Events = slices.DeleteFunc(lane.Events, func(e LaneEvent) bool {
			return e.Seq < oldest && (lane.First == nil || e.ID != lane.First.EventID)
		})
	}
	return lane
}
