package hl7

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/adapters/internal/exchange"
	"github.com/hms-mkt/lockstep/adapters/internal/route"
)

// Adapter sends messages to one HL7 interface. It is safe for concurrent use.
type Adapter struct {
	header     Config // for MSH, and settings
	messages   route.Table[plan]
	externalID place
	outcomes   map[string]adapters.Class // exceptions, by code
	pool       *pool
	what       string // the receiver, for messages
}

var (
	_ adapters.Adapter   = (*Adapter)(nil)
	_ adapters.Previewer = (*Adapter)(nil)
	_ adapters.FieldUser = (*Adapter)(nil)
	_ adapters.Connector = (*Adapter)(nil)
	_ adapters.Shaper    = (*Adapter)(nil)
	_ adapters.Bounded   = (*Adapter)(nil)
)

// AttemptTimeout is the longest time that Deliver can take.
func (a *Adapter) AttemptTimeout() time.Duration { return a.header.Timeout }

// MaxInFlight implements [adapters.Bounded]: one message for each connection.
func (a *Adapter) MaxInFlight() int { return a.header.Connections }

// Close closes the connections that are not in use. Deliveries in flight are not disturbed.
func (a *Adapter) Close() error {
	a.pool.close()
	return nil
}

// Hosts implements [adapters.Connector].
func (a *Adapter) Hosts() []adapters.Host {
	return []adapters.Host{{Address: a.header.Address, Connect: func(ctx context.Context) (adapters.Connection, error) {
		ctx, cancel := exchange.WithTimeout(ctx, exchange.ConnectTimeout)
		defer cancel()
		conn, err := exchange.Dial(ctx, a.what, a.header.Address, a.pool.config)
		if err != nil {
			return adapters.Connection{}, err
		}
		made := adapters.Connection{Reached: true}
		if secure, ok := conn.(*tls.Conn); ok {
			made.Expires = exchange.Expires(secure.ConnectionState().VerifiedChains)
		}
		_ = conn.Close() // nothing was sent
		return made, nil
	}}}
}

// CertificateExpires implements [adapters.Connector].
func (a *Adapter) CertificateExpires() time.Time {
	if a.header.TLS == nil {
		return time.Time{}
	}
	return exchange.CertificateExpires(*a.header.TLS)
}

// Fields implements [adapters.FieldUser].
func (a *Adapter) Fields() (names []string) {
	for _, name := range a.names() {
		if field, ok := strings.CutPrefix(name, "fields."); ok {
			names = append(names, field)
		}
	}
	return names
}

// names are the placeholders of all segments.
func (a *Adapter) names() (all []string) {
	for _, p := range a.messages.All() {
		for _, m := range slices.Concat(p.first, p.known) {
			for _, segment := range m.segments {
				all = segment.names(all)
			}
		}
	}
	return all
}

// usesID reports whether a segment has the receiver's id.
func (a *Adapter) usesID() bool { return slices.Contains(a.names(), "ref.external_id") }

// Shape implements [adapters.Shaper].
func (a *Adapter) Shape(msg adapters.Message) string {
	c := a.header
	settings := []string{c.Version, c.SendingApplication, c.SendingFacility, c.ReceivingApplication, c.ReceivingFacility, c.Processing, c.Acknowledgement}
	for _, m := range a.messages.Find(msg.Type).steps(msg) {
		settings = append(settings, m.event, m.source)
	}
	return route.Shape(settings...)
}

// step is what a message of the relay needs next: the bytes, and whether a step follows.
type step struct {
	message
	name  string // what is sent and to whom, for messages
	bytes []byte
	more  bool
}

func (a *Adapter) next(msg adapters.Message) (s step, err error) {
	s.name = "SIU to " + a.what
	refuse := func(err error) error {
		return adapters.Redacted(adapters.Permanent(fmt.Errorf("%s: nothing was sent: %w", s.name, err)))
	}
	steps := a.messages.Find(msg.Type).steps(msg)
	switch {
	case len(steps) == 0:
		return s, refuse(errors.New("no message is configured for events of this type: add one to messages"))
	case msg.Step >= len(steps):
		return s, refuse(fmt.Errorf("%d steps of this event are done, and the configuration has only %d: what is missing must be sent by hand", msg.Step, len(steps)))
	}
	s.message, s.more = steps[msg.Step], msg.Step+1 < len(steps)
	s.name = "SIU^" + s.event + " to " + a.what
	if s.bytes, err = s.write(a.header, msg); err != nil {
		return s, refuse(err)
	}
	return s, nil
}

// Deliver implements [adapters.Adapter]. The answer must be for this message (MSA-2). After
// any other answer, and after none, the connection is closed.
func (a *Adapter) Deliver(ctx context.Context, msg adapters.Message) (adapters.Receipt, error) {
	s, err := a.next(msg)
	if err != nil {
		return adapters.Receipt{}, err
	}
	ctx, end := exchange.StartSpan(ctx, s.name, a.header.Address)
	receipt, err := a.deliver(ctx, s, msg)
	end(err)
	return receipt, err
}

func (a *Adapter) deliver(ctx context.Context, s step, msg adapters.Message) (adapters.Receipt, error) {
	ctx, cancel := exchange.WithTimeout(ctx, a.header.Timeout)
	defer cancel()
	receipt := adapters.Receipt{SHA256: exchange.Digest(s.bytes)}
	conn, err := a.pool.get(ctx, s.name)
	if err != nil {
		return receipt, adapters.Redacted(err)
	}
	keep := false
	defer func() { a.pool.put(conn, keep) }()
	block, clean, err := send(ctx, conn, s.name, s.bytes)
	if err != nil {
		return receipt, adapters.Redacted(err)
	}
	answer, err := parseAck(block)
	switch {
	case err != nil:
		return receipt, adapters.Redacted(adapters.Unclear(fmt.Errorf("%s: sent, but %w", s.name, err)))
	case answer.of != controlID(msg.IdempotencyKey):
		return receipt, adapters.Redacted(adapters.Unclear(fmt.Errorf("%s: sent, but the answer is to another message (MSA-2 is not the control id that was sent)", s.name)))
	}
	keep = clean
	judged, err := a.judge(s, answer, msg)
	judged.SHA256 = receipt.SHA256
	return judged, adapters.Redacted(err)
}

// judge turns an answer to a step into the result of an attempt.
func (a *Adapter) judge(s step, answer *ack, msg adapters.Message) (adapters.Receipt, error) {
	receipt := adapters.Receipt{Code: answer.shown()}
	class := a.class(answer)
	switch class {
	case adapters.ClassDelivered:
	case adapters.ClassDuplicate:
		receipt.Duplicate = true
	case adapters.ClassAccepted:
		receipt.Accepted = true
	default:
		why := answer.reason(exchange.Request{Payload: msg.Body, Key: msg.Key}.Redact)
		if why == "" {
			why = "without a reason"
		}
		err := fmt.Errorf("%s: answered %s: %s", s.name, receipt.Code, why)
		if class == adapters.ClassUnknown {
			return receipt, adapters.Unclear(err)
		}
		return receipt, adapters.Classify(class, err)
	}
	receipt.More = s.more
	receipt.Ref = &adapters.Ref{Version: msg.Version}
	if s.ends() {
		return receipt, nil
	}
	if a.externalID == (place{}) {
		receipt.Ref.ExternalID = msg.Key
		return receipt, nil
	}
	receipt.Ref.ExternalID = msg.Ref.ExternalID
	if id := answer.at(a.externalID); exchange.IsRef(id) {
		receipt.Ref.ExternalID = id
	}
	receipt.NoID = receipt.Ref.ExternalID == ""
	return receipt, nil
}

// Preview implements [adapters.Previewer].
func (a *Adapter) Preview(msg adapters.Message) (adapters.Preview, error) {
	s, err := a.next(msg)
	p := adapters.Preview{Method: "SIU^" + s.event, URL: a.what, ContentType: "x-application/hl7-v2+er7", Body: s.bytes}
	if s.event == "" {
		p.Method = "SIU"
	}
	return p, err
}
