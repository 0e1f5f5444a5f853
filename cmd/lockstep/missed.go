package main

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"

	"github.com/hms-mkt/lockstep/internal/output"
)

// missedRow is a delivery that repair adds. An event that no sync takes has a row without
// a sync.
type missedRow struct {
	Sync       *string   `json:"sync"`
	EventSeq   int64     `json:"event_seq"`
	EventID    string    `json:"event_id"`
	EventType  string    `json:"event_type"`
	Key        string    `json:"key"`
	InsertedAt time.Time `json:"inserted_at"`
}

func (missedRow) Header() []string { return []string{"SYNC", "KEY", "TYPE", "WRITTEN", "EVENT"} }

func (m missedRow) Cells() []string {
	name := "(no sync matches)"
	if m.Sync != nil {
		name = *m.Sync
	}
	return []string{name, m.Key, m.EventType, clock(&m.InsertedAt), m.EventID}
}

func (a *app) repairCommand() *cobra.Command {
	var by operator
	var dryRun bool
	c := &cobra.Command{
		Use:   "repair",
		Short: "Add deliveries of events that were written with triggers off",
		Long: `Add deliveries of events that were written with triggers off: by a session with
session_replication_role = replica, by a logical subscription, or while a trigger
was disabled. Such events have no delivery, no row in the delivery log, and are
not counted as unmatched.

The command checks all retained events. It adds the deliveries to each sync that
takes the type and is not retired. A receiver may get such an event after later
ones of its key. Relays may run at the same time. Events that a backfill may be
about to add are left for the next call. The login needs the role
outbox_operator.`,
		Example: `  lockstep repair --dry-run
  lockstep repair --reason "loaded with triggers off"`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := by.check(a, false); err != nil {
				return err
			}
			return a.with(cmd, nil, roleOperator, func(ctx context.Context, db *database) error {
				return a.repairMissed(ctx, db, by, dryRun)
			})
		},
	}
	c.Flags().BoolVarP(&dryRun, "dry-run", "n", false, "list what would change, change nothing")
	by.flags(c, reasonOptional)
	return c
}

func (a *app) repairMissed(ctx context.Context, db *database, by operator, dryRun bool) error {
	for after := new(int64); after != nil; {
		const find = `-- lockstep repair: find
SELECT outbox.find_missed($1::bigint, 2000)`
		if err := db.conn.QueryRow(ctx, find, *after).Scan(&after); err != nil {
			return err
		}
	}
	var rows []missedRow
	if dryRun {
		const list = `-- lockstep repair: list
SELECT s.name AS sync, m.event_seq, m.event_id::text AS event_id, m.type AS event_type, e.key, m.inserted_at
  FROM outbox.missed AS m
  JOIN outbox.event AS e ON e.seq = m.event_seq
  LEFT JOIN outbox.sync AS s ON s.retired_at IS NULL AND m.type LIKE ANY (s.likes)
 ORDER BY m.event_seq, s.name`
		var err error
		if rows, err = query[missedRow](ctx, db.conn, list); err != nil {
			return err
		}
	}
	for !dryRun {
		var page []missedRow
		err := db.act(ctx, by, func(tx pgx.Tx) (err error) {
			const repair = `-- lockstep repair
SELECT sync, event_seq, event_id::text AS event_id, event_type, key, inserted_at FROM outbox.repair(1000, $1)`
			page, err = query[missedRow](ctx, tx, repair, by.reason)
			return err
		})
		if err != nil {
			return err
		}
		if len(page) == 0 {
			break
		}
		rows = append(rows, page...)
	}
	if err := output.Rows(a.stdout, a.format, rows...); err != nil {
		return err
	}
	deliveries := 0
	for _, r := range rows {
		if r.Sync != nil {
			deliveries++
		}
	}
	switch {
	case len(rows) == 0:
		a.say("every event has its deliveries: there is nothing to repair")
	case dryRun:
		a.say("%s would be added; nothing was changed", plural(deliveries, "delivery"))
	default:
		a.say("%s added", plural(deliveries, "delivery"))
	}
	return nil
}
