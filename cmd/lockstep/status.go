package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hms-mkt/lockstep/internal/config"
	"github.com/hms-mkt/lockstep/internal/console"
	"github.com/hms-mkt/lockstep/outbox"
)

// statusRow is a line of status. In the row without a sync, pending counts the
// events that no sync matches.
type statusRow struct {
	Sync          *string            `json:"sync"`
	Hold          *string            `json:"hold"`
	HoldUntil     *time.Time         `json:"hold_until"`
	HoldReason    *string            `json:"hold_reason"`
	HoldBy        *string            `json:"hold_by"`
	DueNow        int64              `json:"due_now"`
	Pending       int64              `json:"pending"`
	Queued        int64              `json:"queued"`
	Retry         int64              `json:"retry"`
	Sending       int64              `json:"sending"`
	Failed        int64              `json:"failed"`
	BlockedKeys   int64              `json:"blocked_keys"`
	OldestSeconds *float64           `json:"oldest_pending_age_seconds"`
	LastDelivered *time.Time         `json:"last_delivered_at"`
	RetiredAt     *time.Time         `json:"retired_at"`
	Backfill      *string            `json:"backfill"`
	ScopeHolds    []outbox.ScopeHold `json:"scope_holds"`
	Note          string             `json:"note,omitempty"`
}

func (s statusRow) Cells() []string {
	name, oldest := "(no sync matches)", ""
	if s.Sync != nil {
		name = *s.Sync
	}
	if s.OldestSeconds != nil {
		oldest = age(time.Duration(*s.OldestSeconds * float64(time.Second)))
	}
	var notes []string
	if s.Note != "" {
		notes = append(notes, s.Note)
	}
	if s.Hold != nil {
		notes = append(notes, holdNote(*s.Hold, deref(s.HoldBy), s.HoldUntil, deref(s.HoldReason)))
	}
	for i, h := range s.ScopeHolds {
		if i == mostScopesShown {
			notes = append(notes, fmt.Sprintf("%d more scopes on hold, see: SELECT * FROM outbox.hold", len(s.ScopeHolds)-i))
			break
		}
		notes = append(notes, fmt.Sprintf("scope %s %s", h.Scope, holdNote(h.Hold, h.By, h.Until, h.Reason)))
	}
	if s.Backfill != nil && deref(s.Hold) != string(outbox.HoldBackfill) { // that hold says the same
		notes = append(notes, "events are being added: "+*s.Backfill)
	}
	hold := deref(s.Hold)
	if n := len(s.ScopeHolds); n > 0 {
		hold = strings.TrimPrefix(fmt.Sprintf("%s, %d of its scopes", hold, n), ", ")
	}
	n := func(v int64) string { return fmt.Sprint(v) }
	return []string{
		name, hold, n(s.DueNow), n(s.Pending), n(s.Queued), n(s.Retry), n(s.Sending), n(s.Failed), n(s.BlockedKeys),
		oldest, clock(s.LastDelivered), strings.Join(notes, "; "),
	}
}

// mostScopesShown is how many scopes on hold the table names. JSON has them all.
const mostScopesShown = 5

func holdNote(kind, by string, until *time.Time, reason string) string {
	text := "on hold by " + by
	if until != nil {
		word := "until"
		if kind == string(outbox.HoldAuth) || kind == string(outbox.HoldBreaker) {
			word = "next probe"
		}
		text += ", " + word + " " + clock(until)
	}
	return text + ": " + reason
}

// statusRows joins what the database counts with what the file says.
func statusRows(list []outbox.Status, f *config.File, known map[string]outbox.Registered) []statusRow {
	notes := map[string]string{}
	var missing []statusRow
	for _, s := range listSyncs(f, known) {
		notes[s.Name] = s.Note
		if !s.Registered {
			missing = append(missing, statusRow{Sync: &s.Name, Note: s.Note, ScopeHolds: []outbox.ScopeHold{}})
		}
	}
	var rows []statusRow
	for _, s := range list {
		if s.Sync == nil && s.Pending == 0 {
			continue
		}
		row := statusRow{
			Sync: s.Sync, Hold: s.Hold, HoldUntil: s.HoldUntil, HoldReason: s.HoldReason, HoldBy: s.HoldBy,
			DueNow: s.DueNow, Pending: s.Pending, Queued: s.Queued, Retry: s.Retry, Sending: s.Sending, Failed: s.Failed,
			BlockedKeys: s.BlockedKeys, LastDelivered: s.LastDeliveredAt, RetiredAt: s.RetiredAt, Backfill: s.Backfill, ScopeHolds: s.ScopeHolds, Note: notes[deref(s.Sync)],
		}
		if s.OldestPendingAge != nil {
			seconds := s.OldestPendingAge.Seconds()
			row.OldestSeconds = &seconds
		}
		rows = append(rows, row)
	}
	return append(missing, rows...)
}

// limits are what status --max-lag and --max-failed tolerate.
type limits struct {
	lag    time.Duration
	failed int64
}

// judge returns a sentence for everything beyond the limits.
func (l limits) judge(rows []statusRow) []string {
	var found []string
	for _, s := range rows {
		if s.Sync == nil {
			continue
		}
		if l.lag > 0 && s.OldestSeconds != nil && *s.OldestSeconds > l.lag.Seconds() {
			found = append(found, fmt.Sprintf("%s: the oldest delivery that is not finished is %s old, more than %s",
				*s.Sync, age(time.Duration(*s.OldestSeconds*float64(time.Second))), age(l.lag)))
		}
		if l.failed >= 0 && s.Failed > l.failed {
			found = append(found, fmt.Sprintf("%s: %d failed, more than %d; see: lockstep requeue --sync %[1]s --dry-run --all", *s.Sync, s.Failed, l.failed))
		}
	}
	return found
}

func (a *app) statusCommand() *cobra.Command {
	var (
		maxLag   duration
		tolerate int64
		watch    bool
	)
	c := &cobra.Command{
		Use:   "status",
		Short: "Show how the syncs stand",
		Long: `Show how the syncs stand: hold, scopes on hold (destinations, such as hosts), open deliveries by state, keys that are blocked
by a failed or retried event, the age of the oldest delivery that is neither
finished nor failed, and what the addition of events to a sync waits for. Syncs of the database that are not in the configuration
file are named orphaned. Times are UTC. The login needs outbox_auditor.

With --max-lag the command is a check: it exits with 3 when a delivery is older
than that, or when something failed, since nobody but an operator will ever
deliver it. --max-failed N tolerates some, --max-failed -1 any number; given
alone it checks only that.`,
		Example: `  lockstep status
  lockstep status --watch
  lockstep status --max-lag 5m > /dev/null || alert`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			l := limits{lag: time.Duration(maxLag), failed: -1}
			if cmd.Flags().Changed("max-lag") || cmd.Flags().Changed("max-failed") {
				l.failed = tolerate
			}
			if watch && a.format == console.JSON {
				return usagef("--watch has no end, and a JSON array has one: use --output jsonl")
			}
			f, err := a.optionalFile()
			if err != nil {
				return err
			}
			db, err := a.connect(cmd.Context(), f, "status", roleAuditor)
			if err != nil {
				return err
			}
			defer db.close()
			if watch {
				return a.watchStatus(cmd.Context(), db, f)
			}
			rows, err := db.status(cmd.Context(), f)
			if err != nil {
				return err
			}
			if err := a.printStatus(rows); err != nil {
				return err
			}
			if found := l.judge(rows); len(found) > 0 {
				for _, sentence := range found {
					a.say("%s", sentence)
				}
				return errFound
			}
			return nil
		},
	}
	c.Flags().Var(&maxLag, "max-lag", "exit with 3 if a delivery is open for longer than `D` (90s, 2h, 1d), or anything failed")
	c.Flags().Int64Var(&tolerate, "max-failed", 0, "failed deliveries per sync that the check tolerates; `N` -1: any number")
	c.Flags().BoolVarP(&watch, "watch", "w", false, "show it again every two seconds")
	return c
}

func (db *database) status(ctx context.Context, f *config.File) ([]statusRow, error) {
	list, err := db.store.Status(ctx)
	if err != nil {
		return nil, db.explain(err)
	}
	known, err := db.store.Syncs(ctx)
	if err != nil {
		return nil, db.explain(err)
	}
	return statusRows(list, f, known), nil
}

func (a *app) printStatus(rows []statusRow) error {
	p := console.NewPrinter[statusRow](a.stdout, a.format,
		"SYNC", "HOLD", "DUE", "PENDING", "QUEUED", "RETRY", "SENDING", "FAILED", "BLOCKED", "OLDEST", "LAST DELIVERED", "NOTE")
	return errors.Join(p.Print(rows...), p.Close())
}

// watchStatus shows the status until the command is interrupted.
func (a *app) watchStatus(ctx context.Context, db *database, f *config.File) error {
	return every(ctx, 2*time.Second, func() error {
		rows, err := db.status(ctx, f)
		if err != nil {
			return err
		}
		if a.format == console.Table {
			if err := console.ClearScreen(a.stdout); err != nil {
				return err
			}
			fmt.Fprintf(a.stdout, "%s\n", time.Now().UTC().Format(time.RFC3339))
		}
		return a.printStatus(rows)
	})
}

// every calls do at once and again after each pause. The end of ctx is a
// normal end.
func every(ctx context.Context, pause time.Duration, do func() error) error {
	t := time.NewTicker(pause)
	defer t.Stop()
	for {
		if err := do(); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
	}
}
