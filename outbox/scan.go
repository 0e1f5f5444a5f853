package outbox

import (
	"encoding/json"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
)

// scanFirst reads the answer of firstDeliveries.
func scanFirst(rows pgx.Rows, sync string, token pgtype.UUID) (claimed []*Delivery, empty, failed []string, err error) {
	defer rows.Close()
	d := claimedRow{sync: sync}
	var key string
	var stands pgtype.Text
	fields := append([]any{&key, &stands}, d.fields()...)
	claim := token.String()
	for rows.Next() {
		if err := rows.Scan(fields...); err != nil {
			return nil, nil, nil, err
		}
		switch {
		case d.place.Valid:
			claimed = append(claimed, d.delivery(key, token, claim))
		case stands.String == "failed":
			failed = append(failed, key)
		default:
			empty = append(empty, key)
		}
	}
	return claimed, empty, failed, rows.Err()
}

// scanNext reads the answer of settleLanes. Lanes keep their claims.
func scanNext(rows pgx.Rows, sync string, tokens map[string]pgtype.UUID) (next []*Delivery, err error) {
	defer rows.Close()
	d := claimedRow{sync: sync}
	var key string
	fields := append([]any{&key}, d.fields()...)
	for rows.Next() {
		if err := rows.Scan(fields...); err != nil {
			return nil, err
		}
		token := tokens[key]
		next = append(next, d.delivery(key, token, token.String()))
	}
	return next, rows.Err()
}

// claimedRow are the claimedColumns of a row, all of them null where there is no
// delivery. One is used for row after row: nothing in it is allocated but what the
// delivery keeps.
type claimedRow struct {
	sync string

	scope, id, class, sum, mapping pgtype.Text
	place, spent, seq              pgtype.Int8
	attempts, total, charged       pgtype.Int4
	crashes, revision              pgtype.Int4
	body, payload, headers         []byte
	typ, externalID, etag          pgtype.Text
	version, refVersion, refSeq    pgtype.Int8
	occurred                       pgtype.Timestamptz
	lane, row                      pgtype.TID
	alone                          bool
}

func (r *claimedRow) fields() []any {
	return []any{
		&r.lane, &r.row, &r.alone, &r.crashes, &r.scope, &r.place, &r.id, &r.attempts, &r.total, &r.charged, &r.spent, &r.revision,
		&r.class, &r.body, &r.sum, &r.mapping,
		&r.seq, &r.typ, &r.version, &r.payload, &r.headers, &r.occurred, &r.externalID, &r.etag, &r.refVersion, &r.refSeq,
	}
}

func (r *claimedRow) delivery(key string, token pgtype.UUID, claim string) *Delivery {
	d := &Delivery{
		Sync: r.sync, Key: key, Scope: r.scope.String, Place: r.place.Int64, Claim: claim, token: token,
		Attempts: int(r.attempts.Int32), Total: int(r.total.Int32), Charged: int(r.charged.Int32),
		Spent:   time.Duration(r.spent.Int64) * time.Millisecond,
		Crashes: int(r.crashes.Int32), Revision: int(r.revision.Int32), Class: r.class.String,
		Body: r.body, BodySHA256: r.sum.String, MappingVersion: r.mapping.String,
		Event: Event{ID: r.id.String, Key: key, Version: number(r.version), Payload: r.payload},
		lane:  r.lane, row: r.row, alone: r.alone,
		Ref: Ref{ExternalID: r.externalID.String, ETag: r.etag.String, Version: number(r.refVersion), Known: r.refSeq.Valid},
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
