package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/internal/operate"
	"github.com/hms-mkt/lockstep/internal/output"
)

// explanation has everything that is known about one event, except its payload.
type explanation struct {
	explainedEvent
	Deliveries []deliveryRow `json:"open_deliveries"`
	Log        []logRow      `json:"log"`
}

type explainedEvent struct {
	Event *eventFacts `json:"event"` // null after the event's retention
	Why   []string    `json:"why_not_delivered"`
}

// keyExplanation has what is known about the events of one key, except their payloads.
type keyExplanation struct {
	Key        string           `json:"key"`
	Events     []explainedEvent `json:"events"` // in their order
	NotShown   int64            `json:"events_not_shown"`
	Deliveries []deliveryRow    `json:"open_deliveries"`
	Log        []logRow         `json:"log"` // the newest rows, oldest first
}

type eventFacts struct {
	ID           string    `json:"id"`
	Seq          int64     `json:"seq"`
	Type         string    `json:"type"`
	Key          string    `json:"key"`
	Version      *int64    `json:"version"`
	OccurredAt   time.Time `json:"occurred_at"`
	InsertedAt   time.Time `json:"inserted_at"`
	PayloadBytes int64     `json:"payload_bytes"`
	HeaderNames  []string  `json:"header_names"`
}

// deliveryRow is an open delivery as a line of a table.
type deliveryRow struct{ operate.Delivery }

const deliveryColumns = `d.sync, d.event_seq, d.event_id::text AS event_id, e.type AS event_type, d.key, d.state, d.attempts,
       CASE WHEN d.due_at < 'infinity' THEN d.due_at END AS due_at, d.claimed_by, d.lease_until, d.error_class, d.error, d.created_at`

func (deliveryRow) Header() []string {
	return []string{"SYNC", "KEY", "STATE", "TRIES", "TYPE", "DUE", "SINCE", "EVENT", "DETAIL"}
}

func (d deliveryRow) Cells() []string {
	detail := strings.TrimPrefix(deref(d.ErrorClass)+": "+deref(d.Error), ": ")
	if d.State == "sending" {
		detail = "by " + deref(d.ClaimedBy) + " until " + clock(d.LeaseUntil)
	}
	return []string{
		d.Sync, d.Key, d.State, fmt.Sprint(d.Attempts), deref(d.EventType),
		clock(d.DueAt), clock(&d.CreatedAt), d.EventID, detail,
	}
}

func (a *app) explainCommand() *cobra.Command {
	var (
		sync  string
		limit int
	)
	c := &cobra.Command{
		Use:   "explain EVENT|KEY",
		Short: "Say what happened to an event, or to all events of a key, and why",
		Long: `Say what happened to an event, or to the events of a key such as a hearing: their
type and times, but not their payloads. For each sync, one sentence says whether
the event was delivered or what it waits for. Then come the open deliveries and
the rows of the delivery log, oldest first. Times are UTC. The login needs the
role outbox_auditor.

EVENT is the event's id. KEY shows the events of the key in their order: those
that are not finished, and the newest of the others, --limit in all. If an event
has the UUID that you give, it is taken as an event.`,
		Example: `  lockstep explain 0199f3a1-7c1e-7b5e-9c3e-5a4f2d1b0c9d
  lockstep explain H-2027-000007 --sync CourtCalendarSync`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if limit < 1 || limit > 1000 {
				return usagef("--limit %d: want 1 to 1000", limit)
			}
			return a.with(cmd, nil, roleAuditor, func(ctx context.Context, db *database) error {
				// One snapshot, so that a delivery that is finished in the meantime is either open
				// or in the log.
				snapshot := pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}
				return pgx.BeginTxFunc(ctx, db.conn, snapshot, func(tx pgx.Tx) error {
					event, key, err := subject(ctx, tx, args[0])
					if err != nil {
						return err
					}
					if event != "" {
						x, err := explainEvent(ctx, tx, event, sync)
						if err != nil {
							return err
						}
						return output.Object(a.stdout, a.format, x, func(w io.Writer) error { return x.text(w, sync) })
					}
					x, err := explainKey(ctx, tx, key, sync, limit)
					if err != nil {
						return err
					}
					return output.Object(a.stdout, a.format, x, func(w io.Writer) error { return x.text(w, sync) })
				})
			})
		},
	}
	c.Flags().StringVar(&sync, "sync", "", "only about this `SYNC`")
	c.Flags().IntVar(&limit, "limit", 20, "show at most `N` events of a key, and 100 rows of its log")
	return c
}

// subject finds out whether a person means an event or a key. It returns one of them, as
// it is in the database.
func subject(ctx context.Context, tx pgx.Tx, given string) (event, key string, err error) {
	var id *string
	if uuid.MatchString(given) {
		id = &given
	}
	const find = `-- lockstep: an event or a key
SELECT CASE WHEN $2::uuid IS NOT NULL
             AND (EXISTS (SELECT FROM outbox.event WHERE id = $2::uuid) OR EXISTS (SELECT FROM outbox.delivery_log WHERE event_id = $2::uuid))
            THEN 'event'
            WHEN EXISTS (SELECT FROM outbox.sync AS s JOIN outbox.delivery AS d ON d.sync = s.name AND d.key = $1)
              OR EXISTS (SELECT FROM outbox.delivery_log WHERE key = $1)
              OR EXISTS (SELECT FROM outbox.event WHERE key = $1)
            THEN 'key' ELSE '' END`
	var what string
	if err := tx.QueryRow(ctx, find, given, id).Scan(&what); err != nil {
		return "", "", err
	}
	switch what {
	case "event":
		return given, "", nil
	case "key":
		return "", given, nil
	}
	return "", "", fmt.Errorf("%q is neither an event nor a key of this database: check the spelling and the database. Upper and lower case differ. Events are removed after their retention, the log after its own", given)
}

const eventColumns = `e.id::text AS id, e.seq, e.type, e.key, e.version, e.occurred_at, e.inserted_at,
       octet_length(e.payload::text)::bigint AS payload_bytes, ARRAY(SELECT jsonb_object_keys(e.headers)) AS header_names`

func explainEvent(ctx context.Context, tx pgx.Tx, event, sync string) (x explanation, err error) {
	const facts = `-- lockstep explain: event
SELECT ` + eventColumns + `
  FROM outbox.event AS e
 WHERE e.id = $1::uuid`
	events, err := query[eventFacts](ctx, tx, facts, event)
	if err != nil {
		return x, err
	}
	if len(events) > 0 {
		x.Event = &events[0]
	}
	if x.Why, err = whyNotDelivered(ctx, tx, event, sync); err != nil {
		return x, err
	}
	const open = `-- lockstep explain: deliveries
SELECT ` + deliveryColumns + `
  FROM outbox.event AS e
  JOIN outbox.sync AS s ON $2 = '' OR s.name = $2
  JOIN outbox.open_delivery AS d ON d.sync = s.name AND d.key = e.key AND d.event_id = e.id
 WHERE e.id = $1::uuid
 ORDER BY d.sync, d.event_seq`
	if x.Deliveries, err = query[deliveryRow](ctx, tx, open, event, sync); err != nil {
		return x, err
	}
	const log = `-- lockstep explain: log
SELECT ` + logColumns + `
  FROM outbox.delivery_log
 WHERE event_id = $1::uuid AND ($2 = '' OR sync = $2)
 ORDER BY id`
	x.Log, err = query[logRow](ctx, tx, log, event, sync)
	return x, err
}

func whyNotDelivered(ctx context.Context, tx pgx.Tx, event, sync string) ([]string, error) {
	const why = `SELECT w FROM outbox.why_not_delivered($1::uuid, nullif($2, '')) AS w`
	sentences, _ := tx.Query(ctx, why, event, sync) // CollectRows returns its error
	return pgx.CollectRows(sentences, pgx.RowTo[string])
}

func explainKey(ctx context.Context, tx pgx.Tx, key, sync string, limit int) (x keyExplanation, err error) {
	x.Key, x.Events = key, []explainedEvent{}
	// outbox.event has no index by key, because each writer would pay for it. Events that are
	// in none of the other tables are read only if nothing else is known of the key.
	const ofKey = `-- lockstep explain: events of a key
WITH known AS (
    SELECT d.event_id, true AS open FROM outbox.sync AS s JOIN outbox.delivery AS d ON d.sync = s.name AND d.key = $1
    UNION ALL
    SELECT event_id, false FROM outbox.delivery_log WHERE key = $1
    UNION ALL
    SELECT e.id, false FROM outbox.unmatched AS u JOIN outbox.event AS e ON e.id = u.event_id WHERE e.key = $1
), id AS (
    SELECT event_id, bool_or(open) AS open FROM known GROUP BY event_id
    UNION ALL
    SELECT e.id, false FROM outbox.event AS e WHERE e.key = $1 AND NOT EXISTS (SELECT FROM known)
)
SELECT ` + eventColumns + `, count(*) OVER () AS total
  FROM id
  JOIN outbox.event AS e ON e.id = id.event_id
 ORDER BY id.open DESC, CASE WHEN id.open THEN e.seq END, e.seq DESC
 LIMIT $2`
	type listed struct {
		eventFacts
		Total int64
	}
	events, err := query[listed](ctx, tx, ofKey, key, limit)
	if err != nil {
		return x, err
	}
	slices.SortFunc(events, func(a, b listed) int { return cmp.Compare(a.Seq, b.Seq) })
	for _, e := range events {
		why, err := whyNotDelivered(ctx, tx, e.ID, sync)
		if err != nil {
			return x, err
		}
		x.Events, x.NotShown = append(x.Events, explainedEvent{&e.eventFacts, why}), e.Total-int64(len(events))
	}
	const open = `-- lockstep explain: deliveries of a key
SELECT ` + deliveryColumns + `
  FROM outbox.sync AS s
  JOIN outbox.open_delivery AS d ON d.sync = s.name AND d.key = $1
  LEFT JOIN outbox.event AS e ON e.id = d.event_id
 WHERE $2 = '' OR s.name = $2
 ORDER BY d.sync, d.event_seq
 LIMIT $3`
	if x.Deliveries, err = query[deliveryRow](ctx, tx, open, key, sync, limit); err != nil {
		return x, err
	}
	const log = `-- lockstep explain: log of a key
SELECT ` + logColumns + `
  FROM outbox.delivery_log
 WHERE key = $1 AND ($2 = '' OR sync = $2)
 ORDER BY id DESC
 LIMIT 100`
	x.Log, err = query[logRow](ctx, tx, log, key, sync)
	slices.Reverse(x.Log)
	return x, err
}

// text writes x for a person, who may have asked about one sync.
func (x explanation) text(out io.Writer, sync string) error {
	if e := x.Event; e != nil {
		version := "none"
		if e.Version != nil {
			version = fmt.Sprint(*e.Version)
		}
		w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
		fmt.Fprintf(w, "event\t%s (seq %d)\ntype\t%s\nkey\t%s\nversion\t%s\noccurred\t%s\ninserted\t%s\npayload\t%d bytes\n",
			e.ID, e.Seq, adapters.Clean(e.Type, 0), adapters.Clean(e.Key, 0), version, clock(&e.OccurredAt), clock(&e.InsertedAt), e.PayloadBytes)
		if len(e.HeaderNames) > 0 {
			fmt.Fprintf(w, "headers\t%s\n", adapters.Clean(strings.Join(e.HeaderNames, ", "), 0))
		}
		if err := w.Flush(); err != nil {
			return err
		}
		fmt.Fprintln(out)
	}
	x.sentences(out)
	return explainedTables(out, x.Deliveries, x.Log, append(fixed(sync, x.Event.key(), "this"), "TYPE"))
}

// text writes x for a person, who may have asked about one sync.
func (x keyExplanation) text(out io.Writer, sync string) error {
	fmt.Fprintf(out, "key %s, %s\n\n", adapters.Clean(x.Key, 0), plural(int64(len(x.Events))+x.NotShown, "event"))
	said := map[string]bool{}
	for i, e := range x.Events {
		if i > 0 {
			fmt.Fprintln(out)
		}
		heading := fmt.Sprintf("event %s (seq %d), %s", e.Event.ID, e.Event.Seq, adapters.Clean(e.Event.Type, 0))
		if e.Event.Version != nil {
			heading += fmt.Sprintf(", version %d", *e.Event.Version)
		}
		fmt.Fprintln(out, output.Wrap(out, heading+", inserted "+clock(&e.Event.InsertedAt)))
		e.Why = x.withoutRepeats(e.Why, said)
		e.sentences(out)
	}
	if x.NotShown > 0 {
		fmt.Fprintf(out, "\n%s of this key; see: lockstep explain %s --limit %d\n",
			plural(x.NotShown, "more event"), quoted(x.Key), min(1000, x.NotShown+int64(len(x.Events))))
	}
	return explainedTables(out, x.Deliveries, x.Log, fixed(sync, x.Key, ""))
}

// withoutRepeats shortens the sentence of an event that waits behind another one of the
// key, if said has what that one waits for. It adds the others to said.
func (x keyExplanation) withoutRepeats(why []string, said map[string]bool) []string {
	short := slices.Clone(why)
	for i, sentence := range why {
		said[sentence] = true
		for _, e := range x.Events {
			for _, d := range x.Deliveries {
				if d.EventID != e.Event.ID {
					continue
				}
				waits := fmt.Sprintf("%s: waits behind event %s of key %s, which is ", d.Sync, e.Event.ID, x.Key)
				if rest, ok := strings.CutPrefix(sentence, waits); ok && said[d.Sync+": "+rest] {
					short[i] = fmt.Sprintf("%s: waits behind %s", d.Sync, e.Event.name())
				}
			}
		}
	}
	return short
}

// name is how people call an event: by its version, if it has one.
func (e *eventFacts) name() string {
	if e.Version == nil {
		return "event " + e.ID
	}
	return fmt.Sprintf("version %d", *e.Version)
}

func (x explainedEvent) sentences(out io.Writer) {
	for _, sentence := range x.Why {
		fmt.Fprintln(out, output.Wrap(out, adapters.Clean(sentence, 0)))
	}
}

// key returns the event's key, or "" after the event's retention.
func (e *eventFacts) key() string {
	if e == nil {
		return ""
	}
	return e.Key
}

// explainedTables writes open deliveries and rows of the log, without the columns that
// the reader knows.
func explainedTables(out io.Writer, deliveries []deliveryRow, log []logRow, known []string) error {
	var errs []error
	if len(deliveries) > 0 {
		fmt.Fprintln(out)
		open := output.NewPrinter[deliveryRow](out, output.Table).Without(known...).Without("DETAIL") // the sentences have it
		errs = append(errs, open.Print(deliveries...))
	}
	if len(log) > 0 {
		fmt.Fprintln(out)
		errs = append(errs, output.NewPrinter[logRow](out, output.Table).Without(known...).Print(log...))
	}
	return errors.Join(errs...)
}
