package inspect

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
)

// Overview is the state of all syncs at one moment.
type Overview struct {
	At    time.Time // the moment, by the database's clock
	Syncs []Sync    // by name
}

// Sync is the state of one sync.
type Sync struct {
	Name            string
	RetiredAt       *time.Time
	LastDeliveredAt *time.Time
	Holds           []Hold `db:"-"` // what stops it, the strongest first
}

// ReadOverview reads the state of all syncs.
func ReadOverview(ctx context.Context, db Beginner) (o Overview, err error) {
	err = read(ctx, db, func(tx pgx.Tx) error {
		if err := tx.QueryRow(ctx, `SELECT clock_timestamp()`).Scan(&o.At); err != nil {
			return err
		}
		const syncs = `-- lockstep overview: syncs
SELECT s.name, s.retired_at, s.last_delivered_at
  FROM outbox.sync AS s
 ORDER BY s.name`
		if o.Syncs, err = collect[Sync](ctx, tx, syncs); err != nil {
			return err
		}
		for i := range o.Syncs {
			if o.Syncs[i].Holds, err = HoldsOf(ctx, tx, []string{o.Syncs[i].Name}); err != nil {
				return err
			}
		}
		return nil
	})
	return o, err
}
