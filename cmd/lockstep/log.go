package main

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hms-mkt/lockstep/internal/console"
)

// logRow is a row of outbox.delivery_log.
type logRow struct {
	ID             int64      `json:"id" db:"id"`
	At             time.Time  `json:"at" db:"at"`
	AnsweredAt     *time.Time `json:"answered_at,omitempty" db:"answered_at"`
	Sync           string     `json:"sync" db:"sync"`
	EventID        *string    `json:"event_id,omitempty" db:"event_id"`
	EventType      *string    `json:"event_type,omitempty" db:"event_type"`
	Key            *string    `json:"key,omitempty" db:"key"`
	Version        *int64     `json:"version,omitempty" db:"version"`
	Attempt        *int64     `json:"attempt,omitempty" db:"attempt"`
	Outcome        string     `json:"outcome" db:"outcome"`
	Code           *string    `json:"code,omitempty" db:"code"`
	ErrorClass     *string    `json:"error_class,omitempty" db:"error_class"`
	Error          *string    `json:"error,omitempty" db:"error"`
	ExternalID     *string    `json:"external_id,omitempty" db:"external_id"`
	RequestSHA256  *string    `json:"request_sha256,omitempty" db:"request_sha256"`
	MappingVersion *string    `json:"mapping_version,omitempty" db:"mapping_version"`
	TookMS         *int64     `json:"took_ms,omitempty" db:"took_ms"`
	Claim          *string    `json:"claim,omitempty" db:"claim"`
	Relay          *string    `json:"relay,omitempty" db:"relay"`
	Actor          *string    `json:"actor,omitempty" db:"actor"`
	Reason         *string    `json:"reason,omitempty" db:"reason"`
}

const logColumns = `id, at, answered_at, sync, event_id::text AS event_id, event_type, key, version, attempt, outcome, code,
       error_class, error, external_id, request_sha256, mapping_version, took_ms, claim::text AS claim, relay, actor, reason`

func logHeader() []string {
	return []string{"AT", "SYNC", "KEY", "EVENT", "TRY", "OUTCOME", "CODE", "TOOK", "BY", "DETAIL"}
}

func (r logRow) Cells() []string {
	attempt, took, by := "", "", deref(r.Relay)
	if r.Attempt != nil {
		attempt = fmt.Sprint(*r.Attempt)
	}
	if r.TookMS != nil {
		took = fmt.Sprintf("%dms", *r.TookMS)
	}
	if r.Actor != nil {
		by = *r.Actor
	}
	var detail []string
	for _, s := range []*string{r.ErrorClass, r.Error, r.Reason} {
		if deref(s) != "" {
			detail = append(detail, *s)
		}
	}
	return []string{
		r.At.UTC().Format("2006-01-02T15:04:05.000Z"), r.Sync, deref(r.Key), deref(r.EventID), attempt,
		r.Outcome, deref(r.Code), took, by, strings.Join(detail, ": "),
	}
}

// logFilter chooses rows of the log.
type logFilter struct {
	sync, key, event string
	outcomes         []string
	since, until     instant
	after            int64 // only rows with a larger id; negative: not given
	limit            int
}

// outcomes are the words that --outcome takes.
func outcomes() []string {
	return []string{
		"delivered", "duplicate", "accepted", "filtered", "retry", "failed", "unknown", "lease_lost", "superseded",
		"requeued", "replayed", "discarded", "paused", "resumed", "retired", "sync_changed",
	}
}

func (f *logFilter) check() error {
	for _, o := range f.outcomes {
		if !slices.Contains(outcomes(), o) {
			return usagef("--outcome %q: want one of %s", o, strings.Join(outcomes(), ", "))
		}
	}
	if f.limit < 1 || f.limit > 1_000_000 {
		return usagef("--limit %d: want 1 to 1000000", f.limit)
	}
	if f.event != "" {
		if err := eventID(f.event); err != nil {
			return err
		}
	}
	// The log of years is indexed by event, key and time.
	if f.event == "" && f.key == "" && !f.since.set() && f.after < 0 {
		f.since.ago = 24 * time.Hour
	}
	return nil
}

// logCondition is what a row must meet, by the values of args.
const logCondition = `($4::text = '' OR sync = $4)
   AND ($5::text = '' OR key = $5)
   AND ($6::text = '' OR event_id = nullif($6, '')::uuid)
   AND (cardinality($7::text[]) = 0 OR outcome = ANY ($7))
   AND at >= coalesce($8::timestamptz, clock_timestamp() - $9::interval, '-infinity')
   AND at < coalesce($10::timestamptz, clock_timestamp() - $11::interval, 'infinity')`

func (f *logFilter) args() []any {
	from, fromAgo := f.since.before()
	to, toAgo := f.until.before()
	return []any{f.sync, f.key, f.event, append([]string{}, f.outcomes...), from, fromAgo, to, toAgo}
}

// newest returns the newest rows that the filter chooses, oldest first, with an
// id of at most upTo.
func (db *database) newest(ctx context.Context, f logFilter, upTo int64) ([]logRow, error) {
	const statement = `-- lockstep log
SELECT ` + logColumns + `
  FROM outbox.delivery_log
 WHERE id > $1
   AND id <= $2
   AND ` + logCondition + `
 ORDER BY at DESC, id DESC
 LIMIT $3`
	rows, err := query[logRow](ctx, db.conn, statement, append([]any{int64(math.MinInt64), upTo, f.limit}, f.args()...)...)
	slices.Reverse(rows)
	return rows, db.explain(err)
}

func (a *app) logCommand() *cobra.Command {
	var (
		f      logFilter
		follow bool
	)
	c := &cobra.Command{
		Use:   "log",
		Short: "Show the delivery log",
		Long: `Show the delivery log: every attempt at every external system and everything
operators did, oldest first. No payload is in it. Without --key, --event or
--since the last 24 hours are shown, and of these the newest --limit rows.
Times are UTC. The login needs outbox_auditor.

With --after the first --limit rows after that id are shown, in the order of
ids; ids are in the JSON formats. --follow prints what is added later, and
survives a restart of the database. Neither ever shows a row while one with a
smaller id may still appear: rows are held back until the transactions have
ended that were writing the log. A reader that continues with --after and the
last id that he has got misses nothing and gets nothing twice. Without --follow
such transactions are waited for up to 5 s, then the exit code is 1.

With --until, --follow ends when nothing before that time can appear any more.`,
		Example: `  lockstep log --key H-2027-000007
  lockstep log --sync CourtCalendarSync --outcome failed --since 7d
  lockstep log --follow --output jsonl
  lockstep log --follow --after 4711 --output jsonl
  lockstep log --after 4711 --limit 10000 --output jsonl`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if follow && a.format == console.JSON {
				return usagef("--follow has no end, and a JSON array has one: use --output jsonl")
			}
			if !cmd.Flags().Changed("after") {
				f.after = -1
			} else if f.after < 0 {
				return usagef("--after %d: want the id of a row, or 0 for all", f.after)
			}
			if err := f.check(); err != nil {
				return err
			}
			db, err := a.connect(cmd.Context(), nil, "log", roleAuditor)
			if err != nil {
				return err
			}
			p := console.NewPrinter[logRow](a.stdout, a.format, logHeader()...)
			if follow {
				err = a.follow(cmd.Context(), db, f, p.Print)
			} else {
				err = db.show(cmd.Context(), f, p.Print)
				db.close()
			}
			if err != nil {
				return err
			}
			return p.Close()
		},
	}
	c.Flags().StringVar(&f.key, "key", "", "only rows about this `KEY`")
	c.Flags().StringVar(&f.event, "event", "", "only rows about the event with this `ID`")
	c.Flags().StringVar(&f.sync, "sync", "", "only rows of this `SYNC`")
	c.Flags().Var(&f.since, "since", "only rows since `WHEN`: 90s, 24h, 7d, or a time such as 2027-01-31T08:00:00Z")
	c.Flags().Var(&f.until, "until", "only rows before `WHEN`")
	c.Flags().Int64Var(&f.after, "after", 0, "only rows with a larger id than `ID`, the first --limit of them")
	c.Flags().StringSliceVar(&f.outcomes, "outcome", nil, "only rows with this `OUTCOME`; may be given several times")
	c.Flags().IntVar(&f.limit, "limit", 100, "show the newest `N` rows, with --after the first")
	c.Flags().BoolVarP(&follow, "follow", "f", false, "then wait for further rows")
	_ = c.RegisterFlagCompletionFunc("outcome", cobra.FixedCompletions(outcomes(), cobra.ShellCompDirectiveNoFileComp))
	return c
}

// show prints what is there.
func (db *database) show(ctx context.Context, f logFilter, print func(...logRow) error) error {
	if f.after < 0 {
		rows, err := db.newest(ctx, f, math.MaxInt64)
		if err != nil {
			return err
		}
		return print(rows...)
	}
	complete := horizon{settled: f.after}
	if err := complete.await(ctx, db, batchWait); err != nil {
		return err
	}
	rows, err := db.rowsAfter(ctx, f, f.after, complete.settled, f.limit)
	if err != nil {
		return db.explain(err)
	}
	return print(rows...)
}

// follow prints what is there and what is added. It closes db.
func (a *app) follow(ctx context.Context, db *database, f logFilter, print func(...logRow) error) error {
	w := &follower{app: a, filter: f, print: print, db: db, after: f.after, horizon: horizon{settled: f.after}}
	w.newest = f.after < 0
	return w.follow(ctx)
}
