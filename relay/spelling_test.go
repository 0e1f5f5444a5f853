package relay_test

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"testing"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/relay"
)

func TestSimilarType(t *testing.T) {
	for _, tc := range []struct{ event, name, want string }{
		{"scheduling:canceled", "scheduling:cancelled", "scheduling:cancelled"},
		{"scheduling:cancelled", "scheduling:canceled", "scheduling:canceled"},
		{"Scheduling:Cancelled", "scheduling:cancelled", "scheduling:cancelled"},
		{"scheduling.cancelled", "scheduling:cancelled", "scheduling:cancelled"},
		{"scheduling:update", "scheduling:updated", "scheduling:updated"},
		{"hearing:recsheduled:v2", "hearing:rescheduled:v2", "hearing:rescheduled:v2"},
		{"schedling:moved", "scheduling:moved", "scheduling:moved"},
		// Two things, each with its own name:
		{"scheduling:created", "scheduling:updated", ""},
		{"scheduling:created", "scheduling:cancelled", ""},
		{"case:opened", "case:reopened", ""},
		{"case:reopened", "case:opened", ""},
		{"hearing:set", "hearing:reset", ""},
		{"light:on", "light:off", ""},
		{"hearing:updated:v1", "hearing:updated:v2", ""},
		{"hearing:updated", "hearing:updated:v2", ""},
		{"scheduling:canceled", "scheduling:cancel*d", ""},
		{"", "scheduling:cancelled", ""},
	} {
		if got := relay.SimilarType(tc.event, []string{"other:name", tc.name}); got != tc.want {
			t.Errorf("an event %s and an entry %s: got %q", tc.event, tc.name, got)
		}
	}
	if got := relay.SimilarType("scheduling:canceled", []string{"scheduling:cancelled", "scheduling:canceled"}); got != "" {
		t.Errorf("a type with an entry: got %q", got)
	}
}

// A route for scheduling:cancelled does nothing for a writer who spells it otherwise: the
// cancellation is sent as an update.
func TestATypeThatIsAlmostAnEntryIsSaidOnce(t *testing.T) {
	w := newWorld(t)
	c := newCourt(func(context.Context, adapters.Message, int) (adapters.Receipt, error) {
		return adapters.Receipt{Code: "HTTP 200"}, nil
	})
	var log bytes.Buffer
	config := sync1(c, func(s *relay.Sync) {
		s.When, s.TypeNames = `key != "unwanted"`, []string{"scheduling:cancelled", "scheduling:updated"}
	})
	config.Logger = slog.New(slog.NewTextHandler(&log, nil))
	r := w.start("relay-1", config)
	emit := func(eventType, key string) { w.exec(`SELECT outbox.emit($1, $2, '{}')`, eventType, key) }
	emit("scheduling:updated", "H-1")
	w.drained()
	emit("scheduling:update", "H-1") // an event had the name itself, so there are two types
	emit("scheduling:canceled", "unwanted")
	w.drained()
	emit("scheduling:canceled", "H-2")
	emit("scheduling:canceled", "H-3")
	w.drained()
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(log.String(), "almost the same"); n != 1 {
		t.Errorf("said %d times, want once:\n%s", n, log.String())
	}
	if want := "sync=CourtCalendarSync type=scheduling:canceled entry=scheduling:cancelled"; !strings.Contains(log.String(), want) {
		t.Errorf("no %s:\n%s", want, log.String())
	}
}
