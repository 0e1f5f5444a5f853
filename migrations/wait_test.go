package migrations_test

import (
	"fmt"
	"io/fs"
	"regexp"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/hms-mkt/lockstep/internal/outboxtest"
	"github.com/hms-mkt/lockstep/internal/pgtest"
	"github.com/hms-mkt/lockstep/migrations"
	"github.com/hms-mkt/lockstep/outbox"
)

// next returns the outbox's migrations and one more with the given steps.
func next(t *testing.T, up string) migrations.Option {
	t.Helper()
	first, err := fs.ReadFile(migrations.Files, "outbox/00001_outbox.sql")
	if err != nil {
		t.Fatal(err)
	}
	return migrations.WithFiles(fstest.MapFS{
		"outbox/00001_outbox.sql": {Data: first},
		"outbox/00099_note.sql":   {Data: []byte("-- +goose Up\n" + up + "\n-- +goose Down\nALTER TABLE outbox.event DROP COLUMN note;\n")},
	})
}

// migration is a call of Up in progress.
type migration struct {
	t    *testing.T
	told chan string
	done chan error
}

func begin(t *testing.T, url string, options ...migrations.Option) *migration {
	t.Helper()
	m := &migration{t: t, told: make(chan string, 100), done: make(chan error, 1)}
	options = append(options, migrations.Tell(func(sentence string) { m.told <- sentence }))
	ctx := t.Context()
	go func() { m.done <- migrations.Up(ctx, url, migrations.Outbox, options...) }()
	return m
}

// tells waits for a sentence of the migration, and checks that it contains words.
func (m *migration) tells(words ...string) {
	m.t.Helper()
	select {
	case sentence := <-m.told:
		says(m.t, sentence, words...)
	case err := <-m.done:
		m.t.Fatalf("ended without a word: %v", err)
	case <-time.After(time.Minute):
		m.t.Fatal("says nothing")
	}
}

func (m *migration) ended() error {
	m.t.Helper()
	select {
	case err := <-m.done:
		return err
	case <-time.After(time.Minute):
		m.t.Fatal("the migration did not end within a minute")
		return nil
	}
}

func says(t *testing.T, text string, words ...string) {
	t.Helper()
	for _, word := range words {
		if !strings.Contains(text, word) {
			t.Errorf("%q does not say %q", text, word)
		}
	}
}

const (
	waits   = `SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'lockstep migrate' AND wait_event_type = 'Lock')`
	altered = `SELECT EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'outbox.event'::regclass AND attname = 'note')`
	addNote = "SET LOCAL lock_timeout = '1s';\nALTER TABLE outbox.event ADD COLUMN note text;"
)

func TestMigrationBehindALongTransaction(t *testing.T) {
	url := pgtest.New(t)
	admin, long, w := outboxtest.Connect(t, url), outboxtest.Connect(t, url), outboxtest.As(t, url, "outbox_writer")
	long.Do("SET application_name = 'nightly report'")
	long.Do("BEGIN")
	long.Event("k")
	m := begin(t, url, next(t, addNote))

	// Twice: once during a try that waits, and once in the pause after it. The transaction stays open meanwhile.
	for range 2 {
		admin.Until("the migration waits", waits)
		if err := w.Ended(w.Begin("INSERT INTO outbox.event (type, key, payload) VALUES ('scheduling:updated', 'w', '{}')")); err != nil {
			t.Fatal(err)
		}
	}
	m.tells("the lock on outbox.event is held by", fmt.Sprintf("pid %d ", long.PgConn().PID()), "user ", "application nightly report",
		"idle in transaction", "transaction since ", "trying again for up to 5m0s")
	if outboxtest.One[bool](admin, altered) {
		t.Error("migrated through a lock")
	}
	long.Do("COMMIT")
	if err := m.ended(); err != nil {
		t.Fatal(err)
	}
	if !outboxtest.One[bool](admin, altered) {
		t.Error("the column is missing after the migration")
	}
}

func TestMigrationGivesUpAndNamesTheBlocker(t *testing.T) {
	tests := map[string]struct{ hold, release, want string }{
		"a session that reads": {"SELECT count(*) FROM outbox.event", "COMMIT", "application psql, idle in transaction, transaction since "},
		"a prepared transaction": {
			"INSERT INTO outbox.event (type, key, payload) VALUES ('t', 'k', '{}'); PREPARE TRANSACTION 'forgotten'", "ROLLBACK PREPARED 'forgotten'",
			"is held by a prepared transaction (see pg_prepared_xacts)",
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			url := pgtest.New(t)
			admin, long := outboxtest.Connect(t, url), outboxtest.Connect(t, url)
			long.Do("SET application_name = 'psql'")
			long.Do("BEGIN")
			long.Do(tt.hold)
			err := begin(t, url, next(t, addNote), migrations.Within(100*time.Millisecond)).ended()
			if err == nil {
				t.Fatal("migrated through a lock")
			}
			says(t, err.Error(), "gave up after 100ms", "the lock on outbox.event is held by", tt.want, "55P03")
			if outboxtest.One[int](admin, "SELECT max(version_id)::int FROM outbox.goose_db_version") != outbox.Schema || outboxtest.One[bool](admin, altered) {
				t.Error("a migration that gave up left something behind")
			}
			long.Do(tt.release)
			if err := begin(t, url, next(t, addNote)).ended(); err != nil {
				t.Errorf("once the way is free: %v", err)
			}
		})
	}
}

func TestMigrationThatLosesADeadlockTriesAgain(t *testing.T) {
	url := pgtest.New(t)
	admin, rival := outboxtest.Connect(t, url), outboxtest.Connect(t, url)
	rival.Do("SET deadlock_timeout = '1min'") // the migration shall be the one that finds it
	rival.Do("BEGIN")
	rival.Event("k")
	m := begin(t, url, next(t, "SET LOCAL lock_timeout = '20s';\nSET LOCAL deadlock_timeout = '3s';\nLOCK TABLE outbox.external_ref;\nALTER TABLE outbox.event ADD COLUMN note text;"))
	admin.Until("the migration waits", waits)
	rival.Do("SELECT count(*) FROM outbox.external_ref")
	m.tells("waiting: ", "; trying again")
	rival.Do("COMMIT")
	if err := m.ended(); err != nil {
		t.Fatal(err)
	}
	if !outboxtest.One[bool](admin, altered) {
		t.Error("the column is missing after the migration")
	}
}

func TestDownWaitsForLocksToo(t *testing.T) {
	url := pgtest.New(t)
	long := outboxtest.Connect(t, url)
	long.Do("BEGIN")
	long.Do("SELECT count(*) FROM outbox.event")
	told := make(chan string, 100)
	done := make(chan error, 1)
	ctx := t.Context()
	go func() {
		done <- migrations.Down(ctx, url, migrations.Outbox, false, migrations.Tell(func(sentence string) { told <- sentence }))
	}()
	m := &migration{t: t, told: told, done: done}
	m.tells("outbox.", fmt.Sprintf("pid %d ", long.PgConn().PID()))
	long.Do("COMMIT")
	if err := m.ended(); err != nil {
		t.Fatal(err)
	}
}

func TestStatusAnswersDuringAMigration(t *testing.T) {
	url := pgtest.New(t)
	admin, long := outboxtest.Connect(t, url), outboxtest.Connect(t, url)
	long.Do("BEGIN")
	long.Event("k")
	m := begin(t, url, next(t, "SET LOCAL lock_timeout = '1min';\nALTER TABLE outbox.event ADD COLUMN note text;"))
	admin.Until("the migration waits", waits)
	list, err := migrations.List(t.Context(), url, migrations.Outbox)
	if err != nil || len(list) != outbox.Schema || !list[0].Applied || !list[outbox.Schema-1].Applied {
		t.Errorf("got %+v, %v", list, err)
	}
	long.Do("COMMIT")
	if err := m.ended(); err != nil {
		t.Fatal(err)
	}
	// A program that does not know the last migration finds nothing to do, and reverts nothing.
	m = begin(t, url)
	m.tells("schema outbox is at version 99")
	if err := m.ended(); err != nil {
		t.Error(err)
	}
	if err := migrations.Down(t.Context(), url, migrations.Outbox, true); err == nil {
		t.Error("an older program took back a schema that it does not know")
	}
	if !outboxtest.One[bool](admin, altered) {
		t.Error("it took back a part")
	}
}

// timeout matches the required first statement of a migration. Writers wait behind an ALTER TABLE that waits, so the limit is a
// second.
var timeout = regexp.MustCompile(`^SET (?:LOCAL )?lock_timeout = '(?:1s|\d{1,3}ms)';\n`)

// unbounded returns the first step of a migration that does not begin with a lock_timeout.
func unbounded(text string) (steps []string) {
	up, down, _ := strings.Cut(text, "-- +goose Down\n")
	_, up, _ = strings.Cut(up, "-- +goose Up\n")
	for step, statements := range map[string]string{"up": up, "down": down} {
		if !timeout.MatchString(statements) {
			steps = append(steps, step)
		}
	}
	return steps
}

func TestEveryMigrationSetsItsLockTimeout(t *testing.T) {
	files, err := fs.Glob(migrations.Files, "*/*.sql")
	if err != nil || len(files) < len(sets()) {
		t.Fatalf("files %v, %v", files, err)
	}
	for _, file := range files {
		text, err := fs.ReadFile(migrations.Files, file)
		if err != nil {
			t.Fatal(err)
		}
		for _, step := range unbounded(string(text)) {
			t.Errorf("%s: the step %s does not begin with SET LOCAL lock_timeout of at most 1s", file, step)
		}
	}
	for text, want := range map[string]int{
		"-- +goose Up\nSET LOCAL lock_timeout = '1s';\n-- +goose Down\nSET LOCAL lock_timeout = '500ms';\n":            0,
		"-- +goose Up\nSET lock_timeout = '1s';\n-- +goose Down\nDROP TABLE a;\nSET LOCAL lock_timeout = '1s';\n":      1,
		"-- +goose Up\nSET LOCAL lock_timeout = '5s';\n-- +goose Down\nSET LOCAL lock_timeout = '1000ms';\n":           2,
		"-- +goose Up\n-- SET LOCAL lock_timeout = '1s';\nALTER TABLE a;\n-- +goose Down\nSET LOCAL lock_timeout = 0;": 2,
	} {
		if got := unbounded(text); len(got) != want {
			t.Errorf("%q: %v found, want %d", text, got, want)
		}
	}
}
