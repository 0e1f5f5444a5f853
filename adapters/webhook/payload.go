package webhook

import (
	"encoding/json"
	"net/http"
	"strings"
	"time"

	"github.com/hms-mkt/lockstep/adapters"
)

// Payload is a form of the body. Every form has the mapped fields in it byte for byte.
type Payload string

// The forms of the body.
const (
	Standard              Payload = "standard"               // {"type", "timestamp", "data"}, as Standard Webhooks recommends
	Fields                Payload = "fields"                 // the mapped fields alone
	CloudEventsBinary     Payload = "cloudevents_binary"     // the mapped fields, attributes in ce- headers
	CloudEventsStructured Payload = "cloudevents_structured" // attributes and data in one JSON object
)

var payloads = []Payload{Standard, Fields, CloudEventsBinary, CloudEventsStructured}

func (p Payload) cloudEvent() bool { return p == CloudEventsBinary || p == CloudEventsStructured }

// attribute is an attribute of an event. An empty value is not sent.
type attribute struct{ name, value string }

// render returns the body of msg in the form p, and the headers of this form. eventType
// is the receiver's name of the type.
func (p Payload) render(msg adapters.Message, eventType, source string) ([]byte, http.Header) {
	h := http.Header{"Accept": {"application/json"}, "Content-Type": {"application/json"}}
	occurred := ""
	if !msg.OccurredAt.IsZero() {
		occurred = msg.OccurredAt.UTC().Format(time.RFC3339Nano)
	}
	attributes := []attribute{ // CloudEvents 1.0.2, 3
		{"specversion", "1.0"},
		{"id", msg.IdempotencyKey},
		{"source", source},
		{"type", eventType},
		{"subject", msg.Key},
		{"time", occurred},
	}
	switch p {
	case Fields:
		return msg.Body, h
	case CloudEventsBinary:
		for _, a := range attributes {
			if a.value != "" {
				h.Set("Ce-"+a.name, percentEncoded(a.value))
			}
		}
		return msg.Body, h
	case CloudEventsStructured:
		h.Set("Content-Type", "application/cloudevents+json")
		return envelope(msg.Body, append(attributes, attribute{"datacontenttype", "application/json"})), h
	default:
		return envelope(msg.Body, []attribute{{"type", eventType}, {"timestamp", occurred}}), h
	}
}

// envelope returns a JSON object of the attributes, in their order, and of data,
// unchanged. encoding/json would compact data.
func envelope(data []byte, attributes []attribute) []byte {
	b := []byte{'{'}
	for _, a := range attributes {
		if a.value == "" {
			continue
		}
		value, _ := json.Marshal(a.value) // a string always encodes
		b = append(b, `"`+a.name+`":`...)
		b = append(append(b, value...), ',')
	}
	b = append(append(b, `"data":`...), data...)
	return append(b, '}')
}

// percentEncoded writes a value for a ce- header (HTTP Protocol Binding for
// CloudEvents 1.0.2, 3.1.3.2).
func percentEncoded(value string) string {
	const hex = "0123456789ABCDEF"
	var b strings.Builder
	for _, c := range []byte(value) {
		if c <= ' ' || c > '~' || c == '"' || c == '%' {
			b.Write([]byte{'%', hex[c>>4], hex[c&15]})
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}

// reserved are the headers that a configuration with p cannot set, with the reason.
func (p Payload) reserved() map[string]string {
	names := map[string]string{
		"Webhook-Id":        "is set to the event's id",
		"Webhook-Timestamp": "is set to the time of the attempt",
		"Webhook-Signature": "is computed",
	}
	if p.cloudEvent() {
		for _, name := range []string{"Specversion", "Id", "Source", "Type", "Subject", "Time", "Datacontenttype"} {
			names["Ce-"+name] = "comes from the event and from source and types"
		}
	}
	if p == CloudEventsStructured {
		names["Content-Type"] = "is fixed for a structured CloudEvent"
	}
	return names
}
