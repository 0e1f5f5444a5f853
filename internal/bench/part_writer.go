package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"
)

// writerPart measures the cost of the outbox for writers.
func writerPart() part {
	return part{
		name: "writer",
		figures: []figure{
			{Name: "writer's transaction with the outbox", Against: "without", Unit: "/s", Judged: byRatio, Goal: 0.55, Stretch: 0.75},
			{Name: "1,000 events in one statement, three syncs", Against: "bare copy of outbox.event", Unit: "/s", Judged: byRatio, Goal: 0.30, Stretch: 0.40},
		},
		round: func(ctx context.Context, l *lab) ([]sample, error) {
			var transaction, bulk sample
			err := l.inTurn(
				func() (err error) { transaction.Ours, err = l.hearingUpdates(ctx, true); return err },
				func() (err error) { transaction.Reference, err = l.hearingUpdates(ctx, false); return err },
				func() (err error) { bulk.Ours, err = l.bulkInsert(ctx, "outbox.event"); return err },
				func() (err error) { bulk.Reference, err = l.bulkInsert(ctx, "bare_event"); return err },
			)
			return []sample{transaction, bulk}, err
		},
	}
}

// hearingUpdates lets eight writers change hearings, with or without events, and returns transactions per second.
func (l *lab) hearingUpdates(ctx context.Context, tell bool) (float64, error) {
	const writers, hearings = 8, 10_000
	d, err := l.database(ctx, "10,000 hearings", func(ctx context.Context, d *database) error {
		if err := d.register(ctx, courtSync); err != nil {
			return err
		}
		_, err := d.conn.Exec(ctx, `
CREATE TABLE hearing (id bigint PRIMARY KEY, courtroom text NOT NULL, version bigint NOT NULL DEFAULT 1, filler text NOT NULL) WITH (fillfactor = 80);
INSERT INTO hearing (id, courtroom, filler) SELECT n, '3A', repeat('x', 100) FROM generate_series(1, 10000) AS n`)
		return err
	})
	if err != nil {
		return 0, err
	}
	l.note("writers, telling the outbox: %t", tell)
	pool, err := openPool(ctx, d.url, writers)
	if err != nil {
		return 0, err
	}
	defer pool.Close()
	var done atomic.Int64
	began := time.Now()
	until := began.Add(l.lasting(6 * time.Second))
	var group errgroup.Group
	for w := range int64(writers) {
		group.Go(func() error {
			for time.Now().Before(until) {
				// Each writer has its own hearings, so writers do not wait for each other.
				id := rand.Int64N(hearings/writers)*writers + w + 1
				if err := updateHearing(ctx, pool, id, tell); err != nil {
					return err
				}
				done.Add(1)
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return 0, err
	}
	perSecond := float64(done.Load()) / time.Since(began).Seconds()
	pool.Close()
	return perSecond, d.drop(ctx)
}

func updateHearing(ctx context.Context, pool *pgxpool.Pool, id int64, tell bool) error {
	return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `UPDATE hearing SET courtroom = '3B', version = version + 1 WHERE id = $1`, id); err != nil || !tell {
			return err
		}
		_, err := tx.Exec(ctx, `INSERT INTO outbox.event (type, key, payload) VALUES ($1, $2, $3)`,
			"scheduling:updated", fmt.Sprintf("H-%d", id), hearingNumber(id))
		return err
	})
}

// bulkInsert repeats a statement that inserts a thousand events, and returns events per second.
func (l *lab) bulkInsert(ctx context.Context, table string) (float64, error) {
	d, err := l.database(ctx, "three syncs and a bare copy of the event table", func(ctx context.Context, d *database) error {
		if err := d.register(ctx, courtSync, courtSync+"2", courtSync+"3"); err != nil {
			return err
		}
		_, err := d.conn.Exec(ctx, `CREATE TABLE bare_event (LIKE outbox.event INCLUDING ALL)`)
		return err
	})
	if err != nil {
		return 0, err
	}
	l.note("statements of 1,000 events into %s", table)
	const page = 1000
	statement := `INSERT INTO ` + table + ` (type, key, payload)
SELECT 'scheduling:updated', 'H-' || n % 100000, ` + payload + `
  FROM generate_series($1::bigint, $2::bigint) AS n`
	pages := max(l.size(100_000)/page, 3)
	began := time.Now()
	for i := range pages {
		if _, err := d.conn.Exec(ctx, statement, i*page+1, (i+1)*page); err != nil {
			return 0, err
		}
	}
	return float64(pages*page) / time.Since(began).Seconds(), d.drop(ctx)
}

func openPool(ctx context.Context, url string, connections int32) (*pgxpool.Pool, error) {
	config, err := pgxpool.ParseConfig(url)
	if err != nil {
		return nil, err
	}
	config.MaxConns = connections
	return pgxpool.NewWithConfig(ctx, config)
}
