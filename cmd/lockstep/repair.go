package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"

	"github.com/hms-mkt/lockstep/internal/console"
)

// repairFilter chooses what requeue, discard and replay work on.
type repairFilter struct {
	sync, key, event, class string
	since                   instant
	olderThan               duration
	all, dryRun             bool
}

func (f *repairFilter) flags(c *cobra.Command, what, moment string) {
	c.Flags().StringVar(&f.sync, "sync", "", "only of this `SYNC`")
	c.Flags().StringVar(&f.key, "key", "", "only with this `KEY`")
	c.Flags().StringVar(&f.event, "event", "", "only of the event with this `ID`")
	c.Flags().Var(&f.since, "since", "only what "+moment+" since `WHEN`: 90s, 24h, 7d, or a time such as 2027-01-31T08:00:00Z")
	c.Flags().Var(&f.olderThan, "older-than", "only what "+moment+" longer than `D` ago: 90s, 24h, 7d")
	c.Flags().BoolVar(&f.all, "all", false, "every "+what+", or every one of --sync; needed where nothing else narrows the choice")
	c.Flags().BoolVarP(&f.dryRun, "dry-run", "n", false, "list what would be changed, change nothing")
}

func (f *repairFilter) check() error {
	if f.event != "" {
		if err := eventID(f.event); err != nil {
			return err
		}
	}
	narrowed := f.key != "" || f.event != "" || f.class != "" || f.since.set() || f.olderThan != 0
	switch {
	case f.all && narrowed:
		return usagef("--all goes with no other filter than --sync")
	case !f.all && !narrowed:
		return usagef("this would take everything: narrow it down with --key, --event, --since, --older-than or --class where there is one, or say --all")
	}
	return nil
}

// args are the parameters $1 to $7 that all statements below share.
func (f *repairFilter) args() []any {
	at, ago := f.since.before()
	var older *string
	if f.olderThan != 0 {
		text := fmt.Sprintf("%d microseconds", time.Duration(f.olderThan).Microseconds())
		older = &text
	}
	return []any{f.sync, f.key, f.event, f.class, at, ago, older}
}

// known refuses a sync that is not registered: a typing mistake would
// otherwise look like "nothing to do".
func (f *repairFilter) known(ctx context.Context, db *database) error {
	if f.sync == "" {
		return nil
	}
	all, err := db.store.Syncs(ctx)
	if err != nil {
		return db.explain(err)
	}
	if _, ok := all[f.sync]; !ok {
		return fmt.Errorf("sync %q is not registered; see: lockstep sync list", f.sync)
	}
	return nil
}

// failedRows chooses deliveries. Their time is that of the last log row that
// made them fail; the log is only asked where it matters.
const failedRows = `
   AND ($1::text = '' OR d.sync = $1)
   AND ($2::text = '' OR d.key = $2)
   AND ($3::text = '' OR d.event_id = nullif($3, '')::uuid)
   AND ($4::text = '' OR d.error_class = $4)
   AND ($5::timestamptz IS NULL AND $6::interval IS NULL AND $7::interval IS NULL
        OR (SELECT max(l.at) FROM outbox.delivery_log AS l
             WHERE l.event_id = d.event_id AND l.sync = d.sync AND l.outcome IN ('failed', 'unknown'))
           BETWEEN coalesce($5::timestamptz, clock_timestamp() - $6::interval, '-infinity')
               AND clock_timestamp() - coalesce($7::interval, '0'))`

// repair is one run of requeue, discard or replay.
type repair struct {
	app    *app
	filter repairFilter
	who    who

	did     string // "requeued"
	nothing string // what to say when nothing was chosen
}

// run prints and, unless it is a dry run, changes what choose returns.
func (r *repair) run(cmd *cobra.Command, choose, change func(ctx context.Context, tx pgx.Tx) ([]deliveryFact, error)) error {
	ctx := cmd.Context()
	if err := r.filter.check(); err != nil {
		return err
	}
	db, err := r.app.connect(ctx, nil, cmd.Name(), roleOperator)
	if err != nil {
		return err
	}
	defer db.close()
	if err := r.filter.known(ctx, db); err != nil {
		return err
	}
	var rows []deliveryFact
	err = db.act(ctx, r.who.onBehalf(r.app), r.who.reason, func(tx pgx.Tx) error {
		do := change
		if r.filter.dryRun {
			do = choose
		}
		rows, err = do(ctx, tx)
		return err
	})
	if err != nil {
		return err
	}
	if len(rows) == 0 && r.filter.event != "" {
		return fmt.Errorf("%s; see: lockstep explain %s", r.nothing, r.filter.event)
	}
	p := console.NewPrinter[deliveryFact](r.app.stdout, r.app.format, deliveryHeader()...)
	if err := errors.Join(p.Print(rows...), p.Close()); err != nil {
		return err
	}
	switch {
	case len(rows) == 0:
		r.app.say("%s", r.nothing)
	case r.filter.dryRun:
		r.app.say("%s would be %s; nothing was changed", plural(len(rows), "delivery"), r.did)
	default:
		r.app.say("%s %s", plural(len(rows), "delivery"), r.did)
	}
	return nil
}

func (a *app) requeueCommand() *cobra.Command {
	r := &repair{app: a, did: "requeued", nothing: "no failed delivery to requeue"}
	c := &cobra.Command{
		Use:   "requeue",
		Short: "Give failed deliveries a new life",
		Long: `Give failed deliveries a new life: attempts and retry budget start anew, the
place in the key's order stays, the body is mapped again. Safe while relays
run. The times are those at which the deliveries failed. Lists what it changed,
as it was before. The login needs outbox_operator.`,
		Example: `  lockstep requeue --sync CourtCalendarSync --class mapping --reason "mapping repaired"
  lockstep requeue --since 2h --dry-run
  lockstep requeue --sync CourtCalendarSync --all`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			choose := func(ctx context.Context, tx pgx.Tx) ([]deliveryFact, error) {
				return failed(ctx, tx, &r.filter)
			}
			return r.run(cmd, choose, func(ctx context.Context, tx pgx.Tx) ([]deliveryFact, error) {
				rows, err := choose(ctx, tx)
				if err != nil || len(rows) == 0 {
					return nil, err
				}
				return requeue(ctx, tx, rows)
			})
		},
	}
	r.filter.flags(c, "failed delivery", "failed")
	c.Flags().StringVar(&r.filter.class, "class", "", "only with this error `CLASS`, such as mapping or permanent")
	r.who.actorFlag(c)
	r.who.reasonFlag(c, reasonOptional)
	return c
}

// failed lists the failed deliveries that the filter chooses.
func failed(ctx context.Context, tx pgx.Tx, f *repairFilter) ([]deliveryFact, error) {
	const list = `-- lockstep failed deliveries
SELECT ` + deliveryColumns + `
  FROM (SELECT *, NULL AS claimed_by, NULL::timestamptz AS lease_until FROM outbox.delivery) AS d
  LEFT JOIN outbox.event AS e ON e.id = d.event_id
 WHERE d.state = 'failed'` + failedRows + `
 ORDER BY d.sync, d.event_seq`
	return query[deliveryFact](ctx, tx, list, f.args()...)
}

// requeue sets rows to pending, which is a complete requeue: the database does
// the rest. It returns those that were still failed.
func requeue(ctx context.Context, tx pgx.Tx, rows []deliveryFact) ([]deliveryFact, error) {
	var syncs, keys []string
	var places []int64
	for _, d := range rows {
		syncs, keys, places = append(syncs, d.Sync), append(keys, d.Key), append(places, d.Place)
	}
	const update = `-- lockstep requeue
UPDATE outbox.delivery AS d
   SET state = 'pending'
  FROM unnest($1::text[], $2::text[], $3::bigint[]) AS c (sync, key, event_seq)
 WHERE d.sync = c.sync AND d.key = c.key AND d.event_seq = c.event_seq AND d.state = 'failed'
RETURNING d.sync, d.event_seq`
	type place struct {
		Sync string `db:"sync"`
		Seq  int64  `db:"event_seq"`
	}
	done, err := query[place](ctx, tx, update, syncs, keys, places)
	if err != nil {
		return nil, err
	}
	changed := make(map[place]bool, len(done))
	for _, p := range done {
		changed[p] = true
	}
	var left []deliveryFact
	for _, d := range rows {
		if changed[place{d.Sync, d.Place}] {
			left = append(left, d)
		}
	}
	return left, nil
}

func (a *app) discardCommand() *cobra.Command {
	r := &repair{app: a, did: "discarded", nothing: "no delivery to discard"}
	c := &cobra.Command{
		Use:   "discard",
		Short: "Give deliveries up for good",
		Long: `Give deliveries up for good; the next event of their key goes on. Takes failed
deliveries; with --event, that event's delivery in any state but sending. All
or none are discarded. The times are those at which the deliveries failed. The
login needs outbox_operator.`,
		Example: `  lockstep discard --event 0199f3a1-7c1e-7b5e-9c3e-5a4f2d1b0c9d --reason "entered at the court by hand"
  lockstep discard --sync CourtCalendarSync --class permanent --older-than 30d --dry-run`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := r.who.needsReason(); err != nil && !r.filter.dryRun {
				return err
			}
			choose := func(ctx context.Context, tx pgx.Tx) ([]deliveryFact, error) {
				if r.filter.event == "" {
					return failed(ctx, tx, &r.filter)
				}
				const list = `-- lockstep open deliveries of an event
SELECT ` + deliveryColumns + `
  FROM outbox.event AS e
  JOIN outbox.sync AS s ON true
  JOIN outbox.open_delivery AS d ON d.sync = s.name AND d.key = e.key AND d.event_id = e.id
 WHERE e.id = nullif($3, '')::uuid` + failedRows + `
 ORDER BY d.sync, d.event_seq`
				return query[deliveryFact](ctx, tx, list, r.filter.args()...)
			}
			return r.run(cmd, choose, each(choose, `SELECT outbox.discard($1, $2::uuid, $3)`, &r.who))
		},
	}
	r.filter.flags(c, "failed delivery", "failed")
	c.Flags().StringVar(&r.filter.class, "class", "", "only with this error `CLASS`, such as mapping or permanent")
	r.who.actorFlag(c)
	r.who.reasonFlag(c, reasonRequired)
	return c
}

// each calls one of the database's functions for everything that was chosen,
// in the order of the events.
func each(choose func(context.Context, pgx.Tx) ([]deliveryFact, error), call string, w *who) func(context.Context, pgx.Tx) ([]deliveryFact, error) {
	return func(ctx context.Context, tx pgx.Tx) ([]deliveryFact, error) {
		rows, err := choose(ctx, tx)
		if err != nil {
			return nil, err
		}
		for _, d := range rows {
			if _, err := tx.Exec(ctx, call, d.Sync, d.EventID, w.reason); err != nil {
				return nil, fmt.Errorf("nothing was changed: %w", err)
			}
		}
		return rows, nil
	}
}

func (a *app) replayCommand() *cobra.Command {
	r := &repair{app: a, did: "replayed", nothing: "no delivered event to replay"}
	c := &cobra.Command{
		Use:   "replay",
		Short: "Send delivered events once more",
		Long: `Send delivered events once more, as new deliveries at the end of their key's
line, with the idempotency key "ID:n" so that the receiver does not take them
for duplicates. Takes events that were delivered to a sync and have no open
delivery there, oldest event first; all or none are replayed. The times are
those of the delivery. The login needs outbox_operator.`,
		Example: `  lockstep replay --event 0199f3a1-7c1e-7b5e-9c3e-5a4f2d1b0c9d --reason "court lost it"
  lockstep replay --sync CourtCalendarSync --since 2027-01-31T08:00:00Z --dry-run`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := r.who.needsReason(); err != nil && !r.filter.dryRun {
				return err
			}
			choose := func(ctx context.Context, tx pgx.Tx) ([]deliveryFact, error) {
				return delivered(ctx, tx, &r.filter)
			}
			return r.run(cmd, choose, each(choose, `SELECT outbox.replay($1, $2::uuid, $3)`, &r.who))
		},
	}
	r.filter.flags(c, "delivered event", "was delivered")
	r.who.actorFlag(c)
	r.who.reasonFlag(c, reasonRequired)
	return c
}

// delivered lists the events, as the deliveries they would become, that were
// delivered within the filter and have no open delivery.
func delivered(ctx context.Context, tx pgx.Tx, f *repairFilter) ([]deliveryFact, error) {
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
	return query[deliveryFact](ctx, tx, list, f.args()...)
}
