package doctor

import (
	"context"
	"fmt"
	"net/url"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/hms-mkt/lockstep/internal/outboxtest"
	"github.com/hms-mkt/lockstep/internal/pgtest"
	"github.com/hms-mkt/lockstep/internal/waiting"
	"github.com/hms-mkt/lockstep/migrations"
	"github.com/hms-mkt/lockstep/relay/mapping"
)

// What belongs to the whole server needs a server of its own.
func TestFindingsOfAServer(t *testing.T) {
	t.Parallel()
	_, database := pgtest.Own(t, pgtest.Options{Settings: map[string]string{
		"max_prepared_transactions": "2", "wal_level": "replica", "max_replication_slots": "2", "autovacuum": "off", "synchronous_commit": "off",
	}})
	outboxtest.Must(t, migrations.Up(t.Context(), database, migrations.Outbox))
	admin, other := outboxtest.Connect(t, database), outboxtest.Connect(t, database)
	admin.Do("BEGIN")
	admin.Do("INSERT INTO outbox.event (type, key, payload) VALUES ('a', 'k', '{}')")
	admin.Do("PREPARE TRANSACTION 'it''s mine'")
	admin.Do("SELECT pg_create_physical_replication_slot('standby', true)")
	other.Do("BEGIN")
	other.Do("SELECT FROM outbox.event")
	parallel := outboxtest.Connect(t, database)
	parallel.Do("SELECT set_config(name, 'on', false) FROM pg_settings WHERE name IN ('force_parallel_mode', 'debug_parallel_query')")
	ctx, end := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_, _ = parallel.Exec(ctx, "SELECT pg_sleep(600)") // is cut off
	}()
	const worker = "SELECT coalesce((SELECT pid FROM pg_stat_activity WHERE backend_type = 'parallel worker'), 0)"
	waiting.For(t, time.Minute, "a parallel worker runs", func() bool { return outboxtest.One[int](admin, worker) > 0 })
	o := options(t, database)
	o.oldTransaction = time.Nanosecond
	found := findings{t, Examine(t.Context(), o)}
	found.have("transactions", Problem, "prepared transaction it's mine of", "ROLLBACK PREPARED 'it''s mine'")
	found.have("transactions", Warning, "the transaction of pid", "pg_terminate_backend")
	if text, remedy := found.String(), fmt.Sprintf("pg_terminate_backend(%d)", outboxtest.One[int](admin, worker)); strings.Contains(text, remedy) {
		t.Errorf("a parallel worker is to be ended: %s", text)
	}
	end()
	<-ended
	found.have("replication slots", Warning, "slot standby is not in use", "pg_drop_replication_slot('standby')")
	found.have("vacuum", Problem, "autovacuum is off in the server", "ALTER SYSTEM SET autovacuum = on")
	found.have("server", Warning, "synchronous_commit is off", "may lose what was recorded last")
	found.have("login", Warning, "is a superuser")
	admin.Do("ROLLBACK PREPARED 'it''s mine'")
}

func TestDatabasesThatCannotBeUsed(t *testing.T) {
	t.Parallel()
	empty := pgtest.Empty(t)
	none := findings{t, Examine(t.Context(), options(t, empty))}
	none.have("schema", Problem, "there is no outbox schema", "lockstep migrate up")
	if text := none.String(); strings.Contains(text, "drift") {
		t.Errorf("checks of a schema that is missing: %s", text)
	}

	down, err := url.Parse(empty)
	outboxtest.Must(t, err)
	down.Host = "127.0.0.1:1"
	found := findings{t, Examine(t.Context(), options(t, down.String()))}
	found.have("server", Problem, "connection refused")
	if len(found.all) != 1 {
		t.Errorf("more checks of a server that does not answer: %s", found)
	}

	p := newPatientAt(t, pgtest.New(t))
	writer := findings{t, Examine(t.Context(), options(t, pgtest.AsRole(t, p.url, "outbox_writer")))}
	writer.have("login", Problem, "is in no role that may read the outbox", "GRANT outbox_relay TO")

	readOnly, err := url.Parse(pgtest.AsRole(t, p.url, "outbox_relay"))
	outboxtest.Must(t, err)
	parameters := readOnly.Query()
	parameters.Set("default_transaction_read_only", "on")
	readOnly.RawQuery = parameters.Encode()
	findings{t, Examine(t.Context(), options(t, readOnly.String()))}.have("server", Problem, "accepts no writes", "by the database URL")
}

// An administrator's script and a restored dump make the same schema.
func TestOtherWaysToTheSchemaHaveNoDrift(t *testing.T) {
	t.Parallel()
	scripted, restored := pgtest.Empty(t), pgtest.Empty(t)
	script, err := migrations.SQL(migrations.Outbox)
	outboxtest.Must(t, err)
	program(t, script, "psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", scripted)
	program(t, program(t, "", "pg_dump", scripted), "psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", restored)
	for name, url := range map[string]string{"script": scripted, "dump": restored} {
		o := options(t, url)
		if found := o.drift().make(t.Context()); len(found) != 1 || found[0].Severity != OK {
			t.Errorf("after a %s: %s", name, findings{t, found})
		}
	}
}

// program runs a program of PostgreSQL.
func program(t *testing.T, stdin, name string, args ...string) string {
	t.Helper()
	path, err := pgtest.Program(t.Context(), name)
	outboxtest.Must(t, err)
	cmd := exec.CommandContext(t.Context(), path, args...)
	cmd.Stdin = strings.NewReader(stdin)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v: %s", name, err, &stderr)
	}
	return string(out)
}

// A check that waits for a lock does not stop the others.
func TestCheckThatHangs(t *testing.T) {
	p := newPatient(t)
	p.relay("v1")
	p.Do("BEGIN")
	p.Do("LOCK TABLE outbox.missed IN ACCESS EXCLUSIVE MODE")
	found := p.examined(t)
	p.Do("ROLLBACK")
	found.have("alerts", Warning, "could not be checked within 5s", "pg_stat_activity")
	found.have("relays", OK, "1 running")
}

func TestAuditorMayNotLookEverywhere(t *testing.T) {
	p := newPatient(t)
	found := findings{t, Examine(t.Context(), options(t, pgtest.AsRole(t, p.url, "outbox_auditor")))}
	found.have("sequence", Warning, "not checked, because the login may not look", "with the login of a relay")
	found.have("drift", OK)
	found.have("login", OK, "is in outbox_auditor")
}

func TestZonesAreCompared(t *testing.T) {
	o := options(t, pgtest.New(t))
	newYork, err := mapping.LoadZone("America/New_York")
	outboxtest.Must(t, err)
	for name, tc := range map[string]struct {
		zone     string
		ours     *time.Location
		severity Severity
		says     string
	}{
		"the same":                    {"America/New_York", newYork, OK, "is the same"},
		"another offset":              {"America/Chicago", newYork, Problem, "America/Chicago is UTC-0"},
		"another rule for summers":    {"America/New_York", time.FixedZone("", -5*3600), Problem, "in the server and UTC-05:00 in this program"},
		"the server does not know it": {"Europe/Atlantis", newYork, Problem, "the server does not know the time zone Europe/Atlantis"},
	} {
		t.Run(name, func(t *testing.T) {
			f, err := o.zone(t.Context(), tc.zone, tc.ours)
			if err != nil || f.Severity != tc.severity || !strings.Contains(f.Says, tc.says) {
				t.Errorf("%+v, %v; want %s that says %q", f, err, tc.severity, tc.says)
			}
		})
	}
}

func TestClocksAreCompared(t *testing.T) {
	for _, tc := range []struct {
		ahead, within time.Duration
		severity      Severity
		says          string
	}{
		{time.Second, 0, OK, "less than 2s"},
		{5 * time.Second, 4 * time.Second, OK, "less than 2s"},
		{5 * time.Second, time.Second, Warning, "5s ahead of"},
		{-time.Minute, time.Second, Warning, "1m0s behind"},
	} {
		if f := clockFinding(tc.ahead, tc.within); f.Severity != tc.severity || !strings.Contains(f.Says, tc.says) {
			t.Errorf("%s ahead, measured within %s: %+v, want %s that says %q", tc.ahead, tc.within, f, tc.severity, tc.says)
		}
	}
}
