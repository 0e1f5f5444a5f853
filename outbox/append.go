package outbox

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"time"

	"github.com/jackc/pgx/v5"
	"go.opentelemetry.io/otel/propagation"
)

// Append writes events in the caller's transaction, in the order given. It takes no lock.
// Change or lock your own row of the key first: then the events of the key are in the
// order of the commits.
//
// If ctx has a trace span, Append adds it to the headers as W3C trace context. If the
// database refuses an event, the caller's transaction fails, as after any failed
// statement. The error names the constraint of outbox.event.
func Append(ctx context.Context, tx pgx.Tx, events ...Event) error {
	if len(events) == 0 {
		return nil
	}
	rows := struct {
		ids, types, keys, payloads, headers []string
		versions                            []*int64
		times                               []*time.Time
	}{}
	trace := propagation.MapCarrier{}
	propagation.TraceContext{}.Inject(ctx, trace)
	for i, e := range events {
		headers := map[string]string{}
		maps.Copy(headers, e.Headers)
		maps.Copy(headers, trace)
		h, err := json.Marshal(headers)
		if err != nil {
			return fmt.Errorf("outbox: event %d (type %q): headers: %w", i, e.Type, err)
		}
		if !json.Valid(e.Payload) {
			return fmt.Errorf("outbox: event %d (type %q): payload is not valid JSON", i, e.Type)
		}
		var at *time.Time
		if !e.OccurredAt.IsZero() {
			at = &e.OccurredAt
		}
		rows.ids = append(rows.ids, e.ID)
		rows.types = append(rows.types, e.Type)
		rows.keys = append(rows.keys, e.Key)
		rows.payloads = append(rows.payloads, string(e.Payload))
		rows.headers = append(rows.headers, string(h))
		rows.versions = append(rows.versions, e.Version)
		rows.times = append(rows.times, at)
	}
	// There are two statements, because only the column's default can create an id.
	const given = `
INSERT INTO outbox.event (id, type, key, version, payload, headers, occurred_at)
SELECT u.id::uuid, u.type, u.key, u.version, u.payload::jsonb, u.headers::jsonb, coalesce(u.at, clock_timestamp())
  FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[], $5::text[], $6::text[], $7::timestamptz[])
       WITH ORDINALITY AS u (id, type, key, version, payload, headers, at, n)
 ORDER BY u.n`
	const drawn = `
INSERT INTO outbox.event (type, key, version, payload, headers, occurred_at)
SELECT u.type, u.key, u.version, u.payload::jsonb, u.headers::jsonb, coalesce(u.at, clock_timestamp())
  FROM unnest($1::text[], $2::text[], $3::bigint[], $4::text[], $5::text[], $6::timestamptz[])
       WITH ORDINALITY AS u (type, key, version, payload, headers, at, n)
 ORDER BY u.n`
	for from := 0; from < len(events); {
		to := from + 1
		for to < len(events) && (events[to].ID == "") == (events[from].ID == "") {
			to++
		}
		args := []any{
			rows.types[from:to], rows.keys[from:to], rows.versions[from:to],
			rows.payloads[from:to], rows.headers[from:to], rows.times[from:to],
		}
		statement := drawn
		if events[from].ID != "" {
			statement, args = given, append([]any{rows.ids[from:to]}, args...)
		}
		if _, err := tx.Exec(ctx, statement, args...); err != nil {
			return fmt.Errorf("outbox: append %d event(s), first of type %q: %w", to-from, events[from].Type, err)
		}
		from = to
	}
	return nil
}
