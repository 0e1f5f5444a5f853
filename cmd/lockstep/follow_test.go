package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/hms-mkt/lockstep/internal/pgtest"
	"github.com/hms-mkt/lockstep/internal/waiting"
	"github.com/hms-mkt/lockstep/migrations"
)

const logged = `INSERT INTO outbox.delivery_log (sync, key, outcome) VALUES ('Court', $1, 'paused') RETURNING id`

// open begins a transaction that has written a row to the log.
func (w *world) open(key string) (pgx.Tx, int64) {
	w.t.Helper()
	conn, err := pgx.Connect(w.t.Context(), w.env["DATABASE_URL"])
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = conn.Close(context.Background()) })
	tx, err := conn.Begin(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	var id int64
	if err := tx.QueryRow(w.t.Context(), logged, key).Scan(&id); err != nil {
		w.t.Fatal(err)
	}
	return tx, id
}

func (r *running) id(t *testing.T) int64 {
	t.Helper()
	var row logRow
	if err := json.Unmarshal([]byte(r.line(t)), &row); err != nil {
		t.Fatal(err)
	}
	return row.ID
}

func (r *running) silent(t *testing.T, d time.Duration) {
	t.Helper()
	select {
	case line, ok := <-r.lines:
		t.Fatalf("printed %q (%t)", line, ok)
	case <-time.After(d):
	}
}

func ids(t *testing.T, out string) (all []int64) {
	t.Helper()
	for line := range strings.Lines(out) {
		var row logRow
		if err := json.Unmarshal([]byte(line), &row); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		all = append(all, row.ID)
	}
	return all
}

// A transaction with a smaller id may commit later. A reader that continues after
// the last id that it has seen does not miss its row.
func TestRowsAreHeldBackForOpenTransactions(t *testing.T) {
	w := newWorld(t)
	first := ask[int64](w, logged, "before")
	auditor := &world{shell: w.as(roleAuditor)}
	after := fmt.Sprint(first)
	f := auditor.start("log", "--follow", "--after", after, "--output", "jsonl")
	late, smaller := w.open("late")
	larger := ask[int64](w, logged, "early")
	if smaller > larger {
		t.Fatal("the test tests nothing")
	}
	f.silent(t, 2*time.Second)
	auditor.run("log", "--after", after, "--output", "jsonl").wants(t, exitFailed, "open transactions may still add rows before", "pid ")
	if err := late.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, want := range []int64{smaller, larger} {
		if got := f.id(t); got != want {
			t.Errorf("row %d, want %d", got, want)
		}
	}
	// A transaction that is rolled back leaves a gap.
	gone, _ := w.open("never")
	last := ask[int64](w, logged, "last")
	if err := gone.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := f.id(t); got != last {
		t.Errorf("row %d, want %d", got, last)
	}
	f.stop(t, 0)
	if got := ids(t, auditor.run("log", "--after", fmt.Sprint(smaller), "--limit", "1", "--output", "jsonl").wants(t, 0).stdout); !slices.Equal(got, []int64{larger}) {
		t.Errorf("after %d: %v, want %d", smaller, got, larger)
	}
}

// Writers overlap, take long and roll back. A follower that is stopped again and
// again, and continues after the last id that it printed, gets every row once and
// in the order of ids.
func TestAFollowerThatIsResumedMissesNothing(t *testing.T) {
	w := newWorld(t)
	first := ask[int64](w, logged, "before")
	var writers sync.WaitGroup
	ctx, enough := context.WithCancel(t.Context())
	for n := range 6 {
		conn, err := pgx.Connect(t.Context(), w.env["DATABASE_URL"])
		if err != nil {
			t.Fatal(err)
		}
		writers.Go(func() {
			defer conn.Close(context.Background())
			random := rand.New(rand.NewPCG(1, uint64(n)))
			for ctx.Err() == nil {
				tx, err := conn.Begin(t.Context())
				if err != nil {
					t.Error(err)
					return
				}
				for range 1 + random.IntN(3) {
					if _, err := tx.Exec(t.Context(), logged, fmt.Sprint("writer ", n)); err != nil {
						t.Error(err)
					}
					waiting.StallFor(ctx, time.Duration(random.IntN(8))*time.Millisecond) // with the transaction open
				}
				if random.IntN(4) == 0 {
					_ = tx.Rollback(t.Context())
				} else if err := tx.Commit(t.Context()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	got, last := []int64{}, first
	for n := range 12 {
		f := w.start("log", "--follow", "--after", strconv.FormatInt(last, 10), "--output", "jsonl")
		for range 25 {
			last = f.id(t)
			got = append(got, last)
		}
		f.stop(t, 0)
		if n == 6 { // a reader that reads from time to time
			batch := ids(t, w.run("log", "--after", fmt.Sprint(last), "--limit", "40", "--output", "jsonl").wants(t, 0).stdout)
			if len(batch) > 0 {
				got, last = append(got, batch...), batch[len(batch)-1]
			}
		}
	}
	enough()
	writers.Wait()
	got = append(got, ids(t, w.run("log", "--after", fmt.Sprint(last), "--limit", "100000", "--output", "jsonl").wants(t, 0).stdout)...)
	want := ask[[]int64](w, `SELECT array_agg(id ORDER BY id) FROM outbox.delivery_log WHERE id > $1`, first)
	if !slices.Equal(got, want) {
		t.Errorf("%d rows printed, %d are there, or another order", len(got), len(want))
	}
}

// The database is killed and comes back. The follower continues after its last row.
func TestAFollowerSurvivesARestartOfTheDatabase(t *testing.T) {
	server, url := pgtest.Own(t, pgtest.Options{Fsync: true})
	if err := migrations.Up(t.Context(), url, migrations.Outbox); err != nil {
		t.Fatal(err)
	}
	w := &world{shell: &shell{t: t, env: map[string]string{"DATABASE_URL": url}}}
	connect := func() {
		var err error
		if w.conn, err = pgx.Connect(t.Context(), url); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = w.conn.Close(context.Background()) })
	}
	connect()
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	out, in := io.Pipe()
	var stderr lockedBuffer
	code := make(chan int, 1)
	go func() {
		code <- run(ctx, []string{"log", "--follow", "--after", "0", "--output", "jsonl"}, w.lookup, strings.NewReader(""), in, &stderr)
		_ = in.Close()
	}()
	rows := json.NewDecoder(out)
	for n := range 4 {
		want := ask[int64](w, logged, fmt.Sprint(n))
		var row logRow
		if err := rows.Decode(&row); err != nil || row.ID != want {
			t.Fatalf("row %d, want %d: %v", row.ID, want, err)
		}
		if err := server.Kill(); err != nil {
			t.Fatal(err)
		}
		waiting.For(t, time.Minute, "it says that the database is away", func() bool {
			return strings.Count(stderr.String(), "database is away, trying again") > n
		}, stderr.String)
		if err := server.Boot(t.Context()); err != nil {
			t.Fatal(err)
		}
		connect()
	}
	if n := strings.Count(stderr.String(), "database is away"); n > 8 {
		t.Errorf("says %d times that the database is away: %s", n, stderr.String())
	}
	stop()
	if n, err := io.Copy(io.Discard, io.MultiReader(rows.Buffered(), out)); err != nil || n > 1 {
		t.Errorf("%d further bytes, %v", n, err)
	}
	if got := <-code; got != 0 {
		t.Errorf("exit code %d: %s", got, stderr.String())
	}
	// A database that has lost rows is refused.
	w.run("log", "--follow", "--after", "1000000", "--output", "jsonl").wants(t, exitFailed, "the log ends at id", "restored")
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func TestAFollowerEndsAtUntil(t *testing.T) {
	w := newWorld(t)
	ends := ask[time.Time](w, `SELECT clock_timestamp() + interval '2 seconds'`).UTC().Format(time.RFC3339Nano)
	one := ask[int64](w, logged, "one")
	f := w.start("log", "--follow", "--after", "0", "--until", ends, "--output", "jsonl")
	two := ask[int64](w, logged, "two")
	for _, want := range []int64{one, two} {
		if got := f.id(t); got != want {
			t.Errorf("row %d, want %d", got, want)
		}
	}
	late, _ := w.open("three") // begins before --until, ends after it
	w.eventually(fmt.Sprintf(`SELECT clock_timestamp() > '%s'::timestamptz + interval '1 second'`, ends))
	ask[int64](w, logged, "too late")
	if err := late.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.id(t)
	f.ends(t, 0)
	if got := ids(t, w.run("log", "--until", ends, "--output", "jsonl").wants(t, 0).stdout); len(got) != 3 {
		t.Errorf("%d rows until then, want 3", len(got))
	}
	w.run("log", "--until", "soon").wants(t, exitUsage, "--until")
	w.run("log", "--after", "-1").wants(t, exitUsage, "--after -1", "id of a row")
	w.run("log", "--after", "x").wants(t, exitUsage, "--after")
}

// ends waits for the command's end.
func (r *running) ends(t *testing.T, code int) {
	t.Helper()
	for line := range r.lines {
		t.Errorf("printed %s", line)
	}
	if got := <-r.code; got != code {
		t.Errorf("exit code %d, want %d", got, code)
	}
	r.code <- code
}

// A standby does not show the writers of the primary.
func TestRowsAreHeldBackOnAStandby(t *testing.T) {
	server, url := pgtest.Own(t, pgtest.Options{})
	if err := migrations.Up(t.Context(), url, migrations.Outbox); err != nil {
		t.Fatal(err)
	}
	standby, err := server.Standby(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = standby.Stop() })
	w := &world{shell: &shell{t: t, env: map[string]string{"DATABASE_URL": url}}}
	if w.conn, err = pgx.Connect(t.Context(), url); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.conn.Close(context.Background()) })
	reader := &world{shell: &shell{t: t, env: map[string]string{"DATABASE_URL": standby.URL("agency")}}}
	f := reader.start("log", "--follow", "--after", "0", "--output", "jsonl")
	late, smaller := w.open("late")
	larger := ask[int64](w, logged, "early")
	f.silent(t, 4*time.Second)
	if err := late.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, want := range []int64{smaller, larger} {
		if got := f.id(t); got != want {
			t.Errorf("row %d, want %d", got, want)
		}
	}
	f.stop(t, 0)
}

func TestAttemptsWithinASecondAreToldApart(t *testing.T) {
	at := time.Date(2027, 3, 1, 5, 0, 0, 123_400_000, time.FixedZone("", -5*3600))
	for after, want := range map[time.Duration]string{0: "2027-03-01T10:00:00.123Z", time.Millisecond: "2027-03-01T10:00:00.124Z"} {
		if got := (logRow{At: at.Add(after)}).Cells()[0]; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}
