package outbox

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
)

// Alert is a row of the view outbox.alert: what people must know now.
type Alert struct {
	Name     string     `json:"name"`     // such as failed or escalated
	Severity string     `json:"severity"` // critical, warning or info
	Since    *time.Time `json:"since"`    // nil: not known
	Says     string     `json:"says"`     // a sentence
	Remedy   string     `json:"remedy"`   // what to do
	Sync     *string    `json:"sync"`     // nil: it is about the whole database
	Key      *string    `json:"key"`      // an example
	EventID  *string    `json:"event_id"` // the event of Key
}

// Alerts returns what people must know now. It reads little, however many deliveries are
// open.
func (s *Store) Alerts(ctx context.Context) ([]Alert, error) {
	const statement = `-- lockstep: alerts
SELECT name, severity, since, says, remedy, sync, key, event_id::text FROM outbox.alert`
	return list[Alert](ctx, s, statement)
}

// Raised is a change of state that [Store.RaiseAlerts] has told.
type Raised struct {
	Type     string  // of the operator event, such as lockstep:failed
	Severity string  // critical, warning or info
	Sync     string  // the sync that it is about
	Says     string  // a sentence
	N        int64   // failed deliveries, escalated keys, or destinations on hold
	EventID  *string // of the operator event; nil: no sync takes it
}

// RaiseAlerts tells each change of state once, of all relays together: it writes operator
// events for the syncs that take them, and returns what it has told. If more is true, it has
// not looked at all deliveries yet: call it again at once.
func (s *Store) RaiseAlerts(ctx context.Context) (raised []Raised, more bool, err error) {
	const statement = `-- lockstep: raise alerts
SELECT coalesce(type, ''), coalesce(severity, ''), coalesce(sync, ''), coalesce(says, ''), coalesce(n, 0), event_id::text FROM outbox.raise_alerts()`
	err = s.inTx(ctx, func(ctx context.Context, tx pgx.Tx) error {
		raised, more = nil, false
		rows, err := tx.Query(ctx, statement)
		if err != nil {
			return err
		}
		var r Raised
		_, err = pgx.ForEachRow(rows, []any{&r.Type, &r.Severity, &r.Sync, &r.Says, &r.N, &r.EventID}, func() error {
			if r.Type == "" {
				more = true
			} else {
				raised = append(raised, r)
			}
			return nil
		})
		return err
	})
	return raised, more, s.judge(ctx, err)
}
