package profiletest

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/hms-mkt/lockstep/outbox"
)

// plan is what the tests know of a hearing after its last event.
type plan struct {
	key       string
	events    []outbox.Event
	payload   map[string]any // of the last event that is no cancellation
	cancelled bool
	version   int64
}

// random makes a hearing with random fields and a random life: created, changed up to three times, perhaps
// cancelled, and then perhaps booked again. letters are the characters of its texts. The same seed gives the
// same hearing.
func random(seed uint64, letters string) plan {
	r := rand.New(rand.NewPCG(17, seed))
	p := plan{key: fmt.Sprintf("H-2027-%06d", seed+1)}
	text := func(most int) string {
		all := []rune(letters)
		var s strings.Builder
		for range 1 + r.IntN(most) {
			s.WriteRune(all[r.IntN(len(all))])
		}
		return s.String()
	}
	sometimes := func(payload map[string]any, name string, value any) {
		if r.IntN(3) > 0 {
			payload[name] = value
		}
	}
	p.payload = map[string]any{
		"hearingId": p.key, "caseId": fmt.Sprintf("%016d", 1_641_000_000_000_000+r.Int64N(1_000_000_000)), "courtId": fmt.Sprint(100_000 + r.IntN(900_000)),
		"filedOn": time.Date(2026, 1, 1+r.IntN(360), 0, 0, 0, 0, time.UTC).Format(time.DateOnly),
	}
	event := func(kind string, payload map[string]any) {
		p.version += 1 + r.Int64N(3) // versions may have gaps
		encoded, err := json.Marshal(payload)
		if err != nil {
			panic(err)
		}
		p.events = append(p.events, outbox.Event{
			ID: fmt.Sprintf("01a00000-0000-7000-8000-%06d%06d", seed, len(p.events)), Type: "scheduling:" + kind, Key: p.key, Version: new(p.version),
			OccurredAt: time.Date(2027, 2, 1, 9, 0, len(p.events), r.IntN(2)*r.IntN(1_000_000)*1000, time.UTC), Payload: encoded,
		})
	}
	change := func(kind string) {
		at := time.Date(2027, time.Month(3+r.IntN(9)), 1+r.IntN(28), 8+r.IntN(9), 15*r.IntN(4), 0, 0, time.FixedZone("", 3600*(r.IntN(12)-6)))
		p.payload["scheduledAt"] = at.Format(time.RFC3339)
		if r.IntN(5) == 0 {
			p.payload["scheduledAt"] = at.Format(time.DateOnly)
		}
		p.payload["title"] = text(200)
		for _, name := range []string{"minutes", "location", "remarks", "sealed", "court", "docketNumber", "hearingType", "reason", "parties"} {
			delete(p.payload, name)
		}
		sometimes(p.payload, "minutes", 5*(1+r.IntN(100)))
		sometimes(p.payload, "location", text(40))
		sometimes(p.payload, "remarks", text(2000))
		sometimes(p.payload, "sealed", r.IntN(2) == 0)
		sometimes(p.payload, "court", "adams:"+fmt.Sprint(r.IntN(9)))
		sometimes(p.payload, "docketNumber", text(20))
		sometimes(p.payload, "hearingType", text(40))
		sometimes(p.payload, "reason", "reason-"+fmt.Sprint(r.IntN(9)))
		sometimes(p.payload, "parties", []any{map[string]any{
			"partyID": "P1", "partyType": "IND", "partyRole": "DEF", "individualDetails": map[string]any{"firstName": text(30), "lastName": text(30)},
		}})
		event(kind, p.payload)
	}
	change("created")
	for range r.IntN(4) {
		change("updated")
	}
	if r.IntN(2) == 0 {
		p.payload["reason"] = "withdrawn"
		event("cancelled", p.payload)
		p.cancelled = true
		if r.IntN(2) == 0 {
			change("updated")
			p.cancelled = false
		}
	}
	return p
}

// one is the event of a new hearing.
var one = outbox.Event{
	ID: "01a00000-0000-7000-8000-000000000001", Type: "scheduling:created", Key: "H-2027-7", Version: new(int64(1)), OccurredAt: time.Date(2027, 2, 1, 9, 0, 0, 0, time.UTC),
	Payload: []byte(`{"hearingId":"H-2027-7","caseId":"1641911514704411","scheduledAt":"2027-03-15T09:30:00-04:00","minutes":90,"location":"3A","courtId":"685391","filedOn":"2027-01-04","title":"Hearing","docketNumber":"27-1"}`),
}

// life are the events of that hearing: it is changed and cancelled.
func life() []outbox.Event {
	created, updated, cancelled := one, one, one
	updated.ID, updated.Type, updated.Version = "01a00000-0000-7000-8000-000000000002", "scheduling:updated", new(int64(2))
	updated.Payload = []byte(strings.Replace(string(one.Payload), "03-15", "03-16", 1))
	cancelled.ID, cancelled.Type, cancelled.Version = "01a00000-0000-7000-8000-000000000003", "scheduling:cancelled", new(int64(3))
	cancelled.Payload = []byte(`{"hearingId":"H-2027-7","reason":"withdrawn"}`)
	return []outbox.Event{created, updated, cancelled}
}

// at is the time or the date of the hearing, in UTC.
func (p plan) at(t *testing.T) (at time.Time, dateOnly bool) {
	t.Helper()
	text := p.payload["scheduledAt"].(string)
	if at, err := time.Parse(time.DateOnly, text); err == nil {
		return at, true
	}
	at, err := time.Parse(time.RFC3339, text)
	if err != nil {
		t.Fatal(err)
	}
	return at.UTC(), false
}
