package outbox_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	gosync "sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/hms-mkt/lockstep/internal/pgtest"
	"github.com/hms-mkt/lockstep/internal/waiting"
	"github.com/hms-mkt/lockstep/outbox"
)

func TestWhichErrorsGoAwayByThemselves(t *testing.T) {
	state := func(code, message string) error {
		return fmt.Errorf("claim: %w", &pgconn.PgError{Code: code, Message: message})
	}
	for name, c := range map[string]struct {
		err  error
		want bool
	}{
		"none":                               {nil, false},
		"shutdown by an administrator":       {state("57P01", ""), true},
		"crash of another session":           {state("57P02", ""), true},
		"starting up or in recovery":         {state("57P03", ""), true},
		"connection failure":                 {state("08006", ""), true},
		"too many connections":               {state("53300", ""), true},
		"disk full":                          {state("53100", ""), true},
		"demoted primary":                    {state("25006", ""), true},
		"a standby's conflict with recovery": {state("40001", ""), true},
		"deadlock":                           {state("40P01", ""), true},
		"lock timeout":                       {state("55P03", ""), true},
		"statement timeout":                  {state("57014", ""), true},
		"idle in transaction for too long":   {state("25P03", ""), true},
		"read-only server":                   {outbox.ErrReadOnly, true},
		"no host accepts writes":             {fmt.Errorf("connect: %w", pgconn.ErrReadOnlyConnection), true},
		"reset":                              {&net.OpError{Op: "read", Err: syscall.ECONNRESET}, true},
		"cut in the middle":                  {fmt.Errorf("read: %w", io.ErrUnexpectedEOF), true},
		"closed by the driver":               {pgconn.ErrConnClosed, true},
		"no answer in time":                  {context.DeadlineExceeded, true},
		"stopped by the caller":              {context.Canceled, false},
		"mistake in a statement":             {state("42601", ""), false},
		"no privilege":                       {state("42501", ""), false},
		"password refused":                   {state("28P01", ""), false},
		"a pooler that the URL does not know": {
			state("08P01", "unsupported startup parameter: jit"), false,
		},
		"schema": {outbox.ErrSchema, false},
	} {
		if got := outbox.IsTemporary(c.err); got != c.want {
			t.Errorf("%s: got %t", name, got)
		}
	}
}

func TestWritableHostIsPreferredAmongSeveral(t *testing.T) {
	for url, want := range map[string]bool{
		"postgres://u@db1,db2/agency":                                       true,
		"postgres://u@db1:5432,db1:5433/agency":                             true,
		"host=db1,db2 user=u dbname=agency":                                 true,
		"postgres://u@db1/agency":                                           false,
		"postgres://u@db1/agency?sslmode=prefer":                            false, // the fallback is the same server
		"postgres://u@db1,db2/agency?target_session_attrs=any":              false,
		"host=db1,db2 user=u dbname=agency target_session_attrs=any":        false,
		"postgres://u@db1/agency?target_session_attrs=read-write":           true,
		"postgres://u@db1,db2/agency?target_session_attrs=read-write":       true,
		"postgres://u@db1,db2/agency?sslmode=require&connect_timeout=3":     true,
		"postgres:///agency?host=/run/postgresql&user=u":                    false,
		"postgres://u@db1,db2,db3/agency?default_query_exec_mode=exec":      true,
		"postgres://u@db1:5432/agency?sslmode=prefer&fallback_application=": false,
	} {
		c, err := pgx.ParseConfig(url)
		if err != nil {
			t.Fatal(err)
		}
		outbox.PreferWritable(c, url)
		if got := c.ValidateConnect != nil; got != want {
			t.Errorf("%s: the host is validated: %t", url, got)
		}
	}
}

func openStore(t *testing.T, url string, o outbox.Options) *outbox.Store {
	t.Helper()
	s, err := outbox.Open(t.Context(), url, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func TestReadOnlyServerIsNamed(t *testing.T) {
	s := openStore(t, pgtest.New(t)+"&default_transaction_read_only=on", outbox.Options{})
	_, claiming := s.Claim(t.Context(), outbox.ClaimRequest{Sync: sync, Capacity: 1, Lanes: 1, Lease: time.Minute}, &outbox.Arrivals{})
	for call, err := range map[string]error{"check": s.Check(t.Context()), "claim": claiming} {
		if !errors.Is(err, outbox.ErrReadOnly) || !outbox.IsTemporary(err) {
			t.Errorf("%s: got %v, want %v", call, err, outbox.ErrReadOnly)
		}
	}
}

// A call that takes longer than its bound ends, in the relay and on the server.
func TestCallEndsAtItsDeadlineOnBothSides(t *testing.T) {
	d := newDesk(t)
	s := openStore(t, d.pool.Config().ConnString(), outbox.Options{Name: "impatient", Timeout: 200 * time.Millisecond})
	tx, err := d.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.Background()) }()
	if _, err := tx.Exec(t.Context(), `LOCK TABLE outbox.delivery`); err != nil {
		t.Fatal(err)
	}
	_, err = s.Claim(t.Context(), outbox.ClaimRequest{Sync: sync, Capacity: 1, Lanes: 1, Lease: time.Minute}, &outbox.Arrivals{})
	if !outbox.IsTemporary(err) {
		t.Errorf("got %v, want an error that says that there was no answer", err)
	}
	for busy := true; busy; {
		const active = `SELECT EXISTS (SELECT FROM pg_stat_activity WHERE application_name = 'impatient' AND state = 'active')`
		if err := d.pool.QueryRow(t.Context(), active).Scan(&busy); err != nil {
			t.Fatal(err)
		}
	}
}

// A caller with a shorter deadline than the store learns nothing about the database:
// the pool keeps its connections.
func TestImpatientCallerLeavesThePoolAlone(t *testing.T) {
	d := newDesk(t)
	s := openStore(t, d.pool.Config().ConnString(), outbox.Options{Name: "patient", Timeout: 30 * time.Second, MaxConnections: 2})
	sessions := func() string {
		return d.text(`SELECT coalesce(string_agg(pid::text, ' ' ORDER BY pid), '') FROM pg_stat_activity WHERE application_name = 'patient'`)
	}
	locked := func(during func()) {
		t.Helper()
		tx, err := d.pool.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := tx.Exec(t.Context(), `LOCK TABLE outbox.sync`); err != nil {
			t.Fatal(err)
		}
		during()
		if err := tx.Rollback(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	var calls gosync.WaitGroup
	locked(func() {
		for range 2 {
			calls.Go(func() { _, _ = s.Syncs(t.Context()) })
		}
		waiting.For(t, time.Minute, "two sessions", func() bool { return strings.Count(sessions(), " ") >= 1 })
	})
	calls.Wait()
	before := sessions()
	locked(func() {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		if _, err := s.Syncs(ctx); err == nil {
			t.Error("a call on a locked table did not run into its deadline")
		}
	})
	if _, err := s.Syncs(t.Context()); err != nil {
		t.Fatal(err)
	}
	kept := false
	for pid := range strings.FieldsSeq(sessions()) {
		kept = kept || strings.Contains(before, pid)
	}
	if !kept {
		t.Errorf("sessions %s, before %s: none was kept", sessions(), before)
	}
}

func TestListen(t *testing.T) {
	url := pgtest.New(t)
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.Background()) }()
	// The connection is checked all the time, and must not lose a notification.
	s := openStore(t, url, outbox.Options{Name: "listener", Timeout: 200 * time.Millisecond})
	woken := make(chan string, 1000)
	ended := make(chan error)
	go func() { ended <- s.Listen(t.Context(), func() {}, func(sync string) { woken <- sync }) }()
	for heard := 0; heard < 5; {
		if _, err := conn.Exec(t.Context(), `NOTIFY outbox, 'CourtCalendarSync'`); err != nil {
			t.Fatal(err)
		}
		select {
		case name := <-woken:
			heard++
			if name != sync {
				t.Fatalf("woken for %q", name)
			}
		case err := <-ended:
			t.Fatalf("it ended: %v", err)
		case <-time.After(150 * time.Millisecond): // it does not listen yet
		}
	}
	if _, err := conn.Exec(t.Context(), `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'listener'`); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; !outbox.IsTemporary(err) {
		t.Errorf("got %v, want that the connection broke", err)
	}

	pooled := openStore(t, url+"&default_query_exec_mode=exec", outbox.Options{})
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := pooled.Listen(ctx, func() {}, func(string) {}); err != nil || ctx.Err() == nil {
		t.Errorf("through a transaction pooler: got %v, want that it waits", err)
	}
}
