package relay_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/hms-mkt/lockstep/outbox"
)

// A migration changes the schema while relays run. A relay that the schema still serves continues. The
// others end with an error and send nothing more.
func TestRelayEndsWhenASchemaNoLongerServesIt(t *testing.T) {
	w := newWorld(t)
	c := newCourt(accepts)
	r := w.start("relay-1", sync1(c))
	w.emit("H-1", map[string]any{"n": 1})
	w.drained()

	w.exec(fmt.Sprintf(`INSERT INTO outbox.goose_db_version (version_id, is_applied) VALUES (%d, true)`, outbox.Schema+1))
	w.emit("H-1", map[string]any{"n": 2})
	w.drained()
	if err := r.Ready(t.Context()); err != nil {
		t.Errorf("a newer schema that serves this relay: %v", err)
	}

	w.exec(fmt.Sprintf(`CREATE OR REPLACE FUNCTION outbox.oldest_relay() RETURNS bigint LANGUAGE sql STABLE AS 'SELECT %d::bigint'`, outbox.Schema+1))
	select {
	case err := <-r.done:
		r.done <- err
		if !errors.Is(err, outbox.ErrSchema) {
			t.Fatalf("Run returned %v, want ErrSchema", err)
		}
	case <-time.After(patience):
		t.Fatal("the relay continues")
	}
	if r.Ready(t.Context()) == nil {
		t.Error("ready after its end")
	}
	w.emit("H-1", map[string]any{"n": 3})
	again := w.start("relay-2", sync1(c))
	if err := <-again.done; !errors.Is(err, outbox.ErrSchema) || !strings.Contains(err.Error(), "install a newer lockstep") {
		t.Errorf("a second start: %v", err)
	} else {
		again.done <- err
	}
	if n := c.count(); n != 2 {
		t.Errorf("%d sent, want 2", n)
	}
}
