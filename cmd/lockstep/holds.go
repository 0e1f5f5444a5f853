package main

import (
	"fmt"
	"io"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/internal/console"
)

// who says on whose behalf a command acts, and why.
type who struct {
	actor, reason string
}

func (w *who) actorFlag(c *cobra.Command) {
	c.Flags().StringVar(&w.actor, "actor", "", "who acts, where people share a login; the log has `NAME` as login/name [$LOCKSTEP_ACTOR]")
}

func (w *who) reasonFlag(c *cobra.Command, usage string) {
	c.Flags().StringVar(&w.reason, "reason", "", usage)
}

const (
	reasonRequired = "why, for the delivery log; `TEXT` is required"
	reasonOptional = "why, as `TEXT` for the delivery log"
)

func (w *who) needsReason() error {
	if w.reason == "" {
		return usagef("--reason is required: it goes into the delivery log")
	}
	return nil
}

// onBehalf fills what the flags left open.
func (w *who) onBehalf(a *app) string {
	if w.actor == "" {
		return a.getenv("LOCKSTEP_ACTOR")
	}
	return w.actor
}

// scopeFlag takes a scope for pause and resume.
func scopeFlag(c *cobra.Command, scope *string) {
	c.Flags().StringVar(scope, "scope", "", "only this destination: `SCOPE` is a host, with its port if the URL has one, or what limits.per of the sync says, such as a court's code")
}

// checkScope refuses an empty --scope: a variable that is not set must not pause the
// whole sync.
func checkScope(cmd *cobra.Command, scope string) error {
	if cmd.Flags().Changed("scope") && scope == "" {
		return usagef("--scope is empty: name a destination, or leave it out for the whole sync")
	}
	return nil
}

// named is a sync, or a scope of it, for messages.
func named(sync, scope string) string {
	if scope == "" {
		return sync
	}
	return fmt.Sprintf("%s, scope %s,", sync, adapters.Clean(scope, 0))
}

func (a *app) pauseCommand() *cobra.Command {
	var w who
	var scope string
	c := &cobra.Command{
		Use:   "pause SYNC",
		Short: "Stop sending to one external system until resume",
		Long: `Stop sending to one external system until resume. It takes effect within one
poll; requests under way are finished. Events are still collected, and no retry
budget is used up. With --scope only one destination of the sync is paused, and
the others get their events. The login needs outbox_operator.`,
		Example: `  lockstep pause CourtCalendarSync --reason "court maintenance until 18:00"
  lockstep pause CourtCalendarSync --scope ny07.courts.example.gov --reason "moves house"`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := w.needsReason(); err != nil {
				return err
			}
			if err := checkScope(cmd, scope); err != nil {
				return err
			}
			undo := "lockstep resume " + args[0]
			if scope != "" {
				undo += " --scope " + adapters.Clean(scope, 0)
			}
			return a.holdOrRelease(cmd, &w, args[0], &scope, `SELECT outbox.pause($1, $3, $2)`, "is paused until: "+undo)
		},
	}
	w.actorFlag(c)
	w.reasonFlag(c, reasonRequired)
	scopeFlag(c, &scope)
	return c
}

func (a *app) resumeCommand() *cobra.Command {
	var w who
	var scope string
	c := &cobra.Command{
		Use:   "resume SYNC",
		Short: "Lift a pause",
		Long: `Lift a pause, and no other hold: one for bad credentials ends when a probe
succeeds, a throttle when its time is up. A pause of one destination is lifted
with the same --scope, and one of the whole sync without it. The login needs
outbox_operator.`,
		Example: `  lockstep resume CourtCalendarSync
  lockstep resume CourtCalendarSync --scope ny07.courts.example.gov`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkScope(cmd, scope); err != nil {
				return err
			}
			return a.holdOrRelease(cmd, &w, args[0], &scope, `SELECT outbox.resume($1, $2)`, "")
		},
	}
	w.actorFlag(c)
	scopeFlag(c, &scope)
	return c
}

func (a *app) retireCommand() *cobra.Command {
	var w who
	c := &cobra.Command{
		Use:   "retire SYNC",
		Short: "End a sync: no further events, open work is still delivered",
		Long: `End a sync: it gets no further events, its open work is still delivered.
lockstep sync apply NAME brings it back. The login needs outbox_operator.`,
		Example: `  lockstep retire ClinicSync --reason "the clinic moved to FHIR"`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := w.needsReason(); err != nil {
				return err
			}
			return a.holdOrRelease(cmd, &w, args[0], nil, `SELECT outbox.retire($1, $2)`, "gets no further events")
		},
	}
	w.actorFlag(c)
	w.reasonFlag(c, reasonRequired)
	return c
}

// holdOrRelease calls one of the database's functions for a sync, or for a scope of it.
// scope is nil where the function takes none.
func (a *app) holdOrRelease(cmd *cobra.Command, w *who, sync string, scope *string, call, done string) error {
	ctx := cmd.Context()
	db, err := a.connect(ctx, nil, cmd.Name(), roleOperator)
	if err != nil {
		return err
	}
	defer db.close()
	parameters, part := []any{sync}, ""
	if scope != nil {
		part = *scope
		parameters = append(parameters, part)
	}
	if w.reason != "" {
		parameters = append(parameters, w.reason)
	}
	var hold *string
	err = db.act(ctx, w.onBehalf(a), w.reason, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, call, parameters...); err != nil {
			return err
		}
		const strongest = `-- lockstep: strongest hold
SELECT (SELECT CASE WHEN h.scope <> $2 THEN 'the whole sync, ' ELSE '' END || h.kind || ': ' || h.reason
          FROM outbox.hold AS h
         WHERE h.sync = $1 AND h.scope IN ('', $2) AND (h.kind NOT IN ('throttle', 'window') OR h.until > clock_timestamp())
         ORDER BY h.scope DESC, array_position(ARRAY['operator', 'backfill', 'auth', 'breaker', 'throttle', 'window'], h.kind::text)
         LIMIT 1)`
		return tx.QueryRow(ctx, strongest, sync, part).Scan(&hold)
	})
	if err != nil {
		return err
	}
	switch {
	case done != "":
		a.say("%s %s", named(sync, part), done)
	case hold != nil:
		a.say("%s is still on hold (%s)", named(sync, part), *hold)
	default:
		a.say("%s is not on hold", named(sync, part))
	}
	result := struct {
		Sync  string  `json:"sync"`
		Scope string  `json:"scope,omitempty"`
		Done  string  `json:"done"`
		Hold  *string `json:"hold"`
	}{sync, part, cmd.Name(), hold}
	return console.Object(a.stdout, a.format, result, func(io.Writer) error { return nil }) // said above
}
