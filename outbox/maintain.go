package outbox

import (
	"context"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
)

// Maintenance is the answer of [Store.Maintain].
type Maintenance struct {
	Done    []string // descriptions of the changes that were made
	Held    []string // sessions that have the advisory lock of maintenance; a relay releases it soon
	Trouble []string // descriptions of failures, and of states that a person must correct
	More    bool     // there may be more events to remove: call it again soon
}

// Maintain makes the next partitions of the log and drops those past retention. It also
// removes finished events and references past retention. If outbox.retention is longer
// than keepEvents or keepLog, the longer one applies.
func (s *Store) Maintain(ctx context.Context, keepEvents, keepLog Retention) (m Maintenance, err error) {
	err = s.inTx(ctx, func(ctx context.Context, tx pgx.Tx) error {
		m = Maintenance{}
		rows, err := tx.Query(ctx, `SELECT done, n FROM outbox.maintain($1::text::interval, $2::text::interval)`, string(keepEvents), string(keepLog))
		if err != nil {
			return err
		}
		var what string
		var n int64
		_, err = pgx.ForEachRow(rows, []any{&what, &n}, func() error {
			if what == "events removed" {
				m.More = n >= 20000
				if n == 0 {
					return nil
				}
			}
			if held, ok := strings.CutPrefix(what, "held: "); ok {
				m.Held = append(m.Held, held)
			} else if trouble, ok := strings.CutPrefix(what, "trouble: "); ok {
				m.Trouble = append(m.Trouble, trouble)
			} else {
				m.Done = append(m.Done, what)
			}
			return nil
		})
		return err
	})
	return m, s.judge(ctx, err)
}

// Kept is a retention in outbox.retention that is longer than the one asked for.
type Kept struct {
	What  string // events or log
	Keep  Retention
	Asked Retention
}

// KeptLonger lists the retentions in outbox.retention that are longer than the ones asked
// for. Only the owner of the database can change that table.
func (s *Store) KeptLonger(ctx context.Context, keepEvents, keepLog Retention) ([]Kept, error) {
	const statement = `
SELECT r.what, r.keep::text, a.asked
  FROM (VALUES ('events', $1::text), ('log', $2::text)) AS a (what, asked)
  JOIN outbox.retention AS r ON r.what = a.what
 WHERE r.keep > a.asked::interval
 ORDER BY r.what`
	return list[Kept](ctx, s, statement, string(keepEvents), string(keepLog))
}

// LogMonthsAhead returns for how many months after this one the log has partitions, without
// a gap. It is 3 while [Store.Maintain] works, and -1 if this month has no partition.
func (s *Store) LogMonthsAhead(ctx context.Context) (int, error) {
	const statement = `
SELECT coalesce(min(m.i) - 1, 3)
  FROM generate_series(0, 3) AS m (i)
 WHERE NOT EXISTS (
       SELECT FROM pg_inherits AS i
         JOIN pg_class AS c ON c.oid = i.inhrelid
        WHERE i.inhparent = 'outbox.delivery_log'::regclass
          AND c.relname = 'delivery_log_' || to_char(date_trunc('month', clock_timestamp() AT TIME ZONE 'UTC') + make_interval(months => m.i), 'YYYY_MM'))`
	var months int
	err := s.scan(ctx, []any{&months}, statement)
	return months, err
}

// Retention is a time such as "90 days", "84 months" or "1 year 6 months": whole numbers, each
// with a unit of PostgreSQL's interval from microsecond to year.
type Retention string

var (
	retentionForm = regexp.MustCompile(`^\d+ [a-z]+( \d+ [a-z]+)*$`)
	retentionPart = regexp.MustCompile(`(\d+) ([a-z]+?)s?(?: |$)`)

	// retentionUnits are in hours. A month has 30 days and a year 12 months, as when
	// PostgreSQL compares intervals.
	retentionUnits = map[string]float64{
		"microsecond": 1e-6 / 3600, "millisecond": 1e-3 / 3600, "second": 1.0 / 3600, "minute": 1.0 / 60,
		"hour": 1, "day": 24, "week": 7 * 24, "month": 30 * 24, "year": 12 * 30 * 24,
	}
)

// Hours returns the length of r. A month counts as 30 days. The error says that r is not in
// the form of a Retention.
func (r Retention) Hours() (float64, error) {
	wrong := fmt.Errorf("%q is not a time such as \"90 days\" or \"84 months\"", string(r))
	if !retentionForm.MatchString(string(r)) {
		return 0, wrong
	}
	var hours float64
	for _, part := range retentionPart.FindAllStringSubmatch(string(r), -1) {
		count, err := strconv.ParseFloat(part[1], 64)
		unit, ok := retentionUnits[part[2]]
		if err != nil || !ok {
			return 0, wrong
		}
		hours += count * unit
	}
	return hours, nil
}
