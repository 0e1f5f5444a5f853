package outbox

import (
	"encoding/json"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
)

// scanned is what a walk returns besides the claims themselves.
type scanned struct {
	Claims
	next        Cursor
	superseding []string // keys whose failed head makes way for a newer event
	held        bool     // nothing was read
}

func scanClaims(rows pgx.Rows, sync string, token uuid.UUID) (scanned, error) {
	var c scanned
	defer rows.Close()
	d := newClaimedRow(sync, token)
	var lastDue, settled *time.Time
	var lastSeq *int64
	fields := append([]any{
		&c.Seen, &c.Parked, &c.Suspects, &c.superseding, &c.More, &lastDue, &lastSeq, &settled, &c.held,
	}, d.fields()...)
	for rows.Next() {
		if err := rows.Scan(fields...); err != nil {
			return scanned{}, err
		}
		if settled != nil {
			// Rows that commit late carry an older due time: the walk stays behind the clock.
			c.Settled = Cursor{due: *settled}
			c.next = c.Settled
			if lastDue != nil && c.More {
				c.next = earlier(c.next, Cursor{due: *lastDue, seq: *lastSeq})
			}
		}
		if d.key.Valid { // else nothing was claimed, and the row only carries what was seen
			c.Deliveries = append(c.Deliveries, d.delivery())
		}
	}
	return c, rows.Err()
}

// claimedRow are the claimedColumns of a row, all of them null where it is not
// about a delivery. One is used for row after row: nothing in it is allocated
// but what the delivery keeps.
type claimedRow struct {
	sync, claim string
	token       pgtype.UUID

	key, id, class, sum, mapping pgtype.Text
	place, spent, seq            pgtype.Int8
	attempts, total, charged     pgtype.Int4
	crashes, revision            pgtype.Int4
	body, payload, headers       []byte
	typ, externalID, etag        pgtype.Text
	version, refVersion, refSeq  pgtype.Int8
	occurred                     pgtype.Timestamptz
	tid                          pgtype.TID
}

func newClaimedRow(sync string, token uuid.UUID) claimedRow {
	return claimedRow{sync: sync, claim: token.String(), token: pgtype.UUID{Bytes: token, Valid: true}}
}

func (r *claimedRow) fields() []any {
	return []any{
		&r.key, &r.place, &r.id, &r.attempts, &r.total, &r.charged, &r.spent, &r.crashes, &r.revision,
		&r.class, &r.body, &r.sum, &r.mapping,
		&r.seq, &r.typ, &r.version, &r.payload, &r.headers, &r.occurred, &r.externalID, &r.etag, &r.refVersion, &r.refSeq,
		&r.tid,
	}
}

func (r *claimedRow) delivery() *Delivery {
	d := &Delivery{
		Sync: r.sync, Key: r.key.String, Place: r.place.Int64, Claim: r.claim, token: r.token,
		Attempts: int(r.attempts.Int32), Total: int(r.total.Int32), Charged: int(r.charged.Int32),
		Spent:   time.Duration(r.spent.Int64) * time.Millisecond,
		Crashes: int(r.crashes.Int32), Revision: int(r.revision.Int32), Class: r.class.String,
		Body: r.body, BodySHA256: r.sum.String, MappingVersion: r.mapping.String,
		Event: Event{ID: r.id.String, Key: r.key.String, Version: number(r.version), Payload: r.payload},
		Ref:   Ref{ExternalID: r.externalID.String, ETag: r.etag.String, Version: number(r.refVersion), Known: r.refSeq.Valid},
		tid:   r.tid,
	}
	if !r.seq.Valid {
		d.Missing = true
		return d
	}
	d.Event.Seq, d.Event.Type, d.Event.OccurredAt = r.seq.Int64, r.typ.String, r.occurred.Time
	d.Event.Headers = readHeaders(r.headers)
	return d
}

func number(n pgtype.Int8) *int64 {
	if !n.Valid {
		return nil
	}
	return &n.Int64
}

// readHeaders takes what is a string; other values, which only SQL writers can
// give, keep their JSON form.
func readHeaders(raw []byte) map[string]string {
	if len(raw) <= 2 {
		return nil
	}
	var values map[string]json.RawMessage
	if err := json.Unmarshal(raw, &values); err != nil {
		return nil
	}
	headers := make(map[string]string, len(values))
	for name, value := range values {
		var s string
		if json.Unmarshal(value, &s) != nil {
			s = string(value)
		}
		headers[name] = s
	}
	return headers
}
