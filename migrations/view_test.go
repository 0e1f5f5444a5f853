package migrations_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/hms-mkt/lockstep/internal/outboxtest"
	"github.com/hms-mkt/lockstep/internal/pgtest"
)

func TestViewsCountAMixedSituation(t *testing.T) {
	url := pgtest.New(t)
	d := outboxtest.Connect(t, url)
	d.Sync("court", "scheduling:*")
	d.Sync("idle", "nothing:*")
	retry := func(id string) {
		d.Do("UPDATE outbox.delivery SET state = 'retry', due_at = now() + interval '1 hour', attempts = 1, error_class = 'transient', error = 'HTTP 502' WHERE event_id = $1", id)
	}
	failed := d.Event("failed, two behind")
	d.Event("failed, two behind")
	d.Event("failed, two behind")
	d.Fail(failed)
	d.Fail(d.Event("failed alone"))
	again := d.Event("retry, one behind")
	d.Event("retry, one behind")
	retry(again)
	retry(d.Event("retry alone"))
	d.Send(d.Event("sending, one behind"))
	d.Event("sending, one behind")
	d.Do("UPDATE outbox.delivery SET due_at = now() + interval '1 hour' WHERE event_id = $1", d.Event("pending, later"))
	oldest := d.Event("pending, oldest")
	d.Do("UPDATE outbox.delivery SET created_at = now() - interval '2 hours' WHERE event_id = $1", oldest)
	d.Do("UPDATE outbox.delivery SET created_at = now() - interval '9 hours' WHERE event_id = $1", failed) // waits for a person, not for time
	d.Do("INSERT INTO outbox.event (type, key, payload) VALUES ('x', 'a', '{}'), ('y', 'a', '{}')")
	d.Do("UPDATE outbox.sync SET last_delivered_at = '2027-01-31 09:00+00' WHERE name = 'court'")
	d.Do("SELECT outbox.pause('court', 'night')")

	got := outboxtest.List[string](d, `SELECT concat_ws('|', coalesce(sync, 'null'), coalesce(hold, '-'), due_now, pending, queued, retry, sending, failed, blocked_keys,
	          coalesce(round(extract(epoch FROM oldest_pending_age) / 3600)::text, '-'), coalesce((last_delivered_at AT TIME ZONE 'UTC')::text, '-'), coalesce(hold_reason, '-'))
	     FROM outbox.status ORDER BY sync NULLS LAST`)
	want := []string{
		"court|operator|1|2|4|2|1|2|2|2|2027-01-31 09:00:00|night",
		"idle|-|0|0|0|0|0|0|0|-|-|-",
		"null|-|0|2|0|0|0|0|0|-|-|-",
	}
	if !slices.Equal(got, want) {
		t.Errorf("status\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	got = outboxtest.List[string](d, "SELECT concat_ws('|', key, state, behind, error) FROM outbox.blocked_key ORDER BY key")
	want = []string{"failed, two behind|failed|2|HTTP 422: no such courtroom", "retry, one behind|retry|1|HTTP 502"}
	if !slices.Equal(got, want) {
		t.Errorf("blocked_key %v, want %v", got, want)
	}
	got = outboxtest.List[string](d, "SELECT concat_ws('|', key, event_type, attempts, error_class, error, age > '1 hour') FROM outbox.failed ORDER BY key")
	want = []string{
		"failed alone|scheduling:updated|3|permanent|HTTP 422: no such courtroom|f",
		"failed, two behind|scheduling:updated|3|permanent|HTTP 422: no such courtroom|t",
	}
	if !slices.Equal(got, want) {
		t.Errorf("failed %v, want %v", got, want)
	}
}
