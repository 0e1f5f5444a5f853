package output

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"unicode"
)

type delivery struct {
	Key   string `json:"key"`
	Error string `json:"error,omitempty"`
}

func (delivery) Header() []string  { return []string{"KEY", "ERROR"} }
func (d delivery) Cells() []string { return []string{d.Key, d.Error} }

func TestRowsInEveryFormat(t *testing.T) {
	for name, tc := range map[string]struct {
		format  Format
		batches [][]delivery
		want    string
	}{
		"table":                              {Table, [][]delivery{{{"H-1", "timeout"}, {"H-1000", ""}}}, "KEY     ERROR\nH-1     timeout\nH-1000  -\n"},
		"table in batches keeps its columns": {Table, [][]delivery{{{"H-1000", "a"}}, {{"H-1", "b"}}}, "KEY     ERROR\nH-1000  a\nH-1     b\n"},
		"empty table":                        {Table, nil, "KEY  ERROR\n"},
		"json":                               {JSON, [][]delivery{{{"H-1", "x"}}, {{"H-2", ""}}}, "[\n  {\"key\":\"H-1\",\"error\":\"x\"},\n  {\"key\":\"H-2\"}\n]\n"},
		"empty json":                         {JSON, nil, "[]\n"},
		"jsonl":                              {JSONL, [][]delivery{{{"H-1", "x"}, {"H-2", ""}}}, "{\"key\":\"H-1\",\"error\":\"x\"}\n{\"key\":\"H-2\"}\n"},
		"empty jsonl":                        {JSONL, nil, ""},
		"nothing moves the cursor":           {Table, [][]delivery{{{"H\x1b[2J", "a\nb\u202e"}}}, "KEY  ERROR\nH    a b\n"},
	} {
		t.Run(name, func(t *testing.T) {
			var b strings.Builder
			p := NewPrinter[delivery](&b, tc.format)
			for _, rows := range tc.batches {
				if err := p.Print(rows...); err != nil {
					t.Fatal(err)
				}
			}
			if err := p.Close(); err != nil {
				t.Fatal(err)
			}
			if b.String() != tc.want {
				t.Errorf("got\n%q, want\n%q", b.String(), tc.want)
			}
		})
	}
}

// JSON does not harm a terminal, and a program reads the same values.
func TestJSONEscapesCharactersThatDoNotPrint(t *testing.T) {
	hostile := "H\x1b[2J\x7f\u0085\u009b2J\u00ad\u061c\u200b\u202e\u2066\u2028\ufeff\U000e0041 é 庭 \"\\ <&>"
	want := delivery{hostile, "a\nb"}
	texts := map[string]string{}
	for _, format := range []Format{JSON, JSONL} {
		var b strings.Builder
		if err := Rows(&b, format, want); err != nil {
			t.Fatal(err)
		}
		texts["rows as "+string(format)] = strings.Trim(strings.TrimSpace(b.String()), "[]")
		var o strings.Builder
		if err := Object(&o, format, want, nil); err != nil {
			t.Fatal(err)
		}
		texts["object as "+string(format)] = o.String()
	}
	for name, text := range texts {
		if i := strings.IndexFunc(text, func(r rune) bool { return r != '\n' && !unicode.IsGraphic(r) }); i >= 0 {
			t.Errorf("%s: %q has a character that does not print", name, text[i:])
		}
		var got delivery
		if err := json.Unmarshal([]byte(text), &got); err != nil || got != want {
			t.Errorf("%s: a program reads %q, %v; want %q", name, got, err, want)
		}
		if !strings.Contains(text, "é 庭") {
			t.Errorf("%s: %s escapes what prints", name, text)
		}
	}
}

// attempt is a row with more columns than a narrow terminal has room for.
type attempt struct{ at, sync, outcome, event, detail string }

func (attempt) Header() []string  { return []string{"AT", "SYNC", "OUTCOME", "EVENT", "DETAIL"} }
func (a attempt) Cells() []string { return []string{a.at, a.sync, a.outcome, a.event, a.detail} }

func TestNarrowTerminalsHideNothing(t *testing.T) {
	const at, id = "2027-03-01T10:00:00Z", "0199f3a1-7c1e-7b5e-9c3e-5a4f2d1b0c07"
	failed := attempt{at, "Court", "failed", id, "permanent: answered HTTP 422: the courtroom 3A is closed in March"}
	for name, tc := range map[string]struct {
		columns int
		rows    []attempt
		want    string
	}{
		"wide enough": {150, []attempt{failed}, `
AT                    SYNC   OUTCOME  EVENT                                 DETAIL
2027-03-01T10:00:00Z  Court  failed   0199f3a1-7c1e-7b5e-9c3e-5a4f2d1b0c07  permanent: answered HTTP 422: the courtroom 3A is closed in March
`},
		"no terminal": {0, []attempt{failed}, `
AT                    SYNC   OUTCOME  EVENT                                 DETAIL
2027-03-01T10:00:00Z  Court  failed   0199f3a1-7c1e-7b5e-9c3e-5a4f2d1b0c07  permanent: answered HTTP 422: the courtroom 3A is closed in March
`},
		"the last column does not fit": {80, []attempt{failed}, `
AT                    SYNC   OUTCOME  EVENT
2027-03-01T10:00:00Z  Court  failed   0199f3a1-7c1e-7b5e-9c3e-5a4f2d1b0c07
    detail: permanent: answered HTTP 422: the courtroom 3A is closed in March
`},
		"several columns do not fit": {40, []attempt{failed, {at, "Clinic", "delivered", "", ""}}, `
AT                    SYNC    OUTCOME
2027-03-01T10:00:00Z  Court   failed
    event:
    0199f3a1-7c1e-7b5e-9c3e-5a4f2d1b0c07
    detail: permanent: answered HTTP
    422: the courtroom 3A is closed in
    March
2027-03-01T10:00:00Z  Clinic  delivered
`},
		"a word longer than the terminal": {24, []attempt{failed}, `
AT
2027-03-01T10:00:00Z
    sync: Court
    outcome: failed
    event:
    0199f3a1-7c1e-7b5e-9
    c3e-5a4f2d1b0c07
    detail: permanent:
    answered HTTP 422:
    the courtroom 3A is
    closed in March
`},
		"characters of two columns": {26, []attempt{{at, "東京地方裁判所", "sent", "", "法廷 3A は三月に閉鎖されています e\u0301"}}, `
AT
2027-03-01T10:00:00Z
    sync: 東京地方裁判所
    outcome: sent
    detail: 法廷 3A
    は三月に閉鎖されていま
    す é
`},
		"two columns on one line below": {34, []attempt{{at, "Court", "sent", "1", ""}}, `
AT                    SYNC   EVENT
2027-03-01T10:00:00Z  Court  1
    outcome: sent
`},
	} {
		t.Run(name, func(t *testing.T) {
			var b strings.Builder
			if err := Rows(Screen{&b, tc.columns}, Table, tc.rows...); err != nil {
				t.Fatal(err)
			}
			if want := strings.TrimPrefix(tc.want, "\n"); b.String() != want {
				t.Errorf("got\n%swant\n%s", b.String(), want)
			}
		})
	}
}

// Rows that come later may be longer. Then the table has fewer columns from there on.
func TestATableThatGrowsHasANewHeader(t *testing.T) {
	var b strings.Builder
	p := NewPrinter[delivery](Screen{&b, 20}, Table)
	for _, row := range []delivery{{"H-1", "timeout"}, {"H-1", "connection refused"}, {"H-1", "timeout"}} {
		if err := p.Print(row); err != nil {
			t.Fatal(err)
		}
	}
	if want := "KEY  ERROR\nH-1  timeout\nKEY\nH-1\n    error:\n    connection\n    refused\nH-1\n    error: timeout\n"; b.String() != want {
		t.Errorf("got\n%swant\n%s", b.String(), want)
	}
}

func TestColumnsThatAFilterFixesAreLeftOut(t *testing.T) {
	row := attempt{"10:00", "Court", "failed", "1", "closed"}
	var b strings.Builder
	p := NewPrinter[attempt](&b, Table).Without("SYNC", "EVENT")
	if err := p.Print(row); err != nil {
		t.Fatal(err)
	}
	if want := "AT     OUTCOME  DETAIL\n10:00  failed   closed\n"; b.String() != want {
		t.Errorf("got\n%swant\n%s", b.String(), want)
	}
	b.Reset()
	j := NewPrinter[delivery](&b, JSONL).Without("KEY")
	if err := j.Print(delivery{"H-1", "x"}); err != nil {
		t.Fatal(err)
	}
	if want := "{\"key\":\"H-1\",\"error\":\"x\"}\n"; b.String() != want {
		t.Errorf("JSON is %s, want %s", b.String(), want)
	}
}

func TestObjectsInEveryFormat(t *testing.T) {
	text := func(w io.Writer) error { _, err := fmt.Fprintln(w, "as text"); return err }
	for format, want := range map[Format]string{
		Table: "as text\n",
		JSON:  "{\n  \"key\": \"H-1\"\n}\n",
		JSONL: "{\"key\":\"H-1\"}\n",
	} {
		var b strings.Builder
		if err := Object(&b, format, delivery{Key: "H-1"}, text); err != nil || b.String() != want {
			t.Errorf("%s: got %q, %v; want %q", format, b.String(), err, want)
		}
	}
}

func TestFormatsHaveNames(t *testing.T) {
	for _, name := range []string{"table", "json", "jsonl"} {
		if f, err := ParseFormat(name); err != nil || string(f) != name {
			t.Errorf("%s: got %q, %v", name, f, err)
		}
	}
	if f, err := ParseFormat("yaml"); err == nil {
		t.Errorf("yaml was taken as %q", f)
	}
}

func TestAFileIsNoTerminal(t *testing.T) {
	f, err := os.Create(t.TempDir() + "/out")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if IsTerminal(f) || IsTerminal(&strings.Builder{}) {
		t.Error("taken for a terminal")
	}
}

func TestALineIsCutAtTheEdgeOfTheScreen(t *testing.T) {
	for _, c := range []struct {
		line    string
		columns int
		want    string
	}{{"abc", 3, "abc"}, {"abcd", 3, "abc"}, {"裁判所", 5, "裁判"}, {"", 0, ""}} {
		if got := Cut(c.line, c.columns); got != c.want {
			t.Errorf("%q cut at %d is %q, want %q", c.line, c.columns, got, c.want)
		}
	}
}

// A list is CSV for a spreadsheet, in which no text is a formula.
func TestRowsAsCSV(t *testing.T) {
	var b strings.Builder
	p := NewPrinter[delivery](&b, CSV)
	for _, d := range []delivery{{Key: `a "b", c`, Error: "=1+1"}, {Key: "-", Error: "-2 days\x1b[31m"}} {
		if err := p.Print(d); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if want := "KEY,ERROR\r\n\"a \"\"b\"\", c\",'=1+1\r\n-,'-2 days\r\n"; b.String() != want {
		t.Errorf("%q\nwant %q", b.String(), want)
	}
	b.Reset()
	if err := Rows[delivery](&b, CSV); err != nil || b.String() != "KEY,ERROR\r\n" {
		t.Errorf("without rows: %q, %v", b.String(), err)
	}
	if err := Object(&b, CSV, 1, nil); err == nil {
		t.Error("an object is CSV")
	}
}
