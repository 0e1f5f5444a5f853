package main

import (
	"context"
	"fmt"
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
	since            instant
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
	if f.event == "" && f.key == "" && !f.since.set() {
		f.since.ago = 24 * time.Hour
	}
	return nil
}

// newest returns the newest rows that the filter chooses, oldest first.
func (db *database) newest(ctx context.Context, f logFilter) ([]logRow, error) {
	const statement = `-- lockstep log
SELECT ` + logColumns + `
  FROM outbox.delivery_log
 WHERE ($1::text = '' OR sync = $1)
   AND ($2::text = '' OR key = $2)
   AND ($3::text = '' OR event_id = nullif($3, '')::uuid)
   AND (cardinality($4::text[]) = 0 OR outcome = ANY ($4))
   AND at >= coalesce($5::timestamptz, clock_timestamp() - $6::interval, '-infinity')
 ORDER BY at DESC, id DESC
 LIMIT $7`
	at, ago := f.since.before()
	rows, err := query[logRow](ctx, db.conn, statement, f.sync, f.key, f.event, append([]string{}, f.outcomes...), at, ago, f.limit)
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
Times are UTC. The login needs outbox_auditor.`,
		Example: `  lockstep log --key H-2027-000007
  lockstep log --sync CourtCalendarSync --outcome failed --since 7d
  lockstep log --follow --output jsonl`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := f.check(); err != nil {
				return err
			}
			if follow && a.format == console.JSON {
				return usagef("--follow has no end, and a JSON array has one: use --output jsonl")
			}
			db, err := a.connect(cmd.Context(), nil, "log", roleAuditor)
			if err != nil {
				return err
			}
			defer db.close()
			rows, err := db.newest(cmd.Context(), f)
			if err != nil {
				return err
			}
			p := console.NewPrinter[logRow](a.stdout, a.format, logHeader()...)
			if err := p.Print(rows...); err != nil {
				return err
			}
			if follow {
				if err := db.follow(cmd.Context(), f, rows, p.Print); err != nil {
					return err
				}
			}
			return p.Close()
		},
	}
	c.Flags().StringVar(&f.key, "key", "", "only rows about this `KEY`")
	c.Flags().StringVar(&f.event, "event", "", "only rows about the event with this `ID`")
	c.Flags().StringVar(&f.sync, "sync", "", "only rows of this `SYNC`")
	c.Flags().Var(&f.since, "since", "only rows since `WHEN`: 90s, 24h, 7d, or a time such as 2027-01-31T08:00:00Z")
	c.Flags().StringSliceVar(&f.outcomes, "outcome", nil, "only rows with this `OUTCOME`; may be given several times")
	c.Flags().IntVar(&f.limit, "limit", 100, "show the newest `N` rows")
	c.Flags().BoolVarP(&follow, "follow", "f", false, "then wait for further rows")
	_ = c.RegisterFlagCompletionFunc("outcome", cobra.FixedCompletions(outcomes(), cobra.ShellCompDirectiveNoFileComp))
	return c
}

// overlap is how far back a follower looks again: rows get their time before
// their transaction commits, so a later one may be seen first.
const overlap = 5 * time.Second

// follow hands on what is added to the log, until ctx ends.
func (db *database) follow(ctx context.Context, f logFilter, shown []logRow, print func(...logRow) error) error {
	seen := map[int64]time.Time{}
	var last time.Time
	note := func(rows []logRow) {
		for _, r := range rows {
			seen[r.ID] = r.At
			if r.At.After(last) {
				last = r.At
			}
		}
		for id, at := range seen {
			if at.Before(last.Add(-2 * overlap)) {
				delete(seen, id)
			}
		}
	}
	note(shown)
	var floor time.Time // older rows are those that --limit left out
	if len(shown) == f.limit {
		floor = shown[0].At
	}
	f.limit = 100_000
	if last.IsZero() {
		f.since = instant{ago: overlap}
	}
	return every(ctx, time.Second/2, func() error {
		if !last.IsZero() {
			f.since = instant{at: last.Add(-overlap)}
		}
		rows, err := db.newest(ctx, f)
		if err != nil {
			return err
		}
		fresh := slices.DeleteFunc(rows, func(r logRow) bool {
			_, ok := seen[r.ID]
			return ok || r.At.Before(floor)
		})
		if err := print(fresh...); err != nil {
			return err
		}
		note(fresh)
		return nil
	})
}
