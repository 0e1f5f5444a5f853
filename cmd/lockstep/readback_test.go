package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strconv"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// docket is a court that ignores idempotency keys: each POST is a new entry. It loses the
// answer to the first request of each idempotency key, after it took it or before.
type docket struct {
	*httptest.Server
	mu      sync.Mutex
	next    int
	entries map[int]map[string]any
	lost    map[string]bool
	changes int // requests that changed something
}

func newDocket(t *testing.T) *docket {
	t.Helper()
	d := &docket{entries: map[int]map[string]any{}, lost: map[string]bool{}}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /h", func(w http.ResponseWriter, r *http.Request) {
		d.change(w, r, func() (int, any) {
			entry := map[string]any{}
			if json.NewDecoder(r.Body).Decode(&entry) != nil {
				return http.StatusBadRequest, nil
			}
			d.next++
			entry["id"] = d.next
			d.entries[d.next] = entry
			return http.StatusCreated, entry
		})
	})
	mux.HandleFunc("PUT /h/{id}", func(w http.ResponseWriter, r *http.Request) {
		d.change(w, r, func() (int, any) {
			id, _ := strconv.Atoi(r.PathValue("id"))
			entry := map[string]any{}
			if d.entries[id] == nil || json.NewDecoder(r.Body).Decode(&entry) != nil {
				return http.StatusNotFound, map[string]any{"title": "no such entry"}
			}
			entry["id"] = id
			d.entries[id] = entry
			return http.StatusOK, entry
		})
	})
	mux.HandleFunc("DELETE /h/{id}", func(w http.ResponseWriter, r *http.Request) {
		d.change(w, r, func() (int, any) {
			id, _ := strconv.Atoi(r.PathValue("id"))
			if d.entries[id] == nil {
				return http.StatusNotFound, map[string]any{"title": "no such entry"}
			}
			delete(d.entries, id)
			return http.StatusNoContent, nil
		})
	})
	mux.HandleFunc("GET /h", func(w http.ResponseWriter, r *http.Request) {
		d.mu.Lock()
		defer d.mu.Unlock()
		found := []any{}
		for _, entry := range d.entries {
			if entry["case"] == r.FormValue("case") {
				found = append(found, entry)
			}
		}
		_ = json.NewEncoder(w).Encode(map[string]any{"entries": found})
	})
	d.Server = httptest.NewServer(mux)
	t.Cleanup(d.Close)
	return d
}

func (d *docket) change(w http.ResponseWriter, r *http.Request, do func() (int, any)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	key := r.Header.Get("Idempotency-Key")
	first := !d.lost[key]
	d.lost[key] = true
	if before := len(d.lost)%2 == 0; first && before {
		panic(http.ErrAbortHandler) // it was not taken
	}
	d.changes++
	status, answer := do()
	if first {
		panic(http.ErrAbortHandler) // it was taken
	}
	w.WriteHeader(status)
	if answer != nil {
		_ = json.NewEncoder(w).Encode(answer)
	}
}

// holds are the entries as texts: room and time by case. A case with several entries has
// all of them.
func (d *docket) holds() map[string]string {
	d.mu.Lock()
	defer d.mu.Unlock()
	held := map[string]string{}
	for _, e := range d.entries {
		name := fmt.Sprint(e["case"])
		held[name] += fmt.Sprintf("%v at %v;", e["room"], e["start"])
	}
	return held
}

const docketYAML = `
database: {url: "${DATABASE_URL}"}
relay: {poll: 20ms, name: relay-1}
listen: 127.0.0.1:0
syncs:
  - name: CourtCalendarSync
    events: ["scheduling:*"]
    mapping: {hearingId: case, scheduledAt: start, location: room}
    retry: {initial: 10ms, max: 50ms}
    adapter:
      kind: rest
      url: "%[1]s/h"
      external_id: /id
%[2]s
      read:
        url: "%[1]s/h?case={fields.case}"
        items: /entries
        found: [{path: /case, field: case}]
        equal: [{path: /start, field: start}, {path: /room, field: room}]
      routes:
        "scheduling:cancelled":
          method: DELETE
          url: "%[1]s/h/{ref.external_id}"
          body: none
          reference: forget
          without_id: skip
          outcomes: {404: duplicate}
%[3]s
`

// Every first answer is lost, on the way there or back. A court without idempotency keys
// ends with one right entry of each hearing, whether it can move an entry, or must be told
// to remove it and to book another.
func TestLostAnswersBookNothingTwice(t *testing.T) {
	for name, routes := range map[string][2]string{
		"a court that moves entries": {`      known: {method: PUT, url: "%[1]s/h/{ref.external_id}"}`, ""},
		"a court that only books and removes": {"", `        "scheduling:updated":
          method: POST
          known:
            method: DELETE
            url: "%[1]s/h/{ref.external_id}"
            body: none
            reference: forget
            outcomes: {404: duplicate}
            then: [{method: POST}]`},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			d := newDocket(t)
			w.configure(fmt.Sprintf(docketYAML, d.URL, fmt.Sprintf(routes[0]+"%.0[1]s", d.URL), fmt.Sprintf(routes[1]+"%.0[1]s", d.URL)))
			write := func(typ, key, at, room string) {
				t.Helper()
				ask[string](w, `INSERT INTO outbox.event (type, key, payload) VALUES ($1, $2::text, jsonb_build_object('hearingId', $2::text, 'scheduledAt', $3::text, 'location', $4::text)) RETURNING id::text`, typ, key, at, room)
			}
			want := map[string]string{}
			for n := range 8 {
				key := fmt.Sprintf("H-%d", n)
				write("scheduling:created", key, "2027-03-15T09:30:00Z", "1A")
				write("scheduling:updated", key, "2027-03-16T09:30:00Z", "1A")
				write("scheduling:updated", key, "2027-03-16T10:30:00Z", "2B")
				if want[key] = "2B at 2027-03-16T10:30:00Z;"; n >= 6 {
					write("scheduling:cancelled", key, "2027-03-16T10:30:00Z", "2B")
					delete(want, key)
				}
			}
			w.relayUntil(`SELECT NOT EXISTS (SELECT FROM outbox.event AS e WHERE NOT EXISTS (SELECT FROM outbox.delivery_log AS l WHERE l.event_id = e.id AND outbox.ends_delivery(l.outcome)))`)
			if diff := cmp.Diff(want, d.holds()); diff != "" {
				t.Errorf("the court holds (-want +got):\n%s", diff)
			}
			if n := ask[int](w, `SELECT count(*)::int FROM outbox.delivery_log WHERE outcome = 'read' AND error IS NULL`); n == 0 {
				t.Error("nothing was read")
			}
			if n := ask[int](w, `SELECT count(*)::int FROM outbox.delivery_log WHERE outcome = 'duplicate' AND attempt IS NULL OR outcome = 'step' AND attempt IS NULL`); n == 0 {
				t.Error("nothing was settled by reading")
			}
			if n := ask[int](w, `SELECT count(*)::int FROM outbox.delivery_log WHERE outcome = 'unknown'`); n < 8 {
				t.Errorf("only %d answers were lost", n)
			}
		})
	}
}
