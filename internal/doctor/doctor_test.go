package doctor

import (
	"context"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/hms-mkt/lockstep/internal/outboxtest"
	"github.com/hms-mkt/lockstep/internal/pgtest"
	"github.com/hms-mkt/lockstep/outbox"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

var update = flag.Bool("update", false, "rewrite schema.txt")

// patient is a database that a test makes ill.
type patient struct {
	outboxtest.Session
	url string
}

func newPatient(t *testing.T) patient {
	t.Helper()
	t.Parallel()
	return newPatientAt(t, pgtest.New(t))
}

func newPatientAt(t *testing.T, url string) patient {
	t.Helper()
	return patient{outboxtest.Connect(t, url), url}
}

// options examine the database at url.
func options(t *testing.T, url string) Options {
	t.Helper()
	store, err := outbox.Open(t.Context(), url, outbox.Options{MaxConnections: 2, AnyHost: true})
	outboxtest.Must(t, err)
	t.Cleanup(store.Close)
	c, err := pgx.ParseConfig(url)
	outboxtest.Must(t, err)
	c.DefaultQueryExecMode = pgx.QueryExecModeExec // as the command connects
	return Options{
		Connect: func(ctx context.Context) (*pgx.Conn, error) { return pgx.ConnectConfig(ctx, c) },
		Store:   store,
		Version: "v1",
	}
}

// examined is what the doctor finds with the login of a relay.
func (p patient) examined(t *testing.T) findings {
	t.Helper()
	return findings{t, Examine(t.Context(), options(t, pgtest.AsRole(t, p.url, "outbox_relay")))}
}

type findings struct {
	t   *testing.T
	all []Finding
}

// have checks that a check found something of a severity that says all texts, in Says or in
// Remedy.
func (f findings) have(check string, severity Severity, texts ...string) {
	f.t.Helper()
next:
	for _, one := range f.all {
		if one.Name != check || one.Severity != severity {
			continue
		}
		for _, text := range texts {
			if !strings.Contains(one.Says+"\n"+one.Remedy+"\n"+one.Sync, text) {
				continue next
			}
		}
		return
	}
	f.t.Errorf("no %s of %q says %q:\n%s", severity, check, texts, f)
}

func (f findings) String() string {
	var b strings.Builder
	for _, one := range f.all {
		b.WriteString(strings.Join([]string{one.Name, string(one.Severity), one.Sync, one.Says, one.Remedy}, " | ") + "\n")
	}
	return b.String()
}

// TestSchemaIsListed keeps schema.txt as the migrations make the schema.
func TestSchemaIsListed(t *testing.T) {
	p := newPatient(t)
	var b strings.Builder
	items, err := list[item](t.Context(), options(t, p.url), catalog)
	outboxtest.Must(t, err)
	for _, i := range items {
		b.WriteString(strings.TrimSuffix(i.Name+"\t"+i.Definition, "\t") + "\n")
	}
	if *update {
		outboxtest.Must(t, os.WriteFile("schema.txt", []byte(b.String()), 0o644))
		return
	}
	if diff := cmp.Diff(migrated, b.String()); diff != "" {
		t.Errorf("schema.txt (-want +got), rewrite it with -update:\n%s", diff)
	}
}

// relay makes the database know a running relay of a version, which serves syncs.
func (p patient) relay(version string, syncs ...string) {
	p.T.Helper()
	p.Do(`INSERT INTO outbox.heartbeat (instance, name, version, syncs, started_at, seen_at) VALUES (gen_random_uuid(), 'relay', $1, $2, now(), now())`, version, append([]string{}, syncs...))
}

func TestHealthyDatabaseHasNoFindings(t *testing.T) {
	p := newPatient(t)
	p.Sync("court", "scheduling:*")
	p.relay("v1", "court")
	for _, f := range p.examined(t).all {
		ofTests := f.Name == "server" && f.Severity == Warning // servers of tests write without fsync
		if !ofTests && (f.Severity != OK || f.Says == "" || f.Remedy != "") {
			t.Errorf("%+v", f)
		}
	}
}

func heartbeat(name, version, seen string) string {
	return fmt.Sprintf(`INSERT INTO outbox.heartbeat (instance, name, version, syncs, started_at, seen_at) VALUES (gen_random_uuid(), '%s', '%s', '{}', now(), %s)`, name, version, seen)
}

func TestFindings(t *testing.T) {
	two := []string{ // deliveries of a key
		"INSERT INTO outbox.sync (name, patterns) VALUES ('court', '{*}')",
		"INSERT INTO outbox.event (type, key, payload) VALUES ('a', 'k', '{}'), ('a', 'k', '{}')",
	}
	for name, tc := range map[string]struct {
		do       []string // what makes the database ill
		check    string
		severity Severity
		texts    []string
	}{
		"a column that was dropped": {
			[]string{"ALTER TABLE outbox.heartbeat DROP COLUMN host CASCADE"},
			"drift", Problem,
			[]string{"column outbox.heartbeat.host is missing", "lockstep migrate sql"},
		},
		"a column of another type": {
			[]string{"ALTER TABLE outbox.missed_scan ALTER COLUMN after_seq TYPE numeric"},
			"drift", Problem,
			[]string{"column outbox.missed_scan.after_seq was changed", "numeric"},
		},
		"a right that was taken": {
			[]string{"REVOKE DELETE ON outbox.lane FROM outbox_relay"},
			"drift", Problem,
			[]string{"grant of delete on table outbox.lane to outbox_relay is missing", "GRANT DELETE ON outbox.lane TO outbox_relay"},
		},
		"a right to a column that was taken": {
			[]string{"REVOKE SELECT (seq) ON outbox.event FROM outbox_writer"},
			"drift", Problem,
			[]string{"GRANT SELECT (seq) ON outbox.event TO outbox_writer"},
		},
		"a right that was added": {
			[]string{"GRANT DELETE ON outbox.delivery_log TO outbox_relay"},
			"drift", Warning,
			[]string{"not from the migrations", "REVOKE DELETE ON outbox.delivery_log FROM outbox_relay"},
		},
		"a function that anybody may call": {
			[]string{"GRANT EXECUTE ON FUNCTION outbox.retire(text, text) TO PUBLIC"},
			"drift", Warning,
			[]string{"REVOKE EXECUTE ON FUNCTION outbox.retire(text,text) FROM PUBLIC"},
		},
		"a function with another body": {
			[]string{"CREATE OR REPLACE FUNCTION outbox.oldest_relay() RETURNS bigint LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS 'SELECT 0::bigint'"},
			"drift", Problem,
			[]string{"function outbox.oldest_relay() was changed"},
		},
		"an index that was dropped": {
			[]string{"DROP INDEX outbox.delivery_failed"}, "drift", Problem, []string{"index outbox.delivery_failed is missing"},
		},
		"a trigger that was added": {
			[]string{"CREATE TRIGGER extra BEFORE INSERT ON outbox.event FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()"},
			"drift", Warning,
			[]string{"trigger extra of outbox.event is not from the migrations"},
		},
		"a trigger that is off": {
			[]string{"ALTER TABLE outbox.event DISABLE TRIGGER USER"},
			"triggers", Problem,
			[]string{"of outbox.event is off", "ALTER TABLE outbox.event ENABLE TRIGGER"},
		},
		"a policy": {
			[]string{"ALTER TABLE outbox.event ENABLE ROW LEVEL SECURITY"},
			"row security", Problem,
			[]string{"ALTER TABLE outbox.event DISABLE ROW LEVEL SECURITY"},
		},
		"a sequence that was begun anew": {
			[]string{"INSERT INTO outbox.event (type, key, payload) VALUES ('a', 'k', '{}')", "ALTER SEQUENCE outbox.event_seq_seq RESTART"},
			"sequence", Problem,
			[]string{"numbers up to 1 were used", "setval('outbox.event_seq_seq', 1)"},
		},
		"a month without a partition": {
			[]string{`DO $$ BEGIN EXECUTE (SELECT format('DROP TABLE outbox.%I', 'delivery_log_' || to_char(now() AT TIME ZONE 'UTC' + interval '1 month', 'YYYY_MM'))); END $$`},
			"partitions", Problem,
			[]string{"no partition for the next month", "outbox.maintain()"},
		},
		"no relay": {nil, "relays", Problem, []string{"no relay is running", "lockstep run"}},
		"an event that was written with triggers off": {
			[]string{
				"SET session_replication_role = replica", "INSERT INTO outbox.event (type, key, payload) VALUES ('a', 'k', '{}')",
				"SELECT outbox.find_missed(0, 100)",
			}, "missed", Problem, []string{"1 event has no delivery", "lockstep repair"},
		},
		"a type that no sync takes": {
			[]string{"INSERT INTO outbox.event (type, key, payload) VALUES ('a', 'k', '{}')"},
			"unmatched", Warning,
			[]string{"1 event went to no sync; the latest type is a"},
		},
		"relays of two versions": {
			[]string{heartbeat("a", "v1", "now()"), heartbeat("b", "v2", "now()")}, "relays", Warning, []string{"different versions: v1, v2"},
		},
		"a relay of another version than this program": {
			[]string{heartbeat("a", "v2", "now()")}, "relays", Warning, []string{"running relays are version v2, and this program is v1"},
		},
		"a relay that does not say its version": {
			[]string{heartbeat("a", "", "now()"), heartbeat("b", "v1", "now()")}, "relays", OK, []string{"2 running, version v1"},
		},
		"a relay that died": {
			[]string{heartbeat("a", "v1", "now()"), heartbeat("b", "v1", "now() - interval '1 minute'")}, "relays", Warning, []string{"relay b was last seen"},
		},
		"a sync that no relay serves": {
			[]string{heartbeat("a", "v1", "now()"), "INSERT INTO outbox.sync (name, patterns) VALUES ('court', '{*}')"},
			"not_served", Warning,
			[]string{"no running relay serves sync", "court", "lockstep retire court"},
		},
		"a failed delivery": {
			append(slices.Clone(two), "UPDATE outbox.delivery SET state = 'failed', due_at = 'infinity', error_class = 'permanent', error = 'HTTP 422' WHERE event_seq = (SELECT min(seq) FROM outbox.event)"),
			"failed", Warning,
			[]string{"1 failed delivery", "HTTP 422", "lockstep requeue --sync court"},
		},
		"a hold": {
			append(slices.Clone(two), "SELECT outbox.pause('court', reason => 'maintenance')"), "held", Warning, []string{"on hold (operator)", "maintenance", "lockstep resume court"},
		},
		"a failed delivery with others behind it": {
			append(slices.Clone(two), "UPDATE outbox.delivery SET state = 'failed', due_at = 'infinity', error_class = 'permanent', error = 'HTTP 422' WHERE event_seq = (SELECT min(seq) FROM outbox.event)"),
			"deliveries", Warning,
			[]string{"later events wait behind a failed one: 1", "court", "lockstep requeue --sync court --all --dry-run"},
		},
		"a delivery that may have arrived": {
			append(slices.Clone(two), "SET session_replication_role = replica", "UPDATE outbox.delivery SET state = 'retry', unclear = 1, error_class = 'unknown', error = 'no answer' WHERE event_seq = (SELECT min(seq) FROM outbox.event)"),
			"deliveries", Warning,
			[]string{"may have arrived, because the answers do not say so: 1", "court", "lockstep log --sync court"},
		},
		"dead rows that stay": {
			[]string{
				"ALTER TABLE outbox.missed SET (autovacuum_enabled = off)",
				"INSERT INTO outbox.missed (event_seq, event_id, type, inserted_at) SELECT n, gen_random_uuid(), 'a', now() FROM generate_series(1, 20000) AS n",
				"DELETE FROM outbox.missed", "SELECT pg_stat_force_next_flush()", "SELECT 1",
			}, "vacuum", Warning, []string{"outbox.missed has 20000 dead rows", "VACUUM outbox.missed"},
		},
		"a schema that is too old": {
			[]string{"UPDATE outbox.goose_db_version SET is_applied = false WHERE version_id > 0"}, "schema", Problem, []string{"lockstep migrate up"},
		},
		"a schema that is too new": {
			[]string{"CREATE OR REPLACE FUNCTION outbox.oldest_relay() RETURNS bigint LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS 'SELECT 99::bigint'"},
			"schema", Problem,
			[]string{"serves programs made for version 99 and newer", "install a newer lockstep"},
		},
		"a schema that is newer and serves this program": {
			[]string{fmt.Sprintf("INSERT INTO outbox.goose_db_version (version_id, is_applied) VALUES (%d, true)", outbox.Schema+1), "DROP INDEX outbox.delivery_failed"},
			"drift", Warning,
			[]string{fmt.Sprintf("not compared, because the schema is version %d", outbox.Schema+1)},
		},
		"a month ahead without a partition": {
			[]string{`DO $$ BEGIN EXECUTE (SELECT format('DROP TABLE outbox.%I', 'delivery_log_' || to_char(now() AT TIME ZONE 'UTC' + interval '3 months', 'YYYY_MM'))); END $$`},
			"partitions", Warning,
			[]string{"for 2 months ahead, not for 3"},
		},
		"a table that was dropped": {
			[]string{"DROP TABLE outbox.external_ref CASCADE"}, "drift", Problem, []string{"table outbox.external_ref is missing"},
		},
		"autovacuum that is off for a table": {
			[]string{"ALTER TABLE outbox.lane SET (autovacuum_enabled = off)"}, "vacuum", Problem, []string{"ALTER TABLE outbox.lane RESET (autovacuum_enabled)"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPatient(t)
			for _, sql := range tc.do {
				p.Do(sql)
			}
			p.examined(t).have(tc.check, tc.severity, tc.texts...)
		})
	}
}
