package hl7

import (
	"strings"
	"testing"
	"time"

	"github.com/hms-mkt/lockstep/adapters"
)

// Every mistake is named with its key, and several at once.
func TestWrongConfigurations(t *testing.T) {
	segments := func(text string) func(*Config) { return func(c *Config) { c.Segments = text } }
	for name, tc := range map[string]struct {
		change func(*Config)
		want   string
	}{
		"no address":          {func(c *Config) { c.Address = "" }, "address: is required: host and port, such as clinic.example.org:2575"},
		"no port":             {func(c *Config) { c.Address = "clinic" }, `address: "clinic" is not a host and a port, such as clinic.example.org:2575`},
		"no host":             {func(c *Config) { c.Address = ":2575" }, `address: ":2575" is not a host and a port`},
		"URL":                 {func(c *Config) { c.Address = "mllp://clinic:2575" }, `address: "mllp://clinic:2575" is not a host and a port`},
		"placeholder in host": {func(c *Config) { c.Address = "{fields.host}:2575" }, `address: "{fields.host}:2575" is not a host and a port`},
		"port 0":              {func(c *Config) { c.Address = "clinic:0" }, `address: "clinic:0" is not`},
		"version":             {func(c *Config) { c.Version = "3" }, `version: "3" is not one of 2.3, 2.3.1, 2.4, 2.5, 2.5.1, 2.6, 2.7, 2.7.1, 2.8`},
		"processing":          {func(c *Config) { c.Processing = "X" }, `processing: "X" is not one of P, T, D`},
		"acknowledgement":     {func(c *Config) { c.Acknowledgement = "none" }, `acknowledgement: "none" is not one of original, enhanced`},
		"name":                {func(c *Config) { c.SendingFacility = "a|b" }, "sending_facility: has one of the characters | ~ { }: write a name, with ^ between components"},
		"control character":   {func(c *Config) { c.ReceivingFacility = "a\rb" }, "receiving_facility: has a control character (U+000D), which a message cannot have"},
		"timeout":             {func(c *Config) { c.Timeout = time.Hour }, "timeout: 1h0m0s is not from 10ms to 10m0s"},
		"connections":         {func(c *Config) { c.Connections = 65 }, "connections: 65 is not from 1 to 64"},
		"external id":         {func(c *Config) { c.ExternalID = "sch-2" }, `external_id: "sch-2" is not a place in an answer: write segment, field and component, such as SCH-2 or SCH-2.1`},
		"external id in MSH":  {func(c *Config) { c.ExternalID = "MSH-3" }, `external_id: "MSH-3" is not a place in an answer`},
		"id that nobody reads": {
			func(c *Config) { c.ExternalID = "" },
			"external_id: is required by {ref.external_id} in the segments: write where an answer has the receiver's id, or remove the placeholder",
		},
		"outcome key":   {func(c *Config) { c.Outcomes = map[string]string{"409": "duplicate", "NO": "duplicate"} }, `outcomes["NO"]: is not a code: write an acknowledgement code, such as AE, or an error code of three digits, such as 207`},
		"outcome class": {func(c *Config) { c.Outcomes = map[string]string{"AE": "retry"} }, `outcomes["AE"]: "retry" is not a class; use one of delivered`},
		"no messages":   {func(c *Config) { c.Messages = nil }, `messages: is required: write what is sent for each event type, such as {"scheduling:created": S12}`},
		"no type":       {func(c *Config) { c.Messages[""] = Message{Event: "S12"} }, `messages[""]: name an event type, or a pattern such as *:created`},
		"no event":      {func(c *Config) { c.Messages["a"] = Message{Segments: "SCH|{key}"} }, `messages["a"].event: is required: a trigger event such as S12`},
		"other event":   {func(c *Config) { c.Messages["a"] = Message{Event: "A01"} }, `messages["a"].event: "A01" is not a trigger event of SIU: write S12 (new)`},
		"next event":    {func(c *Config) { c.Messages["a"] = Message{Event: "S15", Then: []Next{{Event: "S25"}}} }, `messages["a"].then[0].event: "S25" is not a trigger event of SIU`},
		"known event":   {func(c *Config) { c.Messages["a"] = Message{Event: "S12", Known: &Known{}} }, `messages["a"].known.event: is required`},
		"steps twice": {
			func(c *Config) {
				c.Messages["a"] = Message{Event: "S12", Then: []Next{{Event: "S12"}}, Known: &Known{Event: "S15", Then: []Next{{Event: "S12"}}}}
			},
			`messages["a"].then, messages["a"].known.then: a message and its known cannot both have then`,
		},
		"no segments":             {func(c *Config) { c.Segments = ""; c.ExternalID = "" }, `messages["scheduling:created"].segments: are required, here or for all messages in segments of the adapter`},
		"blank segments":          {segments("\n \n"), "segments: has no segment"},
		"segments of one message": {func(c *Config) { c.Messages["a"] = Message{Event: "S12", Segments: "SCH|{key}\nPID|{nope}"} }, `messages["a"].segments: line 2, column 5: {nope} is not a placeholder that is allowed here`},
		"unknown placeholder":     {segments("SCH|{key}|é|{fields.a}{what}"), "segments: line 1, column 23: {what} is not a placeholder that is allowed here"},
		"brace":                   {segments("SCH|{key"), "segments: line 1, column 5: a brace does not belong to a placeholder such as {key}"},
		"not a segment":           {segments("SCH|{key}\nhello"), "segments: line 2, column 1: is not a segment: begin it with a name of three capital letters and digits, then |"},
		"MSH":                     {segments("MSH|^~\\&|A\nSCH|{key}"), "segments: line 1, column 1: MSH is written by Lockstep"},
		"not SCH":                 {segments("PID|1"), "segments: line 1, column 1: the first segment of an appointment is SCH"},
		"no placer id":            {segments("SCH||{key}"), "segments: line 1, column 1: SCH-1 is empty: write an id of the appointment that never changes, such as {key}"},
		"control characters":      {segments("SCH|{key}\x1c"), "segments: line 1, column 1: has a control character (U+001C), which a message cannot have"},
		"no CA file":              {func(c *Config) { c.TLS = &adapters.TLS{CAFile: "testdata/none.pem"} }, "tls.ca_file: open testdata/none.pem"},
		"key without certificate": {func(c *Config) { c.TLS = &adapters.TLS{KeyFile: "x"} }, "tls.cert_file: is missing"},
	} {
		t.Run(name, func(t *testing.T) {
			c := calendar("clinic.example.org:2575")
			tc.change(&c)
			a, err := New(c)
			if a != nil || err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got  %v\nwant %s", err, tc.want)
			}
		})
	}
	_, err := New(Config{Processing: "X", Timeout: 1})
	for _, want := range []string{"address: ", "processing: ", "timeout: ", "messages: "} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: lacks %s", err, want)
		}
	}
}
