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
	Sync    string     `json:"sync,omitempty"`    // "" if no sync carries hearings
	GotIt   bool       `json:"got_it"`            // the court acknowledged the newest version last
	State   string     `json:"state"`             // of the newest version: delivered, accepted, waiting, sending, failed, filtered, discarded, superseded, not_sent
	Version *int64     `json:"version,omitempty"` // the version that the court acknowledged last
	At      *time.Time `json:"at,omitempty"`      // time of that acknowledgement
	Says    string     `json:"says"`              // a sentence for the clerk
}

const courtSQL = `/* scheduling: court */
SELECT coalesce(s.name, ''),
       coalesce(held.event_id = $1, false),
       CASE WHEN d.state = 'sending' THEN 'sending'
            WHEN d.state = 'failed'  THEN 'failed'
            WHEN d.state IS NOT NULL THEN 'waiting'
            WHEN l.outcome = 'duplicate' THEN 'delivered'
            ELSE coalesce(l.outcome, 'not_sent') END,
       held.version,
       held.at,
       CASE WHEN s.name IS NULL THEN w.says ELSE substr(w.says, length(s.name) + 3) END
  FROM outbox.why_not_delivered($1) AS w (says)
  LEFT JOIN outbox.sync AS s ON starts_with(w.says, s.name || ': ')
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
 ORDER BY s.name`

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
		if !k.GotIt && k.Version != nil {
			k.Says += fmt.Sprintf("; the receiver holds version %d of %d", *k.Version, newest)
		}
	case k.Sync != "" && k.State != "filtered":
		k.Says += "; the court knows nothing of this hearing yet"
	}
}

// errMayNotRead means that the login is not a member of outbox_auditor.
var errMayNotRead = errors.New("the service's database login may not read the deliveries; grant it outbox_auditor")
