package main

import (
	"context"
	"fmt"
	"io"
	"time"

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
	call        string // of the database's function for a sync, and for its scope, the reason and the end if it takes them
	needsReason bool
	done        string // message about the sync; "" says whether a hold is left

	operator operator
	sync     string
	scoped   bool // the command has --scope
	scope    string
	ends     bool // the command has --until and --for
	until    timeFlag
	lasts    duration
}

func (a *app) pauseCommand() *cobra.Command {
	h := &holdChange{
		app: a, call: `SELECT outbox.pause($1, $3, coalesce($4::timestamptz, clock_timestamp() + $5::interval), $2)`,
		needsReason: true, scoped: true, ends: true, done: "is paused until: lockstep resume %s",
	}
	return h.command(&cobra.Command{
		Use:   "pause SYNC",
		Short: "Stop sending to one external system until resume, or until a time",
		Long: `Stop sending to one external system until resume. With --until or --for, the
pause also ends by itself. Relays stop within one poll and finish the requests
that are in flight. Events are still collected, and a pause uses up no retry
budget. With --scope, only one destination of the sync is paused, and the others
still get their events. Another pause of the same sync and scope replaces this
one. The login needs the role outbox_operator.`,
		Example: `  lockstep pause CourtCalendarSync --reason "the court asked"
  lockstep pause CourtCalendarSync --for 2h --reason "court maintenance"
  lockstep pause CourtCalendarSync --until 2027-01-31T18:00:00-05:00 --reason "court maintenance"
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
	retire := &holdChange{app: a, call: `SELECT outbox.retire($1, $2)`, needsReason: true, done: "gets no further events"}
	undo := &holdChange{app: a, call: `SELECT outbox.resume_retired($1, $2)`, needsReason: true, done: "gets events again, also those that were written while it was retired"}
	isUndo := false
	c := retire.command(&cobra.Command{
		Use:   "retire SYNC",
		Short: "End a sync: no further events, open deliveries are still sent",
		Long: `End a sync: it gets no further events, and its open deliveries are still sent.

With --undo the sync gets events again, and running relays add the events that
were written while it was retired, as far as they are retained. To leave those
out, bring the sync back with: lockstep sync apply NAME. The login needs the
role outbox_operator.`,
		Example: `  lockstep retire ClinicSync --reason "the clinic moved to FHIR"
  lockstep retire ClinicSync --undo --reason "the clinic comes back"`,
	})
	c.RunE = func(cmd *cobra.Command, args []string) error {
		if !isUndo {
			return retire.run(cmd, args)
		}
		undo.operator = retire.operator
		return undo.run(cmd, args)
	}
	c.Flags().BoolVar(&isUndo, "undo", false, "let a retired sync get events again")
	return c
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
	if h.ends {
		c.Flags().Var(&h.until, "until", "end the pause at this `TIME`, such as 2027-01-31T18:00:00Z")
		c.Flags().Var(&h.lasts, "for", "end the pause after `D`: 90s, 2h, 1d")
		c.MarkFlagsMutuallyExclusive("until", "for")
	}
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
	if h.ends && h.lasts == 0 && cmd.Flags().Changed("for") {
		return usagef("--for %s is a pause for nothing: give a longer time", cmd.Flag("for").Value)
	}
	h.sync = args[0]
	parameters := []any{h.sync}
	if h.scoped {
		parameters = append(parameters, h.scope)
	}
	if h.needsReason {
		parameters = append(parameters, h.operator.reason)
	}
	if h.ends {
		parameters = append(parameters, h.until.at, h.lasts.interval())
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
         WHERE h.sync = $1 AND h.scope IN ('', $2) AND (h.kind IN ('auth', 'breaker') OR h.until IS NULL OR h.until > clock_timestamp())
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
		name, flags = fmt.Sprintf("%s, scope %s,", h.sync, scope), h.sync+" --scope "+quoted(scope)
	}
	switch {
	case h.until.at != nil:
		h.app.say("%s is paused until %s", name, clock(h.until.at))
	case h.lasts != 0:
		h.app.say("%s is paused for %s", name, age(time.Duration(h.lasts)))
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
