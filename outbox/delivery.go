package outbox

import (
	"time"

	"github.com/jackc/pgx/v5/pgtype"
)

// Delivery is the open work for one event and one sync, claimed by [Store.Claim]. The caller
// sends it and passes it to [Store.Record] in a [Result].
type Delivery struct {
	Sync     string
	Key      string
	Scope    string // scope of its lane
	Position int64  // in the key's lane: the event's seq, or a later number for a replay
	Claim    string // token of the claim; every write about the delivery tests it
	Event    Event
	Missing  bool          // the event was deleted, which retention never does while a delivery is open
	Attempts int           // recorded attempts since the delivery was added or requeued
	Total    int           // all recorded attempts; a requeue does not reset it
	Charged  int           // of Attempts, those that count for the retry budget
	Unclear  int           // of Attempts, those whose answer did not say whether the receiver has the message
	Spent    time.Duration // time that counts for the retry budget
	Crashes  int           // claims of the lane in a row whose relay died
	Revision int           // n of the Idempotency-Key "<id>:<n>"; for 1 it is the id alone
	Class    string        // error class of the last attempt
	Step     int           // steps of the event that are done

	// Uncertain says that an attempt ended without a clear answer, and nobody has looked since
	// whether the receiver has the message.
	Uncertain bool

	Body           []byte // the body of an earlier attempt, to be sent again; nil if there is none
	BodySHA256     string // digest of the last recorded body; a requeue keeps it
	MappingVersion string // version of the mapping that made Body

	Ref Ref // the receiver's last answer for the key

	lane    pgtype.TID // ctid of the lane's row when it was last read
	tid     pgtype.TID // ctid of the delivery's row when it was last read
	isAlone bool       // no other delivery of its lane was visible
	token   pgtype.UUID
}

// Ref is the reference of a key: what the receiver answered last.
type Ref struct {
	ExternalID string
	ETag       string
	Version    *int64
	Learned    map[string]string // other values of the answer, by the names of the configuration
	Known      bool              // the database has a reference for the key

	timesSet int32 // how often a person had set it when it was read
}

// Outcome is the outcome of an attempt, or of an operator's action, in the delivery log.
type Outcome string

// The outcomes that a relay records. The database writes the outcomes of operators' actions
// itself.
const (
	Delivered  Outcome = "delivered"
	Duplicate  Outcome = "duplicate"
	Accepted   Outcome = "accepted"
	Filtered   Outcome = "filtered"
	Retry      Outcome = "retry"
	Failed     Outcome = "failed"
	Unknown    Outcome = "unknown"
	LeaseLost  Outcome = "lease_lost"
	Read       Outcome = "read" // the receiver was read; the delivery is sent next
	Step       Outcome = "step" // a step is done; the next one is sent next
	Superseded Outcome = "superseded"
)

// Finished reports whether the outcome removes the delivery.
func (o Outcome) Finished() bool {
	return o == Delivered || o == Duplicate || o == Accepted || o == Filtered
}

// Succeeded reports whether the receiver has taken what was sent: the whole event or a step of
// it.
func (o Outcome) Succeeded() bool { return o.Finished() || o == Step }

// Result says what happened to a claimed delivery. A Result with only Delivery set releases
// the lane: nothing was sent.
type Result struct {
	Delivery *Delivery
	Outcome  Outcome // empty: nothing was sent, and the log gets no row
	Stay     bool    // keep the lane for its next delivery, if this one is finished
	Scope    *string // new scope of the lane if it is released; nil: no change

	Delay   time.Duration // time until the next attempt; for Retry and Unknown
	Failed  bool          // no next attempt, an operator decides; for outcome Failed, and for Unknown at the end of the retry budget
	Attempt bool          // the receiver may have seen a request: counts as an attempt
	Charge  bool          // the attempt counts for the retry budget
	Unclear bool          // the answer does not say whether the receiver has the message
	Spend   time.Duration // time that the attempt adds to the retry budget in use

	Read       *Reading      // what was read at the receiver; it has its own row in the log
	Code       string        // status of the protocol, such as HTTP 201
	Class      string        // error class, such as transient
	Error      string        // reason of a failure, without secrets and personal data
	Reason     string        // why a delivery is filtered, or how it was settled; filtered and empty: its event does not meet the sync's condition
	AnsweredAt time.Time     // by the local clock; the database stores its own time less the age of the answer
	Took       time.Duration // duration of the attempt
	SHA256     string        // digest of the body that was sent, hexadecimal
	Ref        *Ref          // new reference; nil: no change
}

// Reading is one look at what the receiver has.
type Reading struct {
	Code  string        // status of the protocol, such as HTTP 200
	Says  string        // what was found, without secrets and personal data
	Class string        // error class, if the receiver could not be read
	Error string        // reason of a failure, without secrets and personal data
	Took  time.Duration // duration of the request
}
