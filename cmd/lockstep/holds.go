package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"

	"github.com/hms-mkt/lockstep/internal/output"
	"github.com/hms-mkt/lockstep/outbox"
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
	takesReason bool                                // it needs none
	say         func(*holdChange, syncFacts) string // what is true after the change

	operator operator
	sync     string
	scoped   bool // the command has --scope
	scope    string
	ends     bool // the command has --until and --for
	until    timeFlag
	lasts    duration
}

// syncFacts describe a sync, or one scope of it, after a change.
type syncFacts struct {
	hold   *strongestHold // nil if nothing holds it
	open   int64          // deliveries that relays may send: neither finished nor failed, nor behind a failed one
	failed int64
	behind int64 // deliveries behind failed ones
	served bool  // by a running relay
	paused bool  // before the change
}

func (a *app) pauseCommand() *cobra.Command {
	h := &holdChange{
		app: a, call: `SELECT outbox.pause($1, $3, coalesce($4::timestamptz, clock_timestamp() + $5::interval), $2)`,
		needsReason: true, scoped: true, ends: true, say: (*holdChange).pausedSays,
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
	h := &holdChange{app: a, call: `SELECT outbox.resume($1, $2, nullif($3, ''))`, scoped: true, takesReason: true, say: (*holdChange).resumedSays}
	return h.command(&cobra.Command{
		Use:   "resume SYNC",
		Short: "Lift a pause",
		Long: `Lift a pause. Other holds stay: a hold for bad credentials ends when a probe
succeeds, a throttle ends with its time. For a pause of one destination, give
the same --scope. For a pause of the whole sync, give none. The login needs the
role outbox_operator.`,
		Example: `  lockstep resume CourtCalendarSync --reason "the court is back"
  lockstep resume CourtCalendarSync --scope ny07.courts.example.gov`,
	})
}

func (a *app) retireCommand() *cobra.Command {
	retire := &holdChange{app: a, call: `SELECT outbox.retire($1, $2)`, needsReason: true, say: (*holdChange).retiredSays}
	undo := &holdChange{app: a, call: `SELECT outbox.resume_retired($1, $2)`, needsReason: true, say: func(h *holdChange, _ syncFacts) string {
		return h.sync + " gets events again, also those that were written while it was retired"
	}}
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
	switch {
	case h.needsReason:
		reasonUsage = reasonRequired
	case h.takesReason:
		reasonUsage = reasonOptional
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
	if h.needsReason || h.takesReason {
		parameters = append(parameters, h.operator.reason)
	}
	if h.ends {
		parameters = append(parameters, h.until.at, h.lasts.interval())
	}
	var facts syncFacts
	err := h.app.with(cmd, nil, roleOperator, func(ctx context.Context, db *database) error {
		return db.act(ctx, h.operator, func(tx pgx.Tx) (err error) {
			const paused = `SELECT EXISTS (SELECT FROM outbox.hold WHERE sync = $1 AND scope = $2 AND kind = 'operator')`
			if err := tx.QueryRow(ctx, paused, h.sync, h.scope).Scan(&facts.paused); err != nil {
				return err
			}
			if _, err := tx.Exec(ctx, h.call, parameters...); err != nil {
				return err
			}
			const open = `-- lockstep: open deliveries
SELECT count(*) FILTER (WHERE d.state <> 'failed' AND NOT b.blocked), count(*) FILTER (WHERE d.state = 'failed'),
       count(*) FILTER (WHERE d.state <> 'failed' AND b.blocked)
  FROM outbox.delivery AS d
 CROSS JOIN LATERAL (
       SELECT EXISTS (SELECT FROM outbox.delivery AS f
                       WHERE f.sync = d.sync AND f.key = d.key AND f.event_seq < d.event_seq AND f.state = 'failed') AS blocked) AS b
 WHERE d.sync = $1`
			if err := tx.QueryRow(ctx, open, h.sync).Scan(&facts.open, &facts.failed, &facts.behind); err != nil {
				return err
			}
			if facts.served, err = isServed(ctx, tx, h.sync); err != nil {
				return err
			}
			facts.hold, err = holdOf(ctx, tx, h.sync, h.scope)
			return err
		})
	})
	if err != nil {
		return err
	}
	h.app.say("%s", h.say(h, facts))
	result := struct {
		Sync  string  `json:"sync"`
		Scope string  `json:"scope,omitempty"`
		Done  string  `json:"done"`
		Hold  *string `json:"hold"`
	}{Sync: h.sync, Scope: h.scope, Done: cmd.Name()}
	if facts.hold != nil {
		result.Hold = new(facts.hold.String())
	}
	return output.Object(h.app.stdout, h.app.format, result, func(io.Writer) error { return nil }) // say has reported it
}

// subject returns the sync and its scope as a sentence and as a command line name them.
func (h *holdChange) subject() (name, arguments string) {
	arguments = syncArguments(h.sync, h.scope)
	if h.scope == "" {
		return h.sync, arguments
	}
	return fmt.Sprintf("%s, scope %s,", h.sync, h.scope), arguments
}

// syncArguments names a sync, or one scope of it, on a command line.
func syncArguments(sync, scope string) string {
	if scope == "" {
		return sync
	}
	return sync + " --scope " + quoted(scope)
}

// listFailed is the command that lists the failed deliveries of a sync.
func listFailed(sync string) string {
	return "lockstep requeue --sync " + sync + " --all --dry-run"
}

func (h *holdChange) pausedSays(facts syncFacts) string {
	name, arguments := h.subject()
	end := ""
	switch {
	case h.lasts != 0 && facts.hold != nil:
		end = fmt.Sprintf(" for %s, until %s", age(time.Duration(h.lasts)), clock(facts.hold.Until))
	case h.until.at != nil:
		end = " until " + clock(h.until.at)
	}
	return fmt.Sprintf("%s is paused%s: relays send nothing more, events are collected. To end the pause: lockstep resume %s", name, end, arguments)
}

func (h *holdChange) resumedSays(facts syncFacts) string {
	name, _ := h.subject()
	switch {
	case facts.hold != nil && facts.paused:
		return fmt.Sprintf("the pause of %s is lifted, but it is still on hold (%s); %s", name, facts.hold, facts.hold.ends(h.sync))
	case facts.hold != nil:
		return fmt.Sprintf("%s is still on hold (%s); %s", name, facts.hold, facts.hold.ends(h.sync))
	case !facts.paused:
		return name + " is not on hold"
	case h.scope != "":
		return name + " is resumed: relays send to it again"
	}
	said := name + " is resumed: relays send "
	switch {
	case facts.open == 0 && facts.failed == 0:
		said += "again, nothing is open"
	case facts.open == 0:
		said += "again, nothing else is open"
	case facts.open == 1:
		said += "its open delivery"
	default:
		said += fmt.Sprintf("its %d open deliveries", facts.open)
	}
	if !facts.served {
		said += " " + servedAgain(h.sync)
	}
	return said + facts.waiting(h.sync)
}

func (h *holdChange) retiredSays(facts syncFacts) string {
	said := h.sync + " is retired: it gets no further events"
	switch facts.open {
	case 0:
	case 1:
		said += ", its open delivery is still sent"
	default:
		said += fmt.Sprintf(", its %d open deliveries are still sent", facts.open)
	}
	return fmt.Sprintf("%s%s. To undo this: lockstep retire %s --undo", said, facts.waiting(h.sync), h.sync)
}

// waiting says what waits for the operator.
func (f syncFacts) waiting(sync string) string {
	if f.failed == 0 {
		return ""
	}
	said := ". 1 failed delivery waits for you"
	if f.failed > 1 {
		said = fmt.Sprintf(". %d failed deliveries wait for you", f.failed)
	}
	if f.behind > 0 {
		said += fmt.Sprintf(", and %s behind them", plural(f.behind, "delivery"))
	}
	return said + ": " + listFailed(sync)
}

// isServed reports whether a running relay sends for the sync.
func isServed(ctx context.Context, tx pgx.Tx, sync string) (served bool, err error) {
	const running = `SELECT EXISTS (SELECT FROM outbox.relay AS r WHERE r.running AND $1 = ANY (r.syncs))`
	err = tx.QueryRow(ctx, running, sync).Scan(&served)
	return served, err
}

// servedAgain says when a sync is served that no running relay serves.
func servedAgain(sync string) string {
	return fmt.Sprintf("as soon as one serves %s; none does now, see: lockstep status --relays", sync)
}

// strongestHold is the hold of a sync, or of one scope of it, that an operator must know of
// first.
type strongestHold struct {
	Whole  bool // it is of the whole sync, and the question was about a scope
	Kind   string
	Reason string
	Until  *time.Time
}

// holdOf returns what holds a sync, or with a scope what holds that, nil if nothing does.
func holdOf(ctx context.Context, tx pgx.Tx, sync, scope string) (*strongestHold, error) {
	const strongest = `-- lockstep: strongest hold
SELECT h.scope <> $2 AS whole, h.kind::text AS kind, h.reason, h.until
  FROM outbox.hold AS h
 WHERE h.sync = $1 AND h.scope IN ('', $2) AND (h.kind IN ('auth', 'breaker') OR h.until IS NULL OR h.until > clock_timestamp())
 ORDER BY h.scope DESC, array_position(ARRAY['operator', 'backfill', 'auth', 'breaker', 'throttle', 'window'], h.kind::text)
 LIMIT 1`
	found, err := query[strongestHold](ctx, tx, strongest, sync, scope)
	if err != nil || len(found) == 0 {
		return nil, err
	}
	return &found[0], nil
}

func (h *strongestHold) String() string {
	whole := ""
	if h.Whole {
		whole = "the whole sync, "
	}
	return whole + h.Kind + ": " + h.Reason
}

// ends says how the hold ends.
func (h *strongestHold) ends(sync string) string {
	switch outbox.HoldKind(h.Kind) {
	case outbox.HoldAuth, outbox.HoldBreaker:
		return "it ends when a probe succeeds" + holdRemedy(h.Kind, sync, "")
	case outbox.HoldBackfill:
		return "it ends when a running relay has added the events"
	case outbox.HoldOperator:
		return "to end that: lockstep resume " + sync
	case outbox.HoldThrottle, outbox.HoldWindow:
	}
	return "it ends at " + clock(h.Until)
}
