package migrations_test

import (
	"context"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/hms-mkt/lockstep/internal/outboxtest"
	"github.com/hms-mkt/lockstep/internal/pgtest"
	"github.com/hms-mkt/lockstep/migrations"
)

// Text of receivers and writers is UTF-8. A database in another encoding could not store all of it.
func TestUpRefusesADatabaseThatIsNotUTF8(t *testing.T) {
	for _, encoding := range []string{"LATIN1", "SQL_ASCII"} {
		u, err := url.Parse(pgtest.Empty(t))
		outboxtest.Must(t, err)
		admin := outboxtest.Connect(t, u.String())
		u.Path += "_" + strings.ToLower(encoding)
		name := strings.TrimPrefix(u.Path, "/")
		admin.Do("CREATE DATABASE " + name + " TEMPLATE template0 LOCALE 'C' ENCODING '" + encoding + "'")
		t.Cleanup(func() {
			if _, err := admin.Exec(context.Background(), "DROP DATABASE "+name+" WITH (FORCE)"); err != nil {
				t.Error(err)
			}
		})
		err = migrations.Up(t.Context(), u.String(), migrations.Outbox)
		if err == nil || !strings.Contains(err.Error(), "Lockstep needs a database in the encoding UTF8, and this one is in "+encoding) {
			t.Errorf("%s: got %v", encoding, err)
		}
	}
}

// An administrator may make the schema for a login that may create nothing else in the database.
func TestUpInASchemaOfAnAdministrator(t *testing.T) {
	database := pgtest.Empty(t)
	admin := outboxtest.Connect(t, database)
	psql(t, database, migrations.Roles())
	owner, err := url.Parse(pgtest.AsRole(t, database, "outbox_auditor"))
	outboxtest.Must(t, err)
	for _, set := range sets() {
		admin.Do("CREATE SCHEMA " + set.String() + " AUTHORIZATION " + owner.User.Username())
	}
	if outboxtest.One[bool](admin, "SELECT has_database_privilege($1::text, current_database(), 'CREATE')", owner.User.Username()) {
		t.Fatal("the login may create schemas")
	}
	for _, set := range sets() {
		up(t, owner.String(), set)
		outboxtest.Must(t, migrations.Down(t.Context(), owner.String(), set, true))
		script, err := migrations.SQL(set)
		outboxtest.Must(t, err)
		admin.Do("DROP TABLE " + set.String() + ".goose_db_version")
		psql(t, owner.String(), script)
	}
	admin.Do("DROP OWNED BY " + owner.User.Username())
}

// A publication FOR ALL TABLES refuses changes of tables without a key.
func TestMaintainWithAPublicationOfAllTables(t *testing.T) {
	d := outboxtest.Connect(t, pgtest.New(t))
	month := outboxtest.One[string](d, "SELECT min(c.relname) FROM pg_class AS c WHERE c.relname ~ '^delivery_log_[0-9]' AND c.relkind = 'r'")
	d.Do("DROP TABLE outbox." + month)
	d.Sync("court")
	d.Do("CREATE PUBLICATION everything FOR ALL TABLES")
	d.Deliver(d.Event("k")) // its row goes to the default partition
	old := old(d, 100)
	d.Do("UPDATE outbox.retention SET keep = '1 month'")
	for _, done := range outboxtest.List[string](d, "SELECT done FROM outbox.maintain()") {
		if strings.HasPrefix(done, "trouble") {
			t.Error(done)
		}
	}
	if got := months(d); !slices.Contains(got, strings.TrimPrefix(month, "delivery_log_")) || slices.Contains(got, old) {
		t.Errorf("months %v, want one with %s and without %s", got, month, old)
	}
	if n := outboxtest.One[int](d, "SELECT count(*)::int FROM outbox.delivery_log_default"); n != 0 {
		t.Errorf("%d rows stay in the default partition", n)
	}
}
