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
	Says    string     `json:"says"`              // a sentence for the clerk
}

// A sync whose patterns do not match the newest version is shown if its court has an older
// one.
const courtSQL = `/* scheduling: court */
WITH said AS (
    SELECT s.name, held.event_id = $1 AS has_newest,
           CASE WHEN d.state = 'sending' THEN 'sending'
                WHEN d.state = 'failed'  THEN 'failed'
                WHEN d.state IS NOT NULL THEN 'waiting'
                WHEN l.outcome = 'duplicate' THEN 'delivered'
                WHEN l.outcome IS NOT NULL THEN l.outcome
                WHEN NOT m.matches THEN 'not_sent'
                WHEN s.retired_at <= e.inserted_at THEN 'retired'
                WHEN s.backfill_seq IS NOT NULL THEN 'waiting'
                WHEN EXISTS (SELECT FROM outbox.missed WHERE event_id = $1) THEN 'missed'
                ELSE 'not_sent' END AS state,
           held.version, held.at, substr(w.says, length(s.name) + 3) AS says
      FROM outbox.sync AS s
      LEFT JOIN outbox.event AS e ON e.id = $1
     CROSS JOIN LATERAL (SELECT coalesce(e.type LIKE ANY (s.likes), false) AS matches) AS m
      LEFT JOIN LATERAL (
           SELECT state FROM outbox.open_delivery
            WHERE sync = s.name AND key = $2 AND event_id = $1
            LIMIT 1) AS d ON true
      LEFT JOIN LATERAL (
           SELECT outcome FROM outbox.delivery_log
            WHERE sync = s.name AND event_id = $1
              AND outcome IN ('delivered', 'duplicate', 'accepted', 'filtered', 'superseded', 'discarded')
            ORDER BY id DESC LIMIT 1) AS l ON true
      LEFT JOIN LATERAL (
           SELECT event_id, version, coalesce(answered_at, at) AS at FROM outbox.delivery_log
            WHERE sync = s.name AND key = $2
              AND outcome IN ('delivered', 'duplicate', 'accepted')
            ORDER BY id DESC LIMIT 1) AS held ON true
     CROSS JOIN LATERAL outbox.why_not_delivered($1, s.name) AS w (says)
     WHERE m.matches OR d.state IS NOT NULL OR l.outcome IS NOT NULL OR held.event_id IS NOT NULL
)
SELECT name,
       CASE WHEN state IN ('waiting', 'sending', 'failed', 'missed', 'delivered', 'accepted') THEN coalesce(has_newest, false) END,
       state, version, at, says
  FROM said
 UNION ALL
SELECT '', NULL, 'not_sent', NULL, NULL, w.says
  FROM outbox.why_not_delivered($1) AS w (says)
 WHERE NOT EXISTS (SELECT FROM said)
 ORDER BY name`

// Court says, for each sync that carries h, whether the court has got this version of
// h.
func (s *Service) Court(ctx context.Context, h Hearing) ([]Knowledge, error) {
	const insufficientPrivilege = "42501"
	rows, _ := s.pool.Query(ctx, courtSQL, h.EventID, h.ID) // CollectRows returns its error
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Knowledge])
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok && pg.Code == insufficientPrivilege {
		return nil, errMayNotRead
	}
	for i := range list {
		list[i].explain(h.Version)
	}
	return list, err
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

// errMayNotRead means that the login is not a member of outbox_auditor.
var errMayNotRead = errors.New("the service's database login may not read the deliveries; grant it outbox_auditor")
