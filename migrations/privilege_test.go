package migrations_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/hms-mkt/lockstep/internal/outboxtest"
	"github.com/hms-mkt/lockstep/internal/pgtest"
)

// TestPrivilegesAreThoseOfTheContract reads all privileges of the group roles from the catalog. A privilege that is granted
// and not listed here is a mistake, and so is one that is listed and not granted.
func TestPrivilegesAreThoseOfTheContract(t *testing.T) {
	d := outboxtest.Connect(t, pgtest.New(t))
	readable := []string{
		"alert", "alerting_hold", "told", "blocked_key", "delivery", "delivery_log", "event", "external_ref", "failed", "goose_db_version", "heartbeat", "hold", "lane", "missed", "open_delivery", "reconciliation", "relay", "retention", "status", "sync", "unconfirmed", "unmatched", "unmatched_type",
	}
	read := func(more ...string) []string {
		for _, table := range readable {
			more = append(more, "SELECT on "+table)
		}
		for _, function := range []string{"oldest_relay", "why_not_delivered", "describe", "check_sync", "hold_rank", "ends_delivery", "takes"} {
			more = append(more, "EXECUTE on "+function)
		}
		slices.Sort(more)
		return more
	}
	want := map[string][]string{
		"PUBLIC": nil,
		"outbox_writer": {
			"EXECUTE on emit",
			"INSERT on event.headers", "INSERT on event.id", "INSERT on event.key", "INSERT on event.occurred_at",
			"INSERT on event.payload", "INSERT on event.type", "INSERT on event.version",
			"SELECT on event.id", "SELECT on event.seq",
		},
		"outbox_relay": read(
			"INSERT on delivery", "UPDATE on delivery", "DELETE on delivery",
			"INSERT on lane", "UPDATE on lane", "DELETE on lane",
			"INSERT on delivery_log.answered_at", "INSERT on delivery_log.sync", "INSERT on delivery_log.event_id",
			"INSERT on delivery_log.event_type", "INSERT on delivery_log.key", "INSERT on delivery_log.version",
			"INSERT on delivery_log.attempt", "INSERT on delivery_log.outcome", "INSERT on delivery_log.code",
			"INSERT on delivery_log.error_class", "INSERT on delivery_log.error", "INSERT on delivery_log.external_id",
			"INSERT on delivery_log.request_sha256", "INSERT on delivery_log.mapping_version", "INSERT on delivery_log.revision",
			"INSERT on delivery_log.event_seq", "INSERT on delivery_log.took_ms", "INSERT on delivery_log.claim",
			"INSERT on delivery_log.relay", "INSERT on delivery_log.reason", "USAGE on delivery_log_id_seq",
			"INSERT on sync", "UPDATE on sync",
			"INSERT on hold", "UPDATE on hold", "DELETE on hold",
			"INSERT on heartbeat", "UPDATE on heartbeat", "DELETE on heartbeat",
			"INSERT on external_ref", "UPDATE on external_ref", "DELETE on external_ref",
			"INSERT on unconfirmed", "UPDATE on unconfirmed", "DELETE on unconfirmed",
			"DELETE on unmatched", "DELETE on missed", "EXECUTE on confirm",
			"EXECUTE on maintain", "EXECUTE on older_writers", "EXECUTE on raise_alerts", "EXECUTE on sequence_trouble", "EXECUTE on lock_holder", "EXECUTE on clean", "EXECUTE on like_patterns", "EXECUTE on begin_backfill", "EXECUTE on read_time", "EXECUTE on needed_by", "EXECUTE on escalates_at"),
		"outbox_operator": read(
			"UPDATE on delivery.state",
			"EXECUTE on find_missed", "EXECUTE on repair", "EXECUTE on requeue", "EXECUTE on discard", "EXECUTE on replay", "EXECUTE on pause", "EXECUTE on resume", "EXECUTE on retire", "EXECUTE on confirm", "EXECUTE on reconciled", "EXECUTE on resume_retired", "EXECUTE on set_reference", "EXECUTE on discard_all",
			"EXECUTE on read_time", "EXECUTE on needed_by"),
		"outbox_auditor": read(),
	}
	const held = `
SELECT privilege || ' on ' || thing FROM (
    SELECT a.privilege_type AS privilege, c.relname::text AS thing, a.grantee
      FROM pg_class AS c, aclexplode(coalesce(c.relacl, acldefault(CASE c.relkind WHEN 'S' THEN 's' ELSE 'r' END::"char", c.relowner))) AS a
     WHERE c.relnamespace = 'outbox'::regnamespace AND c.relname !~ '^delivery_log_(default|\d{4}_\d\d)$' AND c.relkind IN ('r', 'p', 'v', 'S')
    UNION ALL
    SELECT a.privilege_type, c.relname || '.' || n.attname, a.grantee
      FROM pg_attribute AS n JOIN pg_class AS c ON c.oid = n.attrelid, aclexplode(n.attacl) AS a
     WHERE c.relnamespace = 'outbox'::regnamespace
    UNION ALL
    SELECT a.privilege_type, p.proname, a.grantee
      FROM pg_proc AS p, aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) AS a
     WHERE p.pronamespace = 'outbox'::regnamespace) AS g
 WHERE g.grantee = CASE $1 WHEN 'PUBLIC' THEN 0::oid ELSE (SELECT oid FROM pg_roles WHERE rolname = $1) END
 ORDER BY (privilege || ' on ' || thing) COLLATE "C"`
	for role, privileges := range want {
		t.Run(role, func(t *testing.T) {
			slices.Sort(privileges)
			got := outboxtest.List[string](d.With(t), held, role)
			if diff := cmp.Diff(privileges, got, cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("privileges (-contract +catalog):\n%s", diff)
			}
		})
	}
	t.Run("partitions are read as the log is, and nothing more", func(t *testing.T) {
		got := outboxtest.List[string](d.With(t), `SELECT DISTINCT a.privilege_type || ' ' || a.grantee::regrole FROM pg_class AS c, aclexplode(c.relacl) AS a
		   WHERE c.relname ~ '^delivery_log_(default|\d{4}_\d\d)$' AND a.grantee <> c.relowner ORDER BY 1`)
		if want := []string{"SELECT outbox_auditor", "SELECT outbox_operator", "SELECT outbox_relay"}; !slices.Equal(got, want) {
			t.Errorf("%v, want %v", got, want)
		}
	})
}

func TestFunctionsHaveAFixedSearchPath(t *testing.T) {
	d := outboxtest.Connect(t, pgtest.New(t))
	definers := map[string]bool{}
	for _, f := range outboxtest.List[string](d, `SELECT concat_ws('|', proname, prosecdef, array_to_string(proconfig, ';')) FROM pg_proc
	   WHERE pronamespace = 'outbox'::regnamespace AND prosqlbody IS NULL`) { // an SQL body has no names to look up when it runs
		name, rest, _ := strings.Cut(f, "|")
		definer, config, _ := strings.Cut(rest, "|")
		if !strings.Contains(config, "search_path=pg_catalog, pg_temp") {
			t.Errorf("function %s has the settings %q: its search_path is the caller's", name, config)
		}
		definers[name] = definer == "t"
	}
	for _, name := range []string{
		"fan_out", "complete_requeue", "show_strongest_hold",
		"requeue", "discard", "replay", "pause", "resume", "retire", "why_not_delivered", "maintain", "older_writers",
	} {
		if definer, known := definers[name]; !known || !definer {
			t.Errorf("function %s: known %t, SECURITY DEFINER %t; want both", name, known, definer)
		}
	}
	if definers["emit"] {
		t.Error("emit runs with its owner's rights; it needs only the writer's")
	}
}

func TestSearchPathOfTheCallerMisleadsNobody(t *testing.T) {
	url := pgtest.New(t)
	admin := outboxtest.Connect(t, url)
	admin.Sync("court")
	operator := outboxtest.As(t, url, "outbox_operator")
	operator.Do("CREATE TEMP TABLE delivery (state text)")
	operator.Do("CREATE FUNCTION pg_temp.clock_timestamp() RETURNS timestamptz LANGUAGE sql AS 'SELECT timestamptz ''1999-01-01''' ")
	operator.Do("SET search_path = pg_temp, pg_catalog")
	operator.Do("SELECT outbox.pause('court', 'r')")
	if outboxtest.One[bool](admin, "SELECT since < '2001-01-01' FROM outbox.hold") {
		t.Error("a function of the caller ran with the owner's rights")
	}
}

func TestRolesReadTheViews(t *testing.T) {
	url := pgtest.New(t)
	outboxtest.Connect(t, url).Sync("court")
	for _, role := range []string{"outbox_relay", "outbox_operator", "outbox_auditor"} {
		d := outboxtest.As(t, url, role)
		for _, name := range []string{"status", "failed", "blocked_key", "open_delivery", "relay", "heartbeat", "event", "delivery", "lane", "delivery_log", "delivery_log_default", "sync", "hold", "external_ref", "unmatched", "unmatched_type"} {
			d.Do("SELECT * FROM outbox." + name)
		}
		d.Do("SELECT outbox.why_not_delivered(gen_random_uuid(), 'court')")
	}
}

func TestAuditorChangesNothing(t *testing.T) {
	auditor := outboxtest.As(t, pgtest.New(t), "outbox_auditor")
	for _, statement := range []string{
		"INSERT INTO outbox.event (type, key, payload) VALUES ('t', 'k', '{}')",
		"UPDATE outbox.delivery SET state = 'pending'",
		"DELETE FROM outbox.delivery",
		"UPDATE outbox.lane SET due_at = now()",
		"DELETE FROM outbox.lane",
		"UPDATE outbox.sync SET notify = true",
		"SELECT outbox.requeue('court')",
		"SELECT outbox.pause('court', 'r')",
		"SELECT * FROM outbox.maintain()",
		"SELECT nextval('outbox.delivery_log_id_seq')",
	} {
		auditor.Refuses(denied, statement, nil)
	}
}

// A login that may read a view, and nothing else, can read it: a view calls no function
// of ours, since its reader would need EXECUTE on that function.
func TestALoginThatMayReadAViewCanReadIt(t *testing.T) {
	url := pgtest.New(t)
	d := outboxtest.Connect(t, url)
	d.Sync("court")
	d.Event("k")
	for _, scope := range []string{"", "ny07"} {
		d.Do(`SELECT outbox.pause('court', 'maintenance', scope => $1)`, scope)
	}
	dashboard := fmt.Sprintf("dashboard_%d", time.Now().UnixNano()) // roles are the server's
	d.Do(`CREATE ROLE ` + dashboard)
	t.Cleanup(func() {
		for _, drop := range []string{`DROP OWNED BY `, `DROP ROLE `} {
			if _, err := d.Exec(context.Background(), drop+dashboard); err != nil {
				t.Error(err)
			}
		}
	})
	d.Do(`GRANT USAGE ON SCHEMA outbox TO ` + dashboard)
	views := outboxtest.List[string](d, `SELECT viewname::text FROM pg_views WHERE schemaname = 'outbox' ORDER BY 1`)
	if len(views) < 4 {
		t.Fatalf("views: %v", views)
	}
	for _, view := range views {
		d.Do(`GRANT SELECT ON outbox.` + view + ` TO ` + dashboard)
		d.Do(`SET ROLE ` + dashboard)
		d.Do(`SELECT * FROM outbox.` + view)
		d.Do(`RESET ROLE`)
	}
}
