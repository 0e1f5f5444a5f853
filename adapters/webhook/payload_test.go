package webhook

import (
	"maps"
	"net/http"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/hms-mkt/lockstep/adapters"
)

func hearing() adapters.Message {
	return adapters.Message{
		ID: "0198f6a2-7d3e-7c1a-9b52-3f0e5d6c7a81", IdempotencyKey: "0198f6a2-7d3e-7c1a-9b52-3f0e5d6c7a81:2",
		Type: "scheduling:updated", Key: "hearing 7", Version: new(int64(4)), Attempt: 1,
		OccurredAt: time.Date(2027, 3, 1, 9, 30, 0, 500_000_000, time.FixedZone("", -5*3600)),
		Body:       []byte("{\"z\": 1.50,\n \"a\":12345678901234567890, \"note\":\"<b>&\\u00e9\"}"),
		Headers:    map[string]string{"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"},
	}
}

// The mapped fields are not compacted, sorted or escaped again, because the delivery
// log's digest and the signature are computed from their bytes.
func TestPayloads(t *testing.T) {
	const data = "{\"z\": 1.50,\n \"a\":12345678901234567890, \"note\":\"<b>&\\u00e9\"}"
	attributes := http.Header{
		"Ce-Specversion": {"1.0"}, "Ce-Id": {"0198f6a2-7d3e-7c1a-9b52-3f0e5d6c7a81:2"}, "Ce-Source": {"/agency/scheduling"},
		"Ce-Type": {"hearing.rescheduled"}, "Ce-Subject": {"hearing%207"}, "Ce-Time": {"2027-03-01T14:30:00.5Z"},
	}
	for payload, want := range map[Payload]struct {
		contentType, body string
		attributes        http.Header
	}{
		Standard:          {"application/json", `{"type":"hearing.rescheduled","timestamp":"2027-03-01T14:30:00.5Z","data":` + data + "}", nil},
		Fields:            {"application/json", data, nil},
		CloudEventsBinary: {"application/json", data, attributes},
		CloudEventsStructured: {
			"application/cloudevents+json",
			`{"specversion":"1.0","id":"0198f6a2-7d3e-7c1a-9b52-3f0e5d6c7a81:2","source":"/agency/scheduling","type":"hearing.rescheduled",` +
				`"subject":"hearing 7","time":"2027-03-01T14:30:00.5Z","datacontenttype":"application/json","data":` + data + "}", nil,
		},
	} {
		t.Run(string(payload), func(t *testing.T) {
			body, header := payload.render(hearing(), "hearing.rescheduled", "/agency/scheduling")
			if string(body) != want.body {
				t.Errorf("got  %s\nwant %s", body, want.body)
			}
			wantHeader := http.Header{"Accept": {"application/json"}, "Content-Type": {want.contentType}}
			maps.Copy(wantHeader, want.attributes)
			if diff := cmp.Diff(wantHeader, header); diff != "" {
				t.Errorf("headers (-want +got):\n%s", diff)
			}
		})
	}
}

func TestTimeThatIsNotKnownIsLeftOut(t *testing.T) {
	msg := adapters.Message{IdempotencyKey: "e-1", Key: "7", Body: []byte(`{}`)}
	for payload, want := range map[Payload]string{
		Standard:              `{"type":"t","data":{}}`,
		CloudEventsStructured: `{"specversion":"1.0","id":"e-1","source":"/s","type":"t","subject":"7","datacontenttype":"application/json","data":{}}`,
	} {
		if body, _ := payload.render(msg, "t", "/s"); string(body) != want {
			t.Errorf("%s: %s, want %s", payload, body, want)
		}
	}
	if _, h := CloudEventsBinary.render(msg, "t", "/s"); len(h.Values("Ce-Time")) > 0 {
		t.Errorf("%v", h)
	}
}

// The first example is that of the HTTP Protocol Binding, 3.1.3.2.
func TestPercentEncoding(t *testing.T) {
	for value, want := range map[string]string{
		"Euro € 😀":      "Euro%20%E2%82%AC%20%F0%9F%98%80",
		"/agency/a-b_c": "/agency/a-b_c",
		`50% "x"`:       "50%25%20%22x%22",
		"a\r\nX: y\x7f": "a%0D%0AX:%20y%7F",
	} {
		if got := percentEncoded(value); got != want {
			t.Errorf("%q: %s, want %s", value, got, want)
		}
	}
}
