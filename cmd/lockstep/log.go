package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hms-mkt/lockstep/internal/inspect"
	"github.com/hms-mkt/lockstep/internal/output"
)

// logRow is a row of outbox.delivery_log.
type logRow struct {
	ID             int64      `json:"id"`
	At             time.Time  `json:"at"`
	AnsweredAt     *time.Time `json:"answered_at,omitempty"`
	Sync           string     `json:"sync"`
	EventID        *string    `json:"event_id,omitempty"`
	EventType      *string    `json:"event_type,omitempty"`
	Key            *string    `json:"key,omitempty"`
	Version        *int64     `json:"version,omitempty"`
	Attempt        *int64     `json:"attempt,omitempty"`
	Outcome        string     `json:"outcome"`
	Code           *string    `json:"code,omitempty"`
	ErrorClass     *string    `json:"error_class,omitempty"`
	Error          *string    `json:"error,omitempty"`
	ExternalID     *string    `json:"external_id,omitempty"`
	RequestSHA256  *string    `json:"request_sha256,omitempty"`
	MappingVersion *string    `json:"mapping_version,omitempty"`
	TookMS         *int64     `json:"took_ms,omitempty"`
	Claim          *string    `json:"claim,omitempty"`
	Relay          *string    `json:"relay,omitempty"`
	Actor          *string    `json:"actor,omitempty"`
	Reason         *string    `json:"reason,omitempty"`
}

const logColumns = `id, at, answered_at, sync, event_id::text AS event_id, event_type, key, version, attempt, outcome, code,
       error_class, error, external_id, request_sha256, mapping_version, took_ms, claim::text AS claim, relay, actor, reason`

func (logRow) Header() []string {
	return []string{"AT", "SYNC", "KEY", "TRY", "OUTCOME", "CODE", "BY", "TOOK", "EVENT", "DETAIL"}
}

func (r logRow) Cells() []string {
	attempt, took := "", ""
	if r.Attempt != nil {
		attempt = fmt.Sprint(*r.Attempt)
	}
	if r.TookMS != nil {
		took = fmt.Sprintf("%dms", *r.TookMS)
	}
	var detail []string
	for _, s := range []*string{r.ErrorClass, r.Error, r.Reason} {
		if deref(s) != "" {
			detail = append(detail, *s)
		}
	}
	at := r.At
	if r.AnsweredAt != nil {
		at = *r.AnsweredAt
	}
	return []string{
		clockMilli(at), r.Sync, deref(r.Key), attempt, r.Outcome, deref(r.Code),
		cmp.Or(deref(r.Actor), deref(r.Relay)), took, deref(r.EventID), strings.Join(detail, ": "),
	}
}

// logFilter selects rows of the log.
type logFilter struct {
	sync, key, event string
	outcomes         []string
	since, until     instant
	after            int64 // only rows with a larger id; negative: not given
	limit            int
}

// outcomes are the words that --outcome takes.
func outcomes() []string {
	return append([]string{
		"delivered", "duplicate", "accepted", "filtered", "retry", "failed", "unknown", "lease_lost", "superseded", "read", "step",
	}, inspect.Actions()...)
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
	// The log may span years, and its indexes are by event, key and time.
	if f.event == "" && f.key == "" && !f.since.set() && f.after < 0 {
		f.since.ago = duration(24 * time.Hour)
	}
	return nil
}

// rows returns the rows that the filter selects, with ids greater than after and at
// most upTo. It returns at most limit rows: the newest ones, oldest first, or with the
// order "id" the first ones.
func (db *database) rows(ctx context.Context, f logFilter, after, upTo int64, order string, limit int) ([]logRow, error) {
	statement := `-- lockstep log
SELECT ` + logColumns + `
  FROM outbox.delivery_log
 WHERE id > $1
   AND id <= $2
   AND ($4::text = '' OR sync = $4)
   AND ($5::text = '' OR key = $5)
   AND ($6::text = '' OR event_id = nullif($6, '')::uuid)
   AND (cardinality($7::text[]) = 0 OR outcome = ANY ($7))
   AND at >= coalesce($8::timestamptz, clock_timestamp() - $9::interval, '-infinity')
   AND at < coalesce($10::timestamptz, clock_timestamp() - $11::interval, 'infinity')
 ORDER BY ` + order + `
 LIMIT $3`
	rows, err := query[logRow](ctx, db.conn, statement, after, upTo, limit, f.sync, f.key, f.event, append([]string{}, f.outcomes...),
		f.since.at, f.since.ago.interval(), f.until.at, f.until.ago.interval())
	if order == newestFirst {
		slices.Reverse(rows)
	}
	return rows, err
}

// The orders of [database.rows].
const (
	newestFirst = "at DESC, id DESC"
	byID        = "id"
)

func (a *app) logCommand() *cobra.Command {
	var (
		f      logFilter
		follow bool
	)
	c := &cobra.Command{
		Use:   "log",
		Short: "Show the delivery log",
		Long: `Show the delivery log: every attempt at every external system and everything
that operators did, oldest first. The log holds no payload. Without --key,
--event or --since, the command shows the last 24 hours. It shows the newest
--limit rows. AT is the time of the answer, if there was one; it is in UTC. The
login needs the role outbox_auditor.

With --after ID, it shows the first --limit rows after that id, in the order of
ids. The JSON formats show ids. --follow prints rows as they are added, and
survives a restart of the database.

With --after or --follow, a row is held back while a row with a smaller id may
still appear: until the transactions that were writing the log have ended. So a
reader that continues with --after and its last id misses nothing and gets
nothing twice. Without --follow, the command waits up to 5 s for such
transactions and then exits with 1.

With --until, --follow ends when no row before that time can appear any more.`,
		Example: `  lockstep log --key H-2027-000007
  lockstep log --sync CourtCalendarSync --outcome failed --since 7d
  lockstep log --follow --output jsonl
  lockstep log --follow --after 4711 --output jsonl
  lockstep log --after 4711 --limit 10000 --output jsonl`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if follow && a.format == output.JSON {
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
			byDefault := f.since.set() && !cmd.Flags().Changed("since")
			p := output.NewPrinter[logRow](a.stdout, a.format).Without(fixed(f.sync, f.key, f.event)...)
			if follow {
				db, err := a.connect(cmd.Context(), nil, cmd.CommandPath(), roleAuditor)
				if err != nil {
					return err
				}
				w := &follower{app: a, name: cmd.CommandPath(), db: db, filter: f, print: p.Print, newest: f.after < 0, after: f.after, horizon: horizon{settled: f.after}}
				if err := w.follow(cmd.Context()); err != nil {
					return err
				}
				return p.Close()
			}
			return a.with(cmd, nil, roleAuditor, func(ctx context.Context, db *database) error {
				rows, err := db.show(ctx, f)
				if err != nil {
					return err
				}
				if err := errors.Join(p.Print(rows...), p.Close()); err != nil || len(rows) > 0 {
					return err
				}
				return a.noRows(ctx, db, f, byDefault)
			})
		},
	}
	c.Flags().StringVar(&f.key, "key", "", "only rows about this `KEY`")
	c.Flags().StringVar(&f.event, "event", "", "only rows about the event with this `ID`")
	c.Flags().StringVar(&f.sync, "sync", "", "only rows of this `SYNC`")
	c.Flags().Var(&f.since, "since", "only rows since `WHEN`: 90s, 24h, 7d, or a time such as 2027-01-31T08:00:00Z")
	c.Flags().Var(&f.until, "until", "only rows before `WHEN`")
	c.Flags().Int64Var(&f.after, "after", 0, "only the first --limit rows with an id larger than `ID`")
	c.Flags().StringSliceVar(&f.outcomes, "outcome", nil, "only rows with this `OUTCOME`; may be given several times")
	c.Flags().IntVar(&f.limit, "limit", 100, "show the newest `N` rows, or with --after the first")
	c.Flags().BoolVarP(&follow, "follow", "f", false, "print rows as they are added")
	return c
}

// noRows says why the log shows nothing: because of a sync that does not exist, or of the
// time that the command looks back by default.
func (a *app) noRows(ctx context.Context, db *database, f logFilter, byDefault bool) error {
	known, err := db.store.Syncs(ctx)
	if err != nil {
		return err
	}
	_, registered := known[f.sync]
	switch {
	case f.sync != "" && !registered:
		a.say("sync %q has no rows; known are %s", f.sync, cmp.Or(strings.Join(slices.Sorted(maps.Keys(known)), ", "), "none"))
	case byDefault:
		a.say("nothing was logged in the last 24 hours; to look further back: --since 7d")
	default:
		a.say("no row of the log is selected")
	}
	return nil
}

// show returns the rows that are in the log now.
func (db *database) show(ctx context.Context, f logFilter) ([]logRow, error) {
	if f.after < 0 {
		return db.rows(ctx, f, math.MinInt64, math.MaxInt64, newestFirst, f.limit)
	}
	complete := horizon{settled: f.after}
	if err := complete.await(ctx, db, batchWait); err != nil {
		return nil, err
	}
	return db.rows(ctx, f, f.after, complete.settled, byID, f.limit)
}
