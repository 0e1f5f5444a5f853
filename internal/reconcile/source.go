package reconcile

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/outbox"
	"github.com/hms-mkt/lockstep/relay"
	"github.com/hms-mkt/lockstep/relay/mapping"
)

// database is the [Source] of a sync.
type database struct {
	conn    *pgx.Conn
	sync    relay.Sync
	mappers map[string]*mapping.Mapper // by route
	after   int64                      // id of the log's last row when Each began
}

// NewSource returns what was delivered to a sync, as the delivery log has it. The events are
// mapped by the sync's configuration of now.
func NewSource(conn *pgx.Conn, sync relay.Sync) Source {
	return &database{conn: conn, sync: sync, mappers: map[string]*mapping.Mapper{}}
}

const eventColumns = `e.id::text, e.type, e.key, e.version, e.payload::text, e.headers::text, e.occurred_at,
       coalesce(r.external_id, ''), coalesce(r.etag, ''), coalesce(r.learned, '{}')::text`

// Each implements [Source]. Of each key it takes the delivery with the highest place, so that
// a replay counts as the last one.
func (d *database) Each(ctx context.Context, yield func(Delivered, bool) error) error {
	return pgx.BeginTxFunc(ctx, d.conn, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		if err := tx.QueryRow(ctx, `SELECT coalesce(max(id), 0) FROM outbox.delivery_log`).Scan(&d.after); err != nil {
			return err
		}
		const declare = `-- lockstep reconcile: the last delivery of each key
DECLARE last NO SCROLL CURSOR FOR
SELECT coalesce(e.id::text, ''), l.key, ` + eventColumns + `
  FROM (SELECT DISTINCT ON (key) key, event_id, sync
          FROM outbox.delivery_log
         WHERE sync = $1 AND outcome IN ('delivered', 'duplicate', 'accepted')
         ORDER BY key, event_seq DESC, id DESC) AS l
  LEFT JOIN outbox.event AS e ON e.id = l.event_id
  LEFT JOIN outbox.external_ref AS r ON r.sync = l.sync AND r.key = l.key`
		if _, err := tx.Exec(ctx, declare, d.sync.Name); err != nil {
			return err
		}
		for {
			rows, _ := tx.Query(ctx, `FETCH 500 FROM last`) // ForEachRow returns its error
			n := 0
			var id, key string
			var e row
			_, err := pgx.ForEachRow(rows, append([]any{&id, &key}, e.fields()...), func() error {
				n++
				if id == "" {
					return yield(Delivered{Message: adapters.Message{Key: key}}, false)
				}
				msg, err := d.message(&e)
				if err != nil {
					return err
				}
				return yield(Delivered{Message: msg, EventID: id}, true)
			})
			if err != nil || n == 0 {
				return err
			}
		}
	})
}

// One implements [Source].
func (d *database) One(ctx context.Context, eventID string) (adapters.Message, error) {
	const one = `-- lockstep reconcile: one event
SELECT ` + eventColumns + `
  FROM outbox.event AS e
  LEFT JOIN outbox.external_ref AS r ON r.sync = $2 AND r.key = e.key
 WHERE e.id = $1`
	var e row
	err := d.conn.QueryRow(ctx, one, eventID, d.sync.Name).Scan(e.fields()...)
	if errors.Is(err, pgx.ErrNoRows) {
		return adapters.Message{}, fmt.Errorf("event %s has just been removed by retention: try again", eventID)
	}
	if err != nil {
		return adapters.Message{}, err
	}
	return d.message(&e)
}

// Moving implements [Source].
func (d *database) Moving(ctx context.Context, yield func(string)) error {
	const moving = `-- lockstep reconcile: keys that change
SELECT key FROM outbox.delivery WHERE sync = $1
UNION
SELECT key FROM outbox.delivery_log WHERE sync = $1 AND id > $2 AND key IS NOT NULL`
	rows, _ := d.conn.Query(ctx, moving, d.sync.Name, d.after) // ForEachRow returns its error
	var key string
	_, err := pgx.ForEachRow(rows, []any{&key}, func() error { yield(key); return nil })
	return err
}

// row is a row of eventColumns. All of the event are null if there is none.
type row struct {
	id, typ, key, payload, headers *string
	version                        *int64
	occurredAt                     *time.Time
	externalID, etag, learned      string
}

func (r *row) fields() []any {
	return []any{&r.id, &r.typ, &r.key, &r.version, &r.payload, &r.headers, &r.occurredAt, &r.externalID, &r.etag, &r.learned}
}

// message maps an event.
func (d *database) message(r *row) (adapters.Message, error) {
	msg := adapters.Message{
		ID: *r.id, IdempotencyKey: *r.id, Type: *r.typ, Key: *r.key, Version: r.version, OccurredAt: *r.occurredAt, Attempt: 1,
		Ref: adapters.Ref{ExternalID: r.externalID, ETag: r.etag},
	}
	_ = json.Unmarshal([]byte(*r.headers), &msg.Headers)    // other headers than texts are not needed
	_ = json.Unmarshal([]byte(r.learned), &msg.Ref.Learned) // it is an object of texts
	mapper, err := d.mapper(msg)
	if err != nil {
		return msg, err
	}
	event := outbox.Event{ID: msg.ID, Type: msg.Type, Key: msg.Key, Version: msg.Version, Payload: []byte(*r.payload), Headers: msg.Headers, OccurredAt: msg.OccurredAt}
	ref := outbox.Ref{ExternalID: msg.Ref.ExternalID, ETag: msg.Ref.ETag, Learned: msg.Ref.Learned}
	if msg.Body, err = mapper.Map(event, mapping.Sending{IdempotencyKey: msg.ID, Ref: ref}, nil); err != nil {
		return msg, fmt.Errorf("event %s of key %q: %w", msg.ID, msg.Key, err)
	}
	return msg, nil
}

func (d *database) mapper(msg adapters.Message) (*mapping.Mapper, error) {
	route := ""
	if r, ok := d.sync.Adapter.(adapters.Router); ok {
		route = r.Route(msg)
	}
	if m := d.mappers[route]; m != nil {
		return m, nil
	}
	m, _, err := d.sync.Mapper(msg)
	d.mappers[route] = m
	return m, err
}

// Repair sends the last event of a key again, for a finding that it can mend. It reports
// false if the key has changed since: then nothing is done.
//
// The reference is set to what was found at the receiver, so that the request is refused if
// somebody has changed it since.
func Repair(ctx context.Context, tx pgx.Tx, sync string, f Finding, reason string) (bool, error) {
	const unchanged = `-- lockstep reconcile: is the event still the last one
SELECT NOT EXISTS (SELECT FROM outbox.delivery WHERE sync = $1 AND key = $2)
   AND (SELECT l.event_id FROM outbox.delivery_log AS l
         WHERE l.key = $2 AND l.sync = $1 AND l.outcome IN ('delivered', 'duplicate', 'accepted')
         ORDER BY l.event_seq DESC, l.id DESC LIMIT 1) = $3`
	var same *bool
	if err := tx.QueryRow(ctx, unchanged, sync, f.Key, f.EventID).Scan(&same); err != nil {
		return false, err
	}
	if same == nil || !*same {
		return false, nil
	}
	var id, etag *string
	if f.Kind != Missing {
		id, etag = &f.ExternalID, &f.ETag
	}
	if _, err := tx.Exec(ctx, `SELECT outbox.set_reference($1, $2, nullif($3, ''), nullif($4, ''), $5)`, sync, f.Key, id, etag, reason); err != nil {
		return false, err
	}
	_, err := tx.Exec(ctx, `SELECT outbox.replay($1, $2, $3)`, sync, f.EventID, reason)
	return err == nil, err
}
