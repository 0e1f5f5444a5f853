package outbox

import (
	"encoding/json"
	"time"

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

func scanClaims(rows pgx.Rows, sync, token string, page int) (scanned, error) {
	var c scanned
	defer rows.Close()
	for rows.Next() {
		var d claimedRow
		var lastDue, leftDue, settled *time.Time
		var lastSeq, leftSeq *int64
		err := rows.Scan(append([]any{
			&c.Seen, &c.Suspects, &c.superseding, &lastDue, &lastSeq, &leftDue, &leftSeq, &settled, &c.held,
		}, d.fields()...)...)
		if err != nil {
			return scanned{}, err
		}
		if settled != nil {
			// Rows that commit late carry an older due time: the walk stays behind the clock, and behind what it left.
			c.Settled = Cursor{due: *settled}
			c.next = c.Settled
			if lastDue != nil && c.Seen >= page {
				c.next = earlier(c.next, Cursor{due: *lastDue, seq: *lastSeq})
			}
			if leftDue != nil {
				c.next = earlier(c.next, Cursor{due: *leftDue, seq: *leftSeq})
			}
		}
		if d.key != nil { // else nothing was claimed, and the row only carries what was seen
			c.Deliveries = append(c.Deliveries, d.delivery(sync, token))
		}
	}
	return c, rows.Err()
}

// claimedRow are the claimedColumns of a row, all of them null where it is not
// about a delivery.
type claimedRow struct {
	key, id, class, sum, mapping *string
	place, spent, seq            *int64
	attempts, total, charged     *int
	crashes, revision            *int
	body, payload, headers       []byte
	typ, externalID, etag        *string
	version, refVersion, refSeq  *int64
	occurred                     *time.Time
	tid                          pgtype.TID
}

func (r *claimedRow) fields() []any {
	return []any{
		&r.key, &r.place, &r.id, &r.attempts, &r.total, &r.charged, &r.spent, &r.crashes, &r.revision,
		&r.class, &r.body, &r.sum, &r.mapping,
		&r.seq, &r.typ, &r.version, &r.payload, &r.headers, &r.occurred, &r.externalID, &r.etag, &r.refVersion, &r.refSeq,
		&r.tid,
	}
}

func (r *claimedRow) delivery(sync, token string) *Delivery {
	d := &Delivery{
		Sync: sync, Key: *r.key, Place: *r.place, Claim: token,
		Attempts: *r.attempts, Total: *r.total, Charged: *r.charged, Spent: time.Duration(*r.spent) * time.Millisecond,
		Crashes: *r.crashes, Revision: *r.revision, Class: text(r.class),
		Body: r.body, BodySHA256: text(r.sum), MappingVersion: text(r.mapping),
		Event: Event{ID: *r.id, Key: *r.key, Version: r.version, Payload: r.payload},
		Ref:   Ref{ExternalID: text(r.externalID), ETag: text(r.etag), Version: r.refVersion, Known: r.refSeq != nil},
		tid:   r.tid,
	}
	if r.seq == nil {
		d.Missing = true
		return d
	}
	d.Event.Seq, d.Event.Type, d.Event.OccurredAt = *r.seq, *r.typ, *r.occurred
	d.Event.Headers = readHeaders(r.headers)
	return d
}
func text(s *string) string {
	if s == nil {
		return ""
	}
	return *s
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
