package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"
)

// A mistake in the database's name or the login ends the start, because waiting
// does not repair it. The message says what is wrong, without the password.
func TestRunEndsWhenTheDatabaseOrTheLoginIsWrong(t *testing.T) {
	w := newWorld(t)
	there, err := url.Parse(w.env["DATABASE_URL"])
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		change func(u *url.URL)
		says   []string
	}{
		"no such database": {func(u *url.URL) { u.Path = "/agnecy" }, []string{`database \"agnecy\" does not exist`, "3D000"}},
		"wrong password": {func(u *url.URL) { u.User = url.UserPassword(u.User.Username(), "password-canary") }, []string{
			"password authentication failed", "28P01",
		}},
		"no such login": {func(u *url.URL) { u.User = url.UserPassword("nobody", "password-canary") }, []string{`\"nobody\"`}},
	} {
		for _, tls := range []string{"disable", "prefer"} {
			t.Run(name+", TLS "+tls, func(t *testing.T) {
				u := *there
				c.change(&u)
				u.RawQuery = "sslmode=" + tls
				s := &shell{t: t, env: map[string]string{
					"DATABASE_URL": u.String(), "LOCKSTEP_CONFIG": w.env["LOCKSTEP_CONFIG"], "COURT_TOKEN": "x",
				}}
				r := s.run("run", "--log-format", "json").wants(t, exitFailed, append(c.says, `"exit_code":1`, "check --database-url")...)
				if strings.Contains(r.stderr, "canary") || strings.Contains(r.stderr, "tls error") {
					t.Errorf("says %s", r.stderr)
				}
				wantJSONLines(t, r.stderr)
			})
		}
	}
}

// The relay waits for a server that starts up or is full.
func TestRunWaitsForAServerThatStarts(t *testing.T) {
	w := newWorld(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			server := pgproto3.NewBackend(conn, conn)
			if _, err := server.ReceiveStartupMessage(); err == nil {
				server.Send(&pgproto3.ErrorResponse{Severity: "FATAL", Code: "57P03", Message: "the database system is starting up"})
				_ = server.Flush()
			}
			_ = conn.Close()
		}
	}()
	w.env["DATABASE_URL"] = "postgres://relay:canary@" + l.Addr().String() + "/db?sslmode=disable"
	p := w.spawn(program(t))
	for n := range 2 {
		line := p.says(t, "database is not ready, waiting")
		if !strings.Contains(fmt.Sprint(line["error"]), "starting up") {
			t.Errorf("said %v", line)
		}
		if n == 1 && (line["failures"] == nil || !strings.HasSuffix(fmt.Sprint(line["for"]), "s")) {
			t.Errorf("a repetition says neither how often nor for how long: %v", line)
		}
	}
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	p.exits(t, 0)
}

func wantJSONLines(t *testing.T, text string) {
	t.Helper()
	for line := range strings.Lines(text) {
		if !json.Valid([]byte(line)) {
			t.Errorf("not a line of JSON: %s", line)
		}
	}
}

func TestFatalErrorsComeInTheChosenFormat(t *testing.T) {
	s := &shell{t: t, env: map[string]string{}}
	path := t.TempDir() + "/lockstep.yaml"
	writeFile(t, path, "relay: {workers: none}\nsynks: []\n")
	for name, args := range map[string][]string{
		"no configuration":     {"run"},
		"wrong configuration":  {"run", "--config", path},
		"wrong flag":           {"run", "--colour"},
		"wrong command":        {"runn"},
		"database not reached": {"status", "--database-url", "postgres://u:secret@127.0.0.1:1/agency"},
	} {
		t.Run(name, func(t *testing.T) {
			r := s.run(append([]string{"--log-format", "json"}, args...)...)
			wantJSONLines(t, r.stderr)
			lines := strings.Split(strings.TrimSpace(r.stderr), "\n")
			var last map[string]any
			if err := json.Unmarshal([]byte(lines[len(lines)-1]), &last); err != nil || last["level"] != "ERROR" || last["exit_code"] != float64(r.code) || last["error"] == "" {
				t.Errorf("exit code %d, said %s", r.code, r.stderr)
			}
			if name == "wrong configuration" && !strings.Contains(r.stderr, `"line":2`) {
				t.Errorf("does not say where: %s", r.stderr)
			}
			if plain := s.run(args...); json.Valid([]byte(strings.TrimSpace(plain.stderr))) || plain.code != r.code {
				t.Errorf("as text: exit code %d, %s", plain.code, plain.stderr)
			}
		})
	}
}

type lasting struct{ d time.Duration }

func (l lasting) LogValue() slog.Value { return slog.GroupValue(slog.Duration("for", l.d)) }

func TestJSONLogsWriteDurationsWithAUnit(t *testing.T) {
	var b bytes.Buffer
	log := jsonLog(&b, slog.LevelInfo)
	log.With("pause", 250*time.Millisecond).WithGroup("g").Info("x", "drain", 20*time.Second, slog.Group("in", "took", time.Minute), "v", lasting{time.Hour})
	for _, want := range []string{`"pause":"250ms"`, `"drain":"20s"`, `"took":"1m0s"`, `"for":"1h0m0s"`} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %s in %s", want, b.String())
		}
	}
}
