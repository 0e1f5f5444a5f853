package main

import (
	"context"
	"fmt"
	"io"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/internal/console"
)

// operator is the person on whose behalf a command acts, and the reason.
type operator struct {
	name, reason string
}

// The help of --reason, for commands that require it and for those that do not.
const (
	reasonRequired = "reason for the delivery log; `TEXT` is required"
	reasonOptional = "reason for the delivery log, as `TEXT`"
)

// flags adds --actor and, unless its help is empty, --reason.
func (o *operator) flags(c *cobra.Command, reasonUsage string) {
	c.Flags().StringVar(&o.name, "actor", "", "name of the person, if several share a login; the log shows login/`NAME` [$LOCKSTEP_ACTOR]")
	if reasonUsage != "" {
		c.Flags().StringVar(&o.reason, "reason", "", reasonUsage)
	}
}

// check requires a reason, and takes the name from the environment if no flag says it.
func (o *operator) check(a *app, needsReason bool) error {
	if needsReason && o.reason == "" {
		return usagef("--reason is required: it goes into the delivery log")
	}
	if o.name == "" {
		o.name = a.getenv("LOCKSTEP_ACTOR")
	}
	return nil
}

// holdChange is one run of pause, resume or retire.
type holdChange struct {
	app         *app
	call        string // of the database's function for a sync, and for its scope and the reason if it takes them
	needsReason bool
	done        string // message about the sync; "" says whether a hold is left

	operator operator
	sync     string
	scoped   bool // the command has --scope
	scope    string
}

func (a *app) pauseCommand() *cobra.Command {
	h := &holdChange{app: a, call: `SELECT outbox.pause($1, $3, $2)`, needsReason: true, scoped: true, done: "is paused until: lockstep resume %s"}
	return h.command(&cobra.Command{
		Use:   "pause SYNC",
		Short: "Stop sending to one external system until resume",
		Long: `Stop sending to one external system until resume. Relays stop within one poll
and finish the requests that are in flight. Events are still collected, and a
pause uses up no retry budget. With --scope, only one destination of the sync is
paused, and the others still get their events. The login needs the role
outbox_operator.`,
		Example: `  lockstep pause CourtCalendarSync --reason "court maintenance until 18:00"
  lockstep pause CourtCalendarSync --scope ny07.courts.example.gov --reason "the court moves"`,
	})
}

func (a *app) resumeCommand() *cobra.Command {
	h := &holdChange{app: a, call: `SELECT outbox.resume($1, $2)`, scoped: true}
	return h.command(&cobra.Command{
		Use:   "resume SYNC",
		Short: "Lift a pause",
		Long: `Lift a pause. Other holds stay: a hold for bad credentials ends when a probe
succeeds, a throttle ends with its time. For a pause of one destination, give
the same --scope. For a pause of the whole sync, give none. The login needs the
role outbox_operator.`,
		Example: `  lockstep resume CourtCalendarSync
  lockstep resume CourtCalendarSync --scope ny07.courts.example.gov`,
	})
}

func (a *app) retireCommand() *cobra.Command {
	h := &holdChange{app: a, call: `SELECT outbox.retire($1, $2)`, needsReason: true, done: "gets no further events"}
	return h.command(&cobra.Command{
		Use:   "retire SYNC",
		Short: "End a sync: no further events, open deliveries are still sent",
		Long: `End a sync: it gets no further events, and its open deliveries are still sent.
lockstep sync apply NAME starts it again. The login needs the role
outbox_operator.`,
		Example: `  lockstep retire ClinicSync --reason "the clinic moved to FHIR"`,
	})
}

// command gives c its flags and what it runs.
func (h *holdChange) command(c *cobra.Command) *cobra.Command {
	c.Args = cobra.ExactArgs(1)
	c.RunE = h.run
	reasonUsage := ""
	if h.needsReason {
		reasonUsage = reasonRequired
	}
	h.operator.flags(c, reasonUsage)
	if h.scoped {
		c.Flags().StringVar(&h.scope, "scope", "", "only this destination: `SCOPE` is a host, with its port if the URL has one, or a value of limits.per of the sync, such as a court's code")
	}
	return c
}

func (h *holdChange) run(cmd *cobra.Command, args []string) error {
	if err := h.operator.check(h.app, h.needsReason); err != nil {
		return err
	}
	if h.scoped && h.scope == "" && cmd.Flags().Changed("scope") { // such as a variable that is not set
		return usagef("--scope is empty: name a destination, or leave it out for the whole sync")
	}
	h.sync = args[0]
	parameters := []any{h.sync}
	if h.scoped {
		parameters = append(parameters, h.scope)
	}
	if h.needsReason {
		parameters = append(parameters, h.operator.reason)
	}
	var hold *string
	err := h.app.with(cmd, nil, roleOperator, func(ctx context.Context, db *database) error {
		return db.act(ctx, h.operator, func(tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, h.call, parameters...); err != nil {
				return err
			}
			const strongest = `-- lockstep: strongest hold
SELECT (SELECT CASE WHEN h.scope <> $2 THEN 'the whole sync, ' ELSE '' END || h.kind || ': ' || h.reason
          FROM outbox.hold AS h
         WHERE h.sync = $1 AND h.scope IN ('', $2) AND (h.kind NOT IN ('throttle', 'window') OR h.until > clock_timestamp())
         ORDER BY h.scope DESC, array_position(ARRAY['operator', 'backfill', 'auth', 'breaker', 'throttle', 'window'], h.kind::text)
         LIMIT 1)`
			return tx.QueryRow(ctx, strongest, h.sync, h.scope).Scan(&hold)
		})
	})
	if err != nil {
		return err
	}
	h.say(hold)
	result := struct {
		Sync  string  `json:"sync"`
		Scope string  `json:"scope,omitempty"`
		Done  string  `json:"done"`
		Hold  *string `json:"hold"`
	}{h.sync, h.scope, cmd.Name(), hold}
	return console.Object(h.app.stdout, h.app.format, result, func(io.Writer) error { return nil }) // say has reported it
}

// say prints the result for the person at the terminal.
func (h *holdChange) say(hold *string) {
	name, flags := h.sync, h.sync
	if h.scope != "" {
		scope := adapters.Clean(h.scope, 0)
		name, flags = fmt.Sprintf("%s, scope %s,", h.sync, scope), h.sync+" --scope "+scope
	}
	switch {
	case h.scoped && h.done != "":
		h.app.say("%s "+h.done, name, flags)
	case h.done != "":
		h.app.say("%s %s", name, h.done)
	case hold != nil:
		h.app.say("%s is still on hold (%s)", name, *hold)
	default:
		h.app.say("%s is not on hold", name)
	}
}
