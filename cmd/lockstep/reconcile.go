package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/spf13/cobra"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/internal/output"
	"github.com/hms-mkt/lockstep/internal/reconcile"
)

// differenceRow is a difference between both calendars.
type differenceRow struct{ reconcile.Finding }

func (differenceRow) Header() []string {
	return []string{"KEY", "DIFFERENCE", "FIELD", "OURS", "THEIRS", "EVENT", "EXTERNAL ID"}
}

func (d differenceRow) Cells() []string {
	return []string{d.Key, string(d.Kind), d.Field, d.Ours, d.Theirs, d.EventID, d.ExternalID}
}

// reconciliation is the whole result, for --output json.
type reconciliation struct {
	Sync        string                 `json:"sync"`
	Equal       bool                   `json:"equal"`
	Says        string                 `json:"says"`
	Ours        string                 `json:"ours_sha256"`
	Theirs      string                 `json:"theirs_sha256"`
	Compared    int                    `json:"compared"`
	Found       map[reconcile.Kind]int `json:"found"`
	Foreign     int                    `json:"foreign"`
	OnTheWay    int                    `json:"on_the_way"`
	Unknown     int                    `json:"unknown"`
	Differences []reconcile.Finding    `json:"differences"`
}

// calendarDay is a flag with a date, at its beginning in UTC, or a time.
type calendarDay struct{ at time.Time }

func (d *calendarDay) String() string {
	if d.at.IsZero() {
		return ""
	}
	return d.at.Format(time.RFC3339)
}

func (d *calendarDay) Set(s string) (err error) {
	if d.at, err = time.Parse(time.DateOnly, s); err == nil {
		return nil
	}
	if d.at, err = time.Parse(time.RFC3339, s); err != nil {
		return errors.New("want a date such as 2027-01-31, or a time such as 2027-01-31T08:00:00Z")
	}
	return nil
}
func (*calendarDay) Type() string { return "date" }

func (a *app) reconcileCommand() *cobra.Command {
	var (
		by       operator
		from, to calendarDay
		repair   bool
		dryRun   bool
	)
	c := &cobra.Command{
		Use:   "reconcile SYNC",
		Short: "Compare what the receiver holds with what was delivered",
		Long: `Compare what the receiver holds with what was delivered: for each key, the last
event that the receiver has taken, mapped as the configuration says now, and the
entry in the receiver's calendar.

A difference is one of these:
  missing    the receiver does not have it
  different  a field has another value there; a row for each field
  cancelled  it is cancelled there, and not here
  newer      the receiver has a later version
  doubled    the receiver has it more than once
  extra      the receiver has it, and should not
Entries of others are left alone and only counted. Keys with open deliveries are on
the way and left out.

Each side is reduced to one digest. If both are equal, the calendars are equal. The
delivery log gets a row "reconciled" with both digests, and no values.

--repair sends the last event of each key again that is missing, different,
cancelled or extra there. Each is a replay in the log. If somebody changes the entry
before it is sent, calendars with ETags refuse it. What is newer or doubled there
needs a person.

The window is about the times of entries. The exit code is 3 if something differs,
with --repair only if something was not sent again. The login needs the role
outbox_operator. With a login that has only outbox_auditor nothing is logged.`,
		Example: `  lockstep reconcile CourtCalendarSync
  lockstep reconcile CourtCalendarSync --from 2027-03-01 --to 2027-04-01 --output csv
  lockstep reconcile CourtCalendarSync --repair --reason "the court restored a backup"`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := by.check(a, repair && !dryRun); err != nil {
				return err
			}
			if dryRun && !repair {
				return usagef("--dry-run belongs to --repair: without it nothing is changed anyway")
			}
			window := adapters.Window{From: from.at, To: to.at}
			if !window.From.IsZero() && !window.To.IsZero() && !window.To.After(window.From) {
				return usagef("--to %s is not after --from %s", to.String(), from.String())
			}
			f, err := a.load()
			if err != nil {
				return err
			}
			i, err := findSync(f, args[0])
			if err != nil {
				return err
			}
			sync := f.RelayConfig().Syncs[i]
			lister, ok := sync.Adapter.(adapters.Lister)
			if !ok {
				return usagef("sync %s cannot be compared: its adapter, kind %s, cannot list what the receiver has", sync.Name, f.Syncs[i].Adapter.Kind)
			}
			if err := lister.Lists(); err != nil {
				return usagef("sync %s cannot be compared: %w", sync.Name, err)
			}
			role := roleAuditor
			if repair {
				role = roleOperator
			}
			return a.with(cmd, f, role, func(ctx context.Context, db *database) error {
				bar := a.newProgress("compared", 1)
				const total = `SELECT 1 + 2 * count(DISTINCT key) FROM outbox.delivery_log WHERE sync = $1 AND outcome IN ('delivered', 'duplicate', 'accepted')`
				if err := db.conn.QueryRow(ctx, total, sync.Name).Scan(&bar.total); err != nil {
					return err
				}
				report, err := reconcile.Compare(ctx, reconcile.NewSource(db.conn, sync), lister, window, func() { bar.add(1) })
				bar.end()
				if err != nil {
					return err
				}
				says := report.Says(window)
				if err := a.reconciled(ctx, db, by, sync.Name, report, says); err != nil {
					return err
				}
				if err := a.printReconciliation(sync.Name, report, says); err != nil {
					return err
				}
				a.say("%s", says)
				if report.Cut {
					a.say("there are more than %d differences: the others are only counted", reconcile.MaxFindings)
				}
				left := !report.Equal()
				if repair && left {
					if left, err = a.repairEntries(ctx, db, by, sync.Name, report, dryRun); err != nil {
						return err
					}
				}
				if left {
					return errFound
				}
				return nil
			})
		},
	}
	c.Flags().Var(&from, "from", "only entries at or after this `DATE`, or time")
	c.Flags().Var(&to, "to", "only entries before this `DATE`, or time")
	c.Flags().BoolVar(&repair, "repair", false, "send the last event of each key again that differs")
	c.Flags().BoolVarP(&dryRun, "dry-run", "n", false, "with --repair: say what would be sent again, change nothing")
	by.flags(c, reasonOptional+"; required with --repair")
	return c
}

// reconciled logs the result, if the login may.
func (a *app) reconciled(ctx context.Context, db *database, by operator, sync string, report *reconcile.Report, says string) error {
	found, err := json.Marshal(report.Found)
	if err != nil {
		return err
	}
	err = db.act(ctx, by, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `SELECT outbox.reconciled($1, $2::text::jsonb, $3)`, sync, string(found), says)
		return err
	})
	if refused, ok := errors.AsType[*pgconn.PgError](err); ok && refused.Code == "42501" {
		a.say("not logged: the login %s is not a member of outbox_operator", db.user)
		return nil
	}
	return err
}

func (a *app) printReconciliation(sync string, report *reconcile.Report, says string) error {
	if a.format == output.JSON {
		r := reconciliation{
			Sync: sync, Equal: report.Equal(), Says: says, Ours: report.Ours, Theirs: report.Theirs, Compared: report.Compared,
			Found: report.Found, Foreign: report.Foreign, OnTheWay: report.OnTheWay, Unknown: report.Unknown, Differences: report.Findings,
		}
		if r.Differences == nil {
			r.Differences = []reconcile.Finding{}
		}
		return output.Object(a.stdout, a.format, r, func(io.Writer) error { return nil })
	}
	rows := make([]differenceRow, len(report.Findings))
	for i, f := range report.Findings {
		rows[i] = differenceRow{f}
	}
	return output.Rows(a.stdout, a.format, rows...)
}

// differing is how many keys have findings.
func differing(findings []reconcile.Finding) int {
	keys := map[string]bool{}
	for _, f := range findings {
		keys[f.Key] = true
	}
	return len(keys)
}

// repairEntries sends the last event of each key again that differs. It reports whether
// something was left.
func (a *app) repairEntries(ctx context.Context, db *database, by operator, sync string, report *reconcile.Report, dryRun bool) (left bool, err error) {
	keys := reconcile.Repairable(report.Findings)
	left = report.Cut || len(keys) < differing(report.Findings)
	if dryRun {
		a.say("%s would be sent again; nothing was changed", plural(len(keys), "event"))
		return true, nil
	}
	bar := a.newProgress("sent again", int64(len(keys)))
	defer bar.end()
	changed := 0
	for _, f := range keys {
		done := false
		err := db.act(ctx, by, func(tx pgx.Tx) (err error) {
			done, err = reconcile.Repair(ctx, tx, sync, f, by.reason)
			return err
		})
		if err != nil {
			return true, fmt.Errorf("key %s: %w", quoted(f.Key), err)
		}
		if !done {
			changed++
		}
		bar.add(1)
	}
	a.say("%s sent again; when they are delivered, reconcile again", plural(len(keys)-changed, "event"))
	if changed > 0 {
		a.say("%s changed meanwhile and left alone", plural(changed, "key"))
	}
	return left || changed > 0, nil
}
