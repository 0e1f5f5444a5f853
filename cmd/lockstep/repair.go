package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"

	"github.com/hms-mkt/lockstep/internal/output"
)

// repair is one run of requeue, discard or replay.
type repair struct {
	app      *app
	filter   repairFilter
	operator operator

	things  string                          // what --all takes, such as "failed delivery"
	moment  string                          // what happened at the time that --since and --older-than compare, such as "failed"
	did     string                          // such as "requeued"
	now     func(n int, when string) string // says what is true of n deliveries afterwards, and when relays send
	nothing string                          // message if the filter selects nothing
	replays bool                            // of a key, only the newest event is selected, and with --all all of them
	bySync  bool                            // with --all, the argument is a sync, and all of its open deliveries are selected
	older   int                             // events of the key that are not selected, because they are older

	choose func(ctx context.Context, tx pgx.Tx) ([]deliveryRow, error)
	change func(ctx context.Context, tx pgx.Tx, rows []deliveryRow) ([]deliveryRow, error)
}

// repairFilter selects deliveries.
type repairFilter struct {
	sync, key, event, class string
	since                   instant
	olderThan               duration
	all, dryRun             bool
}

// command gives c its flags and what it runs.
func (r *repair) command(c *cobra.Command, reasonUsage string) *cobra.Command {
	f := &r.filter
	c.Args = cobra.MaximumNArgs(1)
	c.RunE = func(cmd *cobra.Command, args []string) error {
		return r.run(cmd, strings.Join(args, ""), reasonUsage == reasonRequired)
	}
	c.Flags().StringVar(&f.sync, "sync", "", "only of this `SYNC`")
	c.Flags().StringVar(&f.key, "key", "", "only with this `KEY`")
	c.Flags().StringVar(&f.event, "event", "", "only of the event with this `ID`")
	c.Flags().Var(&f.since, "since", "only if it "+r.moment+" since `WHEN`: 90s, 24h, 7d, or a time such as 2027-01-31T08:00:00Z")
	c.Flags().Var(&f.olderThan, "older-than", "only if it "+r.moment+" more than `D` ago: 90s, 24h, 7d")
	c.Flags().BoolVar(&f.all, "all", false, "every "+r.things+", or every one of --sync; needed without another filter")
	c.Flags().BoolVarP(&f.dryRun, "dry-run", "n", false, "list what would change, change nothing")
	r.operator.flags(c, reasonUsage)
	return c
}

// classFlag adds --class to a command for failed deliveries.
func (r *repair) classFlag(c *cobra.Command) *cobra.Command {
	c.Flags().StringVar(&r.filter.class, "class", "", "only with this error `CLASS`, such as mapping or permanent")
	return c
}

// check makes sure that the filter and the argument EVENT|KEY select what the person means.
func (r *repair) check(given string) error {
	f := r.filter
	if given != "" && (f.event != "" || f.key != "") {
		return usagef("%q already names an event or a key: give it or --event or --key, not both", given)
	}
	if f.event != "" {
		if err := eventID(f.event); err != nil {
			return err
		}
	}
	narrowed := given != "" || f.key != "" || f.event != "" || f.class != "" || f.since.set() || f.olderThan != 0
	switch {
	case f.all && r.bySync && given != "" && f.sync == "" && f.class == "" && !f.since.set() && f.olderThan == 0:
	case f.all && r.replays && f.event == "" && !f.since.set() && f.olderThan == 0:
	case f.all && narrowed:
		return usagef("--all allows no filter except --sync: remove --all or the other filters")
	case !f.all && !narrowed:
		return usagef("this would select everything: add an event or a key, --since, --older-than or --class (if the command has it), or --all")
	}
	return nil
}

// args are the parameters $1 to $7 of all statements that select deliveries.
func (f *repairFilter) args() []any {
	return []any{f.sync, f.key, f.event, f.class, f.since.at, f.since.ago.interval(), f.olderThan.interval()}
}

// run prints the selected deliveries and, unless it is a dry run, changes them.
func (r *repair) run(cmd *cobra.Command, given string, needsReason bool) error {
	if err := r.operator.check(r.app, needsReason && !r.filter.dryRun); err != nil {
		return err
	}
	if err := r.check(given); err != nil {
		return err
	}
	if r.bySync && r.filter.all && given != "" {
		r.filter.sync, given = given, ""
		r.choose, r.change, r.now = r.open, r.discardAll, func(int, string) string { return "none of them is ever sent" }
	}
	return r.app.with(cmd, nil, roleOperator, func(ctx context.Context, db *database) error {
		if err := r.checkSync(ctx, db); err != nil {
			return err
		}
		var (
			rows []deliveryRow
			when string
		)
		err := db.act(ctx, r.operator, func(tx pgx.Tx) (err error) {
			if given != "" {
				if r.filter.event, r.filter.key, err = subject(ctx, tx, given); err != nil {
					return err
				}
			}
			if rows, err = r.choose(ctx, tx); err != nil || r.filter.dryRun || len(rows) == 0 {
				return err
			}
			if rows, err = r.change(ctx, tx, rows); err != nil {
				return err
			}
			when, err = sentWhen(ctx, tx, rows)
			return err
		})
		if err != nil {
			return err
		}
		if len(rows) == 0 && r.filter.event != "" {
			return fmt.Errorf("%s; see: lockstep explain %s", r.nothing, r.filter.event)
		}
		p := output.NewPrinter[deliveryRow](r.app.stdout, r.app.format).Without(fixed(r.filter.sync, r.filter.key, r.filter.event)...)
		if len(rows) > 0 || r.app.format != output.Table { // a table without rows says less than what follows
			if err := errors.Join(p.Print(rows...), p.Close()); err != nil {
				return err
			}
		}
		switch {
		case len(rows) == 0 && r.filter.key != "":
			r.app.say("%s; see: lockstep explain %s", r.nothing, quoted(r.filter.key))
		case len(rows) == 0:
			r.app.say("%s", r.nothing)
		case r.filter.dryRun:
			r.app.say("%s would be %s; nothing was changed", plural(len(rows), "delivery"), r.did)
		default:
			r.app.say("%s %s: %s", plural(len(rows), "delivery"), r.did, r.now(len(rows), when))
		}
		if r.older > 0 && len(rows) > 0 {
			r.app.say("%s of the key left out: the receiver gets its newest state. For all of them, in their order, add --all", plural(r.older, "earlier event"))
		}
		return nil
	})
}

func sentAgain(n int, when string) string {
	if n == 1 {
		return "relays send it " + when
	}
	return "relays send them " + when
}

func neverSent(n int, when string) string {
	if n == 1 {
		return "it is never sent. What waits behind it is sent " + when
	}
	return "they are never sent. What waits behind them is sent " + when
}

// sentWhen says when relays send what is due of the syncs of rows.
func sentWhen(ctx context.Context, tx pgx.Tx, rows []deliveryRow) (string, error) {
	syncs := map[string]bool{}
	for _, d := range rows {
		syncs[d.Sync] = true
	}
	var whens []string
	for _, sync := range slices.Sorted(maps.Keys(syncs)) {
		hold, err := holdOf(ctx, tx, sync, "")
		if err != nil {
			return "", err
		}
		served, err := isServed(ctx, tx, sync)
		switch {
		case err != nil:
			return "", err
		case hold != nil:
			whens = append(whens, fmt.Sprintf("when %s is no longer on hold (%s)", sync, hold))
		case !served:
			whens = append(whens, servedAgain(sync))
		}
	}
	switch len(whens) {
	case 0:
		return "now", nil
	case len(syncs):
		return strings.Join(whens, " and "), nil
	}
	return "now, and " + strings.Join(whens, " and "), nil
}

// checkSync refuses a sync that is not registered. Otherwise a typing mistake would
// look like "nothing to do".
func (r *repair) checkSync(ctx context.Context, db *database) error {
	if r.filter.sync == "" {
		return nil
	}
	all, err := db.store.Syncs(ctx)
	if _, ok := all[r.filter.sync]; err != nil || ok {
		return err
	}
	return fmt.Errorf("sync %q is not registered; see: lockstep sync list", r.filter.sync)
}

func (a *app) requeueCommand() *cobra.Command {
	r := &repair{app: a, things: "failed delivery", moment: "failed", did: "requeued", now: sentAgain, nothing: "no failed delivery to requeue", change: requeue}
	r.choose = r.failed
	return r.classFlag(r.command(&cobra.Command{
		Use:   "requeue [EVENT|KEY]",
		Short: "Send failed deliveries again",
		Long: `Send failed deliveries again: those of an event, of a key, or those that the
flags select. Attempts and retry budget start at zero, the position in the key's
order does not change, and the event is mapped again. Relays may run at the same
time. The command lists each delivery as it was before the change. --since and
--older-than compare the time of the failure. The login needs the role
outbox_operator.`,
		Example: `  lockstep requeue --sync CourtCalendarSync --class mapping --reason "mapping repaired"
  lockstep requeue H-2027-000007
  lockstep requeue --since 2h --dry-run
  lockstep requeue --sync CourtCalendarSync --all`,
	}, reasonOptional))
}

func (a *app) discardCommand() *cobra.Command {
	r := &repair{app: a, things: "failed delivery", moment: "failed", did: "discarded", now: neverSent, nothing: "no delivery to discard", bySync: true}
	r.choose, r.change = r.discardable, r.each(`SELECT outbox.discard($1, $2::uuid, $3)`)
	return r.classFlag(r.command(&cobra.Command{
		Use:   "discard [EVENT|KEY|SYNC]",
		Short: "Give up deliveries for good",
		Long: `Give up deliveries for good. The next event of each key is sent. The command
selects failed deliveries, or for an event its deliveries in any state except
sending. It discards all of them or none. --since and --older-than compare the
time of the failure. The login needs the role outbox_operator.

SYNC with --all selects every open delivery of an orphaned sync, in any state.
The sync must be retired, and no running relay may serve it.`,
		Example: `  lockstep discard 0199f3a1-7c1e-7b5e-9c3e-5a4f2d1b0c9d --reason "entered at the court by hand"
  lockstep discard --sync CourtCalendarSync --class permanent --older-than 30d --dry-run
  lockstep discard OldCourtSync --all --reason "the court closed"`,
	}, reasonRequired))
}

func (a *app) replayCommand() *cobra.Command {
	r := &repair{app: a, things: "delivered event", moment: "was delivered", did: "replayed", now: sentAgain, nothing: "no delivered event to replay", replays: true}
	r.choose, r.change = r.delivered, r.each(`SELECT outbox.replay($1, $2::uuid, $3)`)
	return r.command(&cobra.Command{
		Use:   "replay [EVENT|KEY]",
		Short: "Send delivered events again",
		Long: `Send delivered events again, as new deliveries at the end of their key's lane.
Their idempotency key is "ID:n", so that the receiver does not treat them as
duplicates. The command selects events that were delivered to a sync and have no
open delivery there, oldest first. It replays all of them or none.

For a key, it replays the newest delivered event, so that the receiver gets the
newest state. With --all, it replays every delivered event of the key. It refuses
while the key has an open delivery, because the replay would be sent after it.

--since and --older-than compare the time of the delivery. The login needs the
role outbox_operator.`,
		Example: `  lockstep replay H-2027-000007 --reason "court lost it"
  lockstep replay 0199f3a1-7c1e-7b5e-9c3e-5a4f2d1b0c9d --reason "court lost it"
  lockstep replay --sync CourtCalendarSync --since 2027-01-31T08:00:00Z --dry-run`,
	}, reasonRequired)
}

// filterCondition selects deliveries. The time of a delivery is that of the last log
// row that made it fail. The log is read only if the filter has a time.
const filterCondition = `
   AND ($1::text = '' OR d.sync = $1)
   AND ($2::text = '' OR d.key = $2)
   AND ($3::text = '' OR d.event_id = nullif($3, '')::uuid)
   AND ($4::text = '' OR d.error_class = $4)
   AND ($5::timestamptz IS NULL AND $6::interval IS NULL AND $7::interval IS NULL
        OR (SELECT max(l.at) FROM outbox.delivery_log AS l
             WHERE l.event_id = d.event_id AND l.sync = d.sync AND l.outcome IN ('failed', 'unknown'))
           BETWEEN coalesce($5::timestamptz, clock_timestamp() - $6::interval, '-infinity')
               AND clock_timestamp() - coalesce($7::interval, '0'))`

// failed lists the failed deliveries that the filter selects.
func (r *repair) failed(ctx context.Context, tx pgx.Tx) ([]deliveryRow, error) {
	const list = `-- lockstep failed deliveries
SELECT ` + deliveryColumns + `
  FROM (SELECT *, NULL AS claimed_by, NULL::timestamptz AS lease_until FROM outbox.delivery) AS d
  LEFT JOIN outbox.event AS e ON e.id = d.event_id
 WHERE d.state = 'failed'` + filterCondition + `
 ORDER BY d.sync, d.event_seq`
	return query[deliveryRow](ctx, tx, list, r.filter.args()...)
}

// open lists all open deliveries of a sync.
func (r *repair) open(ctx context.Context, tx pgx.Tx) ([]deliveryRow, error) {
	const list = `-- lockstep open deliveries of a sync
SELECT ` + deliveryColumns + `
  FROM outbox.open_delivery AS d
  LEFT JOIN outbox.event AS e ON e.id = d.event_id
 WHERE d.sync = $1
 ORDER BY d.event_seq`
	return query[deliveryRow](ctx, tx, list, r.filter.sync)
}

// discardAll discards the deliveries that open lists. Others can only come from
// transactions that began before the sync was retired.
func (r *repair) discardAll(ctx context.Context, tx pgx.Tx, rows []deliveryRow) ([]deliveryRow, error) {
	if _, err := tx.Exec(ctx, `SELECT outbox.discard_all($1, $2)`, r.filter.sync, r.operator.reason); err != nil {
		return nil, fmt.Errorf("nothing was changed: %w", err)
	}
	return rows, nil
}

// discardable lists the open deliveries of one event. Without an event, it lists failed
// ones.
func (r *repair) discardable(ctx context.Context, tx pgx.Tx) ([]deliveryRow, error) {
	if r.filter.event == "" {
		return r.failed(ctx, tx)
	}
	const list = `-- lockstep open deliveries of an event
SELECT ` + deliveryColumns + `
  FROM outbox.event AS e
  JOIN outbox.sync AS s ON true
  JOIN outbox.open_delivery AS d ON d.sync = s.name AND d.key = e.key AND d.event_id = e.id
 WHERE e.id = nullif($3, '')::uuid` + filterCondition + `
 ORDER BY d.sync, d.event_seq`
	return query[deliveryRow](ctx, tx, list, r.filter.args()...)
}

// delivered lists the delivered events that the filter selects and that have no open
// delivery. Each row is the delivery that a replay would add.
func (r *repair) delivered(ctx context.Context, tx pgx.Tx) ([]deliveryRow, error) {
	const list = `-- lockstep delivered events
WITH done AS (
    SELECT l.sync, l.event_id, max(l.at) AS at, max(l.attempt)::bigint AS attempts
      FROM outbox.delivery_log AS l
     WHERE l.outcome IN ('delivered', 'duplicate', 'accepted')
       AND ($1::text = '' OR l.sync = $1)
       AND ($2::text = '' OR l.key = $2)
       AND ($3::text = '' OR l.event_id = nullif($3, '')::uuid)
       AND $4::text = ''
       AND l.at >= coalesce($5::timestamptz, clock_timestamp() - $6::interval, '-infinity')
       AND l.at <= clock_timestamp() - coalesce($7::interval, '0')
     GROUP BY l.sync, l.event_id
)
SELECT done.sync, e.seq AS event_seq, e.id::text AS event_id, e.type AS event_type, e.key, 'delivered' AS state, done.attempts,
       NULL::timestamptz AS due_at, NULL AS claimed_by, NULL::timestamptz AS lease_until, NULL AS error_class, NULL AS error,
       done.at AS created_at
  FROM done
  JOIN outbox.event AS e ON e.id = done.event_id
 WHERE NOT EXISTS (SELECT FROM outbox.delivery AS d
                    WHERE d.sync = done.sync AND d.key = e.key AND d.event_id = e.id)
 ORDER BY e.seq, done.sync`
	rows, err := query[deliveryRow](ctx, tx, list, r.filter.args()...)
	if err != nil || r.filter.key == "" || r.filter.event != "" || len(rows) == 0 {
		return rows, err
	}
	return r.ofKey(ctx, tx, rows)
}

// ofKey selects from rows, the delivered events of one key, what is replayed. A replay is
// sent after everything else of its key, so an older state must not follow a newer one.
func (r *repair) ofKey(ctx context.Context, tx pgx.Tx, rows []deliveryRow) ([]deliveryRow, error) {
	newest := map[string]deliveryRow{}
	for _, d := range rows { // in the order of events
		newest[d.Sync] = d
	}
	const open = `-- lockstep replay: open deliveries of a key
SELECT d.sync, count(*) AS count, (array_agg(d.state ORDER BY d.event_seq))[1] AS first
  FROM unnest($2::text[]) AS s (name)
  JOIN outbox.open_delivery AS d ON d.sync = s.name AND d.key = $1
 GROUP BY d.sync
 ORDER BY d.sync`
	type blocked struct {
		Sync  string
		Count int64
		First string
	}
	list, err := query[blocked](ctx, tx, open, r.filter.key, slices.Collect(maps.Keys(newest)))
	if err != nil {
		return nil, err
	}
	for _, b := range list {
		return nil, fmt.Errorf("key %s has %s to %s, the first is %s: a replay would be sent after it and would undo what it says; "+
			"wait until it is finished, or requeue or discard it, see: lockstep explain %s; to send the older event nevertheless: lockstep replay %s",
			r.filter.key, plural(b.Count, "open delivery"), b.Sync, b.First, quoted(r.filter.key), newest[b.Sync].EventID)
	}
	if r.filter.all {
		return rows, nil
	}
	kept := slices.DeleteFunc(slices.Clone(rows), func(d deliveryRow) bool { return newest[d.Sync].EventID != d.EventID })
	r.older = len(rows) - len(kept)
	return kept, nil
}

// requeue sets rows to pending, and the database does the rest of a requeue. It
// returns the rows that were still failed.
func requeue(ctx context.Context, tx pgx.Tx, rows []deliveryRow) ([]deliveryRow, error) {
	const update = `-- lockstep requeue
UPDATE outbox.delivery AS d
   SET state = 'pending'
  FROM unnest($1::text[], $2::text[], $3::bigint[]) AS c (sync, key, event_seq)
 WHERE d.sync = c.sync AND d.key = c.key AND d.event_seq = c.event_seq AND d.state = 'failed'
RETURNING d.sync, d.event_seq`
	var syncs, keys []string
	var seqs []int64
	for _, d := range rows {
		syncs, keys, seqs = append(syncs, d.Sync), append(keys, d.Key), append(seqs, d.EventSeq)
	}
	type place struct {
		Sync     string
		EventSeq int64
	}
	changed, err := query[place](ctx, tx, update, syncs, keys, seqs)
	requeued := map[place]bool{}
	for _, p := range changed {
		requeued[p] = true
	}
	return slices.DeleteFunc(rows, func(d deliveryRow) bool { return !requeued[place{d.Sync, d.EventSeq}] }), err
}

// each calls a function of the database for every row, in order.
func (r *repair) each(call string) func(context.Context, pgx.Tx, []deliveryRow) ([]deliveryRow, error) {
	return func(ctx context.Context, tx pgx.Tx, rows []deliveryRow) ([]deliveryRow, error) {
		for _, d := range rows {
			if _, err := tx.Exec(ctx, call, d.Sync, d.EventID, r.operator.reason); err != nil {
				return nil, fmt.Errorf("nothing was changed: %w", err)
			}
		}
		return rows, nil
	}
}
