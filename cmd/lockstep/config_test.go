package main

import (
	"strings"
	"testing"
)

func TestConfigCheckListsEveryProblem(t *testing.T) {
	w := &world{shell: &shell{t: t, env: map[string]string{"COURT_TOKEN": "x", "DATABASE_URL": "postgres://a@b/c"}}}
	w.configure(strings.ReplaceAll(courtYAML, "%s", "http://127.0.0.1:1"))
	w.run("config", "check").wants(t, 0, "is valid: 1 sync (CourtCalendarSync)")

	w.configure("listen: nowhere\nsyncs:\n  - name: A\n    events: [a]\n    adaptor: {}\n    adapter: {kind: rest, url: 'http://127.0.0.1:1/'}\n")
	r := w.run("config", "check").wants(t, exitUsage, "lockstep.yaml:1:9: listen:", ":5:5: syncs[0].adaptor", "2 problems")
	if r.stdout != "" {
		t.Errorf("stdout has %q", r.stdout)
	}
	r = w.run("config", "check", "--output", "json").wants(t, exitUsage)
	if c := decode[checked](t, r); c.Valid || len(c.Problems) != 2 || c.Problems[0].Line != 1 {
		t.Errorf("got %+v", c)
	}

	w.configure("syncs: []\n")
	w.run("config", "check").wants(t, exitUsage, "no syncs: ", "lockstep config init", "only lockstep console needs none")
	w.run("run").wants(t, exitUsage, "no syncs")
}

func TestConfigCheckWarns(t *testing.T) {
	w := &world{shell: &shell{t: t, env: map[string]string{"COURT_TOKEN": "x", "DATABASE_URL": "postgres://a@b/c"}}}
	w.configure(strings.ReplaceAll(courtYAML, "%s", "http://court.example.gov"))
	w.run("config", "check").wants(t, 0, ": warning: syncs[0].adapter.url: a credential is sent over plain http", "is valid: 1 sync (CourtCalendarSync)")
	c := decode[checked](t, w.run("config", "check", "--output", "json").wants(t, 0))
	if !c.Valid || len(c.Problems) != 0 || len(c.Warnings) != 1 || c.Warnings[0].Path != "syncs[0].adapter.url" {
		t.Errorf("got %+v", c)
	}
}

func TestConfigPrintHidesSecrets(t *testing.T) {
	t.Chdir(t.TempDir())
	w := &world{shell: &shell{t: t, env: map[string]string{"COURT_TOKEN": "canary", "DATABASE_URL": "postgres://a:canary@b/c"}}}
	w.run("config", "print").wants(t, exitUsage, "no configuration")
	w.run("config", "print", "--defaults").wants(t, 0, "workers: 32 # default")
	w.configure(strings.ReplaceAll(courtYAML, "%s", "http://127.0.0.1:1"))
	r := w.run("config", "print").wants(t, 0, "case_reference", "${COURT_TOKEN}")
	if strings.Contains(r.stdout, "canary") {
		t.Errorf("a secret is shown: %s", r.stdout)
	}
	if s := decode[map[string]any](t, w.run("config", "schema")); s["$schema"] == nil {
		t.Error("no schema")
	}
}
