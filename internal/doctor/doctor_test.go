package doctor

import (
	"context"
	"flag"
	"os"
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
	url := pgtest.New(t)
	return patient{outboxtest.Connect(t, url), url}
}

// options examine the database at url.
func options(t *testing.T, url string) Options {
	t.Helper()
	store, err := outbox.Open(t.Context(), url, outbox.Options{MaxConnections: 2, AnyHost: true})
	outboxtest.Must(t, err)
	t.Cleanup(store.Close)
	return Options{
		Connect: func(ctx context.Context) (*pgx.Conn, error) { return pgx.Connect(ctx, url) },
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
	p.Do(`INSERT INTO outbox.heartbeat (instance, name, version, syncs, started_at, seen_at) VALUES (gen_random_uuid(), 'relay', $1, $2, now(), now())`, version, syncs)
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

func TestFindings(t *testing.T) {
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
			[]string{"ALTER TABLE outbox.missed ALTER COLUMN found_at TYPE timestamptz(0)"},
			"drift", Problem,
			[]string{"column outbox.missed.found_at was changed", "timestamp(0) with time zone"},
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
			}, "missed events", Problem, []string{"1 event without a delivery", "lockstep repair"},
		},
		"a type that no sync takes": {
			[]string{"INSERT INTO outbox.event (type, key, payload) VALUES ('a', 'k', '{}')"},
			"unmatched events", Warning,
			[]string{"no sync takes events of a"},
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
