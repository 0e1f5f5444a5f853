package scheduling_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/hms-mkt/lockstep/internal/scheduling"
)

// register adds a sync, as a relay does at its start.
func (c *clinic) register(name, pattern string) {
	c.t.Helper()
	c.exec("INSERT INTO outbox.sync (name, patterns) VALUES ($1, ARRAY[$2])", name, pattern)
}

// answered records an answer of the court to the first open event of hearing H-1,
// like a relay: the log gets a row, the delivery is closed.
func (c *clinic) answered(sync, outcome string) {
	c.t.Helper()
	c.exec(`WITH head AS (
		DELETE FROM outbox.delivery
		 WHERE (sync, key, event_seq) = (SELECT sync, key, event_seq FROM outbox.delivery
		                                  WHERE sync = $1 AND key = $2 ORDER BY event_seq LIMIT 1)
		RETURNING event_id)
		INSERT INTO outbox.delivery_log (sync, event_id, event_type, key, version, attempt, revision, outcome, code, answered_at)
		SELECT $1, e.id, e.type, e.key, e.version, 1, 1, $3, 'HTTP 201', clock_timestamp()
		  FROM head JOIN outbox.event AS e ON e.id = head.event_id`, sync, "H-1", outcome)
}

// court asks for hearing H-1 and returns the answer for one sync.
func (c *clinic) court(sync string) scheduling.Knowledge {
	c.t.Helper()
	h := decodeAs[hearing](c.call("GET", "/hearings/H-1", "").want(200))
	for _, k := range h.Court {
		if k.Sync == sync {
			return k
		}
	}
	c.t.Fatalf("nothing is said about sync %q: %+v", sync, h.Court)
	return scheduling.Knowledge{}
}

func TestEachHearingSaysWhetherTheCourtHasGotIt(t *testing.T) {
	c := open(t)
	c.register("CourtCalendarSync", "scheduling:*")
	c.register("Clinic", "clinic:*")
	c.book("H-1", nil).want(201)
	const sync = "CourtCalendarSync"
	check := func(when string, gotIt bool, state string, version int64, says ...string) {
		t.Helper()
		k := c.court(sync)
		if k.GotIt == nil || *k.GotIt != gotIt || k.State != state {
			t.Errorf("%s: got_it %v, state %s; want %v, %s", when, k.GotIt, k.State, gotIt, state)
		}
		if (k.Version == nil) != (version == 0) || k.Version != nil && *k.Version != version {
			t.Errorf("%s: the court is said to hold %v, want %d", when, k.Version, version)
		}
		if (k.At == nil) != (version == 0) {
			t.Errorf("%s: the time is %v", when, k.At)
		}
		for _, want := range says {
			if !strings.Contains(k.Says, want) || strings.HasPrefix(k.Says, sync) {
				t.Errorf("%s: says %q, want it to say %q", when, k.Says, want)
			}
		}
	}
	check("booked", false, "waiting", 0, "waits for a relay", "the court knows nothing of this hearing yet")
	c.answered(sync, "delivered")
	check("delivered", true, "delivered", 1, "delivered at 2")

	c.call("POST", "/hearings/H-1/reschedule", `{"local_start":"2027-11-15T14:30"}`).want(200)
	check("rescheduled", false, "waiting", 1, "the receiver holds version 1 of 2")
	c.exec(`INSERT INTO outbox.lane (sync, key, due_at, claim, claimed_by)
		VALUES ('CourtCalendarSync', 'H-1', clock_timestamp() + interval '1 minute', gen_random_uuid(), 'relay-1')`)
	check("in flight", false, "sending", 1, "being sent by relay-1")
	c.exec(`DELETE FROM outbox.lane`)
	c.exec(`UPDATE outbox.delivery SET state = 'failed', due_at = 'infinity',
		error_class = 'permanent', error = 'HTTP 422 unknown courtroom' WHERE key = 'H-1'`)
	check("failed", false, "failed", 1, "HTTP 422 unknown courtroom", "the receiver holds version 1 of 2")

	c.call("POST", "/hearings/H-1/cancel", `{"reason":"settled"}`).want(200)
	check("cancelled behind a failed change", false, "waiting", 1, "waits behind event", "the receiver holds version 1 of 3")
	c.answered(sync, "duplicate")
	check("the change went through", false, "waiting", 2, "the receiver holds version 2 of 3")
	c.answered(sync, "accepted")
	check("the cancellation went through", true, "accepted", 3, "accepted for later processing")

	if h := decodeAs[hearing](c.call("GET", "/hearings/H-1", "").want(200)); len(h.Court) != 1 {
		t.Errorf("syncs that do not carry hearings are shown: %+v", h.Court)
	}
}

func TestAReplayOfAnOlderVersionIsShown(t *testing.T) {
	c := open(t)
	c.register("Court", "scheduling:*")
	c.book("H-1", nil).want(201)
	c.answered("Court", "delivered")
	c.call("POST", "/hearings/H-1/reschedule", `{"local_start":"2027-11-15T14:30"}`).want(200)
	c.answered("Court", "delivered")
	c.exec(`SELECT outbox.replay('Court', (SELECT id FROM outbox.event WHERE key = 'H-1' AND version = 1), 'asked for')`)
	if k := c.court("Court"); k.GotIt == nil || !*k.GotIt {
		t.Errorf("before the replay is sent: %+v", k)
	}
	c.answered("Court", "delivered")
	if k := c.court("Court"); k.GotIt == nil || *k.GotIt || *k.Version != 1 || !strings.Contains(k.Says, "version 1 of 2") {
		t.Errorf("the court got the older version last, but the clerk reads %+v", k)
	}
}

// A clerk must not wait for an answer that never comes: got_it is false only while this
// version may still reach the court.
func TestNobodyWaitsForWhatIsNotSent(t *testing.T) {
	for name, tc := range map[string]struct {
		prepare func(c *clinic)
		gotIt   string
		state   string
		version int64
		says    string
	}{
		"no sync takes hearings": {
			func(c *clinic) { c.book("H-1", nil).want(201) },
			"null", "not_sent", 0, "no sync matches",
		},
		"filtered": {
			func(c *clinic) {
				c.register("Court", "scheduling:*")
				c.book("H-1", nil).want(201)
				c.answered("Court", "filtered")
			},
			"null", "filtered", 0, "did not match; the court knows nothing of this hearing",
		},
		"discarded": {
			func(c *clinic) {
				c.register("Court", "scheduling:*")
				c.book("H-1", nil).want(201)
				c.exec(`SELECT outbox.discard('Court', (SELECT id FROM outbox.event), 'entered by hand')`)
			},
			"null", "discarded", 0, "entered by hand; the court knows nothing of this hearing",
		},
		"retired before the booking": {
			func(c *clinic) {
				c.register("Court", "scheduling:*")
				c.exec(`SELECT outbox.retire('Court', 'the court moved')`)
				c.book("H-1", nil).want(201)
			},
			"null", "retired", 0, "the court knows nothing of this hearing",
		},
		"retired between two versions": {
			func(c *clinic) {
				c.register("Court", "scheduling:*")
				c.book("H-1", nil).want(201)
				c.answered("Court", "delivered")
				c.exec(`SELECT outbox.retire('Court', 'the court moved')`)
				c.call("POST", "/hearings/H-1/reschedule", `{"local_start":"2027-11-15T14:30"}`).want(200)
			},
			"null", "retired", 1, "the receiver holds version 1 of 2",
		},
		"retired after the delivery": {
			func(c *clinic) {
				c.register("Court", "scheduling:*")
				c.book("H-1", nil).want(201)
				c.answered("Court", "delivered")
				c.exec(`SELECT outbox.retire('Court', 'the court moved')`)
			},
			"true", "delivered", 1, "delivered at",
		},
		"retired with open work": {
			func(c *clinic) {
				c.register("Court", "scheduling:*")
				c.book("H-1", nil).want(201)
				c.exec(`SELECT outbox.retire('Court', 'the court moved')`)
			},
			"false", "waiting", 0, "waits for a relay",
		},
		"not of a type that the sync takes": {
			func(c *clinic) {
				c.register("Court", "scheduling:created")
				c.register("Other", "scheduling:*")
				c.book("H-1", nil).want(201)
				c.answered("Court", "delivered")
				c.call("POST", "/hearings/H-1/cancel", `{"reason":"settled"}`).want(200)
			},
			"null", "not_sent", 1, "do not match type scheduling:cancelled; the receiver holds version 1 of 2",
		},
		"written before the sync": {
			func(c *clinic) {
				c.register("Other", "clinic:*")
				c.book("H-1", nil).want(201)
				c.register("Court", "scheduling:*")
			},
			"null", "not_sent", 0, "before the sync took events",
		},
		"still being added": {
			func(c *clinic) {
				c.book("H-1", nil).want(201)
				c.register("Court", "scheduling:*")
				c.exec(`UPDATE outbox.sync SET backfill_seq = 0`)
			},
			"false", "waiting", 0, "are still being added",
		},
		"written with triggers off": {
			func(c *clinic) {
				c.register("Court", "scheduling:*")
				c.book("H-1", nil).want(201)
				c.exec(`DELETE FROM outbox.delivery`)
				c.exec(`SELECT outbox.find_missed(0, 100)`)
			},
			"false", "missed", 0, "lockstep repair",
		},
		"failed": {
			func(c *clinic) {
				c.register("Court", "scheduling:*")
				c.book("H-1", nil).want(201)
				c.exec(`UPDATE outbox.delivery SET state = 'failed', due_at = 'infinity', error_class = 'permanent', error = 'HTTP 422'`)
			},
			"false", "failed", 0, "waits for an operator",
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := open(t)
			tc.prepare(c)
			sync := "Court"
			if tc.gotIt == "null" && tc.says == "no sync matches" {
				sync = ""
			}
			k := c.court(sync)
			b, err := json.Marshal(k)
			if err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(string(b), `"got_it":`+tc.gotIt+`,"state":"`+tc.state+`"`) || !strings.Contains(k.Says, tc.says) || strings.HasSuffix(k.Says, "yet") != (tc.gotIt == "false") {
				t.Errorf("got %s, want got_it %s, state %s, and it says %q", b, tc.gotIt, tc.state, tc.says)
			}
			if (k.Version == nil) != (tc.version == 0) || k.Version != nil && *k.Version != tc.version {
				t.Errorf("the court is said to hold %v, want %d", k.Version, tc.version)
			}
		})
	}
}
