package adapters

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"regexp"
	"time"
)

// Adapter speaks the protocol of one receiver.
//
// Deliver makes one attempt: at most one state-changing request. It never loops,
// retries or sleeps. The relay does that, so that the delivery log has every attempt.
// Token fetches and read-backs are not attempts.
//
// A nil error means that the receiver itself confirmed the message; the Receipt says
// how. Any other result is an error. Its class (see [ClassOf]) decides what the relay
// does next. An error without a class is transient. If the receiver answered, set
// Receipt.Code, also when you return an error.
//
// Deliver is called from many goroutines at once and must return soon after ctx ends.
// It must not keep, change or log msg.Body. The text of an error goes to logs and to
// the delivery log, so pass what the receiver said through [Redact] first.
type Adapter interface {
	Deliver(ctx context.Context, msg Message) (Receipt, error)
}

// Reader is implemented by adapters whose protocol can look at what the receiver holds. The
// relay asks it after a [Conflict], and before it sends a message again whose last outcome
// is unknown. So a lost answer does not book a hearing twice.
type Reader interface {
	// Reads reports whether Read can look for this message, with this configuration. It
	// sends nothing.
	Reads(msg Message) bool

	// Read compares what the receiver holds with msg. It changes nothing at the receiver, and
	// makes no more requests than it needs. An error has a class, as in Deliver.
	Read(ctx context.Context, msg Message) (Reading, error)
}

// Reading is the answer of a [Reader].
type Reading struct {
	Standing Standing
	Code     string // protocol status, such as "HTTP 200"
	Differs  string // what differs, in your own words and without values; for the log

	// Ref addresses the record that was read. If the standing is [Older], the next attempt
	// uses it. If it is [Equal], it is the new reference of the key. If it is [Absent], it
	// says what stays known of the key. Nil leaves the reference as it is.
	Ref *Ref

	More bool // with Equal: this step is done, and the message has another one, see [Receipt]
}

// Addresser is implemented by adapters whose requests may go to different hosts.
// The relay keeps the hosts apart: one that is down does not stop the others.
type Addresser interface {
	// Destination returns a function that names the host to which a message's request
	// goes, with its port if the URL has one. The name is empty if the operator wrote
	// the host, or if the message cannot be sent. Destination returns nil if the
	// operator wrote all hosts. The function is safe for concurrent use and sends
	// nothing.
	Destination() func(Message) string
}

// Standing compares the receiver's copy with a message.
type Standing int

// The results of a read-back.
const (
	Absent  Standing = iota // the receiver has no record of this key: the message is sent
	Older                   // the receiver has an earlier state of ours: the message is sent
	Equal                   // the receiver has what the message says: it counts as delivered
	Newer                   // the receiver has a later state of ours: the delivery fails
	Foreign                 // somebody else changed the receiver's copy: it is not overwritten
)

// Lister is implemented by adapters whose protocol can list what the receiver holds.
// lockstep reconcile compares the list with what was delivered.
type Lister interface {
	// Lists returns why List cannot be used with this configuration, or nil.
	Lists() error

	// Entry returns the entry that List is to find after msg was delivered. Its Fields have
	// what List can read back, under the same names and in the same form. It sends nothing.
	Entry(msg Message) (Entry, error)

	// List calls yield for each entry whose time is in the window, in any order. It reads
	// page after page and keeps at most a page. It returns the error of yield unchanged.
	List(ctx context.Context, window Window, yield func(Entry) error) error
}

// Window is a span of time. A zero time means no bound.
type Window struct {
	From time.Time // the first time in the window
	To   time.Time // the first time after it
}

// Entry is one record of a receiver, reduced to what both sides know of it.
type Entry struct {
	// Key is the key of the event that it was made from. It is empty if the record is not
	// one of ours.
	Key string

	ExternalID string            // how the receiver names the record
	ETag       string            // its ETag, if the receiver has ETags; only from List
	Version    *int64            // version of the event that it shows, if the record has it
	At         time.Time         // its time in the calendar, for windows; zero if it has none
	Cancelled  bool              // the record stays, but is cancelled
	Absent     bool              // only from Entry: after this message the receiver has no record
	Fields     map[string]string // values that are compared, each in one fixed form
}

// Bounded is implemented by adapters that can use only few workers at once, such as one for
// each connection. The relay claims no more deliveries than that.
type Bounded interface {
	MaxInFlight() int // at least 1
}

// Message is one event, mapped for one receiver.
type Message struct {
	ID             string            // the event's id
	IdempotencyKey string            // ID, or "ID:n" for a replay or a changed body; "/2" is added for the second step; the same on every attempt
	Type           string            // event type, such as scheduling:updated
	Key            string            // what the event is about; ordered per key
	Version        *int64            // the writer's version of the key, if it gave one
	OccurredAt     time.Time         // when the fact happened
	Attempt        int               // 1 for the first attempt ever of this event at this receiver
	Step           int               // how many steps of this event are done, see Receipt.More
	Body           []byte            // the mapped fields as one JSON object; the same bytes on every attempt
	Headers        map[string]string // the event's headers, such as traceparent
	Ref            Ref               // what this receiver answered last for Key
}

// Fields decodes Body. Numbers are [json.Number], so that digits stay exact.
func (m Message) Fields() (map[string]any, error) {
	return decodeObject(m.Body)
}

// MaxRef is the longest ExternalID, ETag or learnt value that is kept, in bytes.
const MaxRef = 512

// MaxLearned is how many values of [Ref.Learned] are kept.
const MaxLearned = 16

// Ref is what a receiver answered for a key: needed to address the next update. A value
// that is longer than [MaxRef], or has characters that do not print, is not kept: a
// changed id would address another record.
type Ref struct {
	ExternalID string
	ETag       string
	Version    *int64 // version of the event that was accepted last

	// Learned are other values of the answer that the next request needs, by the names
	// that the configuration gives them. At most [MaxLearned] are kept.
	Learned map[string]string
}

var etag = regexp.MustCompile(`^(W/)?"[\x21\x23-\x7e]*"$`)

// ValidETag reports whether s is an entity tag with its quotes, perhaps a weak one, that can be
// kept and sent (RFC 9110, 8.8.3, ASCII only).
func ValidETag(s string) bool { return len(s) <= MaxRef && etag.MatchString(s) }

// Receipt is the receiver's answer.
type Receipt struct {
	Code      string // protocol status, such as "HTTP 201"
	Duplicate bool   // the receiver already had this message
	Accepted  bool   // the receiver took it for later processing (202 and the like)
	NoID      bool   // the answer lacks the receiver's id, which later messages of the key need
	NoETag    bool   // the answer lacks an ETag, so later messages of the key go without If-Match

	// More says that a step of the message is done, and that the message needs another request.
	// The relay stores Ref, and calls Deliver again with the next Step. So each request stands
	// in the log, and after a crash the relay goes on with the step that was not recorded.
	More bool

	// Skipped says why there is nothing to send, in your own words. The delivery is finished as
	// filtered, or fails if the receiver may have an event of another type of the key.
	Skipped string

	// Ref is the new reference for the key; nil leaves it as it is. Together with a
	// [Conflict] it means that the record is not where the old reference says: the relay
	// keeps the new one and sends once more.
	Ref *Ref

	// SHA256 is the digest of the sent bytes, in hexadecimal. Set it also when you
	// return an error: the delivery log keeps it. Empty means that Message.Body was
	// sent.
	SHA256 string
}

// Class says what the relay does with the result of an attempt.
// The effects are the same for every adapter.
type Class string

// The classes, with their effect.
const (
	ClassDelivered Class = "delivered" // finished
	ClassDuplicate Class = "duplicate" // finished: the receiver already had it
	ClassAccepted  Class = "accepted"  // finished: the receiver processes it later
	ClassTransient Class = "transient" // retried with backoff
	ClassThrottled Class = "throttled" // the destination is held for a time; uses no retry budget
	ClassAuth      Class = "auth"      // retried with new credentials; if refused again, the destination is held, or only this delivery fails
	ClassForbidden Class = "forbidden" // as auth, but the receiver knows the credentials (HTTP 403)
	ClassPermanent Class = "permanent" // failed at once
	ClassConflict  Class = "conflict"  // read back where possible, otherwise permanent
	ClassUnknown   Class = "unknown"   // the receiver may have it: logged as unknown, then retried

	// ClassUnexplained is transient. If only one key gets such answers, repeatedly, it
	// becomes permanent for this key.
	ClassUnexplained Class = "unexplained"

	// ClassLocal is retried and uses no retry budget: the fault is on our own side.
	ClassLocal Class = "local"
)

func decodeObject(b []byte) (map[string]any, error) {
	var m map[string]any
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	if err := d.Decode(&m); err != nil {
		return nil, err
	}
	if m == nil {
		return nil, errors.New("null is not a JSON object")
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("more follows after the JSON object")
	}
	return m, nil
}
