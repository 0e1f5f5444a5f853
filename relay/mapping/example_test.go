package mapping_test

import (
	"fmt"
	"log"

	"github.com/hms-mkt/lockstep/outbox"
	"github.com/hms-mkt/lockstep/relay/mapping"
)

// A filter decides whether an event is sent, and a mapper makes its body. The last call shows
// the error for an event without a field.
func Example() {
	filter, err := mapping.CompileFilter(`event.court == "NY-07"`)
	if err != nil {
		log.Fatal(err)
	}
	mapper, err := mapping.Mapping{
		Fields: []mapping.Field{
			{From: "hearingId", To: "case_reference"},
			{From: "scheduledAt", To: "start.time", Time: &mapping.TimeFormat{Zone: "America/New_York"}},
			{From: "notes", To: "remarks", Optional: true},
		},
		Compute: []mapping.Computed{{To: "title", Expr: `"Hearing " + event.hearingId`}},
	}.Compile()
	if err != nil {
		log.Fatal(err)
	}
	event := outbox.Event{Payload: []byte(`{"court": "NY-07", "hearingId": "H-1", "scheduledAt": "2027-03-02T14:30:00Z"}`)}
	fmt.Println(filter.Match(event, nil))
	body, err := mapper.Map(event, mapping.Sending{}, nil)
	fmt.Println(string(body), err)
	_, err = mapper.Map(outbox.Event{Payload: []byte(`{"hearingId": "H-1"}`)}, mapping.Sending{}, nil)
	fmt.Println(err)
	// Output:
	// true <nil>
	// {"case_reference":"H-1","start":{"time":"2027-03-02T09:30:00-05:00"},"title":"Hearing H-1"} <nil>
	// field scheduledAt: is missing, and neither optional nor given a default
}
