package outbox

import (
	"time"

	"github.com/jackc/pgx/v5/pgtype"
)

// Delivery is the claimed work for one event and one sync.
type Delivery struct {
	Sync     string
	Key      string
	Scope    string // of its lane
	Place    int64  // place in the key's lane: the event's seq, or a later number for a replay
	Claim    string // token that every write about it carries
	Event    Event
	Missing  bool // the event itself is gone; cannot happen while retention does its work
	Attempts int  // recorded attempts of this life
	Total    int  // attempts ever; never reset
	Charged  int  // attempts of this life that count for the retry budget
	Spent    time.Duration
	Crashes  int    // claims of the lane, in a row, whose relay never came back
	Revision int    // n of the Idempotency-Key "<id>:<n>"; 1 is the bare id
	Class    string // error class of the last attempt

	Body           []byte // rendered before; nil when it must be rendered
	BodySHA256     string // digest of the last recorded body, kept over a requeue
	MappingVersion string // of Body

	Ref Ref

	lane    pgtype.TID // where the lane's row was last
	tid     pgtype.TID // where the delivery's row was last
	isAlone bool       // no other delivery of its lane was visible
	token   pgtype.UUID
}

// Ref is what the external system answered last for a key.
type Ref struct {
	ExternalID string
	ETag       string
	Version    *int64
	Known      bool // there is a row for the key
}

// Outcome is what a delivery log row says of an event.
type Outcome string

// The outcomes that a relay records. Those of operators are written by the
// database itself.
const (
	Delivered  Outcome = "delivered"
	Duplicate  Outcome = "duplicate"
	Accepted   Outcome = "accepted"
	Filtered   Outcome = "filtered"
	Retry      Outcome = "retry"
	Failed     Outcome = "failed"
	Unknown    Outcome = "unknown"
	LeaseLost  Outcome = "lease_lost"
	Superseded Outcome = "superseded"
)

// Finished reports whether the outcome removes the delivery.
func (o Outcome) Finished() bool {
	return o == Delivered || o == Duplicate || o == Accepted || o == Filtered
}

// Result is what became of a claimed delivery.
type Result struct {
	Delivery *Delivery
	Outcome  Outcome // empty releases the claim unrecorded: nothing was sent
	Stay     bool    // keep the claim of the lane for its next delivery, once this one is finished
	Scope    *string // the lane is given back to this scope; nil leaves it

	Delay   time.Duration // until the next attempt; for Retry and Unknown
	Failed  bool          // no next attempt: waits for an operator; set with outcome Failed, or Unknown when the budget ends
	Attempt bool          // the receiver may have seen a request: counts as an attempt
	Charge  bool          // counts for the retry budget, with Spend
	Spend   time.Duration

	Code       string
	Class      string
	Error      string
	AnsweredAt time.Time // local clock; stored by the database's, by its age
	Took       time.Duration
	SHA256     string // of what was sent, hexadecimal
	Ref        *Ref   // new reference; nil leaves it
}
