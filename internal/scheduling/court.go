package scheduling

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Knowledge answers for one sync: has the court got the hearing as it is now?
type Knowledge struct {
	Sync    string     `json:"sync,omitempty"`    // "" if no sync carries hearings
	GotIt   bool       `json:"got_it"`            // the last thing the court acknowledged is the newest version
	State   string     `json:"state"`             // of the newest version: delivered, accepted, waiting, sending, failed, filtered, discarded, superseded, not_sent
	Version *int64     `json:"version,omitempty"` // what the court acknowledged last
	At      *time.Time `json:"at,omitempty"`      // when it did
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

// Court answers, for each sync that carries h, whether the court has got it.
// The answer is about the version in h.
func (s *Service) Court(ctx context.Context, h Hearing) ([]Knowledge, error) {
	rows, err := s.pool.Query(ctx, courtSQL, h.eventID, h.ID)
	if err != nil {
		return nil, courtError(err)
	}
	list, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (Knowledge, error) {
		var k Knowledge
		err := row.Scan(&k.Sync, &k.GotIt, &k.State, &k.Version, &k.At, &k.Says)
		return k, err
	})
	if err != nil {
		return nil, courtError(err)
	}
	for i := range list {
		list[i].explain(h.Version)
	}
	return list, nil
}

// explain adds what the sentence of the outbox cannot know: the court may hold
// an older version of the same hearing.
func (k *Knowledge) explain(newest int64) {
	switch {
	case k.At != nil:
		utc := k.At.UTC()
		k.At = &utc
		if !k.GotIt && k.Version != nil {
			k.Says += fmt.Sprintf("; the receiver holds version %d of %d", *k.Version, newest)
		}
	case k.Sync != "" && k.State != "filtered":
		k.Says += "; the court knows nothing of this hearing yet"
	}
}

// errMayNotRead means that the login is not a member of outbox_auditor.
var errMayNotRead = errors.New("the service's database login may not read the deliveries; grant it outbox_auditor")

func courtError(err error) error {
	const insufficientPrivilege = "42501"
	var pg *pgconn.PgError
	if errors.As(err, &pg) && pg.Code == insufficientPrivilege {
		return errMayNotRead
	}
	return fmt.Errorf("court: %w", err)
}

// hearingView is a hearing with what the courts know of it.
type hearingView struct {
	Hearing      Hearing
	Court        []Knowledge
	CourtUnknown string // why Court is not known
}

// MarshalJSON adds the field court to those of the hearing.
func (v hearingView) MarshalJSON() ([]byte, error) {
	hearing, err := json.Marshal(v.Hearing)
	if err != nil {
		return nil, err
	}
	rest, err := json.Marshal(struct {
		Court        []Knowledge `json:"court"`
		CourtUnknown string      `json:"court_unknown,omitempty"`
	}{v.Court, v.CourtUnknown})
	if err != nil {
		return nil, err
	}
	return append(append(hearing[:len(hearing)-1], ','), rest[1:]...), nil
}
