package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hms-mkt/lockstep/internal/inspect"
	"github.com/hms-mkt/lockstep/internal/output"
)

// changeRow is something that a person did.
type changeRow struct {
	ID      int64     `json:"id"`
	At      time.Time `json:"at"`
	FirstAt time.Time `json:"first_at"`
	Actor   string    `json:"actor"`
	Action  string    `json:"action"`
	Sync    string    `json:"sync"`
	Rows    int       `json:"rows"`
	Keys    []string  `json:"keys"`
	EventID string    `json:"event_id,omitempty"`
	Reason  string    `json:"reason,omitempty"`
}

func newChangeRow(c inspect.Change) changeRow {
	r := changeRow{
		ID: c.ID, At: c.At, FirstAt: c.First, Actor: c.Actor, Action: c.Outcome, Sync: c.Sync,
		Rows: c.Rows, Keys: append([]string{}, c.Keys...), Reason: c.Reason,
	}
	if c.Rows == 1 {
		r.EventID = c.EventID
	}
	return r
}

func (changeRow) Header() []string {
	return []string{"AT", "BY", "ACTION", "SYNC", "ROWS", "KEYS", "REASON"}
}

func (r changeRow) Cells() []string {
	keys := strings.Join(r.Keys, ", ")
	if len(r.Keys) > 0 && r.Rows > len(r.Keys) {
		keys += ", …"
	}
	return []string{clock(&r.At), r.Actor, r.Action, r.Sync, fmt.Sprint(r.Rows), keys, r.Reason}
}

func (a *app) changesCommand() *cobra.Command {
	var (
		f            inspect.ChangeFilter
		since, until instant
		limit        int
	)
	c := &cobra.Command{
		Use:   "changes",
		Short: "Show what people did: who requeued, discarded or paused what, when and why",
		Long: `Show what people did: who requeued, discarded, replayed or paused what, when and
why, oldest first. Rows of the delivery log that belong together are one line:
different deliveries with the same person, action, sync and reason. ROWS says
how many deliveries they are, and KEYS has some of their keys. AT is the time of
the newest. The command shows the newest --limit lines. Times are UTC. The login
needs the role outbox_auditor.

BY is the login, or login/name if people share a login. --by takes all of it, or
the name alone. What happened to one event or key: lockstep explain.`,
		Example: `  lockstep changes --action requeued --since 7d
  lockstep changes --by maria --sync CourtCalendarSync
  lockstep changes --limit 1000 --output jsonl`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if f.Action != "" && !slices.Contains(inspect.Actions(), f.Action) {
				return usagef("--action %q: want one of %s", f.Action, strings.Join(inspect.Actions(), ", "))
			}
			if limit < 1 || limit > 10_000 {
				return usagef("--limit %d: want 1 to 10000", limit)
			}
			return a.with(cmd, nil, roleAuditor, func(ctx context.Context, db *database) error {
				now, err := db.now(ctx)
				if err != nil {
					return err
				}
				f.Since, f.Until = since.from(now), until.from(now)
				changes, err := inspect.ReadChanges(ctx, db.conn, f)
				for err == nil && len(changes.List) < limit && changes.Older != 0 {
					var older inspect.Changes
					f.Before = changes.Older
					older, err = inspect.ReadChanges(ctx, db.conn, f)
					changes.Continue(older)
				}
				if err != nil {
					return err
				}
				shown := changes.List[:min(limit, len(changes.List))]
				slices.Reverse(shown)
				var rows []changeRow
				for _, change := range shown {
					rows = append(rows, newChangeRow(change))
				}
				p := output.NewPrinter[changeRow](a.stdout, a.format).Without(fixed(f.Sync, "", "")...)
				if err := errors.Join(p.Print(rows...), p.Close()); err != nil {
					return err
				}
				switch {
				case len(rows) == 0:
					return a.noRows(ctx, db, logFilter{sync: f.Sync}, false)
				case len(changes.List) > limit || changes.Older != 0:
					a.say("there are older changes; to see them: --limit, up to 10000, or --until %s", rows[0].FirstAt.UTC().Format(time.RFC3339Nano))
				}
				return nil
			})
		},
	}
	c.Flags().StringVar(&f.Person, "by", "", "only what this `PERSON` did: the login, login/name, or the name alone")
	c.Flags().StringVar(&f.Sync, "sync", "", "only for this `SYNC`")
	c.Flags().StringVar(&f.Action, "action", "", "only this `ACTION`: "+strings.Join(inspect.Actions(), ", "))
	c.Flags().Var(&since, "since", "only since `WHEN`: 90s, 24h, 7d, or a time such as 2027-01-31T08:00:00Z")
	c.Flags().Var(&until, "until", "only before `WHEN`")
	c.Flags().IntVar(&limit, "limit", 50, "show the newest `N` lines")
	return c
}

// now returns the database's time.
func (db *database) now(ctx context.Context) (now time.Time, err error) {
	err = db.conn.QueryRow(ctx, `SELECT clock_timestamp()`).Scan(&now)
	return now, err
}

// from returns the time that i means at the moment now, zero if it is not set.
func (i *instant) from(now time.Time) time.Time {
	switch {
	case i.at != nil:
		return *i.at
	case i.ago != 0:
		return now.Add(-time.Duration(i.ago))
	}
	return time.Time{}
}
