package hl7

import (
	"crypto/sha256"
	"encoding/base32"
	"errors"
	"fmt"
	"strings"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/adapters/internal/placeholder"
)

// message is what is sent for one step of an event.
type message struct {
	event    string // trigger event, such as S12
	source   string // of segments
	segments []part
}

// plan is what is sent for events of one type, in steps.
type plan struct {
	first []message
	known []message // while the receiver has an appointment of the key
}

// steps are those of a message. After the first one it is no longer known which of the two it
// was, but only one of them has more.
func (p plan) steps(msg adapters.Message) []message {
	if msg.Step > 0 && len(p.first) > len(p.known) {
		return p.first
	}
	if msg.Step > 0 || msg.Ref.ExternalID != "" {
		return p.known
	}
	return p.first
}

// ends reports whether the appointment no longer exists after the message, so that its id at
// the receiver is of no use.
func (m message) ends() bool { return m.event == "S15" || m.event == "S17" }

// timeLayout is that of a time stamp with its offset (HL7 2.5.1, 2.A.22).
const timeLayout = "20060102150405-0700"

// write makes the message. The same message of the relay makes the same bytes.
func (m message) write(c Config, msg adapters.Message) ([]byte, error) {
	if msg.OccurredAt.IsZero() {
		return nil, errors.New("the event has no time, which MSH-7 needs")
	}
	var b strings.Builder
	kind := "SIU^" + m.event
	if c.Version != "2.3" { // the third component came with 2.3.1
		kind += "^SIU_S12"
	}
	accept, application := "", "" // MSH-15 and MSH-16; empty: the original mode (HL7 2.5.1, 2.9.2)
	if c.Acknowledgement == Enhanced {
		accept, application = "AL", "NE"
	}
	b.WriteString("MSH" + fieldSeparator + strings.Join([]string{
		encoding, c.SendingApplication, c.SendingFacility, c.ReceivingApplication, c.ReceivingFacility,
		msg.OccurredAt.UTC().Format(timeLayout), "", kind, controlID(msg.IdempotencyKey), c.Processing, c.Version,
		"", "", accept, application, "", "UNICODE UTF-8",
	}, fieldSeparator) + segmentEnd)
	values := &placeholder.Values{Msg: msg}
	for _, segment := range m.segments {
		text, has, err := segment.fill(values)
		if err != nil {
			name := segment.name()
			return nil, fmt.Errorf("segment %s: %w", name, err)
		}
		if has != missing {
			b.WriteString(text + segmentEnd)
		}
	}
	return []byte(b.String()), nil
}

// name is that of a segment.
func (p part) name() string {
	for p.separator != "" {
		p = p.parts[0]
	}
	return p.text.Text()
}

// controlID is MSH-10. It has the 20 characters that HL7 before version 2.7 allows, with 100
// bits of the digest of the idempotency key, which itself may be longer.
func controlID(idempotencyKey string) string {
	sum := sha256.Sum256([]byte(idempotencyKey))
	return base32.StdEncoding.EncodeToString(sum[:])[:20]
}
