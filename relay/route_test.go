package relay_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/outbox"
	"github.com/hms-mkt/lockstep/relay"
	"github.com/hms-mkt/lockstep/relay/mapping"
)

// routed is a court that creates or updates by what is known of the key.
type routed struct{ *court }

func (routed) Route(m adapters.Message) string {
	if m.Ref.ExternalID != "" {
		return "known"
	}
	return ""
}

func (routed) Routes() []adapters.Route {
	return []adapters.Route{{}, {Name: "known", Keys: []string{"known"}}}
}

// createOrUpdate has a mapping for each route.
func createOrUpdate(c *court) relay.Config {
	return sync1(routed{c}, func(s *relay.Sync) {
		s.Mapping = relay.Mapping{Fields: []relay.Field{{From: "a", To: "created"}}}
		s.Routes = map[string]relay.Mapping{"known": {
			Fields:  []relay.Field{{From: "a", To: "updated"}},
			Compute: []relay.Computed{{To: "entry", Expr: "ref.external_id"}},
		}}
	})
}

// sent lists the requests: idempotency key and body.
func sent(c *court) (all []string) {
	for _, m := range c.got() {
		all = append(all, strings.ReplaceAll(m.IdempotencyKey, m.ID, "id")+" "+string(m.Body))
	}
	return all
}

// logged lists the attempts: outcome, class, and the route of the mapping version.
func (w *world) logged() string {
	return query[string](w, `SELECT string_agg(concat_ws(' ', outcome, error_class, nullif(split_part(mapping_version, '/', 2), '')), ', ' ORDER BY id) FROM outbox.delivery_log WHERE attempt IS NOT NULL AND outcome <> 'requeued'`)
}

// A retry on the same route sends the same bytes. On another route, because an id was learnt,
// it sends another body, so it has another idempotency key.
func TestRetryOnAnotherRouteIsAnotherRequest(t *testing.T) {
	w := newWorld(t)
	c := newCourt(func(_ context.Context, _ adapters.Message, nth int) (adapters.Receipt, error) {
		switch nth {
		case 1:
			return adapters.Receipt{Code: "HTTP 503"}, errors.New("HTTP 503")
		case 2:
			w.exec(`INSERT INTO outbox.external_ref (sync, key, external_id, event_seq) VALUES ('CourtCalendarSync', 'H-1', 'C-7', 0)`)
			return adapters.Receipt{Code: "HTTP 503"}, errors.New("HTTP 503")
		}
		return adapters.Receipt{Code: "HTTP 200"}, nil
	})
	w.start("relay-1", createOrUpdate(c))
	w.emit("H-1", map[string]any{"a": 1})
	w.drained()
	want := []string{`id {"created":1}`, `id {"created":1}`, `id:2 {"updated":1,"entry":"C-7"}`}
	if diff := cmp.Diff(want, sent(c)); diff != "" {
		t.Errorf("requests (-want +got):\n%s", diff)
	}
	if got, want := w.logged(), "retry transient, retry transient, delivered known"; got != want {
		t.Errorf("log: %s, want %s", got, want)
	}
}

// A person sets another id while a delivery waits for its retry. The request goes to the new
// record, so a body with the id is made again, and has another idempotency key. A body without
// it stays.
func TestRetryAfterAReferenceWasSetIsAnotherRequest(t *testing.T) {
	for name, tc := range map[string]struct {
		mapping relay.Mapping
		want    []string
	}{
		"a body with the id": {
			relay.Mapping{Compute: []relay.Computed{{To: "entry", Expr: "ref.external_id"}}},
			[]string{`id {"entry":"old"}`, `id:2 {"entry":"new"}`, `id:2 {"entry":"new"}`},
		},
		"a body without it": {
			relay.Mapping{Compute: []relay.Computed{{To: "a", Expr: "event.a"}}},
			[]string{`id {"a":1}`, `id {"a":1}`, `id {"a":1}`},
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			c := newCourt(func(_ context.Context, _ adapters.Message, nth int) (adapters.Receipt, error) {
				if nth == 1 {
					w.exec(`SELECT outbox.set_reference('CourtCalendarSync', 'H-1', 'new', NULL, 'r')`)
				}
				if nth <= 2 {
					return adapters.Receipt{Code: "HTTP 503"}, errors.New("HTTP 503")
				}
				return adapters.Receipt{Code: "HTTP 200"}, nil
			})
			w.exec(`INSERT INTO outbox.external_ref (sync, key, external_id, event_seq) VALUES ('CourtCalendarSync', 'H-1', 'old', 0)`)
			w.start("relay-1", sync1(c, func(s *relay.Sync) { s.Mapping, s.Per = tc.mapping, "key" }))
			w.emit("H-1", map[string]any{"a": 1})
			w.drained()
			if diff := cmp.Diff(tc.want, sent(c)); diff != "" {
				t.Errorf("requests (-want +got):\n%s", diff)
			}
		})
	}
}

// An attempt on another route that sends nothing leaves the body of the first route. That body
// must not go to the other route.
func TestBodyStaysOnItsRouteIfNothingWasSent(t *testing.T) {
	w := newWorld(t)
	c := newCourt(func(_ context.Context, _ adapters.Message, nth int) (adapters.Receipt, error) {
		switch nth {
		case 1:
			w.exec(`INSERT INTO outbox.external_ref (sync, key, external_id, event_seq) VALUES ('CourtCalendarSync', 'H-1', 'C-7', 0)`)
			return adapters.Receipt{Code: "HTTP 503"}, errors.New("HTTP 503")
		case 2, 3:
			return adapters.Receipt{}, adapters.Local(errors.New("nothing was sent: no file descriptor"))
		}
		return adapters.Receipt{Code: "HTTP 200"}, nil
	})
	config := createOrUpdate(c)
	config.Syncs[0].Routes["known"] = relay.Mapping{Fields: []relay.Field{{From: "a", To: "updated"}}} // a body with ref is made again in any case
	w.start("relay-1", config)
	w.emit("H-1", map[string]any{"a": 1})
	w.drained()
	updated := `id:2 {"updated":1}`
	if diff := cmp.Diff([]string{`id {"created":1}`, updated, updated, updated}, sent(c)); diff != "" {
		t.Errorf("requests (-want +got):\n%s", diff)
	}
}

// The route counts even if the bodies are equal, also over a requeue.
func TestRequeueOnAnotherRouteHasAnotherKey(t *testing.T) {
	w := newWorld(t)
	c := newCourt(func(_ context.Context, _ adapters.Message, nth int) (adapters.Receipt, error) {
		if nth <= 2 {
			return adapters.Receipt{Code: "HTTP 422"}, adapters.Permanent(errors.New("HTTP 422"))
		}
		return adapters.Receipt{Code: "HTTP 200"}, nil
	})
	w.start("relay-1", sync1(routed{c}))
	w.emit("H-1", map[string]any{"a": 1})
	failed := func(times int) {
		w.counts("failures", times, `SELECT count(*) FROM outbox.delivery_log WHERE outcome = 'failed'`)
	}
	failed(1)
	w.exec(`SELECT outbox.requeue('CourtCalendarSync')`)
	failed(2)
	w.exec(`INSERT INTO outbox.external_ref (sync, key, external_id, event_seq) VALUES ('CourtCalendarSync', 'H-1', 'C-7', 0)`)
	w.exec(`SELECT outbox.requeue('CourtCalendarSync')`)
	w.drained()
	want := []string{`id {"a":1}`, `id {"a":1}`, `id:2 {"a":1}`}
	if diff := cmp.Diff(want, sent(c)); diff != "" {
		t.Errorf("requests (-want +got):\n%s", diff)
	}
}

// A success may make the relay forget the record, as a cancellation does. The next event of
// the key creates it again, also one that waits in the same lane.
func TestForgottenRecordIsCreatedAgain(t *testing.T) {
	w := newWorld(t)
	created := 0
	c := newCourt(func(_ context.Context, m adapters.Message, _ int) (adapters.Receipt, error) {
		if m.Ref.ExternalID == "" {
			created++
			return adapters.Receipt{Code: "HTTP 201", Ref: &adapters.Ref{ExternalID: fmt.Sprint("C-", created), ETag: `"v"`, Learned: map[string]string{"n": "1"}}}, nil
		}
		return adapters.Receipt{Code: "HTTP 204", Ref: &adapters.Ref{Version: m.Version}}, nil
	})
	for a := range 4 {
		w.emit("H-1", map[string]any{"a": a})
	}
	w.start("relay-1", createOrUpdate(c))
	w.drained()
	want := []string{`id {"created":0}`, `id {"updated":1,"entry":"C-1"}`, `id {"created":2}`, `id {"updated":3,"entry":"C-2"}`}
	if diff := cmp.Diff(want, sent(c)); diff != "" {
		t.Errorf("requests (-want +got):\n%s", diff)
	}
	if got := query[int](w, `SELECT count(*) FROM outbox.external_ref WHERE coalesce(external_id, etag) IS NULL AND learned = '{}'`); got != 1 {
		t.Error("the reference is not forgotten")
	}
}

// A receiver that has lost the record gets it again: the id is forgotten and the row does not
// fail.
func TestRecordThatIsGoneIsCreatedAgain(t *testing.T) {
	w := newWorld(t)
	created := 0
	c := newCourt(func(_ context.Context, m adapters.Message, _ int) (adapters.Receipt, error) {
		if m.Ref.ExternalID == "C-1" {
			return adapters.Receipt{Code: "HTTP 404", Ref: &adapters.Ref{}}, adapters.Conflict(errors.New("HTTP 404: it is gone"))
		}
		created++
		return adapters.Receipt{Code: "HTTP 201", Ref: &adapters.Ref{ExternalID: fmt.Sprint("C-", created), Learned: map[string]string{"n": "1"}}}, nil
	})
	w.start("relay-1", createOrUpdate(c))
	w.emit("H-1", map[string]any{"a": 1})
	w.drained()
	w.emit("H-1", map[string]any{"a": 2})
	w.drained()
	want := []string{`id {"created":1}`, `id {"updated":2,"entry":"C-1"}`, `id:2 {"created":2}`}
	if diff := cmp.Diff(want, sent(c)); diff != "" {
		t.Errorf("requests (-want +got):\n%s", diff)
	}
	if got, want := w.logged(), "delivered, retry conflict known, delivered"; got != want {
		t.Errorf("log: %s, want %s", got, want)
	}
	if got := query[string](w, `SELECT external_id FROM outbox.external_ref`); got != "C-2" {
		t.Errorf("the id is %s", got)
	}
}

// An adapter whose every answer moves the reference does not go round in circles.
func TestRecordThatIsGoneTwiceFails(t *testing.T) {
	w := newWorld(t)
	c := newCourt(func(context.Context, adapters.Message, int) (adapters.Receipt, error) {
		return adapters.Receipt{Code: "HTTP 404", Ref: &adapters.Ref{ExternalID: "C-1"}}, adapters.Conflict(errors.New("HTTP 404: it is gone"))
	})
	w.start("relay-1", sync1(c))
	w.emit("H-1", map[string]any{"a": 1})
	w.counts("failed", 1, `SELECT count(*) FROM outbox.delivery WHERE state = 'failed'`)
	if got := c.count(); got != 2 {
		t.Errorf("%d attempts, want 2", got)
	}
}

// The new key of another body is in the body too, if it has the key.
func TestBodyHasItsIdempotencyKey(t *testing.T) {
	w := newWorld(t)
	c := newCourt(func(_ context.Context, _ adapters.Message, nth int) (adapters.Receipt, error) {
		if nth == 1 {
			return adapters.Receipt{Code: "HTTP 422"}, adapters.Permanent(errors.New("HTTP 422"))
		}
		return adapters.Receipt{Code: "HTTP 200"}, nil
	})
	mapped := func(to string) relay.Config {
		return sync1(c, func(s *relay.Sync) {
			s.Mapping = relay.Mapping{Fields: []relay.Field{{From: "a", To: to}}, Compute: []relay.Computed{{To: "key", Expr: "idempotency_key"}}}
		})
	}
	r := w.start("relay-1", mapped("old"))
	id := w.emit("H-1", map[string]any{"a": 1})
	w.counts("failed", 1, `SELECT count(*) FROM outbox.delivery WHERE state = 'failed'`)
	if _, err := r.Reload(mapped("new")); err != nil {
		t.Fatal(err)
	}
	w.exec(`SELECT outbox.requeue('CourtCalendarSync')`)
	w.drained()
	w.exec(`SELECT outbox.replay('CourtCalendarSync', $1, 'try')`, id)
	w.drained()
	want := []string{`id {"old":1,"key":"id"}`, `id:2 {"new":1,"key":"id:2"}`, `id:3 {"new":1,"key":"id:3"}`}
	got := sent(c)
	for i := range got {
		got[i] = strings.ReplaceAll(got[i], id, "id")
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("requests (-want +got):\n%s", diff)
	}
}

// Learnt values are kept for the next events of the key, within bounds.
func TestLearntValuesReachTheNextRequest(t *testing.T) {
	w := newWorld(t)
	version := 0
	c := newCourt(func(context.Context, adapters.Message, int) (adapters.Receipt, error) {
		version++
		learned := map[string]string{"version": fmt.Sprint(version), "long": strings.Repeat("x", adapters.MaxRef+1), "line": "a\nb", "quote": `a"b\`}
		for i := range adapters.MaxLearned {
			learned[fmt.Sprint("x", i)] = "x"
		}
		return adapters.Receipt{Code: "HTTP 200", Ref: &adapters.Ref{ExternalID: "C-7", Learned: learned}}, nil
	})
	w.start("relay-1", sync1(c, func(s *relay.Sync) {
		s.Mapping = relay.Mapping{Compute: []relay.Computed{{To: "quote", Expr: "ref.quote", Optional: true}, {To: "x", Expr: `int(ref.x0 == nil ? "0" : "1")`}}}
	}))
	for range 2 {
		w.emit("H-1", map[string]any{})
		w.drained()
	}
	if diff := cmp.Diff([]string{`id {"x":0}`, `id {"quote":"a\"b\\","x":1}`}, sent(c)); diff != "" {
		t.Errorf("requests (-want +got):\n%s", diff)
	}
	learned := c.got()[1].Ref.Learned
	if len(learned) != adapters.MaxLearned || learned["quote"] != `a"b\` || learned["long"] != "" || learned["line"] != "" {
		t.Errorf("learnt %v", learned)
	}
}

// Mapper gives what the relay uses, for programs that show a request.
func TestMapperOfARoute(t *testing.T) {
	s := createOrUpdate(newCourt(accepts)).Syncs[0]
	for _, tc := range []struct {
		ref  adapters.Ref
		want string
	}{{adapters.Ref{}, `{"created":1}`}, {adapters.Ref{ExternalID: "C-7"}, `{"updated":1,"entry":"C-7"}/known`}} {
		m, version, err := s.Mapper(adapters.Message{Ref: tc.ref})
		if err != nil {
			t.Fatal(err)
		}
		body, err := m.Map(outbox.Event{Payload: []byte(`{"a":1}`)}, mapping.Sending{Ref: outbox.Ref{ExternalID: tc.ref.ExternalID}}, nil)
		if got := string(body) + strings.TrimPrefix(version, m.Version()); err != nil || got != tc.want {
			t.Errorf("got %s, %v, want %s", got, err, tc.want)
		}
	}
}

// shaped is a court whose adapter makes a body of its own from the fields.
type shaped struct {
	*court
	shape string
}

func (a shaped) Shape(adapters.Message) string { return a.shape }

// A reload or a restart changes the template of the adapter. A retry would send other bytes, so
// it has another idempotency key. The new bytes then stay.
func TestRetryInAnotherShapeIsAnotherRequest(t *testing.T) {
	for _, again := range []string{"a reload", "a restart"} {
		t.Run(again, func(t *testing.T) {
			w := newWorld(t)
			var healed atomic.Bool
			c := newCourt(func(context.Context, adapters.Message, int) (adapters.Receipt, error) {
				if healed.Load() {
					return adapters.Receipt{Code: "HTTP 200"}, nil
				}
				return adapters.Receipt{Code: "HTTP 503"}, errors.New("HTTP 503")
			})
			shape := func(name string) relay.Config { return sync1(shaped{c, name}) }
			r := w.start("relay-1", shape(""))
			w.emit("H-1", map[string]any{"a": 1})
			w.eventually("sent with the id", func() bool { return slices.Contains(sent(c), `id {"a":1}`) })
			if again == "a reload" {
				if _, err := r.Reload(shape("5f0c")); err != nil {
					t.Fatal(err)
				}
			} else {
				if err := r.stop(); err != nil {
					t.Fatal(err)
				}
				w.start("relay-2", shape("5f0c"))
			}
			w.eventually("sent twice with another key", func() bool {
				all := sent(c)
				return len(all) > 2 && all[len(all)-1] == `id:2 {"a":1}` && all[len(all)-2] == `id:2 {"a":1}`
			})
			healed.Store(true)
			w.drained()
			if all := sent(c); all[len(all)-1] != `id:2 {"a":1}` {
				t.Errorf("requests %s", all)
			}
			if version := query[string](w, `SELECT mapping_version FROM outbox.delivery_log WHERE outcome = 'delivered'`); !strings.HasSuffix(version, ".5f0c") {
				t.Errorf("mapping_version %s", version)
			}
		})
	}
}
