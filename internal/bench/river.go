package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivermigrate"
)

// hearing is the job, with the same content as an event's payload.
type hearing struct {
	N             int64  `json:"n"`
	HearingID     string `json:"hearingId"`
	CaseReference string `json:"caseReference"`
	ScheduledAt   string `json:"scheduledAt"`
	Location      string `json:"location"`
	Judge         string `json:"judge"`
	Status        string `json:"status"`
}

func (hearing) Kind() string { return "hearing" }

func hearingNumber(n int64) hearing {
	return hearing{
		N: n, HearingID: fmt.Sprintf("H-%d", n), CaseReference: fmt.Sprintf("NY-2027-%d", n),
		ScheduledAt: "2027-03-01T10:00:00-05:00", Location: "3A", Judge: "R. Alvarez", Status: "scheduled",
	}
}

// riverJobs returns a database with n River jobs waiting.
func (l *lab) riverJobs(ctx context.Context, n int) (*database, error) {
	return l.database(ctx, fmt.Sprintf("%d River jobs", n), func(ctx context.Context, d *database) error {
		inserter, err := newInserter(ctx, d.url)
		if err != nil {
			return err
		}
		defer inserter.pool.Close()
		migrator, err := rivermigrate.New(riverpgxv5.New(inserter.pool), &rivermigrate.Config{Logger: quiet()})
		if err != nil {
			return err
		}
		if _, err := migrator.Migrate(ctx, rivermigrate.DirectionUp, nil); err != nil {
			return err
		}
		const page = 5_000
		for first := 1; first <= n; first += page {
			if err := inserter.insert(ctx, first, min(first+page-1, n)); err != nil {
				return err
			}
		}
		return nil
	})
}

// allWorked is a query that is true if no River job is open.
const allWorked = `SELECT NOT EXISTS (SELECT FROM river_job WHERE state IN ('available', 'running', 'retryable', 'scheduled', 'pending'))`

// riverInserter inserts River jobs.
type riverInserter struct {
	pool   *pgxpool.Pool
	client *river.Client[pgx.Tx]
}

func newInserter(ctx context.Context, url string) (*riverInserter, error) {
	pool, err := pgxpool.New(ctx, url)
	if err != nil {
		return nil, err
	}
	client, err := river.NewClient(riverpgxv5.New(pool), fastFetch())
	return &riverInserter{pool, client}, err
}

// insert adds the jobs numbered first to last by River's fastest way.
func (i *riverInserter) insert(ctx context.Context, first, last int) error {
	jobs := make([]river.InsertManyParams, 0, last-first+1)
	for n := first; n <= last; n++ {
		jobs = append(jobs, river.InsertManyParams{Args: hearingNumber(int64(n))})
	}
	_, err := i.client.InsertManyFast(ctx, jobs)
	return err
}

// fastFetch makes River fetch as often as in its own benchmark. Clients that insert need it too, because the cooldown also
// bounds how often they notify.
func fastFetch() *river.Config {
	return &river.Config{FetchCooldown: 2 * time.Millisecond, FetchPollInterval: 20 * time.Millisecond, Logger: quiet()}
}

// riverChild is a River client as a process.
func riverChild(ctx context.Context, c childConfig, r *reporter) error {
	config, err := pgxpool.ParseConfig(c.URL)
	if err != nil {
		return err
	}
	config.MaxConns = 8 // as many as a relay
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return err
	}
	defer pool.Close()
	registry := river.NewWorkers()
	river.AddWorker(registry, river.WorkFunc(func(_ context.Context, job *river.Job[hearing]) error {
		r.arrivedNumber(job.Args.N)
		r.done()
		return nil
	}))
	fetching := fastFetch()
	fetching.Queues = map[string]river.QueueConfig{river.QueueDefault: {MaxWorkers: 2000}}
	fetching.Workers = registry
	client, err := river.NewClient(riverpgxv5.New(pool), fetching)
	if err != nil {
		return err
	}
	if err := client.Start(context.WithoutCancel(ctx)); err != nil {
		return err
	}
	<-ctx.Done()
	stopping, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	return client.Stop(stopping)
}

func quiet() *slog.Logger {
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
}
