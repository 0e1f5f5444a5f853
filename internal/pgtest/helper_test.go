package pgtest

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// helperEnv makes this test binary do one thing in a separate process.
const helperEnv = "LOCKSTEP_PGTEST_HELPER"

// helper starts a server and prints its route and URL. As "orphan" it then
// waits to be killed.
func helper(role string) {
	s, err := Start(context.Background(), Options{Dir: os.Getenv("HELPER_DIR")})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(s.Route(), s.URL("postgres"))
	if role == "orphan" {
		_, _ = os.Stdin.Read(make([]byte, 1))
	}
	if err := s.Stop(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// self prepares a run of this test binary with more environment.
func self(t *testing.T, args []string, env ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], args...)
	cmd.Env = append(os.Environ(), EnvURL+"=", EnvRoute+"=")
	cmd.Env = append(cmd.Env, env...)
	return cmd
}

func TestServerDiesWithItsProcess(t *testing.T) {
	parent := openDir(t)
	cmd := self(t, nil, helperEnv+"=orphan", EnvRoute+"="+string(Local), "HELPER_DIR="+parent)
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = stdin.Close() }()
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	_, databaseURL, _ := strings.Cut(strings.TrimSpace(line), " ")
	conn := connect(t, databaseURL)

	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // "signal: killed"

	// If the system does not end the server together with its parent, removeLeftovers
	// does. It keeps directories for a minute, so the test makes this one older.
	left := directories(t, parent)
	if len(left) != 1 {
		t.Fatalf("directories of the killed process: %v, want one", left)
	}
	lock := filepath.Join(left[0], "lock")
	removeLeftovers(parent)
	if _, err := os.Stat(lock); err != nil {
		t.Errorf("a young directory was removed: %v", err)
	}
	hourAgo := time.Now().Add(-time.Hour)
	if err := os.Chtimes(lock, hourAgo, hourAgo); err != nil {
		t.Fatal(err)
	}
	removeLeftovers(parent)
	if left := directories(t, parent); len(left) != 0 {
		t.Errorf("not removed: %v", left)
	}

	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := conn.WaitForNotification(ctx); ctx.Err() != nil {
		t.Errorf("the server outlived its process: %v", err)
	}
}

func TestRemoveLeftoversKeepsDirectoriesInUse(t *testing.T) {
	parent := openDir(t)
	s := start(t, Options{Route: Local, Dir: parent})
	lock := filepath.Join(s.engine.(*local).dir, "lock")
	hourAgo := time.Now().Add(-time.Hour)
	if err := os.Chtimes(lock, hourAgo, hourAgo); err != nil {
		t.Fatal(err)
	}
	removeLeftovers(parent)
	connect(t, s.URL("postgres"))
	if _, err := os.Stat(lock); err != nil {
		t.Error(err)
	}
}

func TestStartTakesTheNextRouteWithoutAnImage(t *testing.T) {
	// A Docker engine that has no image and reaches no registry.
	engine := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Api-Version", "1.44")
		w.Header().Set("Content-Type", "application/json")
		switch {
		case strings.HasSuffix(r.URL.Path, "/_ping"):
			_, _ = w.Write([]byte("OK"))
		case strings.HasSuffix(r.URL.Path, "/info"):
			_, _ = w.Write([]byte(`{"OperatingSystem": "test"}`))
		default:
			http.Error(w, `{"message": "no such host: registry.invalid"}`, http.StatusNotFound)
		}
	}))
	defer engine.Close()
	var stderr bytes.Buffer
	cmd := self(t, nil, helperEnv+"=start",
		"DOCKER_HOST="+strings.Replace(engine.URL, "http:", "tcp:", 1),
		EnvImage+"=registry.invalid/postgres:0", "HELPER_DIR="+openDir(t))
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v\n%s", err, stderr.String())
	}
	if !strings.HasPrefix(string(out), string(Local)+" ") {
		t.Errorf("got %q, want the local route", out)
	}
	said := stderr.String()
	if strings.Count(said, "\n") != 1 || !strings.Contains(said, "registry.invalid/postgres:0") {
		t.Errorf("stderr: got %q, want one line that names the image", said)
	}
}

func TestBinariesShareAServer(t *testing.T) {
	s := start(t, Options{Route: Local})
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			out, err := self(t, []string{"-test.run=TestNewIsMigrated|TestAsRole|TestRouteIsTheOneAskedFor"}, EnvURL+"="+s.URL("postgres")).CombinedOutput()
			if err != nil {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
	wg.Wait()
	if left := queryOne[int](t, connect(t, s.URL("postgres")), "SELECT count(*) FROM pg_database WHERE datname LIKE 'lockstep%'"); left != 0 {
		t.Errorf("%d databases were not dropped", left)
	}
}

func TestNoEngineIsSilent(t *testing.T) {
	var stderr bytes.Buffer
	run := func(env ...string) (string, error) {
		stderr.Reset()
		cmd := self(t, nil, append(env, helperEnv+"=start", "DOCKER_HOST=unix:///nowhere/docker.sock", "HELPER_DIR="+openDir(t))...)
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		return string(out), err
	}
	out, err := run()
	if err != nil {
		t.Fatalf("%v\n%s", err, stderr.String())
	}
	if strings.HasPrefix(out, string(Container)+" ") {
		return // testcontainers has found an engine at its usual place
	}
	if stderr.Len() != 0 {
		t.Errorf("stderr: %q, want the local route without a word", stderr.String())
	}
	var exit *exec.ExitError
	if _, err := run(EnvRoute + "=" + string(Container)); !errors.As(err, &exit) || !strings.Contains(stderr.String(), errNoEngine.Error()) {
		t.Errorf("container route insisted on: got %v, %q", err, stderr.String())
	}
}
