package main

import (
	"io"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"

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

func (a *app) pauseCommand() *cobra.Command {
	var w who
	c := &cobra.Command{
		Use:   "pause SYNC",
		Short: "Stop sending to one external system until resume",
		Long: `Stop sending to one external system until resume. It takes effect within one
poll; requests under way are finished. Events are still collected, and no retry
budget is used up. The login needs outbox_operator.`,
		Example: `  lockstep pause CourtCalendarSync --reason "court maintenance until 18:00"`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := w.needsReason(); err != nil {
				return err
			}
			return a.holdOrRelease(cmd, &w, args[0], `SELECT outbox.pause($1, $2)`, "is paused until: lockstep resume "+args[0])
		},
	}
	w.actorFlag(c)
	w.reasonFlag(c, reasonRequired)
	return c
}

func (a *app) resumeCommand() *cobra.Command {
	var w who
	c := &cobra.Command{
		Use:   "resume SYNC",
		Short: "Lift a pause",
		Long: `Lift a pause, and no other hold: one for bad credentials ends when a probe
succeeds, a throttle when its time is up. The login needs outbox_operator.`,
		Example: `  lockstep resume CourtCalendarSync`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.holdOrRelease(cmd, &w, args[0], `SELECT outbox.resume($1)`, "")
		},
	}
	w.actorFlag(c)
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
			return a.holdOrRelease(cmd, &w, args[0], `SELECT outbox.retire($1, $2)`, "gets no further events")
		},
	}
	w.actorFlag(c)
	w.reasonFlag(c, reasonRequired)
	return c
}

// holdOrRelease calls one of the database's functions for a sync.
func (a *app) holdOrRelease(cmd *cobra.Command, w *who, sync, call, done string) error {
	ctx := cmd.Context()
	db, err := a.connect(ctx, nil, cmd.Name(), roleOperator)
	if err != nil {
		return err
	}
	defer db.close()
	parameters := []any{sync}
	if w.reason != "" {
		parameters = append(parameters, w.reason)
	}
	var hold *string
	err = db.act(ctx, w.onBehalf(a), w.reason, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, call, parameters...); err != nil {
			return err
		}
		const strongest = `SELECT hold_kind || ': ' || hold_reason FROM outbox.sync WHERE name = $1`
		return tx.QueryRow(ctx, strongest, sync).Scan(&hold)
	})
	if err != nil {
		return err
	}
	switch {
	case done != "":
		a.say("%s %s", sync, done)
	case hold != nil:
		a.say("%s is still on hold (%s)", sync, *hold)
	default:
		a.say("%s is not on hold", sync)
	}
	result := struct {
		Sync string  `json:"sync"`
		Done string  `json:"done"`
		Hold *string `json:"hold"`
	}{sync, cmd.Name(), hold}
	return console.Object(a.stdout, a.format, result, func(io.Writer) error { return nil }) // said above
}
