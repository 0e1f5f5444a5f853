package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const goFile = `package relay

const limit = 1

// limit is said here too.
func (p *pipeline) wait() int {
	return limit +
		limit
}

func wait() int { return limit }

const statement = ` + "`" + `
WITH mine AS MATERIALIZED (
    SELECT (l.claim) FROM outbox.lane AS l WHERE l.claim = $1
), yours AS (
    SELECT FROM outbox.lane AS x WHERE x.claim = $1
)` + "`" + `
`

const sqlFile = `CREATE FUNCTION outbox.pause(sync text) RETURNS void AS $$ SELECT now() $$;
-- +goose StatementEnd
CREATE FUNCTION outbox.resume(sync text) RETURNS void AS $$ SELECT now() $$;
-- +goose StatementEnd
`

func TestEditsAreAnchored(t *testing.T) {
	root := t.TempDir()
	for name, text := range map[string]string{
		"relay/a.go": goFile, "relay/a_test.go": goFile, "schema.sql": sqlFile,
	} {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, test := range map[string]struct {
		edit edit
		want string // a part of the result; for an error, of its text
	}{
		"a method, whatever its white space": {edit{file: "relay", in: "pipeline.wait", old: "limit + limit", new: "0"}, "return 0\n"},
		"a function of the same name":        {edit{file: "relay", in: "wait", old: "return limit", new: "return 0"}, "func wait() int { return 0 }"},
		"a constant":                         {edit{file: "relay", in: "limit", old: "1", new: "2"}, "const limit = 2"},
		"a regular expression":               {edit{file: "relay/a.go", in: "wait", pattern: "limit|most", new: "0"}, "func wait() int { return 0 }"},
		"several times":                      {edit{file: "relay", in: "pipeline.wait", old: "limit", new: "0", times: 2}, "0 +\n\t\t0"},
		"a function in SQL":                  {edit{file: "schema.sql", in: "outbox.resume", old: "now()", new: "1"}, "SELECT now() $$;\n-- +goose StatementEnd\nCREATE FUNCTION outbox.resume(sync text) RETURNS void AS $$ SELECT 1"},
		"a part of a statement":              {edit{file: "relay", in: "statement", part: "mine", old: " = $1", new: ""}, "WHERE l.claim\n), yours AS (\n    SELECT FROM outbox.lane AS x WHERE x.claim = $1"},
		"whatever an alias is":               {edit{file: "relay", in: "statement", part: "yours", old: "WHERE _.claim = $1", new: "WHERE _1.key = $1"}, "WHERE x.key = $1"},
		"twice, once wanted":                 {edit{file: "relay", in: "statement", old: "_.claim = $1"}, "stale: relay statement has 2 times, not 1"},
		"a declaration that is gone":         {edit{file: "relay", in: "gone", old: "limit", new: "0"}, "stale: relay gone has 0 times"},
	} {
		t.Run(name, func(t *testing.T) {
			edited := map[string]string{}
			got := ""
			if err := test.edit.apply(root, edited); err != nil {
				got = err.Error()
			}
			for _, text := range edited {
				got += text
			}
			if !strings.Contains(got, test.want) {
				t.Errorf("got %s\nwant %q in it", got, test.want)
			}
		})
	}
}

// Each mistake of the table must still have its place in the code. Whether its
// test catches it is what the command is for.
func TestNoMistakeIsStale(t *testing.T) {
	root, err := filepath.Abs("../../..")
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for _, m := range mutants {
		if names[m.name] {
			t.Errorf("two mistakes are called %q", m.name)
		}
		names[m.name] = true
		edited := map[string]string{}
		for _, e := range m.edits {
			if err := e.apply(root, edited); err != nil {
				t.Errorf("%s: %v", m.name, err)
			}
		}
		sources, err := filepath.Glob(filepath.Join(root, m.dir, "*_test.go"))
		if err != nil {
			t.Fatal(err)
		}
		test, _, _ := strings.Cut(m.test, "/")
		found := false
		for _, source := range sources {
			text, err := os.ReadFile(source)
			if err != nil {
				t.Fatal(err)
			}
			found = found || strings.Contains(string(text), "\nfunc "+test+"(")
		}
		if !found {
			t.Errorf("%s: there is no test %s in %s", m.name, test, m.dir)
		}
	}
}
