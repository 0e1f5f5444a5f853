package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/internal/console"
)

// explanation is what is known of one event. The payload is not in it.
type explanation struct {
	Event      *eventFacts    `json:"event"` // null once the event is past its retention
	Why        []string       `json:"why_not_delivered"`
	Deliveries []deliveryFact `json:"open_deliveries"`
	Log        []logRow       `json:"log"`
}

type eventFacts struct {
	ID           string    `json:"id" db:"id"`
	Seq          int64     `json:"seq" db:"seq"`
	Type         string    `json:"type" db:"type"`
	Key          string    `json:"key" db:"key"`
	Version      *int64    `json:"version" db:"version"`
	OccurredAt   time.Time `json:"occurred_at" db:"occurred_at"`
	InsertedAt   time.Time `json:"inserted_at" db:"inserted_at"`
	PayloadBytes int64     `json:"payload_bytes" db:"payload_bytes"`
	Headers      []string  `json:"header_names" db:"header_names"`
}

// deliveryFact is an open delivery.
type deliveryFact struct {
	Sync       string     `json:"sync" db:"sync"`
	Place      int64      `json:"event_seq" db:"event_seq"`
	EventID    string     `json:"event_id" db:"event_id"`
	EventType  *string    `json:"event_type" db:"event_type"`
	Key        string     `json:"key" db:"key"`
	State      string     `json:"state" db:"state"`
	Attempts   int64      `json:"attempts" db:"attempts"`
	DueAt      *time.Time `json:"due_at" db:"due_at"`
	ClaimedBy  *string    `json:"claimed_by" db:"claimed_by"`
	LeaseUntil *time.Time `json:"lease_until" db:"lease_until"`
	ErrorClass *string    `json:"error_class" db:"error_class"`
	Error      *string    `json:"error" db:"error"`
	CreatedAt  time.Time  `json:"created_at" db:"created_at"`
}

const deliveryColumns = `d.sync, d.event_seq, d.event_id::text AS event_id, e.type AS event_type, d.key, d.state, d.attempts,
       CASE WHEN d.due_at < 'infinity' THEN d.due_at END AS due_at, d.claimed_by, d.lease_until, d.error_class, d.error, d.created_at`

func deliveryHeader() []string {
	return []string{"SYNC", "KEY", "EVENT", "TYPE", "STATE", "TRIES", "SINCE", "DUE", "DETAIL"}
}

func (d deliveryFact) Cells() []string {
	detail := strings.TrimPrefix(deref(d.ErrorClass)+": "+deref(d.Error), ": ")
	if d.State == "sending" {
		detail = "by " + deref(d.ClaimedBy) + " until " + clock(d.LeaseUntil)
	}
	return []string{
		d.Sync, d.Key, d.EventID, deref(d.EventType), d.State, fmt.Sprint(d.Attempts),
		clock(&d.CreatedAt), clock(d.DueAt), detail,
	}
}

func (a *app) explainCommand() *cobra.Command {
	var sync string
	c := &cobra.Command{
		Use:   "explain EVENT",
		Short: "Say what became of an event, and why",
		Long: `Say what became of an event: its facts (not its payload), for each sync in one
sentence whether it was delivered or what it waits for, its open deliveries,
and its rows of the delivery log, oldest first. Times are UTC. The login needs
outbox_auditor.`,
		Example: `  lockstep explain 0199f3a1-7c1e-7b5e-9c3e-5a4f2d1b0c9d
  lockstep explain 0199f3a1-7c1e-7b5e-9c3e-5a4f2d1b0c9d --sync CourtCalendarSync`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := eventID(args[0]); err != nil {
				return err
			}
			db, err := a.connect(cmd.Context(), nil, "explain", roleAuditor)
			if err != nil {
				return err
			}
			defer db.close()
			x, err := db.explanation(cmd.Context(), args[0], sync)
			if err != nil {
				return db.explain(err)
			}
			if err := console.Object(a.stdout, a.format, x, x.text); err != nil {
				return err
			}
			if x.Event == nil && len(x.Log) == 0 {
				return fmt.Errorf("event %s is not known here", args[0])
			}
			return nil
		},
	}
	c.Flags().StringVar(&sync, "sync", "", "only about this `SYNC`")
	return c
}

func (db *database) explanation(ctx context.Context, event, sync string) (x explanation, err error) {
	// One snapshot, so that a delivery that is just being finished stands in one place.
	err = pgx.BeginTxFunc(ctx, db.conn, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		const facts = `-- lockstep explain: event
SELECT id::text AS id, seq, type, key, version, occurred_at, inserted_at, octet_length(payload::text)::bigint AS payload_bytes,
       ARRAY(SELECT jsonb_object_keys(headers)) AS header_names
  FROM outbox.event
 WHERE id = $1::uuid`
		rows, err := query[eventFacts](ctx, tx, facts, event)
		if err != nil {
			return err
		}
		if len(rows) > 0 {
			x.Event = &rows[0]
		}
		const why = `SELECT w FROM outbox.why_not_delivered($1::uuid, nullif($2, '')) AS w`
		sentences, err := tx.Query(ctx, why, event, sync)
		if err != nil {
			return err
		}
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
		if x.Deliveries, err = query[deliveryFact](ctx, tx, open, event, sync); err != nil {
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

// text writes x for a person.
func (x explanation) text(w io.Writer) error {
	if e := x.Event; e != nil {
		version := "none"
		if e.Version != nil {
			version = fmt.Sprint(*e.Version)
		}
		fmt.Fprintf(w, "event     %s (seq %d)\ntype      %s\nkey       %s\nversion   %s\noccurred  %s\ninserted  %s\npayload   %d bytes\n",
			e.ID, e.Seq, adapters.Clean(e.Type, 0), adapters.Clean(e.Key, 0), version, clock(&e.OccurredAt), clock(&e.InsertedAt), e.PayloadBytes)
		if len(e.Headers) > 0 {
			fmt.Fprintf(w, "headers   %s\n", adapters.Clean(strings.Join(e.Headers, ", "), 0))
		}
		fmt.Fprintln(w)
	}
	for _, sentence := range x.Why {
		fmt.Fprintln(w, adapters.Clean(sentence, 0))
	}
	var errs []error
	if len(x.Deliveries) > 0 {
		fmt.Fprintln(w)
		p := console.NewPrinter[deliveryFact](w, console.Table, deliveryHeader()...)
		errs = append(errs, p.Print(x.Deliveries...))
	}
	if len(x.Log) > 0 {
		fmt.Fprintln(w)
		p := console.NewPrinter[logRow](w, console.Table, logHeader()...)
		errs = append(errs, p.Print(x.Log...))
	}
	return errors.Join(errs...)
}

// MarshalJSON writes empty lists as such.
func (x explanation) MarshalJSON() ([]byte, error) {
	type plain explanation
	p := plain(x)
	p.Why = append([]string{}, p.Why...)
	p.Deliveries = append([]deliveryFact{}, p.Deliveries...)
	p.Log = append([]logRow{}, p.Log...)
	return json.Marshal(p)
}
