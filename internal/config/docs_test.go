package config

import (
	"os"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/hms-mkt/lockstep/relay"
)

const docPath = "../../docs/configuration.md"

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
		"DATABASE_URL": "postgres://lockstep@db.example.gov/agency", "COURT_TOKEN": "t", "COURT_PASSWORD": "p", "CLINIC_KEY": "k",
	}[name]
	return v, ok
}

var block = regexp.MustCompile("(?ms)(^<!-- refused -->\n)?^```(yaml|json)\n(.*?)^```\n(?:[^`]*^```text\n(.*?)^```\n)?")

// TestDocumentedExamples parses every YAML and JSON block of the documentation.
// A block that begins with a key of a sync is put into one; a block marked as
// refused must give the text block that follows.
func TestDocumentedExamples(t *testing.T) {
	blocks := block.FindAllStringSubmatch(readDoc(t), -1)
	if len(blocks) < 7 {
		t.Fatalf("found %d blocks only", len(blocks))
	}
	for _, b := range blocks {
		refused, text, want := b[1] != "", b[3], b[4]
		if key, _, _ := strings.Cut(text, ":"); syncKey(key) {
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
	for _, f := range fieldsOf(reflect.TypeFor[syncSpec]()) {
		if f.key == key {
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
		reflect.TypeFor[databaseSpec](), reflect.TypeFor[relaySpec](), reflect.TypeFor[retentionSpec](), reflect.TypeFor[syncSpec](),
		reflect.TypeFor[retrySpec](), reflect.TypeFor[limitsSpec](), reflect.TypeFor[fieldSpec](),
	} {
		for _, f := range fieldsOf(typ) {
			row := regexp.MustCompile("(?m)^\\| `(?:retention\\.)?"+f.key+"` \\|.*$").FindAllString(doc, -1)
			found := false
			for _, r := range row {
				def := f.def == "" || f.def[0] == '@' || strings.Contains(r, "| `"+f.def+"` |")
				bounds := f.min == "" || strings.Contains(r, "| "+f.min+" to "+f.max+" |")
				found = found || def && bounds
			}
			if !found {
				t.Errorf("%s: no row with default %q and bounds %q to %q; rows: %q", f.key, f.def, f.min, f.max, row)
			}
		}
	}
	for _, name := range relay.TimeFormats() {
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
