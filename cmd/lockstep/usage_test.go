package main

import (
	"cmp"
	"net"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/hms-mkt/lockstep/internal/pgtest"

	"github.com/hms-mkt/lockstep/outbox"
)

func TestHelpOfEveryCommand(t *testing.T) {
	var text strings.Builder
	var visit func(c *cobra.Command)
	visit = func(c *cobra.Command) {
		path := c.CommandPath()
		switch {
		case c.Short == "":
			t.Errorf("%s has no short help", path)
		case c.Example == "" && !c.HasSubCommands():
			t.Errorf("%s has no example", path)
		}
		for line := range strings.Lines(c.Example) {
			if !strings.Contains(line, "lockstep ") {
				t.Errorf("%s: example is no command line: %q", path, line)
			}
		}
		text.WriteString("$ " + path + " --help\n")
		s := &shell{t: t}
		args := append(strings.Fields(path)[1:], "--help")
		text.WriteString(s.run(args...).wants(t, 0).stdout + "\n")
		for _, sub := range c.Commands() {
			visit(sub)
		}
	}
	visit((&app{}).root())
	golden(t, "help.golden", text.String())
}

// People copy the examples, so each command must understand its own.
func TestExamplesParse(t *testing.T) {
	var visit func(c *cobra.Command)
	visit = func(c *cobra.Command) {
		for line := range strings.Lines(c.Example) {
			_, command, _ := strings.Cut(line, "lockstep ")
			command, _, _ = strings.Cut(command, "#")
			command, _, _ = strings.Cut(command, "|")
			command, _, _ = strings.Cut(command, ">")
			found, rest, err := (&app{}).root().Find(words(command))
			if err != nil {
				t.Errorf("%q: %v", line, err)
				continue
			}
			if err := found.ParseFlags(rest); err != nil {
				t.Errorf("%q: %v", line, err)
				continue
			}
			if err := found.ValidateArgs(found.Flags().Args()); err != nil {
				t.Errorf("%q: %v", line, err)
			}
		}
		for _, sub := range c.Commands() {
			visit(sub)
		}
	}
	visit((&app{}).root())
}

// words splits a command line at spaces outside quotes.
func words(line string) []string {
	var all []string
	for _, m := range regexp.MustCompile(`"([^"]*)"|'([^']*)'|([^\s"']+)`).FindAllStringSubmatch(line, -1) {
		all = append(all, cmp.Or(m[1], m[2], m[3]))
	}
	return all
}

func TestMistakesOnTheCommandLine(t *testing.T) {
	t.Chdir(t.TempDir())
	const event = "0199f3a1-7c1e-7b5e-9c3e-5a4f2d1b0c9d"
	for name, tc := range map[string]struct {
		line string
		says string
	}{
		"unknown command":          {"sttaus", `did you mean|unknown command "sttaus"`},
		"unknown subcommand":       {"migrate upp", `unknown command "upp" for "lockstep migrate"; did you mean up?`},
		"unknown flag":             {"status --foo", "unknown flag: --foo"},
		"too many arguments":       {"status now", `unknown command "now"`},
		"missing argument":         {"explain", "accepts 1 arg(s), received 0"},
		"output":                   {"version --output yaml", "want table, json, jsonl or csv"},
		"log format":               {"version --log-format xml", "want text or json"},
		"log level":                {"version --log-level loud", "want debug, info, warn or error"},
		"no database":              {"status", "give --database-url, set DATABASE_URL"},
		"no configuration":         {"run", "name a file with --config"},
		"no such file":             {"run --config nowhere.yaml", "nowhere.yaml cannot be read"},
		"database url":             {"status --database-url nonsense", "cannot be read: want postgres://"},
		"migration set":            {"migrate up --set inbox", "want outbox or scheduling"},
		"event filter":             {"log --event 17", "is not an event's id"},
		"outcome":                  {"log --outcome done", "want one of delivered"},
		"since":                    {"log --since yesterday", "want a duration"},
		"limit":                    {"log --limit 0", "want 1 to 1000000"},
		"endless array":            {"log --follow --output json", "use --output jsonl"},
		"top for programs":         {"top --output json", "use lockstep status --output json"},
		"requeue everything":       {"requeue --sync A", "or --all"},
		"all and narrowed":         {"requeue --all --key H-1", "--all allows no filter except --sync"},
		"discard without a reason": {"discard --event " + event, "--reason is required"},
		"replay without a reason":  {"replay --event " + event, "--reason is required"},
		"pause without a reason":   {"pause A", "--reason is required"},
		"retire without a reason":  {"retire A", "--reason is required"},
		"age":                      {"requeue --older-than 1week", "want a duration"},
	} {
		t.Run(name, func(t *testing.T) {
			s := &shell{t: t}
			r := s.run(strings.Fields(tc.line)...)
			r.wants(t, exitUsage)
			found := false
			for says := range strings.SplitSeq(tc.says, "|") {
				found = found || strings.Contains(r.stderr, says)
			}
			if !found {
				t.Errorf("stderr %q does not say %q", r.stderr, tc.says)
			}
			if r.stdout != "" {
				t.Errorf("stdout has %q", r.stdout)
			}
		})
	}
}

func TestGroupsShowTheirHelp(t *testing.T) {
	for _, name := range []string{"migrate", "config", "sync"} {
		s := &shell{t: t}
		s.run(name).wants(t, 0, "Available Commands")
	}
}

func TestCompletionKnowsOutcomes(t *testing.T) {
	s := &shell{t: t}
	s.run("completion", "bash").wants(t, 0, "bash completion")
	s.run("__complete", "log", "--outcome", "").wants(t, 0, "superseded")
}

func TestVersionNamesTheSchema(t *testing.T) {
	s := &shell{t: t}
	s.run("version").wants(t, 0, "lockstep ", "schema 3", "time zones 2025c")
	if b := decode[build](t, s.run("version", "-o", "json")); b.Schema != outbox.Schema || b.Go == "" {
		t.Errorf("got %+v", b)
	}
}

func TestPasswordIsNeverShown(t *testing.T) {
	t.Chdir(t.TempDir())
	if err := os.WriteFile("lockstep.yaml", []byte("database: {url: \"${DATABASE_URL}\"}\nlisten: 127.0.0.1:0\nsyncs: [{name: A, event: a, adapter: {kind: rest, url: 'http://127.0.0.1:1/'}}]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, url := range map[string]string{
		"nobody listens": "postgres://agency:canary@127.0.0.1:1/db",
		"broken":         "postgres://agency:canary%zz@127.0.0.1:1/db",
		"bad port":       "postgres://agency:canary@127.0.0.1:port/db",
		"bad option":     "postgres://agency@127.0.0.1:1/db?password=canary&connect_timeout=x",
		"keywords":       "host=127.0.0.1 port=x password=canary",
	} {
		t.Run(name, func(t *testing.T) {
			s := &shell{t: t, env: map[string]string{"DATABASE_URL": url}}
			for _, line := range []string{"status", "migrate up", "migrate status", "sync list", "config print", "config check -o json", "map A 0199f3a1-7c1e-7b5e-9c3e-5a4f2d1b0c9d"} {
				r := s.run(strings.Fields(line)...)
				if strings.Contains(r.stdout+r.stderr, "canary") {
					t.Errorf("%s shows it: %s %s", line, r.stdout, r.stderr)
				}
				if !strings.HasPrefix(line, "config") && r.code == 0 {
					t.Errorf("%s succeeded", line)
				}
			}
		})
	}
}

func TestADatabaseThatRefusesConnectionsIsNamed(t *testing.T) {
	t.Chdir(t.TempDir())
	s := &shell{t: t, env: map[string]string{"DATABASE_URL": "postgres://agency@127.0.0.1:1/calendar"}}
	s.run("status").wants(t, exitFailed, `database "calendar" at 127.0.0.1:1 cannot be reached`, "connection refused", "--database-url")
}

// A command must not hang when a server accepts the connection and does not answer.
func TestADatabaseThatDoesNotAnswerIsGivenUp(t *testing.T) {
	t.Chdir(t.TempDir())
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	s := &shell{t: t, env: map[string]string{"DATABASE_URL": "postgres://agency@" + l.Addr().String() + "/calendar"}}
	s.run("status").wants(t, exitFailed, "no answer within 5s")
}

func TestADatabaseWithoutASchemaNeedsMigrateUp(t *testing.T) {
	t.Chdir(t.TempDir())
	s := &shell{t: t, env: map[string]string{"DATABASE_URL": pgtest.Empty(t)}}
	for _, line := range []string{"status", "log", "explain 0199f3a1-7c1e-7b5e-9c3e-5a4f2d1b0c9d", "requeue --all", "pause A --reason x"} {
		s.run(strings.Fields(line)...).wants(t, exitFailed, "lockstep migrate up")
	}
}

func TestMigrateUpStatusDownAndSQL(t *testing.T) {
	t.Chdir(t.TempDir())
	s := &shell{t: t, env: map[string]string{"DATABASE_URL": pgtest.Empty(t)}}
	s.run("migrate", "up").wants(t, 0, "schema outbox is at version 3")
	s.run("migrate", "up").wants(t, 0)
	s.run("migrate", "up", "--set", "scheduling").wants(t, 0, "schema scheduling")
	s.run("migrate", "status").wants(t, 0, "00001_outbox.sql", "applied")
	list := decode[[]migration](t, s.run("migrate", "status", "-o", "json"))
	if len(list) == 0 || !list[0].Applied || list[0].Version != 1 {
		t.Errorf("got %+v", list)
	}
	s.run("migrate", "down", "--set", "scheduling").wants(t, 0)
	s.run("migrate", "down").wants(t, 0, "removed")
	s.run("status").wants(t, exitFailed, "lockstep migrate up")
	s.run("migrate", "sql").wants(t, 0, "CREATE TABLE outbox.event", "COMMIT;")
	s.run("migrate", "sql", "--roles").wants(t, 0, "outbox_auditor", "CREATE ROLE")
}

func TestDownKeepsAFullLogUnlessForced(t *testing.T) {
	w := newWorld(t)
	w.emit("H-1", `{"hearingId":"H-1"}`)
	w.relayUntil(nothingOpen)
	w.run("migrate", "down").wants(t, exitFailed, "not empty", "--force")
	w.run("migrate", "down", "--force").wants(t, 0)
}
