package config

import (
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/relay/mapping"
)

const (
	docPath  = "../../docs/configuration.md"
	restPath = "../../docs/adapters/rest.md"
)

func readDoc(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile(docPath)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func docEnv(name string) (string, bool) {
	v, ok := map[string]string{
		"DATABASE_URL": "postgres://lockstep@db.example.gov/agency", "OPERATOR_DATABASE_URL": "postgres://console@db.example.gov/agency", "COURT_TOKEN": "t", "COURT_PASSWORD": "p", "CLINIC_KEY": "k", "COURT_SECRET": "s", "CALENDAR_PASSWORD": "p",
	}[name]
	return v, ok
}

var block = regexp.MustCompile("(?ms)(^<!-- refused -->\n)?^```(yaml|json)\n(.*?)^```\n(?:[^`]*^```text\n(.*?)^```\n)?")

// TestDocumentedExamples parses every YAML and JSON block of the documentation. A block
// that begins with a key of a sync is parsed inside a sync. A block that is marked as
// refused must give the text block that follows it.
func TestDocumentedExamples(t *testing.T) {
	blocks := block.FindAllStringSubmatch(readDoc(t), -1)
	for _, path := range []string{restPath, "../../docs/adapters/caldav.md", "../../docs/adapters/hl7.md"} {
		guide, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		blocks = append(blocks, block.FindAllStringSubmatch(string(guide), -1)...)
	}
	if len(blocks) < 10 {
		t.Fatalf("found %d blocks only", len(blocks))
	}
	for _, b := range blocks {
		refused, text, want := b[1] != "", b[3], b[4]
		if key, _, _ := strings.Cut(text, ":"); key == "adapter" {
			text = "syncs:\n  - name: S\n    events: [\"scheduling:*\"]\n    " + strings.ReplaceAll(strings.TrimSpace(text), "\n", "\n    ") + "\n"
		} else if syncKey(key) {
			text = oneSync + "    " + strings.ReplaceAll(strings.TrimSpace(text), "\n", "\n    ") + "\n"
		}
		_, err := Parse("lockstep.yaml", []byte(text), docEnv)
		switch {
		case refused && err == nil:
			t.Errorf("was accepted:\n%s", text)
		case refused && err.Error() != strings.TrimSpace(want):
			t.Errorf("got\n%s\nwant\n%s", err, want)
		case !refused && err != nil:
			t.Errorf("%v in\n%s", err, text)
		}
	}
}

func syncKey(key string) bool {
	for _, f := range fieldsOf(reflect.TypeFor[Sync]()) {
		if keyOf(f) == key {
			return true
		}
	}
	return false
}

// TestDocumentedKeys finds every key with its default and bounds, every time
// format and every adapter kind in the documentation.
func TestDocumentedKeys(t *testing.T) {
	doc := readDoc(t)
	for _, typ := range []reflect.Type{
		reflect.TypeFor[Database](), reflect.TypeFor[RelaySettings](), reflect.TypeFor[Retention](), reflect.TypeFor[Sync](),
		reflect.TypeFor[Escalate](), reflect.TypeFor[Window](), reflect.TypeFor[Retry](), reflect.TypeFor[Limits](), reflect.TypeFor[longField](),
		reflect.TypeFor[ListenTLS](), reflect.TypeFor[Console](), reflect.TypeFor[User](),
	} {
		for _, f := range fieldsOf(typ) {
			key, def, low, high := keyOf(f), f.Tag.Get("default"), f.Tag.Get("min"), f.Tag.Get("max")
			row := regexp.MustCompile("(?m)^\\| `(?:retention\\.|listen_tls\\.)?"+key+"` \\|.*$").FindAllString(doc, -1)
			found := false
			for _, r := range row {
				hasDefault := def == "" || def[0] == '@' || strings.Contains(r, "| `"+def+"` |")
				hasBounds := low == "" || strings.Contains(r, "| "+low+" to "+high+" |")
				found = found || hasDefault && hasBounds
			}
			if !found {
				t.Errorf("%s: no row with default %q and bounds %q to %q; rows: %q", key, def, low, high, row)
			}
		}
	}
	for _, name := range mapping.TimeFormats() {
		if !regexp.MustCompile("(?m)^\\| .*`" + name + "`").MatchString(doc) {
			t.Errorf("the time format %s is not documented", name)
		}
	}
	for kind := range kinds() {
		if !strings.Contains(doc, "`"+kind+"`") {
			t.Errorf("the adapter kind %s is not documented", kind)
		}
	}
}

// TestDocumentedClasses compares the guide's table with the classes that an adapter of
// each kind gives to statuses.
func TestDocumentedClasses(t *testing.T) {
	guide, err := os.ReadFile("../../docs/adapters.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(guide), "| answer | REST | webhook | SOAP |")
	table, _, _ = strings.Cut(table, "\n\n")
	var status atomic.Int32
	var retryAfter, reason atomic.Bool
	receiver := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if retryAfter.Load() {
			w.Header().Set("Retry-After", "7")
		}
		w.WriteHeader(int(status.Load()))
		if reason.Load() && status.Load() >= 300 {
			_, _ = io.WriteString(w, `{"title":"no such room"}`)
		}
	}))
	defer receiver.Close()
	options := []string{ // of the adapters in the table's columns
		"{kind: rest, ",
		`{kind: webhook, secrets: ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"], `,
		"{kind: soap, body: <a/>, ",
	}
	var all []adapters.Adapter
	for _, o := range options {
		f, err := Parse("lockstep.yaml", []byte("database: {url: postgres://db/x}\nsyncs:\n- name: A\n  event: a\n  adapter: "+o+"url: \""+receiver.URL+"\"}\n"), docEnv)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, f.RelayConfig().Syncs[0].Adapter)
	}
	msg := adapters.Message{ID: "e-1", IdempotencyKey: "e-1", Type: "a", Key: "k", Body: []byte("{}")}
	tried := 0
	for line := range strings.Lines(table) {
		cells := strings.Split(line, "|")
		if len(cells) != 6 {
			continue
		}
		retryAfter.Store(strings.Contains(cells[1], "Retry-After"))
		reason.Store(!strings.Contains(cells[1], "without a reason"))
		for _, digits := range regexp.MustCompile(`\b[0-9]{3}\b`).FindAllString(cells[1], -1) {
			n, err := strconv.Atoi(digits)
			if err != nil {
				t.Fatal(err)
			}
			status.Store(int32(n))
			for i, a := range all {
				want := regexp.MustCompile(`[a-z]+`).FindString(cells[2+i])
				receipt, err := a.Deliver(t.Context(), msg)
				got := adapters.ClassOf(err)
				if receipt.Accepted {
					got = adapters.ClassAccepted
				}
				if tried++; string(got) != want {
					t.Errorf("%s: the guide says that %d is %s, but it is %s: %v", options[i], n, want, got, err)
				}
			}
		}
	}
	if tried < 45 {
		t.Errorf("only %d answers were tried", tried)
	}
}

// TestDocumentedAnswers delivers to a receiver that gives answers which the guide's
// example of answers is about.
func TestDocumentedAnswers(t *testing.T) {
	guide, err := os.ReadFile("../../docs/adapters.md")
	if err != nil {
		t.Fatal(err)
	}
	_, example, _ := strings.Cut(string(guide), "```yaml\nanswers:\n")
	example, _, _ = strings.Cut(example, "```")
	var status int
	var body string
	receiver := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}))
	defer receiver.Close()
	f, err := Parse("lockstep.yaml", []byte("database: {url: postgres://db/x}\nsyncs:\n- name: A\n  event: a\n  adapter:\n    kind: rest\n    url: "+receiver.URL+
		"\n    answers:\n    "+strings.ReplaceAll(example, "\n", "\n    ")), docEnv)
	if err != nil {
		t.Fatal(err)
	}
	a := f.RelayConfig().Syncs[0].Adapter
	for _, tc := range []struct {
		status int
		body   string
		want   string
	}{
		{200, `{"success":false,"code":"ROOM_CLOSED"}`, "permanent"},
		{200, `{"errors":[{"code":"DUPLICATE"}]}`, "duplicate"},
		{409, `{"errors":[{"code":"X"},{"code":"DUPLICATE"}]}`, "duplicate"},
		{207, `{"results":[{"status":201}]}`, "delivered"},
		{207, `{"results":[{"status":409}]}`, "unknown"},
		{200, `{"success":true}`, "delivered"},
		{200, "<!doctype html><title>Sign in</title>", "unexplained"},
	} {
		status, body = tc.status, tc.body
		receipt, err := a.Deliver(t.Context(), adapters.Message{ID: "e-1", IdempotencyKey: "e-1", Type: "a", Key: "k", Body: []byte("{}")})
		got := string(adapters.ClassOf(err))
		if receipt.Duplicate {
			got = "duplicate"
		}
		if got != tc.want || tc.want == "permanent" && !strings.HasSuffix(err.Error(), ": ROOM_CLOSED") {
			t.Errorf("%d %s is %s, want %s: %v", tc.status, tc.body, got, tc.want, err)
		}
	}
}
