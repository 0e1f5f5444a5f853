package outbox_test

import (
	"testing"

	"github.com/hms-mkt/lockstep/internal/outboxtest"
	"github.com/hms-mkt/lockstep/internal/pgtest"
	"github.com/hms-mkt/lockstep/outbox"
)

// A sync that takes all types does not take operator events yet: adding their pattern is a
// change that needs a backfill, which adds the retained ones that are not about the sync.
func TestOperatorEventsAreAdded(t *testing.T) {
	url := pgtest.New(t)
	d, r := outboxtest.Connect(t, url), outboxtest.OpenRelay(t, url)
	for _, sync := range []string{"court", "clinic"} {
		d.Sync(sync, "*")
	}
	d.Sync("chat", "lockstep:*")
	for _, sync := range []string{"court", "clinic"} {
		d.Do("SELECT outbox.pause($1, 'it moves')", sync)
	}
	d.Do("SELECT outbox.raise_alerts()")
	reg := outbox.Registration{Name: "court", Patterns: []string{"*", "lockstep:*"}, OnFailed: "block", From: "beginning"}
	_, err := r.Apply(t.Context(), reg)
	outboxtest.Must(t, err)
	if waits := outboxtest.One[bool](d, "SELECT backfill_waits FROM outbox.sync WHERE name = 'court'"); !waits {
		t.Error("the change does not wait for older transactions")
	}
	for b := r.NewBackfill("court"); ; {
		complete, _, err := b.Step(t.Context(), 1000)
		outboxtest.Must(t, err)
		if complete {
			break
		}
	}
	if got := outboxtest.List[string](d, "SELECT key FROM outbox.delivery WHERE sync = 'court'"); len(got) != 1 || got[0] != "clinic" {
		t.Errorf("events about %v were added to court, want clinic", got)
	}
}
