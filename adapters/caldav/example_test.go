package caldav_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/adapters/caldav"
)

// A hearing moves to another room, which has a calendar of its own: it is put there first, and
// removed from the old one in a second step.
func Example() {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Println(r.Method, r.URL.Path)
		w.Header().Set("ETag", `"v1"`)
		w.WriteHeader(http.StatusCreated)
	}))
	defer server.Close()

	rooms, err := caldav.New(caldav.Config{URL: server.URL + "/rooms/{fields.room}/", Domain: "agency.example.gov"})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = rooms.Close() }()

	msg := adapters.Message{
		ID: "e-2", IdempotencyKey: "e-2", Type: "scheduling:updated", Key: "H-7", Version: new(int64(2)),
		Body: []byte(`{"start":"2027-03-15T09:30:00-04:00","minutes":45,"summary":"Hearing","room":"4b"}`),
		Ref:  adapters.Ref{ExternalID: "/rooms/3a/H-7.ics", ETag: `"v1"`},
	}
	for more := true; more; msg.Step++ { // the relay does this, and logs each step
		receipt, err := rooms.Deliver(context.Background(), msg)
		if err != nil {
			fmt.Println(err)
			return
		}
		msg.Ref, more = *receipt.Ref, receipt.More
	}
	fmt.Println(msg.Ref.ExternalID)
	// Output:
	// PUT /rooms/4b/H-7.ics
	// DELETE /rooms/3a/H-7.ics
	// /rooms/4b/H-7.ics
}
