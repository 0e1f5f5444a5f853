package migrations_test

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/hms-mkt/lockstep/internal/outboxtest"
	"github.com/hms-mkt/lockstep/internal/pgtest"
	"github.com/hms-mkt/lockstep/migrations"
)

// catalog lists all objects of a schema, one line each, with everything that could differ between two ways to create it.
const catalog = `
WITH spaces AS (SELECT oid, nspname FROM pg_namespace WHERE nspname IN ('outbox', 'scheduling'))
SELECT line FROM (
    SELECT format('%s %s %s %s %s', c.relkind, c.oid::regclass, c.relacl, c.reloptions, pg_get_expr(c.relpartbound, c.oid)) AS line
      FROM pg_class AS c JOIN spaces AS s ON s.oid = c.relnamespace
    UNION ALL
    SELECT format('column %s.%s %s %s %s %s', a.attrelid::regclass, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attacl,
                  pg_get_expr(d.adbin, d.adrelid))
      FROM pg_attribute AS a JOIN pg_class AS c ON c.oid = a.attrelid JOIN spaces AS s ON s.oid = c.relnamespace
      LEFT JOIN pg_attrdef AS d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
     WHERE a.attnum > 0
    UNION ALL
    SELECT format('constraint %s.%s %s', k.conrelid::regclass, k.conname, pg_get_constraintdef(k.oid))
      FROM pg_constraint AS k JOIN spaces AS s ON s.oid = k.connamespace
    UNION ALL
    SELECT format('index %s', pg_get_indexdef(i.indexrelid))
      FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid JOIN spaces AS s ON s.oid = c.relnamespace
    UNION ALL
    SELECT format('trigger %s %s', t.tgenabled, pg_get_triggerdef(t.oid))
      FROM pg_trigger AS t JOIN pg_class AS c ON c.oid = t.tgrelid JOIN spaces AS s ON s.oid = c.relnamespace
     WHERE NOT t.tgisinternal
    UNION ALL
    SELECT format('function %s returns %s %s %s %s %s %s %s', p.oid::regprocedure, pg_get_function_result(p.oid), pg_get_function_arguments(p.oid),
                  p.proacl, p.provolatile, p.prosecdef, p.proconfig, p.prosrc)
      FROM pg_proc AS p JOIN spaces AS s ON s.oid = p.pronamespace
    UNION ALL
    SELECT format('view %s %s', c.oid::regclass, pg_get_viewdef(c.oid))
      FROM pg_class AS c JOIN spaces AS s ON s.oid = c.relnamespace WHERE c.relkind = 'v'
    UNION ALL
    SELECT format('comment %s', d.description)
      FROM pg_description AS d WHERE d.classoid = 'pg_class'::regclass AND d.objoid IN (SELECT c.oid FROM pg_class AS c JOIN spaces AS s ON s.oid = c.relnamespace)
) AS all_lines
-- goose and the script make the version table each in their own words.
WHERE line NOT LIKE '%goose_db_version%'
ORDER BY line`

func describe(t *testing.T, url string) []string {
	t.Helper()
	return outboxtest.List[string](outboxtest.Connect(t, url), catalog)
}

func sets() []migrations.Set { return []migrations.Set{migrations.Outbox, migrations.Scheduling} }

func up(t *testing.T, url string, set migrations.Set) {
	t.Helper()
	if err := migrations.Up(t.Context(), url, set); err != nil {
		t.Fatalf("up %s: %v", set, err)
	}
}

func TestUpDownUpGivesTheSameSchema(t *testing.T) {
	for _, set := range sets() {
		t.Run(set.String(), func(t *testing.T) {
			url := pgtest.Empty(t)
			up(t, url, migrations.Outbox)
			up(t, url, set)
			first := describe(t, url)
			if err := migrations.Down(t.Context(), url, set, false); err != nil {
				t.Fatalf("down: %v", err)
			}
			left := outboxtest.List[string](outboxtest.Connect(t, url), `SELECT c.oid::regclass::text FROM pg_class AS c
			   WHERE c.relnamespace = to_regnamespace($1) AND c.relname NOT LIKE 'goose_db_version%'
			   UNION ALL SELECT p.oid::regprocedure::text FROM pg_proc AS p WHERE p.pronamespace = to_regnamespace($1)`, set.String())
			if len(left) > 0 {
				t.Errorf("down leaves %v behind", left)
			}
			up(t, url, set)
			if diff := cmp.Diff(first, describe(t, url)); diff != "" {
				t.Errorf("schema after up, down, up (-first +second):\n%s", diff)
			}
		})
	}
}

func TestUpTwiceFindsNothingToDo(t *testing.T) {
	url := pgtest.New(t)
	before := describe(t, url)
	up(t, url, migrations.Outbox)
	if diff := cmp.Diff(before, describe(t, url)); diff != "" {
		t.Errorf("a second up changed the schema:\n%s", diff)
	}
}

func TestDownRefusesALogThatIsNotEmptyWithoutForce(t *testing.T) {
	url := pgtest.New(t)
	d := outboxtest.Connect(t, url)
	d.Sync("court")
	d.Do("SELECT outbox.pause('court', 'maintenance')")
	err := migrations.Down(t.Context(), url, migrations.Outbox, false)
	if err == nil {
		t.Fatal("down dropped a log with a row in it")
	}
	for _, word := range []string{"delivery_log is not empty", "--force"} {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("the refusal %q does not say %q", err, word)
		}
	}
	if got := outboxtest.One[int](d, "SELECT count(*)::int FROM outbox.delivery_log"); got != 1 {
		t.Errorf("%d log rows after the refusal, want 1", got)
	}
	if err := migrations.Down(t.Context(), url, migrations.Outbox, true); err != nil {
		t.Fatalf("down with force: %v", err)
	}
	if outboxtest.One[bool](d, "SELECT to_regclass('outbox.delivery_log') IS NOT NULL") {
		t.Error("down with force left the log")
	}
}

func TestMigratorsAtOnceBothSucceed(t *testing.T) {
	url := pgtest.Empty(t)
	var wg sync.WaitGroup
	errs := make([]error, 3)
	for i := range errs {
		wg.Go(func() { errs[i] = migrations.Up(t.Context(), url, migrations.Outbox) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	applied := outboxtest.One[int](outboxtest.Connect(t, url), "SELECT count(*)::int FROM outbox.goose_db_version WHERE version_id = 1")
	if applied != 1 {
		t.Errorf("migration 1 was applied %d times", applied)
	}
}

// psql runs a script as an administrator would.
func psql(t *testing.T, url, script string) {
	t.Helper()
	path, err := exec.LookPath("psql")
	if err != nil {
		t.Fatal("psql is needed (Debian: postgresql-client; macOS: brew install libpq): ", err)
	}
	file := filepath.Join(t.TempDir(), "script.sql")
	if err := os.WriteFile(file, []byte(script), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), path, "--no-psqlrc", "--quiet", "--set", "ON_ERROR_STOP=1", "--file", file, url).CombinedOutput()
	if err != nil {
		t.Fatalf("psql: %v\n%s", err, out)
	}
}

func TestScriptForPsqlGivesTheSchemaOfUp(t *testing.T) {
	migrated, scripted := pgtest.Empty(t), pgtest.Empty(t)
	for _, set := range sets() {
		up(t, migrated, set)
		script, err := migrations.SQL(set)
		if err != nil {
			t.Fatal(err)
		}
		psql(t, scripted, script)
	}
	want := describe(t, migrated)
	if diff := cmp.Diff(want, describe(t, scripted)); diff != "" {
		t.Errorf("catalog by Up (-) and by psql (+):\n%s", diff)
	}
	for _, set := range sets() {
		states, err := migrations.List(t.Context(), scripted, set)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range states {
			if !s.Applied {
				t.Errorf("%s: migration %s counts as not applied after the script", set, s.Name)
			}
		}
		up(t, scripted, set)
		if err := migrations.Down(t.Context(), scripted, set, false); err != nil {
			t.Errorf("%s: down after the script: %v", set, err)
		}
		up(t, scripted, set)
	}
	if diff := cmp.Diff(want, describe(t, scripted)); diff != "" {
		t.Errorf("catalog by Up (-) and by psql, Down, Up (+):\n%s", diff)
	}
}

func TestScriptAppliedTwiceChangesNothing(t *testing.T) {
	url := pgtest.New(t)
	script, err := migrations.SQL(migrations.Outbox)
	if err != nil {
		t.Fatal(err)
	}
	before := describe(t, url)
	// The statements that psql sends, without its own commands. The first error ends the transaction.
	script = strings.TrimPrefix(script, "\\set ON_ERROR_STOP on\n")
	if _, err := outboxtest.Connect(t, url).Exec(t.Context(), script); err == nil {
		t.Error("a second application succeeded")
	}
	if diff := cmp.Diff(before, describe(t, url)); diff != "" {
		t.Errorf("a second application changed the schema:\n%s", diff)
	}
}

func TestRolesScriptMayBeRunTwice(t *testing.T) {
	url := pgtest.Empty(t)
	psql(t, url, migrations.Roles())
	psql(t, url, migrations.Roles())
	got := outboxtest.List[string](outboxtest.Connect(t, url), `SELECT rolname::text FROM pg_roles
	   WHERE rolname IN ('outbox_writer', 'outbox_relay', 'outbox_operator', 'outbox_auditor')
	     AND NOT rolcanlogin AND NOT rolsuper AND NOT rolcreaterole ORDER BY 1`)
	if want := []string{"outbox_auditor", "outbox_operator", "outbox_relay", "outbox_writer"}; !slices.Equal(got, want) {
		t.Errorf("group roles %v, want %v", got, want)
	}
}

func TestList(t *testing.T) {
	for _, set := range sets() {
		t.Run(set.String(), func(t *testing.T) {
			url := pgtest.Empty(t)
			for _, applied := range []bool{false, true} {
				if applied {
					if set == migrations.Scheduling {
						up(t, url, migrations.Outbox)
					}
					up(t, url, set)
				}
				got, err := migrations.List(t.Context(), url, set)
				if err != nil {
					t.Fatal(err)
				}
				if len(got) == 0 {
					t.Fatal("nothing is listed")
				}
				for i, m := range got {
					if m.Applied != applied || m.Version != int64(i+1) || !strings.HasPrefix(m.Name, fmt.Sprintf("%05d_", m.Version)) {
						t.Errorf("migration %d is %+v, want applied %t", i+1, m, applied)
					}
				}
				if there := outboxtest.One[bool](outboxtest.Connect(t, url), "SELECT to_regnamespace($1) IS NOT NULL", set.String()); there != applied {
					t.Errorf("the schema is there: %t; a look must not create it", there)
				}
			}
		})
	}
}

func TestMigratingRoleWithoutCreateRole(t *testing.T) {
	// A separate server, because the group roles belong to the whole server, and here they do not exist at first.
	server, _ := pgtest.Own(t, pgtest.Options{})
	name := "agency_" + strings.ToLower(rand.Text()[:10])
	if err := server.CreateDatabase(t.Context(), name, ""); err != nil {
		t.Fatal(err)
	}
	admin := outboxtest.Connect(t, server.URL(name))
	t.Cleanup(func() {
		if err := server.DropDatabase(context.Background(), name); err != nil {
			t.Error(err)
		}
	})
	admin.Do("CREATE ROLE " + name + " LOGIN PASSWORD 'plain'")
	admin.Do("GRANT CREATE ON DATABASE " + name + " TO " + name)
	u, err := url.Parse(server.URL(name))
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.UserPassword(name, "plain")

	// On a server that other tests share, they exist already.
	if !outboxtest.One[bool](admin, "SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = 'outbox_writer')") {
		err = migrations.Up(t.Context(), u.String(), migrations.Outbox)
		if err == nil {
			t.Fatal("a role without CREATEROLE created roles")
		}
		for _, word := range []string{`"outbox_writer" does not exist`, name + `" may not create roles`, "lockstep migrate sql --roles"} {
			if !strings.Contains(err.Error(), word) {
				t.Errorf("the error %q does not say %q", err, word)
			}
		}
	}
	psql(t, server.URL(name), migrations.Roles())
	up(t, u.String(), migrations.Outbox)

	// Functions that run with the owner's rights work, although the owner is not a superuser.
	plain := outboxtest.Connect(t, u.String())
	plain.Sync("court")
	id := plain.Event("k")
	plain.Fail(id)
	for _, statement := range []string{
		"SELECT outbox.requeue('court')",
		"SELECT outbox.discard('court', (SELECT event_id FROM outbox.delivery), 'r')",
		"SELECT * FROM outbox.maintain()",
		"SELECT * FROM outbox.older_writers()",
	} {
		plain.Do(statement)
	}
	plain.Refuses(denied, "DELETE FROM outbox.delivery_log", []string{"append-only"})
	if err := migrations.Down(t.Context(), u.String(), migrations.Outbox, true); err != nil {
		t.Errorf("down: %v", err)
	}
	admin.Do("DROP OWNED BY " + name)
	admin.Do("DROP ROLE " + name)
}

func TestDownRefusesUndeliveredEventsWithoutForce(t *testing.T) {
	tests := map[string]string{
		"no sync took it":       "nobody:listens",
		"its delivery is open":  "court:event",
		"prefix of a sync only": "court2:event",
	}
	for name, typ := range tests {
		t.Run(name, func(t *testing.T) {
			url := pgtest.New(t)
			d := outboxtest.Connect(t, url)
			d.Do("INSERT INTO outbox.sync (name, patterns) VALUES ('court', '{court:*}')")
			d.Do("INSERT INTO outbox.event (type, key, payload) VALUES ($1, 'k', '{}')", typ)
			err := migrations.Down(t.Context(), url, migrations.Outbox, false)
			if err == nil || !strings.Contains(err.Error(), "not delivered yet") || !strings.Contains(err.Error(), "--force") {
				t.Errorf("down said %v", err)
			}
			if got := outboxtest.One[int](d, "SELECT count(*)::int FROM outbox.event"); got != 1 {
				t.Errorf("%d events after the refusal, want 1", got)
			}
		})
	}
}

// Databases have these migrations already. A change of the schema is a new migration.
func TestOldMigrationsStayAsTheyAre(t *testing.T) {
	for file, want := range map[string]string{
		"outbox/00001_outbox.sql":          "136b1931910edd7721b9aa91c31f9ab03e3cfb9bbb5f55046c4e5baa919c8884",
		"outbox/00002_old_transaction.sql": "7573c87bf70fbda033c8c6178cdbb1ed59b4d54e0ea1c86c5c064664f8007a6b",
		"outbox/00003_read_back.sql":       "c0f27bcb4cbad94b6e45bfd22822564222d275b4afe364d2040c755210170aec",
	} {
		text, err := fs.ReadFile(migrations.Files, file)
		if err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprintf("%x", sha256.Sum256(text)); got != want {
			t.Errorf("%s was changed: its digest is %s. Take that back, and write a new migration", file, got)
		}
	}
}
