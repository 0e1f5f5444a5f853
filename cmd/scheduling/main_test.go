package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/hms-mkt/lockstep/internal/pgtest"
	"github.com/hms-mkt/lockstep/internal/scheduling"
	"github.com/hms-mkt/lockstep/internal/waiting"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

func env(vars map[string]string) func(string) string {
	return func(name string) string { return vars[name] }
}

// start runs the command on a free port and returns its URL.
func start(t *testing.T, database string) (url string, stop context.CancelFunc, done <-chan error) {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	out, in := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		err := run(ctx, []string{"--listen", "127.0.0.1:0"}, env(map[string]string{"DATABASE_URL": database}), nil, in, io.Discard)
		in.CloseWithError(io.EOF)
		ended <- err
	}()
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("it did not start: %v", <-ended)
	}
	return strings.TrimSpace(line), stop, ended
}

func get(t *testing.T, url string) int {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), "GET", url, nil)
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 20 * time.Second}
	res, err := client.Do(req)
	if err != nil {
		t.Error(err)
		return 0
	}
	defer res.Body.Close()
	return res.StatusCode
}

func TestStopLetsRequestsFinish(t *testing.T) {
	database := pgtest.New(t)
	url, stop, done := start(t, database)
	if got := get(t, url+"/readyz"); got != 200 {
		t.Fatalf("readyz is %d, want 200", got)
	}
	conn, err := pgx.Connect(t.Context(), database)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.WithoutCancel(t.Context()))
	tx, err := conn.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), "LOCK TABLE scheduling.hearing"); err != nil {
		t.Fatal(err)
	}
	answered := make(chan int, 1)
	go func() { answered <- get(t, url+"/hearings") }()
	waitForLock(t, database)
	stop()
	waitUntilClosed(t, strings.TrimPrefix(url, "http://"))
	select {
	case err := <-done:
		t.Fatalf("it stopped under a request: %v", err)
	default:
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := <-answered; got != 200 {
		t.Errorf("the request in flight got %d, want 200", got)
	}
	if err := <-done; err != nil {
		t.Errorf("stopped with %v", err)
	}
}

// waitUntilClosed returns when nobody listens on address any more.
func waitUntilClosed(t *testing.T, address string) {
	t.Helper()
	for {
		conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", address)
		if err != nil {
			return
		}
		conn.Close()
	}
}

// waitForLock returns when a session of the service waits for a lock.
func waitForLock(t *testing.T, database string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), database)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.WithoutCancel(t.Context()))
	const sql = `SELECT EXISTS (SELECT FROM pg_stat_activity
		WHERE datname = current_database() AND application_name = 'scheduling' AND wait_event_type = 'Lock')`
	waiting.For(t, time.Minute, "the service waits for a lock", func() (waits bool) {
		if err := conn.QueryRow(t.Context(), sql).Scan(&waits); err != nil {
			t.Fatal(err)
		}
		return waits
	})
}

func TestStartsWithoutTheDatabase(t *testing.T) {
	url, stop, done := start(t, "postgres://nobody@127.0.0.1:1/none?connect_timeout=1")
	if got := get(t, url+"/livez"); got != 200 {
		t.Errorf("livez is %d, want 200", got)
	}
	if got := get(t, url+"/readyz"); got != 503 {
		t.Errorf("readyz is %d, want 503", got)
	}
	stop()
	if err := <-done; err != nil {
		t.Errorf("stopped with %v", err)
	}
}

func TestExitCodes(t *testing.T) {
	const database = "postgres://clerk:s3cret@127.0.0.1:1/none"
	url, stop, done := start(t, database)
	defer func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	tests := []struct {
		name     string
		args     []string
		database string
		code     int
		want     string
	}{
		{"port in use", []string{"--listen", strings.TrimPrefix(url, "http://")}, database, 1, "address already in use"},
		{"no database", nil, "", 2, "DATABASE_URL"},
		{"not a URL", nil, "postgres://clerk:s3cret@host:port:port/", 2, "cannot be read"},
		{"status URL", []string{"--status-url", "postgres://clerk:s3cret@host:port:port/"}, database, 2, "STATUS_URL cannot be read"},
		{"zone", []string{"--zone", "New York"}, database, 2, "America/New_York"},
		{"unknown flag", []string{"--colour"}, database, 2, "-colour"},
		{"argument", []string{"now"}, database, 2, `"now"`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var stderr strings.Builder
			err := run(t.Context(), tt.args, env(map[string]string{"DATABASE_URL": tt.database}), nil, io.Discard, &stderr)
			code := exitCode(err, &stderr)
			if code != tt.code || !strings.Contains(stderr.String(), tt.want) {
				t.Errorf("exit %d with %q; want %d naming %q", code, stderr.String(), tt.code, tt.want)
			}
			if strings.Contains(stderr.String(), "s3cret") {
				t.Errorf("the password is printed: %q", stderr.String())
			}
		})
	}
	if code := exitCode(scheduling.ErrNotDrained, io.Discard); code != 4 {
		t.Errorf("not drained exits %d, want 4", code)
	}
}

func TestHelp(t *testing.T) {
	var stdout, stderr strings.Builder
	err := run(t.Context(), []string{"--help"}, env(map[string]string{"DATABASE_URL": "postgres://clerk:s3cret@host/db"}), nil, &stdout, &stderr)
	if !errors.Is(err, flag.ErrHelp) || exitCode(err, &stderr) != 0 || stderr.Len() > 0 {
		t.Errorf("help returned %v and wrote %q to stderr", err, stderr.String())
	}
	for _, want := range []string{"-listen", "DATABASE_URL", "/hearings/{id}/cancel", "-status-url", "pages for clerks"} {
		if !strings.Contains(stdout.String(), want) {
			t.Errorf("help does not show %s", want)
		}
	}
	if strings.Contains(stdout.String(), "s3cret") {
		t.Error("help prints the password")
	}
}
