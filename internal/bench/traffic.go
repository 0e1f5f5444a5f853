package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"
)

const (
	trafficRate    = 500 // events per second
	trafficWriters = 4
)

// traffic is a steady flow of single events, each in its own transaction.
type traffic struct {
	mu        sync.Mutex
	committed map[int64]time.Time // by the event's number, when its writer knew
	told      chan int64          // every twentieth event, as it is committed
}

func newTraffic() *traffic {
	return &traffic{committed: map[int64]time.Time{}, told: make(chan int64, 1)}
}

// flow inserts events at [trafficRate] until flowing ends.
func (t *traffic) flow(ctx, flowing context.Context, insert func(ctx context.Context, n int64) error) error {
	return t.flowAt(ctx, flowing, trafficRate, insert)
}

// flowAt inserts so many events per second until flowing ends.
func (t *traffic) flowAt(ctx, flowing context.Context, rate int, insert func(ctx context.Context, n int64) error) error {
	var group errgroup.Group
	began := time.Now()
	for writer := range int64(trafficWriters) {
		group.Go(func() error {
			for n := writer + 1; ; n += trafficWriters {
				pause := time.NewTimer(time.Until(began.Add(time.Duration(n) * time.Second / time.Duration(rate))))
				select {
				case <-flowing.Done():
					pause.Stop()
					return nil
				case <-pause.C:
				}
				if err := insert(ctx, n); err != nil {
					return err
				}
				t.mu.Lock()
				t.committed[n] = time.Now()
				t.mu.Unlock()
				if n%20 == 0 {
					select {
					case t.told <- n:
					default: // the last one is still being looked at
					}
				}
			}
		})
	}
	return group.Wait()
}

// delays returns the times from commit to arrival, in milliseconds, of the
// events committed between two moments.
func (t *traffic) delays(arrivals map[int64]int64, from, to time.Time) []float64 {
	var delays []float64
	for n, at := range t.committed {
		if at.Before(from) || at.After(to) {
			continue
		}
		if arrived, ok := arrivals[n]; ok {
			delays = append(delays, milliseconds(time.Unix(0, arrived).Sub(at)))
		}
	}
	return delays
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// eventID is the id of the event of this number in traffic.
func eventID(n int64) string { return fmt.Sprintf("00000000-0000-7000-8000-%012d", n) }

// insertEvent inserts one event of traffic.
func insertEvent(pool *pgxpool.Pool) func(ctx context.Context, n int64) error {
	return func(ctx context.Context, n int64) error {
		_, err := pool.Exec(ctx, `INSERT INTO outbox.event (id, type, key, payload) VALUES ($1, $2, $3, $4)`,
			eventID(n), "scheduling:updated", fmt.Sprintf("T-%d", n%1000), hearingNumber(n))
		return err
	}
}

// insertJob inserts one River job of traffic.
func (i *riverInserter) insertJob(ctx context.Context, n int64) error {
	_, err := i.client.Insert(ctx, hearingNumber(n), nil)
	return err
}

// recordings watches events of traffic until they are in the log, and returns when each was first seen there.
func (t *traffic) recordings(ctx, flowing context.Context, d *database) (map[int64]time.Time, error) {
	seen := map[int64]time.Time{}
	for {
		select {
		case <-flowing.Done():
			return seen, nil
		case n := <-t.told:
			for there := false; !there; {
				const query = `SELECT EXISTS (SELECT FROM outbox.delivery_log WHERE event_id = $1)`
				if err := d.conn.QueryRow(ctx, query, eventID(n)).Scan(&there); err != nil {
					return nil, err
				}
			}
			seen[n] = time.Now()
		}
	}
}

// commits measures single-row commits meanwhile, in milliseconds.
func commits(ctx, flowing context.Context, pool *pgxpool.Pool) ([]float64, error) {
	if _, err := pool.Exec(ctx, `CREATE TABLE single_row (at timestamptz)`); err != nil {
		return nil, err
	}
	var took []float64
	ticker := time.NewTicker(25 * time.Millisecond)
	defer ticker.Stop()
	for {
		select {
		case <-flowing.Done():
			return took, nil
		case <-ticker.C:
		}
		began := time.Now()
		if _, err := pool.Exec(ctx, `INSERT INTO single_row VALUES (now())`); err != nil {
			return nil, err
		}
		took = append(took, milliseconds(time.Since(began)))
	}
}

// last returns the last report of a group that was one child and has stopped.
func (g *group) last() report { return g.children[0].last }

// stopInto ends the group and adds its error to err.
func (g *group) stopInto(err *error) { *err = errors.Join(*err, g.stop()) }
