package migrations_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/hms-mkt/lockstep/internal/outboxtest"
	"github.com/hms-mkt/lockstep/internal/pgtest"
	"github.com/hms-mkt/lockstep/migrations"
)

// pgProgram runs one of PostgreSQL's programs and returns its output.
func pgProgram(t *testing.T, env []string, name string, args ...string) (string, error) {
	t.Helper()
	path, err := pgtest.Program(t.Context(), name)
	outboxtest.Must(t, err)
	cmd := exec.CommandContext(t.Context(), path, args...)
	cmd.Env = append(os.Environ(), env...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func mustRun(t *testing.T, env []string, name string, args ...string) {
	t.Helper()
	if out, err := pgProgram(t, env, name, args...); err != nil {
		t.Fatalf("%s: %v\n%s", name, err, out)
	}
}

// lived returns a database that was in use for two days. One event is delivered, one has failed, one waits behind it, and one
// is unmatched. The log has an old month.
func lived(t *testing.T) (url string, d outboxtest.Session) {
	t.Helper()
	url = pgtest.New(t)
	d = outboxtest.Connect(t, url)
	d.Sync("court", "scheduling:*")
	d.Do("INSERT INTO outbox.event (type, key, payload) VALUES ('nobody:listens', 'k', '{}')")
	delivered, failed := d.Event("a"), d.Event("b")
	d.Event("b")
	d.Deliver(delivered)
	d.Fail(failed)
	d.Do("INSERT INTO outbox.lane (sync, key, due_at) VALUES ('court', 'b', 'infinity')") // a relay has looked
	d.Do("UPDATE outbox.event SET inserted_at = inserted_at - interval '2 days'")
	d.Do("INSERT INTO outbox.external_ref (sync, key, external_id, event_seq) VALUES ('court', 'a', 'CAL-1', 2)")
	d.Do("UPDATE outbox.retention SET keep = '120 months' WHERE what = 'log'")
	old(d, 7)
	d.Do("SELECT outbox.maintain()")
	return url, d
}

// content is everything that a backup must restore.
func content(d outboxtest.Session) []string {
	d.T.Helper()
	var all []string
	for _, table := range []string{"event", "unmatched", "sync", "hold", "delivery", "lane", "delivery_log", "external_ref", "retention"} {
		all = append(all, outboxtest.List[string](d, "SELECT '"+table+" ' || to_jsonb(t)::text FROM outbox."+table+" AS t ORDER BY 1")...)
	}
	return all
}

// guarded checks that the log is append-only: the parent and every partition, also in the session of a replica.
func guarded(d outboxtest.Session) {
	d.T.Helper()
	tables := append(outboxtest.List[string](d, "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'outbox.delivery_log'::regclass"), "outbox.delivery_log")
	if len(tables) < 6 {
		d.T.Fatalf("tables of the log: %v", tables)
	}
	for _, role := range []string{"origin", "replica"} {
		d.Do("SET session_replication_role = " + role)
		for _, table := range tables {
			for _, statement := range []string{"UPDATE %s SET outcome = 'failed'", "DELETE FROM %s", "TRUNCATE %s"} {
				d.Refuses(denied, fmt.Sprintf(statement, table), []string{"append-only"})
			}
		}
	}
	d.Do("RESET session_replication_role")
}

func TestRestoredBackupIsUnchanged(t *testing.T) {
	source, was := lived(t)
	dir := t.TempDir()
	outboxtest.Must(t, os.Chmod(dir, 0o755))
	plain, custom, data, root := filepath.Join(dir, "plain.sql"), filepath.Join(dir, "custom"), filepath.Join(dir, "data"), filepath.Join(dir, "data.sql")
	mustRun(t, nil, "pg_dump", "--dbname="+source, "--file="+plain)
	mustRun(t, nil, "pg_dump", "--dbname="+source, "--format=custom", "--file="+custom)
	dataOnly := []string{"--dbname=" + source, "--data-only", "--schema=outbox", "--exclude-table-data=outbox.goose_db_version"}
	mustRun(t, nil, "pg_dump", append(dataOnly, "--format=custom", "--file="+data)...)
	mustRun(t, nil, "pg_dump", append(dataOnly, "--load-via-partition-root", "--file="+root)...)
	want := content(was)
	seq, id := outboxtest.One[int64](was, "SELECT max(seq) FROM outbox.event"), outboxtest.One[int64](was, "SELECT max(id) FROM outbox.delivery_log")

	migrated := func(t *testing.T, url string) {
		t.Helper()
		outboxtest.Must(t, migrations.Up(t.Context(), url, migrations.Outbox))
		mustRun(t, nil, "psql", "--dbname="+url, "--command=TRUNCATE outbox.retention")
	}
	for name, restore := range map[string]func(t *testing.T, url string){
		"all, by psql": func(t *testing.T, url string) {
			mustRun(t, nil, "psql", "--set=ON_ERROR_STOP=1", "--dbname="+url, "--file="+plain)
		},
		"all, by pg_restore": func(t *testing.T, url string) {
			mustRun(t, nil, "pg_restore", "--exit-on-error", "--dbname="+url, custom)
		},
		"the data, as a replica's session": func(t *testing.T, url string) {
			migrated(t, url)
			mustRun(t, []string{"PGOPTIONS=-c session_replication_role=replica"}, "psql", "--set=ON_ERROR_STOP=1", "--dbname="+url, "--file="+root)
		},
		"the data, with triggers disabled": func(t *testing.T, url string) {
			migrated(t, url)
			d := outboxtest.Connect(t, url) // this way needs the months to be there
			for _, month := range months(was) {
				if !slices.Contains(months(d), month) {
					d.Do(fmt.Sprintf("CREATE TABLE outbox.delivery_log_%s PARTITION OF outbox.delivery_log FOR VALUES FROM ('%s-01 00:00+00') TO (date '%[2]s-01' + interval '1 month')",
						month, strings.ReplaceAll(month, "_", "-")))
				}
			}
			mustRun(t, nil, "pg_restore", "--exit-on-error", "--disable-triggers", "--dbname="+url, data)
		},
	} {
		t.Run(name, func(t *testing.T) {
			url := pgtest.Empty(t)
			restore(t, url)
			d := outboxtest.Connect(t, url)
			if strings.HasPrefix(name, "all") {
				guarded(d) // at once
			}
			relay := outboxtest.OpenRelay(t, url)
			m, err := relay.Maintain(t.Context(), "90 days", "84 months")
			outboxtest.Must(t, err)
			if m.Trouble != nil {
				t.Errorf("maintain found trouble: %v", m.Trouble)
			}
			guarded(d)
			if got := content(d); !slices.Equal(got, want) {
				t.Errorf("restored\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
			}
			if got, want := months(d), months(was); !slices.Equal(got, want) {
				t.Errorf("months %v, want %v", got, want)
			}
			// The sequence continues, and only the new event is sent.
			fresh := d.Event("c")
			if got := outboxtest.One[int64](d, "SELECT seq FROM outbox.event WHERE id = $1", fresh); got != seq+1 {
				t.Errorf("the next event has seq %d, want %d", got, seq+1)
			}
			delivery := outboxtest.Only(t, relay)
			if delivery.Event.ID != fresh || !outboxtest.Record(t, relay, outboxtest.Delivered(delivery)) {
				t.Errorf("sent %s, want only the new event %s", delivery.Event.ID, fresh)
			}
			if got := outboxtest.One[int64](d, "SELECT max(id) FROM outbox.delivery_log"); got <= id {
				t.Errorf("the next log row has id %d, want more than %d", got, id)
			}
			// Deliveries that were open are open.
			outboxtest.As(t, url, "outbox_operator").Do("SELECT outbox.requeue('court')")
			if delivery = outboxtest.Only(t, relay); delivery.Key != "b" || !outboxtest.Record(t, relay, outboxtest.Delivered(delivery)) {
				t.Errorf("requeued %s", delivery.Key)
			}
		})
	}
}

// Rows of a backup that are inserted as new ones would all be sent again.
func TestDataAloneIsRefusedWithTriggersOn(t *testing.T) {
	source, _ := lived(t)
	dump := filepath.Join(t.TempDir(), "data.sql")
	mustRun(t, nil, "pg_dump", "--dbname="+source, "--data-only", "--load-via-partition-root", "--file="+dump)
	url := pgtest.New(t)
	d := outboxtest.Connect(t, url)
	d.Sync("court", "scheduling:*") // a relay has started there
	out, err := pgProgram(t, nil, "psql", "--set=ON_ERROR_STOP=1", "--dbname="+url, "--file="+dump)
	if err == nil {
		t.Errorf("it was taken:\n%s", out)
	}
	out, _ = pgProgram(t, nil, "psql", "--dbname="+url, "--file="+dump) // does not stop at errors
	for _, word := range []string{"each would be sent again", "docs/operators.md", "session_replication_role=replica", "cannot be dated"} {
		if !strings.Contains(out, word) {
			t.Errorf("psql did not say %q:\n%s", word, out)
		}
	}
	if got := outboxtest.One[int](d, "SELECT count(*)::int FROM outbox.event"); got != 0 {
		t.Errorf("%d events came in", got)
	}
	for _, c := range outboxtest.Claim(t, outboxtest.OpenRelay(t, url)) {
		if !c.Missing {
			t.Errorf("event %s would be sent", c.Event.ID)
		}
	}
	// A long bulk insert, in a transaction that began long ago, is not a backup.
	d.Do("BEGIN")
	d.Do("INSERT INTO outbox.event (type, key, payload) SELECT 'scheduling:updated', 'k' || n, '{}' FROM generate_series(1, 1000) AS n")
	d.Do("COMMIT")
	for _, at := range []string{"now() - interval '2 minutes'", "'infinity'", "'-infinity'", "now() + interval '2 minutes'"} {
		d.Refuses(wrongState, "INSERT INTO outbox.event (type, key, payload, inserted_at) VALUES ('t', 'k', '{}', "+at+")", []string{"each would be sent again"})
	}
}

// Deliveries that were restored from another cluster have numbers of its transactions. These may be lower or higher than
// those of the new cluster. Each of these deliveries is sent, in order, and so are later ones.
func TestDeliveriesOfAnotherClusterAreSent(t *testing.T) {
	for name, distance := range map[string]string{"a younger cluster": "1000000000000", "an older cluster": "-100"} {
		t.Run(name, func(t *testing.T) {
			source := pgtest.New(t)
			was := outboxtest.Connect(t, source)
			was.Sync("court")
			var want []string
			for range 3 {
				want = append(want, was.Event("k"))
			}
			was.Send(want[0])
			was.Do("UPDATE outbox.delivery SET changed_in = (changed_in::text::bigint + $1::bigint)::text::xid8", distance)
			was.Dies()
			dump := filepath.Join(t.TempDir(), "plain.sql")
			mustRun(t, nil, "pg_dump", "--dbname="+source, "--file="+dump)

			url := pgtest.Empty(t)
			mustRun(t, nil, "psql", "--set=ON_ERROR_STOP=1", "--dbname="+url, "--file="+dump)
			d, relay := outboxtest.Connect(t, url), outboxtest.OpenRelay(t, url)
			if got := outboxtest.DeliverAll(t, d, relay, "k"); !slices.Equal(got, want) {
				t.Errorf("delivered %v, want %v", got, want)
			}
			fresh := d.Event("k")
			if got := outboxtest.Only(t, relay); got.Event.ID != fresh {
				t.Errorf("claimed %s, want the new one", got.Event.ID)
			}
			if ahead := outboxtest.One[bool](d, "SELECT EXISTS (SELECT FROM outbox.delivery WHERE changed_in >= pg_snapshot_xmax(pg_current_snapshot()))"); ahead {
				t.Error("a delivery has the number of a transaction to come")
			}
		})
	}
	t.Run("a relay that starts gives them numbers of its own cluster", func(t *testing.T) {
		url := pgtest.New(t)
		d, relay := outboxtest.Connect(t, url), outboxtest.OpenRelay(t, url)
		d.Sync("court")
		d.Event("k")
		d.Do("UPDATE outbox.delivery SET changed_in = '9000000000000'::xid8")
		d.Do("SELECT outbox.pause('court', 'restored')") // nothing is claimed
		if got := outboxtest.Claim(t, relay); len(got) != 0 {
			t.Errorf("claimed %d of a paused sync", len(got))
		}
		if ahead := outboxtest.One[bool](d, "SELECT EXISTS (SELECT FROM outbox.delivery WHERE changed_in >= pg_snapshot_xmax(pg_current_snapshot()))"); ahead {
			t.Error("the delivery has the number of a transaction to come")
		}
		d.Do("SELECT outbox.resume('court')")
		outboxtest.Only(t, relay)
	})
}
