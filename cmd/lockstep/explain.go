package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/internal/console"
)

// explanation has everything that is known about one event, except its payload.
type explanation struct {
	Event      *eventFacts   `json:"event"` // null after the event's retention
	Why        []string      `json:"why_not_delivered"`
	Deliveries []deliveryRow `json:"open_deliveries"`
	Log        []logRow      `json:"log"`
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

// deliveryRow is an open delivery.
type deliveryRow struct {
	Sync       string     `json:"sync"`
	EventSeq   int64      `json:"event_seq"`
	EventID    string     `json:"event_id"`
	EventType  *string    `json:"event_type"`
	Key        string     `json:"key"`
	State      string     `json:"state"`
	Attempts   int64      `json:"attempts"`
	DueAt      *time.Time `json:"due_at"`
	ClaimedBy  *string    `json:"claimed_by"`
	LeaseUntil *time.Time `json:"lease_until"`
	ErrorClass *string    `json:"error_class"`
	Error      *string    `json:"error"`
	CreatedAt  time.Time  `json:"created_at"`
}

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
	var sync string
	c := &cobra.Command{
		Use:   "explain EVENT",
		Short: "Say what happened to an event, and why",
		Long: `Say what happened to an event: its type, key and times, but not its payload.
For each sync, one sentence says whether the event was delivered or what it
waits for. Then come its open deliveries and its rows of the delivery log,
oldest first. Times are UTC. The login needs the role outbox_auditor.`,
		Example: `  lockstep explain 0199f3a1-7c1e-7b5e-9c3e-5a4f2d1b0c9d
  lockstep explain 0199f3a1-7c1e-7b5e-9c3e-5a4f2d1b0c9d --sync CourtCalendarSync`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := eventID(args[0]); err != nil {
				return err
			}
			return a.with(cmd, nil, roleAuditor, func(ctx context.Context, db *database) error {
				x, err := db.explanation(ctx, args[0], sync)
				if err != nil {
					return err
				}
				if err := console.Object(a.stdout, a.format, x, func(w io.Writer) error { return x.text(w, sync) }); err != nil {
					return err
				}
				if x.Event == nil && len(x.Log) == 0 {
					return fmt.Errorf("event %s is not in this database: check the id and the database", args[0])
				}
				return nil
			})
		},
	}
	c.Flags().StringVar(&sync, "sync", "", "only about this `SYNC`")
	return c
}

func (db *database) explanation(ctx context.Context, event, sync string) (x explanation, err error) {
	// One snapshot, so that a delivery that is finished in the meantime is either open
	// or in the log.
	snapshot := pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}
	err = pgx.BeginTxFunc(ctx, db.conn, snapshot, func(tx pgx.Tx) error {
		const facts = `-- lockstep explain: event
SELECT id::text AS id, seq, type, key, version, occurred_at, inserted_at, octet_length(payload::text)::bigint AS payload_bytes,
       ARRAY(SELECT jsonb_object_keys(headers)) AS header_names
  FROM outbox.event
 WHERE id = $1::uuid`
		events, err := query[eventFacts](ctx, tx, facts, event)
		if err != nil {
			return err
		}
		if len(events) > 0 {
			x.Event = &events[0]
		}
		const why = `SELECT w FROM outbox.why_not_delivered($1::uuid, nullif($2, '')) AS w`
		sentences, _ := tx.Query(ctx, why, event, sync) // CollectRows returns its error
		if x.Why, err = pgx.CollectRows(sentences, pgx.RowTo[string]); err != nil {
			return err
		}
		const open = `-- lockstep explain: deliveries
SELECT ` + deliveryColumns + `
  FROM outbox.event AS e
  JOIN outbox.sync AS s ON $2 = '' OR s.name = $2
  JOIN outbox.open_delivery AS d ON d.sync = s.name AND d.key = e.key AND d.event_id = e.id
 WHERE e.id = $1::uuid
 ORDER BY d.sync, d.event_seq`
		if x.Deliveries, err = query[deliveryRow](ctx, tx, open, event, sync); err != nil {
			return err
		}
		const log = `-- lockstep explain: log
SELECT ` + logColumns + `
  FROM outbox.delivery_log
 WHERE event_id = $1::uuid AND ($2 = '' OR sync = $2)
 ORDER BY id`
		x.Log, err = query[logRow](ctx, tx, log, event, sync)
		return err
	})
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
	for _, sentence := range x.Why {
		fmt.Fprintln(out, console.Wrap(out, adapters.Clean(sentence, 0)))
	}
	known := append(fixed(sync, "", ""), "KEY", "EVENT", "TYPE") // or shown above
	var errs []error
	if len(x.Deliveries) > 0 {
		fmt.Fprintln(out)
		errs = append(errs, console.NewPrinter[deliveryRow](out, console.Table).Without(known...).Print(x.Deliveries...))
	}
	if len(x.Log) > 0 {
		fmt.Fprintln(out)
		errs = append(errs, console.NewPrinter[logRow](out, console.Table).Without(known...).Print(x.Log...))
	}
	return errors.Join(errs...)
}
