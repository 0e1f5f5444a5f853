package config

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

const (
	fuzzedWord   = "zq9x7kw" // a part of the value of ${FUZZED}
	fuzzedNumber = "90817263544"
)

// FuzzParse reads any file in an environment with secrets. Either the file is refused
// with a position, and no value of the environment is shown. Or it is printed without
// secrets, and the printed file means the same.
func FuzzParse(f *testing.F) {
	files, err := filepath.Glob("testdata/*/*.yaml")
	if err != nil {
		f.Fatal(err)
	}
	for _, path := range append(files, "testdata/example.yaml", "testdata/example.json", "testdata/secrets.yaml") {
		data, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data, "", "")
	}
	sync := "syncs:\n  - name: A\n    event: a\n    adapter: {kind: rest, url: 'https://h/a'}\n"
	for _, seed := range []struct{ file, before, after string }{
		{"database: {url: '${FUZZED}'}", "postgres://u:", "@h/db"},
		{"database: {url: '${FUZZED}'}", "host=h password='", "'"},
		{"listen: '${FUZZED}'\nrelay: {workers: '${FUZZED}', poll: '${FUZZED}', name: '${FUZZED}'}", "", ":1"},
		{"relay: {workers: '${NUMBER}', poll: '${NUMBER}'}\nretention: {log: '${NUMBER}'}", "", ""},
		{"syncs: [{name: '${FUZZED}', event: '${FUZZED}', from: '${FUZZED}', on_failed: '${FUZZED}', adapter: {kind: '${FUZZED}'}}]", "", ""},
		{"syncs: [{name: '${FUZZED}', event: a, adapter: {kind: rest, url: '${FUZZED}', timeout: 9m}}]", "https://u:", "@h"},
		{"syncs: [{name: A, event: a, adapter: {kind: rest, url: 'https://h', method: '${FUZZED}', headers: {a: \"${FUZZED}\", b: 'x$$${FUZZED}'}}}]", "\n", "{"},
		{"syncs: [{name: A, event: a, adapter: {kind: rest, url: 'https://h', timeout: 9m, auth: {kind: '${FUZZED}', token: '${FUZZED}'}, tls: {ca_file: '${FUZZED}'}}}]", "/tmp/", ""},
		{"syncs: [{name: '${FUZZED}', event: a, adapter: {kind: rest, url: 'https://h', timeout: 9m}}]", "", ""},
		{sync + "    when: '${FUZZED}'\n    compute: {t: '${FUZZED}'}\n", "event.a == ", "("},
		{sync + "    mapping: {a: '${FUZZED}', b: {to: '${FUZZED}', time: {zone: '${FUZZED}'}}, c: {const: '${FUZZED}'}, d: {to: d, values: {x: '${FUZZED}'}, default: ['${FUZZED}', 1e400]}}\n", "", "."},
		{sync + "    mapping: {a: {to: b, values: {'$$$${': '$$$${x}', \"\\u2028\\\"\": 12}, default: {n: 1.50, m: null, 'a b': []}}}\n    retry: {initial: 1m, jitter: 5%}\n    limits: {rate: 600/m}\n", "", ""},
		{"syncs:\n- {name: A, events: [a, 'b:*'], adapter: {kind: rest, url: 'https://h/{key}?a=b&token=x', routes: {'a*': {url: \"https://h/b\"}}, outcomes: {409: duplicate}}}\n", "", ""},
		{"{\"listen\": \"1:30\", \"relay\": {\"name\": \"0x10\", \"drain\": 0}}", "", ""},
		{"relay:\n  name: >-\n    folded\n    text\n  drain: 1d12h\n", "", ""},
		{"# nothing\n---\n", "", ""},
		{strings.Repeat("[", 50_000), "", ""},
		{strings.Repeat("- ", 50_000), "", ""},
		{strings.Repeat("a: {", 500), "", ""},
		{strings.Repeat("'\"\n", 500), "", ""},
	} {
		f.Add([]byte(seed.file), seed.before, seed.after)
	}
	f.Fuzz(func(t *testing.T, data []byte, before, after string) {
		if bytes.Contains(data, []byte("/dev/")) || bytes.Contains(data, []byte("/proc/")) {
			return // files without an end
		}
		value := before + fuzzedWord + after
		env := func(name string) (string, bool) {
			v, ok := map[string]string{"FUZZED": value, "NUMBER": fuzzedNumber, "EMPTY": ""}[name]
			return v, ok
		}
		ours := !bytes.Contains(data, []byte(fuzzedWord)) && !bytes.Contains(data, []byte(fuzzedNumber))
		leaks := func(text string) bool {
			text = strings.ToLower(text)
			return ours && (strings.Contains(text, fuzzedWord) || strings.Contains(text, fuzzedNumber))
		}
		began := time.Now()
		file, err := Parse("f.yaml", data, env)
		if took := time.Since(began); took > 10*time.Second {
			t.Errorf("took %s", took)
		}
		if err != nil {
			var ps Problems
			if !errors.As(err, &ps) {
				t.Fatalf("%T %v", err, err)
			}
			for _, p := range ps {
				checkProblem(t, p, data)
			}
			if leaks(err.Error()) {
				t.Errorf("the error shows the value of a ${…}:\n%v", err)
			}
			return
		}
		for _, withDefaults := range []bool{false, true} {
			var b bytes.Buffer
			if err := file.Print(&b, withDefaults); err != nil {
				t.Fatal(err)
			}
			if leaks(b.String()) && !strings.Contains(strings.ToLower(file.Database.URL.Reveal()), fuzzedWord) {
				t.Errorf("the value of a ${…} is printed:\n%s", &b)
			}
			if strings.Contains(b.String(), masked) {
				continue // a password cannot be read back
			}
			again, err := Parse("printed.yaml", b.Bytes(), env)
			if err != nil {
				t.Fatalf("what is printed is refused: %v\n%s", err, &b)
			}
			again.Database.URL = file.Database.URL
			if diff := cmp.Diff(file, again, ignoreBuilt()); diff != "" {
				t.Fatalf("printed and read again (-file +printed)\n%s\n%s", diff, &b)
			}
		}
	})
}

func checkProblem(t *testing.T, p Problem, data []byte) {
	t.Helper()
	if lines := bytes.Count(data, []byte("\n")) + bytes.Count(data, []byte("\r")) + 2; p.Line < 1 || p.Line > lines || p.Column < 1 {
		t.Errorf("line %d, column %d is no place in the file: %v", p.Line, p.Column, p)
	}
	text := p.Error()
	if p.File != "f.yaml" || p.Text == "" || !utf8.ValidString(text) || strings.ContainsFunc(text, unicode.IsControl) {
		t.Errorf("not one line that can be shown: %q", text)
	}
	if len(text) > 8<<10 {
		t.Errorf("%d bytes are no message: %.200s", len(text), text)
	}
}

// FuzzSubstitute: text without references does not change, and any text can be escaped
// so that it is read back.
func FuzzSubstitute(f *testing.F) {
	for _, text := range []string{"", "plain", "$", "$$", "$${", "$$${", "a$b", "${FUZZED}", "${EMPTY:-x}", "${", "${}", "${a b}", "${file:relative}", "$$${FUZZED}$"} {
		f.Add(text, "value")
	}
	f.Add("${FUZZED}", "${FUZZED}$$")
	f.Fuzz(func(t *testing.T, text, value string) {
		if strings.Contains(text, "${file:/") {
			return // FuzzParse reads files
		}
		secret := fuzzedWord + value
		s := &substitution{env: func(name string) (string, bool) { return secret, name == "FUZZED" }}
		out, replaced, err := s.replace(text)
		switch {
		case err != nil && strings.Contains(err.Error(), fuzzedWord) && !strings.Contains(text, fuzzedWord):
			t.Errorf("the error shows the value of a ${…}: %v", err)
		case err == nil && !strings.Contains(text, "$") && out != text:
			t.Errorf("%q became %q", text, out)
		case err == nil && utf8.ValidString(text) && !utf8.ValidString(out):
			t.Errorf("%q and %q became %q", text, secret, out)
		case replaced != nil && !strings.Contains(text, "${"):
			t.Errorf("a value was substituted into %q", text)
		}
		back, replaced, err := s.replace(escapeDollars(text))
		if err != nil || replaced != nil || back != text {
			t.Errorf("%q was written %q and read as %q, %v", text, escapeDollars(text), back, err)
		}
	})
}
