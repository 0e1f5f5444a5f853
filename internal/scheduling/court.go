package scheduling

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Knowledge says what the court of one sync knows of a hearing.
type Knowledge struct {
	Sync string `json:"sync,omitempty"` // "" if no sync carries hearings
	// GotIt says whether the court acknowledged the newest version last. It is nil if
	// nobody sends that version to the court: State and Says have the reason.
	GotIt   *bool      `json:"got_it"`
	State   string     `json:"state"`             // of the newest version: delivered, accepted, waiting, sending, failed, filtered, discarded, superseded, retired, missed, not_sent
	Version *int64     `json:"version,omitempty"` // the version that the court acknowledged last
	At      *time.Time `json:"at,omitempty"`      // time of that acknowledgement
	Says    string     `json:"says"`              // a sentence of the outbox

	key        string
	since      *time.Time // since when the delivery of the newest version is open
	behind     bool       // an earlier change of the hearing must be finished first
	frontState string     // of the first open delivery of the hearing, as the rest
	errorClass string
	error      string
	dueAt      *time.Time
	hold       string // kind of the hold that keeps the delivery back, or ""
	holdReason string
	holdUntil  *time.Time
}

// The statement takes hearings by event ($1) and key ($2). The sentences of the outbox ($3)
// cost more than all the rest, so a list does without. A sync whose patterns do not match
// the newest version is shown if its court has an older one.
const courtSQL = `/* scheduling: court */
WITH hearing AS (
    SELECT * FROM unnest($1::uuid[], $2::text[]) AS h (event_id, key)
), said AS (
    SELECT h.event_id AS newest, h.key, s.name, held.event_id = h.event_id AS has_newest,
           CASE WHEN d.state = 'sending' THEN 'sending'
                WHEN d.state = 'failed'  THEN 'failed'
                WHEN d.state IS NOT NULL THEN 'waiting'
                WHEN l.outcome = 'duplicate' THEN 'delivered'
                WHEN l.outcome IS NOT NULL THEN l.outcome
                WHEN NOT m.matches THEN 'not_sent'
                WHEN s.retired_at <= e.inserted_at THEN 'retired'
                WHEN s.backfill_seq IS NOT NULL THEN 'waiting'
                WHEN EXISTS (SELECT FROM outbox.missed WHERE event_id = h.event_id) THEN 'missed'
                ELSE 'not_sent' END AS state,
           held.version, held.at, d.created_at AS since, front.event_id <> h.event_id AS behind, front.state AS front_state,
           front.error_class, front.error, front.due_at, hold.kind, hold.reason, hold.until,
           CASE WHEN $3 THEN (SELECT substr(w, length(s.name) + 3) FROM outbox.why_not_delivered(h.event_id, s.name) AS w LIMIT 1) END AS says
      FROM hearing AS h
     CROSS JOIN outbox.sync AS s
      LEFT JOIN outbox.event AS e ON e.id = h.event_id
     CROSS JOIN LATERAL (SELECT coalesce(e.type LIKE ANY (s.likes), false) AS matches) AS m
      LEFT JOIN LATERAL (
           SELECT state, created_at FROM outbox.open_delivery
            WHERE sync = s.name AND key = h.key AND event_id = h.event_id
            LIMIT 1) AS d ON true
      LEFT JOIN LATERAL (
           SELECT event_id, state, error_class, error, due_at FROM outbox.open_delivery
            WHERE sync = s.name AND key = h.key
            ORDER BY event_seq LIMIT 1) AS front ON d.state IS NOT NULL
      LEFT JOIN LATERAL (
           SELECT kind, reason, until FROM outbox.hold AS o
            WHERE o.sync = s.name AND (o.kind IN ('auth', 'breaker') OR o.until IS NULL OR o.until > clock_timestamp())
              AND (o.scope = '' OR o.scope = (SELECT scope FROM outbox.lane WHERE sync = s.name AND key = h.key))
            ORDER BY outbox.hold_rank(o.kind) LIMIT 1) AS hold ON d.state IS NOT NULL
      LEFT JOIN LATERAL (
           SELECT outcome FROM outbox.delivery_log
            WHERE sync = s.name AND event_id = h.event_id
              AND outcome IN ('delivered', 'duplicate', 'accepted', 'filtered', 'superseded', 'discarded')
            ORDER BY id DESC LIMIT 1) AS l ON true
      LEFT JOIN LATERAL (
           SELECT event_id, version, coalesce(answered_at, at) AS at FROM outbox.delivery_log
            WHERE sync = s.name AND key = h.key
              AND outcome IN ('delivered', 'duplicate', 'accepted')
            ORDER BY id DESC LIMIT 1) AS held ON true
     WHERE m.matches OR d.state IS NOT NULL OR l.outcome IS NOT NULL OR held.event_id IS NOT NULL
)
SELECT key, name,
       CASE WHEN state IN ('waiting', 'sending', 'failed', 'missed', 'delivered', 'accepted') THEN coalesce(has_newest, false) END,
       state, version, at, coalesce(says, ''), since, coalesce(behind, false), coalesce(front_state, ''),
       coalesce(error_class, ''), coalesce(error, ''), nullif(due_at, 'infinity'), coalesce(kind, ''), coalesce(reason, ''), nullif(until, 'infinity')
  FROM said
 UNION ALL
SELECT h.key, '', NULL, 'not_sent', NULL, NULL, w.says, NULL, false, '', '', '', NULL, '', '', NULL
  FROM hearing AS h, outbox.why_not_delivered(h.event_id) AS w (says)
 WHERE NOT EXISTS (SELECT FROM said WHERE newest = h.event_id)
 ORDER BY key, name`

// Court says, for each sync that carries h, whether the court has got this version of
// h.
func (s *Service) Court(ctx context.Context, h Hearing) ([]Knowledge, error) {
	known, err := s.courts(ctx, []Hearing{h}, true)
	for i := range known[h.ID] {
		known[h.ID][i].explain(h.Version)
	}
	return known[h.ID], err
}

// Courts is [Service.Court] for a page of hearings, by their ids, with one statement. It
// leaves Says out.
func (s *Service) Courts(ctx context.Context, list []Hearing) (map[string][]Knowledge, error) {
	return s.courts(ctx, list, false)
}

func (s *Service) courts(ctx context.Context, list []Hearing, sentences bool) (map[string][]Knowledge, error) {
	const insufficientPrivilege = "42501"
	events, keys := make([]string, len(list)), make([]string, len(list))
	for i, h := range list {
		events[i], keys[i] = h.EventID, h.ID
	}
	rows, _ := s.status.Query(ctx, courtSQL, events, keys, sentences) // ForEachRow returns its error
	known := map[string][]Knowledge{}
	var k Knowledge
	_, err := pgx.ForEachRow(rows, []any{
		&k.key, &k.Sync, &k.GotIt, &k.State, &k.Version, &k.At, &k.Says, &k.since, &k.behind, &k.frontState,
		&k.errorClass, &k.error, &k.dueAt, &k.hold, &k.holdReason, &k.holdUntil,
	}, func() error {
		known[k.key] = append(known[k.key], k)
		k = Knowledge{} // no pointer of this row is used for the next one
		return nil
	})
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok && pg.Code == insufficientPrivilege {
		return nil, errMayNotRead
	}
	return known, err
}

// explain adds to the sentence of the outbox which version the court has.
func (k *Knowledge) explain(newest int64) {
	switch {
	case k.At != nil:
		k.At = new(k.At.UTC())
		if (k.GotIt == nil || !*k.GotIt) && k.Version != nil {
			k.Says += fmt.Sprintf("; the receiver holds version %d of %d", *k.Version, newest)
		}
	case k.Sync == "":
	case k.GotIt == nil:
		k.Says += "; the court knows nothing of this hearing"
	default:
		k.Says += "; the court knows nothing of this hearing yet"
	}
}

// errMayNotRead means that the login of the status pool is not a member of
// outbox_auditor.
var errMayNotRead = errors.New("the service's database login may not read the deliveries; give a login of outbox_auditor with --status-url")
