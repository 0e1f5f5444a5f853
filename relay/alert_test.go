package relay_test

import (
	"encoding/json"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/hms-mkt/lockstep/relay"
)

// alertCounter counts what operator events tell.
type alertCounter struct {
	claimCounter
	failed atomic.Int64
}

func (c *alertCounter) Alert(event, _ string, n int64) {
	if event == "lockstep:failed" {
		c.failed.Add(n)
	}
}

// Two relays serve a court that refuses hearings. One of them tells it, and the chat gets one
// event.
func TestAFailureIsToldToAChat(t *testing.T) {
	w := newWorld(t)
	court := newCourt(accepts)
	chat := newCourt(accepts)
	config := sync1(court)
	config.Syncs = append(config.Syncs, relay.Sync{Name: "Chat", Events: []string{"lockstep:*"}, Adapter: chat})
	w.register(config)
	for _, key := range []string{"H-1", "H-2", "H-3"} {
		w.emit(key, map[string]any{"n": 1})
	}
	// They have failed before a relay looks for the first time.
	w.exec(`UPDATE outbox.delivery SET state = 'failed', due_at = 'infinity', error_class = 'permanent', error = 'HTTP 422: no such courtroom'`)
	var log logBuffer
	var counter alertCounter
	config.Logger, config.Observer = slog.New(slog.NewTextHandler(&log, nil)), &counter
	relays := []*running{w.start("relay-1", config), w.start("relay-2", config)}
	w.eventually("the chat is told", func() bool { return chat.count() > 0 })
	w.eventually("the chat has it", func() bool {
		return query[bool](w, `SELECT NOT EXISTS (SELECT FROM outbox.delivery WHERE sync = 'Chat')`)
	})
	for _, r := range relays {
		if err := r.stop(); err != nil {
			t.Error(err)
		}
	}
	var got []string
	for _, m := range chat.got() {
		var payload struct{ Says string }
		if err := json.Unmarshal(m.Body, &payload); err != nil {
			t.Error(err)
		}
		got = append(got, m.Type+" "+m.Key+": "+payload.Says)
	}
	want := `lockstep:failed CourtCalendarSync: sync "CourtCalendarSync" has 3 failed deliveries; one is of key H-1, with permanent: HTTP 422: no such courtroom`
	if len(got) != 1 || got[0] != want {
		t.Errorf("the chat got\n%s\nwant\n%s", strings.Join(got, "\n"), want)
	}
	if n := counter.failed.Load(); n != 3 {
		t.Errorf("%d failures were counted", n)
	}
	if !log.contains(`level=WARN msg=alert type=lockstep:failed sync=CourtCalendarSync says="sync \"CourtCalendarSync\" has 3 failed`) {
		t.Errorf("the log lacks it:\n%s", log.text.String())
	}
}
