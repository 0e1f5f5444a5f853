package main

import (
	"net"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// completions returns what the shell offers after a command line. Its last word is being
// typed.
func (s *shell) completions(line string) []string {
	s.t.Helper()
	args := strings.Split(line, " ")
	var offered []string
	for l := range strings.Lines(s.run(append([]string{"__complete"}, args...)...).wants(s.t, 0).stdout) {
		if !strings.HasPrefix(l, ":") {
			word, _, _ := strings.Cut(strings.TrimSpace(l), "\t")
			offered = append(offered, word)
		}
	}
	return offered
}

func TestCompletionKnowsTheFileWithoutItsSecrets(t *testing.T) {
	t.Chdir(t.TempDir())
	writeFile(t, "lockstep.yaml", strings.ReplaceAll(courtYAML, "%s", "http://127.0.0.1:1")+`
  - {name: ClinicSync, event: clinic:closed, adapter: {kind: nonsense}, oops: 1}
`)
	s := &shell{t: t}
	for line, want := range map[string][]string{
		"pause ":                        {"ClinicSync", "CourtCalendarSync"},
		"resume Co":                     {"CourtCalendarSync"},
		"retire ":                       {"ClinicSync", "CourtCalendarSync"},
		"pause CourtCalendarSync ":      nil,
		"log --sync ":                   {"ClinicSync", "CourtCalendarSync"},
		"explain H-1 --sync Cl":         {"ClinicSync"},
		"requeue --sync ":               {"ClinicSync", "CourtCalendarSync"},
		"sync apply ":                   {"ClinicSync", "CourtCalendarSync"},
		"sync apply ClinicSync ":        {"CourtCalendarSync"},
		"sync apply --from ":            {"beginning", "now"},
		"map Cou":                       {"CourtCalendarSync"},
		"map ClinicSync x.json --type ": {"clinic:closed"},
		"requeue --class per":           {"permanent"},
		"status --output ":              {"csv", "json", "jsonl", "table"},
		"run --log-level ":              {"debug", "error", "info", "warn"},
		"run --log-format ":             {"json", "text"},
		"migrate up --set ":             {"outbox", "scheduling"},
		"status ":                       nil,
		"status --max-lag ":             nil,
	} {
		if got := s.completions(line); !slices.Equal(got, want) {
			t.Errorf("lockstep %s: offers %q, want %q", line, got, want)
		}
	}
}

func TestCompletionKnowsTheDatabase(t *testing.T) {
	w, _, _, _, _ := troubled(t)
	ask[string](w, `SELECT outbox.pause('CourtCalendarSync', 'x', scope => 'ny07')::text`)
	s := w.as(roleAuditor)
	delete(s.env, "LOCKSTEP_CONFIG")
	for line, want := range map[string][]string{
		"pause ":                            {"CourtCalendarSync"},
		"resume CourtCalendarSync --scope ": {"ny07"},
		"resume ClinicSync --scope ":        nil,
		"explain ":                          {"H-2", "H-3"},
		"requeue ":                          {"H-2", "H-3"},
		"discard H-2":                       {"H-2"},
		"log --key H-3":                     {"H-3"},
		"requeue H-2 ":                      nil,
	} {
		if got := s.completions(line); !slices.Equal(got, want) {
			t.Errorf("lockstep %s: offers %q, want %q", line, got, want)
		}
	}
}

// A shell that waits for the database would look broken.
func TestCompletionDoesNotWaitForADatabase(t *testing.T) {
	t.Chdir(t.TempDir())
	writeFile(t, "lockstep.yaml", "syncs: [{name: CourtCalendarSync}]")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	s := &shell{t: t, env: map[string]string{"DATABASE_URL": "postgres://agency@" + l.Addr().String() + "/calendar"}}
	if got := s.completions("pause "); !slices.Equal(got, []string{"CourtCalendarSync"}) {
		t.Errorf("offers %q", got)
	}
	if connectTimeout <= completionTimeout {
		t.Errorf("completion waits up to %s, as long as a command", completionTimeout)
	}
}

// No command offers the files of the directory where it takes none.
func TestCompletionOffersFilesOnlyWhereAFileIsMeant(t *testing.T) {
	var visit func(c *cobra.Command)
	visit = func(c *cobra.Command) {
		s := &shell{t: t}
		line := strings.TrimPrefix(c.CommandPath(), "lockstep") + " "
		if c.Name() != "map" && !c.HasSubCommands() {
			s.run(append([]string{"__complete"}, strings.Split(strings.TrimSpace(line)+" ", " ")...)...).wants(t, 0, ":4")
		}
		for _, sub := range c.Commands() {
			visit(sub)
		}
	}
	visit((&app{}).root())
	s := &shell{t: t}
	s.run("__complete", "run", "--config", "").wants(t, 0, "yaml", ":8")
	s.run("__complete", "map", "CourtCalendarSync", "").wants(t, 0, ":0")
}
