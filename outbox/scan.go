package outbox

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
)

// scanClaimed reads the answer of firstDeliveries or settleLanes. Each row has a key, the
// state of its first delivery, and claimedColumns. It returns the deliveries, the keys
// whose first delivery has failed, and the keys whose first delivery cannot be sent now.
func scanClaimed(rows pgx.Rows, sync string, claimOf func(key string) pgtype.UUID) (claimed []*Delivery, failed, idle []string, err error) {
	d := claimedRow{sync: sync}
	var key string
	var state pgtype.Text
	_, err = pgx.ForEachRow(rows, append([]any{&key, &state}, d.fields()...), func() error {
		switch {
		case d.position.Valid:
			delivery, err := d.delivery(key, claimOf(key))
			if err != nil {
				return err
			}
			claimed = append(claimed, delivery)
		case state.String == "failed":
			failed = append(failed, key)
		default:
			idle = append(idle, key)
		}
		return nil
	})
	return claimed, failed, idle, err
}

// claimedRow is a row of claimedColumns. All are null if there is no delivery. One
// claimedRow is used for all rows, to allocate only what the deliveries keep.
type claimedRow struct {
	sync string

	scope, id, class, sum, mapping pgtype.Text
	body                           pgtype.Text // hexadecimal
	position, spent, seq           pgtype.Int8
	attempts, total                pgtype.Int4
	charged, unclear               pgtype.Int4
	crashes, revision, step        pgtype.Int4
	uncertain                      pgtype.Bool
	payload, headers               []byte
	learned                        []byte
	typ, externalID, etag          pgtype.Text
	version, refVersion            pgtype.Int8
	refTimesSet                    pgtype.Int4
	occurred                       pgtype.Timestamptz
	lane, tid                      pgtype.TID
	isAlone                        bool
}

func (r *claimedRow) fields() []any {
	return []any{
		&r.lane, &r.tid, &r.isAlone, &r.crashes, &r.scope, &r.position, &r.id, &r.attempts, &r.total, &r.charged, &r.unclear, &r.spent, &r.revision,
		&r.class, &r.body, &r.sum, &r.mapping, &r.uncertain, &r.step,
		&r.seq, &r.typ, &r.version, &r.payload, &r.headers, &r.occurred, &r.externalID, &r.etag, &r.learned, &r.refVersion, &r.refTimesSet,
	}
}

func (r *claimedRow) delivery(key string, token pgtype.UUID) (*Delivery, error) {
	var body []byte
	if r.body.Valid {
		var err error
		if body, err = hex.DecodeString(r.body.String); err != nil {
			return nil, fmt.Errorf("body of event %s: %w", r.id.String, err)
		}
	}
	d := &Delivery{
		Sync: r.sync, Key: key, Scope: r.scope.String, Position: r.position.Int64, Claim: token.String(), token: token,
		Attempts: int(r.attempts.Int32), Total: int(r.total.Int32), Charged: int(r.charged.Int32), Unclear: int(r.unclear.Int32),
		Spent:   time.Duration(r.spent.Int64) * time.Millisecond,
		Crashes: int(r.crashes.Int32), Revision: int(r.revision.Int32), Class: r.class.String,
		Body: body, BodySHA256: r.sum.String, MappingVersion: r.mapping.String, Uncertain: r.uncertain.Bool, Step: int(r.step.Int32),
		Event: Event{ID: r.id.String, Key: key, Version: number(r.version), Payload: r.payload},
		lane:  r.lane, tid: r.tid, isAlone: r.isAlone,
		Ref: Ref{
			ExternalID: r.externalID.String, ETag: r.etag.String, Version: number(r.refVersion), Known: r.refTimesSet.Valid,
			Learned: texts(r.learned), timesSet: r.refTimesSet.Int32,
		},
	}
	if !r.seq.Valid {
		d.Missing = true
		return d, nil
	}
	d.Event.Seq, d.Event.Type, d.Event.OccurredAt = r.seq.Int64, r.typ.String, r.occurred.Time
	d.Event.Headers = texts(r.headers)
	return d, nil
}

func number(n pgtype.Int8) *int64 {
	if !n.Valid {
		return nil
	}
	return &n.Int64
}

// texts reads the members of an object. It returns strings as they are. Other values, which
// only writers in SQL can write, are returned as JSON.
func texts(raw []byte) map[string]string {
	if len(raw) <= 2 {
		return nil
	}
	var values map[string]json.RawMessage
	if err := json.Unmarshal(raw, &values); err != nil {
		return nil
	}
	members := make(map[string]string, len(values))
	for name, value := range values {
		var s string
		if json.Unmarshal(value, &s) != nil {
			s = string(value)
		}
		members[name] = s
	}
	return members
}
