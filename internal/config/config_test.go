package config

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/relay/mapping"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// The secrets below must not appear in any output.
func testEnv(name string) (string, bool) {
	v, ok := map[string]string{
		"DATABASE_URL": "postgres://lockstep:hunter2@db.example.gov:5432/agency?sslmode=require",
		"COURT_TOKEN":  "tok-4711-hunter2",
		"WORKERS":      "16",
		"EMPTY":        "",
		"NOTNUMBER":    "hunter2",
		"BADURL":       "ht!tp://hunter2 example",
		"SHORT":        "h2",
		"SPACED":       "a-token-of-sixteen ",
		"STRUCTURE":    "a: [b, {c: d}]\nsyncs: none",
		"DOLLAR":       "a${COURT_TOKEN}$$b",
		"EXPR":         "hunter22 + 1",
		"PIN":          "4711042",
		"SEALED":       "yes",
		"NOTUTF8":      "a\xffb",
	}[name]
	return v, ok
}

func golden(t *testing.T, path string, got []byte) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s differs (-want +got); run with -update if that is meant\n%s", path, diff)
	}
}

func parseYAML(t *testing.T, text string) *File {
	t.Helper()
	f, err := Parse("test.yaml", []byte(text), testEnv)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func ignoreBuilt() cmp.Option {
	return cmp.Options{
		cmpopts.IgnoreUnexported(File{}),
		cmpopts.IgnoreFields(Adapter{}, "Adapter", "Substituted"),
		cmp.Comparer(func(a, b adapters.Secret) bool { return a.Reveal() == b.Reveal() }),
		cmp.Transformer("json", func(r json.RawMessage) string { return string(r) }),
	}
}

func TestExample(t *testing.T) {
	f, err := Load("testdata/example.yaml", testEnv)
	if err != nil {
		t.Fatal(err)
	}
	want := &File{
		Database:  Database{URL: "postgres://lockstep:hunter2@db.example.gov:5432/agency?sslmode=require", MaxConnections: 8},
		Relay:     RelaySettings{Workers: 32, Poll: 50 * time.Millisecond, Lease: time.Minute, Drain: 20 * time.Second},
		Listen:    "127.0.0.1:9464",
		Console:   Console{Zone: "UTC"},
		Retention: Retention{Events: Period{Duration: 90 * 24 * time.Hour}, Log: Period{Months: 84}},
		Syncs: []Sync{{
			Name:    "CourtCalendarSync",
			Events:  []string{"scheduling:*"},
			When:    `event.court == "NY-07"`,
			From:    "beginning",
			Adapter: Adapter{Kind: "rest"},
			Mapping: Fields{
				{From: "hearingId", To: "case_reference"},
				{From: "scheduledAt", To: "start_time", Time: &mapping.TimeFormat{Zone: "America/New_York", Format: "RFC3339"}},
				{From: "location", To: "courtroom", Values: map[string]string{"3A": "ROOM-3A"}, Default: json.RawMessage(`"TBD"`)},
				{From: "notes", To: "remarks", Optional: true},
			},
			Compute:  Compute{{To: "title", Expr: `"Hearing " + event.hearingId`}},
			OnFailed: "block",
			Escalate: Escalate{Zone: "UTC"},
			Retry:    Retry{Initial: time.Second, Max: 15 * time.Minute, Jitter: 0.2, MaxAge: 72 * time.Hour},
			Limits:   Limits{Concurrency: 32},

			TypeNames: []string{"scheduling:cancelled"},
		}},
	}
	if diff := cmp.Diff(want, f, ignoreBuilt()); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
	if f.Syncs[0].Adapter.Adapter == nil {
		t.Error("no adapter was built")
	}
}

func TestJSON(t *testing.T) {
	f, err := Load("testdata/example.json", testEnv)
	if err != nil {
		t.Fatal(err)
	}
	retry := Retry{Initial: time.Second, Max: 15 * time.Minute, Jitter: 0.2, MaxAge: 72 * time.Hour}
	want := []Sync{
		{
			Name: "Clinic-1", Event: "scheduling:updated", From: "2027-01-01T00:00:00Z", Adapter: Adapter{Kind: "rest"},
			Mapping: Fields{
				{From: "b", To: "x"},
				{From: "a", To: "y.z", Default: json.RawMessage(`1.50`)},
				{To: "kind", Const: json.RawMessage(`{"b":[1,2.0],"a":null}`)},
			},
			OnFailed: "block", Escalate: Escalate{Zone: "UTC"}, Retry: retry, Limits: Limits{Concurrency: 4, Rate: 10},
		},
		{Name: "Clinic-2", Events: []string{"*"}, Adapter: Adapter{Kind: "rest"}, OnFailed: "block", Escalate: Escalate{Zone: "UTC"}, Retry: retry, Limits: Limits{Concurrency: 4}},
	}
	if diff := cmp.Diff(want, f.Syncs, ignoreBuilt()); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
}

// The defaults are promised by the contract.
func TestDefaults(t *testing.T) {
	want := &File{
		Database:  Database{MaxConnections: 8},
		Relay:     RelaySettings{Workers: 32, Poll: 50 * time.Millisecond, Lease: time.Minute, Drain: 20 * time.Second},
		Listen:    "127.0.0.1:9464",
		Console:   Console{Zone: "UTC"},
		Retention: Retention{Events: Period{Duration: 90 * 24 * time.Hour}, Log: Period{Months: 84}},
	}
	if diff := cmp.Diff(want, Defaults(), ignoreBuilt()); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
	f := parseYAML(t, "relay: {workers: 5}\n"+oneSync)
	if f.Syncs[0].Limits.Concurrency != 5 {
		t.Errorf("concurrency is %d, want that of the workers, 5", f.Syncs[0].Limits.Concurrency)
	}
}

const oneSync = `
syncs:
  - name: S
    event: a
    adapter: {kind: rest, url: "https://court.example.gov/"}
`

// TestBad parses each testdata/bad/*.yaml and compares all reported problems.
func TestBad(t *testing.T) {
	files, err := filepath.Glob("testdata/bad/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatal("no files", err)
	}
	line := regexp.MustCompile(`^[a-z_]+\.yaml:[1-9][0-9]*:[1-9][0-9]*: .`)
	for _, path := range files {
		t.Run(filepath.Base(path), func(t *testing.T) {
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			_, err = Parse(filepath.Base(path), data, testEnv)
			if err == nil {
				t.Fatal("was accepted")
			}
			for l := range strings.SplitSeq(err.Error(), "\n") {
				if !line.MatchString(l) {
					t.Errorf("%q does not begin with file:line:column", l)
				}
			}
			if strings.Contains(err.Error(), "hunter2") || strings.Contains(err.Error(), "4711042") {
				t.Errorf("the message contains the value of a ${…}:\n%s", err)
			}
			golden(t, strings.TrimSuffix(path, ".yaml")+".golden", []byte(err.Error()+"\n"))
		})
	}
}

func TestProblemsAreErrors(t *testing.T) {
	_, err := Parse("x.yaml", []byte("listen: 5\nfoo: 1\n"), testEnv)
	var ps Problems
	var p Problem
	if !errors.As(err, &ps) || len(ps) != 2 || !errors.As(err, &p) || p != ps[0] {
		t.Fatalf("got %#v", err)
	}
	if p.Line != 1 || p.Column != 9 || p.Path != "listen" {
		t.Errorf("the first problem is at %d:%d %s", p.Line, p.Column, p.Path)
	}
}

func TestLoadNamesTheProblemOfTheFile(t *testing.T) {
	if _, err := Load("testdata/none.yaml", testEnv); err == nil || !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "--config") {
		t.Errorf("got %v", err)
	}
	big := filepath.Join(t.TempDir(), "big.yaml")
	if err := os.WriteFile(big, bytes.Repeat([]byte("# x\n"), maxFileSize/4+1), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(big, testEnv); err == nil || !strings.Contains(err.Error(), "larger than 1 MiB") {
		t.Errorf("got %v", err)
	}
	for name, data := range map[string]string{"empty": "", "comment": "# c\n"} {
		if _, err := Parse("x", []byte(data), testEnv); err == nil || !strings.Contains(err.Error(), "is empty") {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if _, err := Parse("x", []byte("a: \xff"), testEnv); err == nil || !strings.Contains(err.Error(), "not UTF-8") {
		t.Errorf("got %v", err)
	}
}

func TestSubstitution(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	secret := write("secret", "from file\r\n\n")
	marked := write("marked", "\uFEFFfrom file\r\n")
	large := write("large", strings.Repeat("x", maxSecretSize+1))
	tests := map[string]struct {
		in   string
		want string // or part of the error after "!"
	}{
		"none":              {"plain", "plain"},
		"variable":          {"${WORKERS}", "16"},
		"inside text":       {"a${WORKERS}b${WORKERS}", "a16b16"},
		"set but empty":     {"<${EMPTY}>", "<>"},
		"default unused":    {"${WORKERS:-7}", "16"},
		"default":           {"${NOPE:-7}", "7"},
		"default for empty": {"${EMPTY:-7}", "7"},
		"empty default":     {"<${NOPE:-}>", "<>"},
		"default with URL":  {"${NOPE:-http://x:-/}", "http://x:-/"},
		"file":              {"${file:" + secret + "}", "from file"},
		"file with a mark":  {"${file:" + marked + "}", "from file"},
		"dollar":            {"$$", "$"},
		"escaped":           {"$${WORKERS}", "${WORKERS}"},
		"dollar alone":      {"^a$", "^a$"},
		"dollar in text":    {"$5 and $x", "$5 and $x"},
		"not read again":    {"${DOLLAR}", "a${COURT_TOKEN}$$b"},
		"missing":           {"${NOPE}", "!environment variable NOPE is not set: set it, or write ${NOPE:-default}"},
		"not UTF-8":         {"${NOTUTF8}", "!NOTUTF8 is not UTF-8"},
		"not closed":        {"${WORKERS", "!no closing brace"},
		"not a name":        {"${1A}", "!does not name a variable"},
		"no name":           {"${}", "!does not name a variable"},
		"no such file":      {"${file:/nope/nope}", "!no such file or directory; check"},
		"relative file":     {"${file:secret}", "!is not an absolute path"},
		"large file":        {"${file:" + large + "}", "!larger than 64 KiB"},
		"directory":         {"${file:" + dir + "}", "!cannot be read: is a directory"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got, _, err := (&substitution{env: testEnv, read: readFile}).replace(tt.in)
			if part, ok := strings.CutPrefix(tt.want, "!"); ok {
				if err == nil || !strings.Contains(err.Error(), part) {
					t.Fatalf("got %q, %v; want an error with %q", got, err, part)
				}
				return
			}
			if err != nil || got != tt.want {
				t.Errorf("got %q, %v; want %q", got, err, tt.want)
			}
		})
	}
}

// The value of a ${…} stays text, even if it looks like YAML.
func TestSubstitutionIsNotStructure(t *testing.T) {
	f := parseYAML(t, oneSync+`    when: key == "$${x}"
    mapping:
      a: {to: b, default: "${STRUCTURE}"}
      c: {const: "${SEALED}"}
      d: {const: ["${WORKERS}", 16]}
`)
	fields := f.Syncs[0].Mapping
	if got, want := string(fields[0].Default), `"a: [b, {c: d}]\nsyncs: none"`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if got, want := string(fields[1].Const), `"yes"`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if got, want := string(fields[2].Const), `["16",16]`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if got, want := f.Syncs[0].When, `key == "${x}"`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestSubstitutedNumbers(t *testing.T) {
	f := parseYAML(t, "relay: {workers: \"${WORKERS}\", poll: \"${NOPE:-20ms}\"}\n"+oneSync+"    notify: ${NOPE:-true}\n")
	if f.Relay.Workers != 16 || f.Relay.Poll != 20*time.Millisecond || !f.Syncs[0].Notify || f.Syncs[0].Limits.Concurrency != 16 {
		t.Errorf("got %+v, %+v", f.Relay, f.Syncs[0])
	}
}

func TestScalars(t *testing.T) {
	type test struct {
		in   string
		want any // nil: refused
	}
	run := func(name string, parse func(string) (any, error), tests []test) {
		for _, tt := range tests {
			got, err := parse(tt.in)
			if tt.want == nil {
				if err == nil {
					t.Errorf("%s %q was read as %v", name, tt.in, got)
				}
				continue
			}
			if err != nil || got != tt.want {
				t.Errorf("%s %q: got %v, %v; want %v", name, tt.in, got, err, tt.want)
			}
		}
	}
	run("duration", parseDuration, []test{
		{"50ms", 50 * time.Millisecond},
		{"0", time.Duration(0)},
		{"0s", time.Duration(0)},
		{"1h30m", 90 * time.Minute},
		{"1.5h", 90 * time.Minute},
		{"3d", 72 * time.Hour},
		{"1d12h", 36 * time.Hour},
		{"36500d", maxDuration},
		{"36501d", nil},
		{"99999999999999999999d", nil},
		{"-1s", nil},
		{"15", nil},
		{"1.5", nil},
		{"", nil},
		{"s", nil},
		{"1mo", nil},
		{"1 s", nil},
		{"1.5d", nil},
		{"9999999h", nil},
		{"+1s", nil},
	})
	run("period", parsePeriod, []test{
		{"84mo", Period{Months: 84}},
		{"90d", Period{Duration: 90 * 24 * time.Hour}},
		{"1h", Period{Duration: time.Hour}},
		{"1201mo", nil},
		{"-1mo", nil},
		{"1y", nil},
		{"90", nil},
		{"1mo3d", nil},
	})
	run("percent", func(s string) (any, error) {
		p, err := parsePercent(s)
		share, _ := p.(Percent)
		return float64(share), err
	}, []test{
		{"20%", 0.2},
		{"0%", 0.0},
		{"0", 0.0},
		{"12.5%", 0.125},
		{"100%", 1.0},
		{"101%", nil},
		{"-1%", nil},
		{"20", nil},
		{"0.2", nil},
		{"NaN%", nil},
		{"%", nil},
	})
	run("rate", func(s string) (any, error) {
		r, err := ParseRate(s)
		return float64(r), err
	}, []test{
		{"20/s", 20.0},
		{"0", 0.0},
		{"600/m", 10.0},
		{"36/h", 0.01},
		{"0.5/s", 0.5},
		{"20", nil},
		{"20/d", nil},
		{"-1/s", nil},
		{"0/s", nil},
		{"NaN/s", nil},
		{"Inf/s", nil},
		{"1/s/s", nil},
	})
}

// TestPlainScalars shows the kinds of text without quotes.
func TestPlainScalars(t *testing.T) {
	for text, want := range map[string]kind{
		"null": kindNull, "~": kindNull, "": kindNull,
		"true": kindBool, "False": kindBool, "yes": kindText, "NO": kindText, "on": kindText, "y": kindText,
		"007": kindNumber, "08": kindText, "0x1F": kindNumber, "0o17": kindNumber, "0b11": kindNumber, "1_000": kindNumber, "-5": kindNumber, "-0": kindNumber,
		"1.5": kindNumber, ".5": kindNumber, "1.5e3": kindNumber, "1e3": kindText, ".inf": kindNumber, ".nan": kindNumber, "1.2.3": kindText,
		"18446744073709551615": kindNumber, "18446744073709551616": kindText,
		"2027-03-01": kindText, "2027-03-01T00:00:00Z": kindText, "12:30": kindText, "5s": kindText, "${X}": kindText,
	} {
		d := &decoder{sub: substitution{env: func(string) (string, bool) { return "5", true }}}
		if root := d.read([]byte("a: " + text)); root == nil || root.at("a").kind != want {
			t.Errorf("%s is read as %+v, want kind %s, %v", text, root, want, d.err())
		}
	}
}

// A colon ends a key without quotes only if a space follows.
func TestKeysWithColons(t *testing.T) {
	f := parseYAML(t, oneSync+`    mapping: {x:y: a, "b":c, 'd:e': {"to":f}}`)
	want := Fields{{From: "x:y", To: "a"}, {From: "b", To: "c"}, {From: "d:e", To: "f"}}
	if diff := cmp.Diff(want, f.Syncs[0].Mapping); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
}

// JSON writes characters beyond U+FFFF as two escapes, which YAML does not know.
func TestJSONSurrogates(t *testing.T) {
	for _, text := range []string{"\uFEFF", ""} {
		f := parseYAML(t, text+`{"relay": {"name": "\ud83d\ude00 \\ud83d\\ude00 \\\uD83D\uDE00"}}`)
		if want := "😀 \\ud83d\\ude00 \\😀"; f.Relay.Name != want {
			t.Errorf("got %q, want %q", f.Relay.Name, want)
		}
	}
}

// A message is one line, even if it repeats a value of several lines.
func TestMessagesAreOneLine(t *testing.T) {
	_, err := Parse("t.yaml", []byte(`syncs: [{name: A, event: a, adapter: {kind: rest, url: "https://h/{fields.x}"}, mapping: {a: "b\n\tc"}}]`), testEnv)
	if err == nil || strings.ContainsAny(err.Error(), "\n\t") || !strings.Contains(err.Error(), "(b  c)") {
		t.Errorf("got %q", err)
	}
}

func TestInterval(t *testing.T) {
	for want, p := range map[string]Period{
		"84 months 0 microseconds":            {Months: 84},
		"0 months 7776000000000 microseconds": {Duration: 90 * 24 * time.Hour},
	} {
		if got := p.Interval(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func TestSuggest(t *testing.T) {
	known := []string{"event", "events", "adapter", "on_failed", "max_connections"}
	for word, want := range map[string]string{
		"evnt": "event", "Events": "events", "onfailed": "on_failed", "on-failed": "on_failed",
		"maxConnections": "max_connections", "adaptor": "adapter", "zzz": "", "x": "",
	} {
		got := suggest(word, known)
		if want != "" {
			want = ". Did you mean " + want + "?"
		}
		if got != want {
			t.Errorf("%s: got %q, want %q", word, got, want)
		}
	}
}

// Every tag must be readable: decoding trusts them.
func TestTags(t *testing.T) {
	var walk func(reflect.Type)
	walk = func(typ reflect.Type) {
		for _, f := range fieldsOf(typ) {
			if f.Tag.Get("doc") == "" {
				t.Errorf("%s.%s has no doc", typ, f.Name)
			}
			d := &decoder{file: &File{Relay: RelaySettings{Workers: 1}}}
			def, low, high := f.Tag.Get("default"), f.Tag.Get("min"), f.Tag.Get("max")
			for _, text := range []string{def, low, high} {
				if text != "" {
					d.field(reflect.StructTag(fmt.Sprintf("default:%q", text)), &node{path: f.Name}, reflect.New(f.Type).Elem())
				}
			}
			if words, ok := f.Tag.Lookup("oneof"); ok && !slices.Contains(strings.Split(words, "|"), def) {
				t.Errorf("%s.%s: the default %s is not one of %s", typ, f.Name, def, words)
			}
			if low != "" && def != "@workers" {
				if x, err := scalars[f.Type].parse(def); err != nil || !scalars[f.Type].within(x, low, high) {
					t.Errorf("%s.%s: the default %s is out of bounds, %v", typ, f.Name, def, err)
				}
			}
			if err := d.err(); err != nil {
				t.Error(err)
			}
			d.check(f.Tag.Get("check"), &node{kind: kindText}) // panics if there is no such check
			_, reads := reflect.TypeAssert[special](reflect.New(f.Type))
			if _, ok := scalars[f.Type]; ok || reads {
				continue
			}
			for f.Type.Kind() == reflect.Slice || f.Type.Kind() == reflect.Pointer {
				f.Type = f.Type.Elem()
			}
			if f.Type.Kind() == reflect.Struct {
				walk(f.Type)
			}
		}
	}
	walk(reflect.TypeFor[File]())
	walk(reflect.TypeFor[longField]())
}

// fakeConfig has a field of every type that an adapter may use.
type fakeConfig struct {
	fakeBase `yaml:",inline"`
	Text     string                     `yaml:"text"`
	Secret   adapters.Secret            `yaml:"secret"`
	Number   int                        `yaml:"number" min:"1" max:"9"`
	Share    float64                    `yaml:"share"`
	Flag     bool                       `yaml:"flag"`
	Pause    time.Duration              `yaml:"pause"`
	List     []string                   `yaml:"list"`
	Items    []fakeItem                 `yaml:"items"`
	Table    map[string]string          `yaml:"table"`
	Secrets  map[string]adapters.Secret `yaml:"secrets"`
	Codes    map[int]string             `yaml:"codes"`
	Routes   map[string]fakeItem        `yaml:"routes"`
	Pointer  *fakeItem                  `yaml:"pointer"`
}

type fakeBase struct {
	Timeout time.Duration `yaml:"timeout"`
}

type fakeItem struct {
	A string `yaml:"a"`
	B int    `yaml:"b"`
}

type fakeAdapter struct{ config fakeConfig }

func (a *fakeAdapter) Deliver(context.Context, adapters.Message) (adapters.Receipt, error) {
	return adapters.Receipt{}, nil
}
func (a *fakeAdapter) AttemptTimeout() time.Duration { return a.config.Timeout }

func fakeKinds() map[string]adapterKind {
	return map[string]adapterKind{"fake": kindOf(func(c fakeConfig) (*fakeAdapter, error) {
		if c.Text != "bad" {
			return &fakeAdapter{config: c}, nil
		}
		return nil, fmt.Errorf("fake: %w", errors.Join(
			errors.New("no field is named here"),
			errors.New("broken: this word is no field"),
			fmt.Errorf("text: %q is bad", c.Text),
			errors.Join(errors.New(`routes["a:b"].a, routes["a:b"].b: set one`), errors.New("items[1].b: is bad")),
			fmt.Errorf("pointer.a: %w", errors.Join(errors.New("is missing"), errors.New("and wrong"))),
			fmt.Errorf("secret: %q is bad, and so is %s", c.Secret.Reveal(), c.Secret.Reveal()),
		))
	})}
}

const fakeSync = `
syncs:
  - name: S
    event: a
    adapter:
      kind: fake
`

func TestAdapterFields(t *testing.T) {
	f, err := parseWith("t.yaml", []byte(fakeSync+`
      timeout: 30s
      text: a
      secret: ${COURT_TOKEN}
      number: 9
      share: 0.25
      flag: true
      pause: 1d
      list: [a, "b"]
      items: [{a: x, b: 1}, {b: 2}]
      table: {a: x}
      secrets: {a: x}
      codes: {409: duplicate}
      routes: {"a:b": {a: x}}
      pointer: {b: 3}
`), testEnv, fakeKinds())
	if err != nil {
		t.Fatal(err)
	}
	want := fakeConfig{
		fakeBase: fakeBase{Timeout: 30 * time.Second},
		Text:     "a", Secret: "tok-4711-hunter2", Number: 9, Share: 0.25, Flag: true, Pause: 24 * time.Hour,
		List: []string{"a", "b"}, Items: []fakeItem{{"x", 1}, {"", 2}}, Table: map[string]string{"a": "x"},
		Secrets: map[string]adapters.Secret{"a": "x"}, Codes: map[int]string{409: "duplicate"},
		Routes: map[string]fakeItem{"a:b": {A: "x"}}, Pointer: &fakeItem{B: 3},
	}
	if got := f.Syncs[0].Adapter.Adapter.(*fakeAdapter).config; !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	if f.Syncs[0].Adapter.Kind != "fake" {
		t.Errorf("kind is %q", f.Syncs[0].Adapter.Kind)
	}
}

func TestAdapterErrorsHavePositions(t *testing.T) {
	_, err := parseWith("t.yaml", []byte(fakeSync+`
      text: bad
      secret: ${COURT_TOKEN}
      items: [{a: x, b: 1}, {b: 2}]
      routes: {"a:b": {b: 0}}
      pointer: {b: 3}
`), testEnv, fakeKinds())
	want := `t.yaml:6:7: syncs[0].adapter: fake: no field is named here
t.yaml:6:7: syncs[0].adapter: fake: broken: this word is no field
t.yaml:8:13: syncs[0].adapter.text: "bad" is bad
t.yaml:9:15: syncs[0].adapter.secret: "…" is bad, and so is … (the value comes from ${COURT_TOKEN})
t.yaml:10:33: syncs[0].adapter.items[1].b: is bad
t.yaml:11:27: syncs[0].adapter.routes["a:b"].b: set one
t.yaml:12:16: syncs[0].adapter.pointer.a: is missing
t.yaml:12:16: syncs[0].adapter.pointer.a: and wrong`
	if err == nil || err.Error() != want {
		t.Errorf("got\n%v\nwant\n%s", err, want)
	}
}

// An error that names several fields is reported at each of them that the file has.
func TestAdapterErrorsNameEveryField(t *testing.T) {
	kinds := map[string]adapterKind{"fake": kindOf(func(fakeConfig) (*fakeAdapter, error) {
		return nil, errors.New("text, secret, number: set only one")
	})}
	_, err := parseWith("t.yaml", []byte(fakeSync+"      text: a\n      number: 7\n"), testEnv, kinds)
	want := "t.yaml:7:13: syncs[0].adapter.text: set only one\nt.yaml:8:15: syncs[0].adapter.number: set only one"
	if err == nil || err.Error() != want {
		t.Errorf("got\n%v\nwant\n%s", err, want)
	}
}

// A mistake inside a text is reported at its own line, if the file has that line.
func TestPositionsInsideTexts(t *testing.T) {
	parse := func(body string) string {
		_, err := Parse("t.yaml", []byte(`syncs:
  - name: A
    event: a
    adapter:
      kind: soap
      url: https://h.example/
      body: `+body), testEnv)
		return fmt.Sprint(err)
	}
	for _, tc := range []struct{ body, want string }{
		{"|\n        <a>\n          <b>{feilds.b}</b>\n        </a>\n", "t.yaml:9:14: syncs[0].adapter.body: {feilds.b} is not"},
		{"|-\n\n            <a>\n            <b></a>\n", "t.yaml:10:16: syncs[0].adapter.body: </a> closes <b>, which was opened in line 3"},
		{"<a><b>{x}</b></a>\n", "t.yaml:7:19: syncs[0].adapter.body: {x} is not"},
		{"'<a><b>{x}</b></a>'\n", "t.yaml:7:20: syncs[0].adapter.body: {x} is not"},
		{">\n        <a>\n        <b>{x}</b></a>\n", "t.yaml:7:13: syncs[0].adapter.body: line 1, column 8: {x} is not"},
		{"|\n        <a>\n          <b>{x}</b>${COURT_TOKEN}\n        </a>\n", "t.yaml:7:13: syncs[0].adapter.body: line 2, column 6: … is not"},
	} {
		if got := parse(tc.body); !strings.Contains(got, tc.want) {
			t.Errorf("%q: got %s\nwant %s", tc.body, got, tc.want)
		}
	}
}

func TestPositionsInBodiesOfREST(t *testing.T) {
	_, err := Parse("t.yaml", []byte(`syncs:
  - name: A
    event: a
    adapter:
      kind: rest
      url: https://h.example/
      body:
        kind: template
        content_type: text/xml
        template: |
          <a>
            <b>{feilds.b}</b>
          </a>
`), testEnv)
	if want := "t.yaml:12:16: syncs[0].adapter.body.template: {feilds.b} is not"; err == nil || !strings.HasPrefix(err.Error(), want) {
		t.Errorf("got %v, want %s", err, want)
	}
}

// A message keeps its own words, even if a ${…} has one of them as its value. A secret is
// hidden everywhere.
func TestMessagesKeepTheirWords(t *testing.T) {
	env := func(name string) (string, bool) {
		return map[string]string{"WORD": "bearer", "SHORT": "a", "TOKEN": "hunter2"}[name], true
	}
	kinds := map[string]adapterKind{"fake": kindOf(func(c fakeConfig) (*fakeAdapter, error) {
		return nil, fmt.Errorf("text: is a bad word, not bearer, %q or %s", c.Table["a"], c.Secret.Reveal())
	})}
	_, err := parseWith("t.yaml", []byte(fakeSync+"      text: x\n      secret: ${TOKEN}\n      table: {a: \"${WORD}\", b: \"${SHORT}\"}\n"), env, kinds)
	want := `t.yaml:7:13: syncs[0].adapter.text: is a bad word, not bearer, "…" or …`
	if err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

func TestWarnings(t *testing.T) {
	const noID = "needs the receiver's id, but external_id is not configured, so the id is known only if somebody sets it with lockstep ref set or ref import: write external_id"
	const refused = "has 409: duplicate from above, so an update that the receiver refuses with 409 counts as delivered: " +
		"write outcomes: {409: conflict} here, or {409: duplicate} if it means that the receiver has this update already"
	const refusedDelete = "has 409: duplicate from above, so a DELETE that the receiver refuses with 409 counts as delivered: " +
		"write outcomes: {409: conflict} here, or {409: duplicate} if it means that the record is deleted already"
	const eventID = "{id} is the id of the event, and every event has another: write {ref.external_id} for the receiver's id of the record"
	const warning = "a credential is sent over plain http, where anybody on the way can read it: use https"
	for adapter, want := range map[string]string{
		`{kind: rest, url: "http://court.example/in", auth: {kind: bearer, token: "${COURT_TOKEN}"}}`:                                                "t.yaml:4:32: syncs[0].adapter.url: " + warning,
		`{kind: rest, url: "HTTP://court.example/in?a=b&api_key=${COURT_TOKEN}"}`:                                                                    "t.yaml:4:32: syncs[0].adapter.url: " + warning,
		`{kind: rest, url: "http://court.example/in", headers: {X-Api-Key: "${COURT_TOKEN}"}}`:                                                       "t.yaml:4:32: syncs[0].adapter.url: " + warning,
		`{kind: rest, url: "https://court.example/in", routes: {a: {url: "http://x/"}}, headers: {Authorization: "Basic x"}}`:                        `t.yaml:4:78: syncs[0].adapter.routes.a.url: ` + warning,
		`{kind: soap, url: "http://court.example/in", body: <a/>, security: {kind: username_token, username: a, password: b}}`:                       "t.yaml:4:32: syncs[0].adapter.url: " + warning,
		`{kind: rest, url: "http://court.example/in", headers: {Source-System: AGENCY}}`:                                                             "",
		`{kind: rest, url: "https://court.example/in", auth: {kind: bearer, token: "${COURT_TOKEN}"}}`:                                               "",
		`{kind: rest, url: "http://127.0.0.1:8080/in", auth: {kind: bearer, token: "${COURT_TOKEN}"}}`:                                               "",
		`{kind: rest, url: "http://localhost/in", auth: {kind: bearer, token: "${COURT_TOKEN}"}}`:                                                    "",
		`{kind: rest, url: "http://[::1]:8080/in", auth: {kind: bearer, token: "${COURT_TOKEN}"}}`:                                                   "",
		`{kind: rest, url: "http://court.example/in", auth: {kind: hmac, secret: "${COURT_TOKEN}", headers: {X-Client: agency}}}`:                    "",
		`{kind: rest, url: "http://court.example/in", auth: {kind: hmac, secret: "${COURT_TOKEN}", headers: {X-Api-Key: "${COURT_TOKEN}"}}}`:         "t.yaml:4:32: syncs[0].adapter.url: " + warning,
		`{kind: webhook, url: "http://court.example/in", secrets: ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"]}`:                                       "",
		`{kind: soap, url: "https://court.example/in", body: '<a xmlns="http://court.example/"/>', auth: {kind: bearer, token: "${COURT_TOKEN}"}}`:   "",
		`{kind: rest, url: "https://court.example/", known: {method: PUT, url: "https://court.example/{ref.external_id}"}}`:                          "t.yaml:4:65: syncs[0].adapter.known: " + noID,
		`{kind: rest, url: "https://court.example/", routes: {a: {url: "https://court.example/{ref.external_id}"}}}`:                                 "t.yaml:4:76: syncs[0].adapter.routes.a.url: " + noID,
		`{kind: rest, url: "https://court.example/", known: {method: PUT}, external_id: /id}`:                                                        "",
		`{kind: rest, url: "https://court.example/", known: {method: PUT}, external_id: {value: "{key}"}, reference: keep, if_match: any}`:           "",
		`{kind: rest, url: "https://court.example/", known: {method: PUT}, external_id: /id, outcomes: {409: duplicate, 410: permanent}}`:            "t.yaml:4:65: syncs[0].adapter.known.outcomes: " + refused,
		`{kind: rest, url: "https://court.example/", known: {method: PUT, outcomes: {409: conflict}}, external_id: /id, outcomes: {409: duplicate}}`: "",
		`{kind: rest, url: "https://court.example/", known: {method: DELETE}, external_id: /id, outcomes: {404: duplicate}}`:                         "",
		`{kind: rest, url: "https://court.example/", routes: {a: {method: DELETE}}, outcomes: {409: duplicate, 404: duplicate, 410: duplicate}}`:     "t.yaml:4:70: syncs[0].adapter.routes.a.outcomes: " + refusedDelete,
		`{kind: rest, url: "https://court.example/", routes: {a: {method: PUT}}, outcomes: {409: duplicate}}`:                                        "t.yaml:4:70: syncs[0].adapter.routes.a.outcomes: " + refused,
		`{kind: rest, url: "https://court.example/", routes: {a: {method: DELETE, outcomes: {409: conflict}}}, outcomes: {409: duplicate}}`:          "",
		`{kind: rest, url: "https://court.example/", routes: {a: {method: POST}}, outcomes: {409: duplicate}}`:                                       "",
		`{kind: rest, url: "https://court.example/", method: PUT, routes: {a: {method: PUT}}, outcomes: {409: duplicate}}`:                           "",
		`{kind: rest, url: "https://court.example/", external_id: /id, known: {method: PUT, url: "https://court.example/{id}"}}`:                     "t.yaml:4:102: syncs[0].adapter.known.url: " + eventID,
		`{kind: rest, url: "https://court.example/", routes: {a: {method: DELETE, url: "https://court.example/{id}"}}}`:                              "t.yaml:4:92: syncs[0].adapter.routes.a.url: " + eventID,
		`{kind: rest, url: "https://court.example/{id}", method: PUT}`:                                                                               "",
		`{kind: rest, url: "https://court.example/", external_id: /id, known: {method: PUT, url: "https://court.example/{ref.external_id}/{id}"}}`:   "",
		`{kind: rest, url: "https://court.example/", external_id: /id, outcomes: {409: duplicate}}`:                                                  "",
	} {
		f, err := Parse("t.yaml", []byte("syncs:\n  - name: A\n    event: a\n    adapter: "+adapter+"\n"), testEnv)
		if err != nil {
			t.Errorf("%s: %v", adapter, err)
			continue
		}
		var got string
		if len(f.Warnings) > 0 {
			got = f.Warnings.Error()
		}
		if got != want {
			t.Errorf("%s\ngot  %s\nwant %s", adapter, got, want)
		}
	}
}

func TestNamesWithoutBraces(t *testing.T) {
	for adapter, refused := range map[string]bool{
		`{kind: rest, url: "https://h/", auth: {kind: bearer, token: $COURT_TOKEN}}`:             true,
		`{kind: rest, url: "https://h/", headers: {Authorization: "Bearer $COURT_TOKEN"}}`:       true,
		`{kind: rest, url: "https://h/?api_key=$COURT_TOKEN"}`:                                   true,
		`{kind: rest, url: "https://h/", auth: {kind: bearer, token: "$$$COURT_TOKEN"}}`:         true,
		`{kind: rest, url: "https://h/", auth: {kind: bearer, token: $$COURT_TOKEN}}`:            false,
		`{kind: rest, url: "https://h/", auth: {kind: bearer, token: "${COURT_TOKEN}"}}`:         false,
		`{kind: rest, url: "https://h/", auth: {kind: basic, username: a, password: "pa$Word"}}`: false,
	} {
		_, err := Parse("t.yaml", []byte("syncs:\n  - name: A\n    event: a\n    adapter: "+adapter+"\n"), testEnv)
		if got := err != nil && strings.Contains(err.Error(), "write ${NAME} for the value of a variable, or $$ for a dollar"); got != refused {
			t.Errorf("%s: %v", adapter, err)
		}
	}
}

// A route or a name for events that the sync does not have is a mistake: the events go
// elsewhere.
func TestTypesThatNoEventHas(t *testing.T) {
	_, err := Parse("t.yaml", []byte(`syncs:
  - name: A
    events: ["scheduling:created", "scheduling:cancelled", "data:*ed"]
    adapter:
      kind: rest
      url: https://h/
      routes:
        "scheduling:canceled": {method: DELETE}
        "scheduling:cancelled": {method: DELETE}
        "*:updated": {method: PUT}
        "data:*": {method: PUT}
        "*:updates": {method: PUT}
  - name: B
    event: ${EVENT:-a:b}
    adapter:
      kind: webhook
      url: https://h/
      secrets: ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"]
      types: {"a:*": x, "b": y}
`), testEnv)
	want := `t.yaml:8:9: syncs[0].adapter.routes["scheduling:canceled"]: no event of this sync has this type. Its event types are scheduling:created, scheduling:cancelled, data:*ed: correct the type, or remove the entry. Did you mean scheduling:cancelled?
t.yaml:12:9: syncs[0].adapter.routes["*:updates"]: no event of this sync has this type. Its event types are scheduling:created, scheduling:cancelled, data:*ed: correct the type, or remove the entry
t.yaml:19:25: syncs[1].adapter.types.b: no event of this sync has this type. Its event types are that of ${EVENT}: correct the type, or remove the entry`
	if err == nil || err.Error() != want {
		t.Errorf("got\n%v\nwant\n%s", err, want)
	}
}

func TestOverlap(t *testing.T) {
	for _, tc := range []struct {
		a, b string
		want bool
	}{
		{"", "", true},
		{"a", "a", true},
		{"a", "b", false},
		{"*", "", true},
		{"*", "a:b", true},
		{"scheduling:*", "*:updated", true},
		{"scheduling:*", "data:*", false},
		{"a*b", "a*c", false},
		{"a*b", "*c*b", true},
		{"*a*", "b*b", true},
		{"ab*ba", "aba", false},
		{"**", "*a**", true},
	} {
		if overlap(tc.a, tc.b) != tc.want || overlap(tc.b, tc.a) != tc.want {
			t.Errorf("%s and %s: got %t, want %t", tc.a, tc.b, !tc.want, tc.want)
		}
	}
	// Every type that matches both patterns must be found.
	letters := func(i, n int) (s string) {
		for ; n > 0; n, i = n-1, i/3 {
			s += string("ab*"[i%3])
		}
		return s
	}
	for i := range 27 {
		for j := range 27 {
			a, b, want := letters(i, 3), letters(j, 3), false
			for n := range 7 {
				for k := range 1 << n {
					text := ""
					for bit := range n {
						text += string("ab"[k>>bit&1])
					}
					want = want || adapters.MatchType(a, text) && adapters.MatchType(b, text)
				}
			}
			if overlap(a, b) != want {
				t.Errorf("%s and %s: want %t", a, b, want)
			}
		}
	}
}

// An error keeps its advice, even if the value is not shown.
func TestAdapterErrorsKeepTheirAdvice(t *testing.T) {
	for value, want := range map[string]string{"a & b": "as &amp; (the value", "a{b": "a placeholder such as {key} (the value"} {
		_, err := Parse("t.yaml", []byte(`database: {url: postgres://h/d}
syncs:
  - {name: A, event: a, adapter: {kind: soap, url: "https://h/", body: <a/>, header: "<b>${KEY}</b>"}, mapping: {a: b}}
`), func(string) (string, bool) { return value, true })
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", value, err, want)
		}
	}
}

// An adapter may take a part of a secret for a placeholder or a tag. Such a part is not
// shown either.
func TestAdapterErrorsRepeatNoPartOfAValue(t *testing.T) {
	for adapter, secret := range map[string]string{
		`{kind: rest, url: "https://h/", headers: {X-Key: "${KEY}"}}`:                   "abc{hunter2}x",
		`{kind: soap, url: "https://h/", body: <a/>, header: "<b>${KEY}</b>"}`:          "abc&hunter2",
		`{kind: soap, url: "https://h/", body: <a/>, header: "<b>${KEY}</b><c/>"}`:      "abc</hunter2>",
		`{kind: soap, url: "https://h/", body: <a/>, header: "<b><c>${KEY}</c></b>"}`:   "abc<hunter2>",
		`{kind: soap, url: "https://h/", body: "<a>${KEY}</a>", header: "<b>ab</b>"}`:   "{hunter2}x",
		`{kind: soap, url: "https://h/", body: <a/>, header: "<b a='${KEY}'>ab</b>"}`:   "abc{hunter2",
		`{kind: soap, url: "https://h/", body: <a/>, header: "<b><![CDATA[${KEY}</b>"}`: "abc]]>&hunter2;",
	} {
		t.Run(secret, func(t *testing.T) {
			_, err := Parse("t.yaml", []byte("database: {url: postgres://h/d}\nsyncs:\n  - {name: A, event: a, adapter: "+adapter+", mapping: {a: b}}\n"),
				func(string) (string, bool) { return secret, true })
			if err == nil || !strings.Contains(err.Error(), "(the value comes from ${KEY})") || strings.Contains(err.Error(), "hunter2") {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestUnknownKeysHideNoOtherProblem(t *testing.T) {
	for adapter, want := range map[string][]string{
		`{kind: rest, url: "https://h/{nope}", tiemout: 5s}`: {
			"adapter.url: {nope}", "adapter.tiemout: is not a known key. Did you mean timeout?",
		},
		`{kind: rest, url: "https://h/{nope}", auth: {kind: basic, usernme: a, password: b}}`: {
			"adapter.url: {nope}", "adapter.auth.usernme: is not a known key. Did you mean username?",
		},
		`{kind: rest, url: "https://h/{nope}", auth: {knd: bearer, token: x}}`: { // the token is not said to be wrong
			"adapter.url: {nope}", "adapter.auth.knd: is not a known key. Did you mean kind?",
		},
		`{kind: rest, ulr: "https://h/", method: BREW}`: { // url is not said to be missing
			"adapter.ulr: is not a known key. Did you mean url?", "adapter.method: ",
		},
	} {
		_, err := Parse("t.yaml", []byte("syncs:\n  - name: A\n    event: a\n    adapter: "+adapter+"\n"), testEnv)
		problems, _ := errors.AsType[Problems](err)
		if len(problems) != len(want) {
			t.Errorf("%s:\n%v\nwant %d problems", adapter, err, len(want))
			continue
		}
		for i, p := range problems {
			if !strings.Contains(p.Error(), want[i]) {
				t.Errorf("got %v, want %s", p, want[i])
			}
		}
	}
}

func TestAdapterKeysAreStrict(t *testing.T) {
	_, err := parseWith("t.yaml", []byte(fakeSync+`
      txt: a
      number: 10
      share: lots
      flag: "true"
      pause: 5
      list: a
      items: [{c: 1}]
      codes: {x: a}
      table: [a]
      pointer: 7
      timeout: 31s
`), testEnv, fakeKinds())
	if err == nil {
		t.Fatal("was accepted")
	}
	for _, want := range []string{
		`t.yaml:8:7: syncs[0].adapter.txt: is not a known key. Did you mean text? Known here: kind, timeout, text,`,
		`t.yaml:9:15: syncs[0].adapter.number: "10" is out of bounds: write a whole number from 1 to 9`,
		`t.yaml:10:14: syncs[0].adapter.share: is text, but must be a number`,
		`t.yaml:11:13: syncs[0].adapter.flag: is text, but must be true or false`,
		`t.yaml:12:14: syncs[0].adapter.pause: "5" has no unit: write for example 5s`,
		`t.yaml:13:13: syncs[0].adapter.list: is text, but must be a list`,
		`t.yaml:14:16: syncs[0].adapter.items[0].c: is not a known key.`,
		`t.yaml:15:15: syncs[0].adapter.codes.x: the key is not a number`,
		`t.yaml:16:14: syncs[0].adapter.table: is a list, but must be a section (keys and values)`,
		`t.yaml:17:16: syncs[0].adapter.pointer: is a number, but must be a section (keys and values)`,
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("missing %s in\n%v", want, err)
		}
	}
}

func TestLease(t *testing.T) {
	parse := func(relay, timeout string) error {
		_, err := parseWith("t.yaml", []byte(relay+fakeSync+"      timeout: "+timeout+"\n"), testEnv, fakeKinds())
		return err
	}
	if err := parse("", "30s"); err != nil {
		t.Error(err)
	}
	for where, err := range map[string]error{
		"t.yaml:7:16: syncs[0].adapter.timeout: ": parse("", "31s"),
		"t.yaml:1:16: relay.lease: ":              parse("relay: {lease: 59s}", "30s"),
	} {
		if err == nil || !strings.HasPrefix(err.Error(), where+"a lease of ") || !strings.Contains(err.Error(), "raise relay.lease to at least ") {
			t.Errorf("got %v, want it at %s", err, where)
		}
	}
}

func TestSchema(t *testing.T) {
	got, err := Schema()
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "testdata/schema.golden.json", got)
}

func TestPrint(t *testing.T) {
	for _, name := range []string{"example.yaml", "example.json", "secrets.yaml"} {
		for suffix, withDefaults := range map[string]bool{".print.golden": false, ".defaults.golden": true} {
			f, err := Load("testdata/"+name, testEnv)
			if err != nil {
				t.Fatal(err)
			}
			var b bytes.Buffer
			if err := f.Print(&b, withDefaults); err != nil {
				t.Fatal(err)
			}
			if strings.Contains(b.String(), "hunter2") {
				t.Errorf("%s: a secret is printed:\n%s", name, &b)
			}
			golden(t, "testdata/"+name+suffix, b.Bytes())

			// The printed configuration is valid, and the same except for secrets.
			again, err := Parse("printed.yaml", b.Bytes(), testEnv)
			if err != nil {
				t.Fatalf("%s: the printed configuration is refused: %v", name, err)
			}
			again.Database.URL = f.Database.URL
			if diff := cmp.Diff(f, again, ignoreBuilt()); diff != "" {
				t.Errorf("%s: printed and read again (-file +printed)\n%s", name, diff)
			}
		}
	}
	var b bytes.Buffer
	if err := Defaults().Print(&b, true); err != nil {
		t.Fatal(err)
	}
	golden(t, "testdata/none.defaults.golden", b.Bytes())
}

func TestEscapedDollarsAreReadAsTheyWere(t *testing.T) {
	for text, want := range map[string]string{
		"$5 and a$": "$5 and a$",
		"$$":        "$$$$",
		"${A}":      "$${A}",
		"$${A}":     "$$$${A}",
		"$$${":      "$$$$$${",
	} {
		got := escapeDollars(text)
		if back, _, err := new(substitution).replace(got); got != want || back != text || err != nil {
			t.Errorf("%s became %s, want %s, and was read as %s, %v", text, got, want, back, err)
		}
	}
}

func TestMaskDatabase(t *testing.T) {
	for in, want := range map[string]string{
		"":                                  "",
		"postgres://u:p%40w@h/db":           "postgres://u:***@h/db",
		"postgres://u@h/db":                 "postgres://u@h/db",
		"postgres://h/db?password=x&a=b":    "postgres://h/db?a=b&password=***",
		"host=h password=x dbname=d":        "host=h password=*** dbname=d",
		"host=h password = x sslpassword=y": "host=h password = *** sslpassword=***",
		"host=h password='a b' user=u":      "***",
		"postgres://u:p@h:port/%zz":         "***",
		"secret":                            "***",
	} {
		if got := maskDatabase(in); got != want {
			t.Errorf("%s: got %s, want %s", in, got, want)
		}
	}
}

// JSON has these characters in texts as they are. In YAML they end a line, or are refused.
func TestJSONKeepsCharactersThatYAMLReadsDifferently(t *testing.T) {
	for _, text := range []string{"a\u0085b", "a\u2028 b", "a\u2029 b", "a\ufffeb", "a\uffffb"} {
		d := &decoder{}
		root := d.read([]byte(`{"a": "` + text + `"}`))
		if root == nil || root.at("a").text != text {
			t.Errorf("%q is read as %+v, %v", text, root, d.err())
		}
	}
}
