package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/hms-mkt/lockstep/internal/pgtest"
	"github.com/hms-mkt/lockstep/internal/waiting"
)

// TestDocumentedCommands follows the README and the guides like a reader with a
// terminal. It runs their shell, SQL and Go blocks in order, with the real programs on
// one database. It compares the output of each with the text block that follows.
// -update rewrites the text blocks. Comments before a block direct the test:
//
//	<!-- run: not REASON -->     the block is shown only
//	<!-- run: file NAME -->      it is written to a file
//	<!-- run: background -->     its last line runs until the end of the test
//	<!-- run: as ROLE -->        its SQL runs as this login
//	<!-- run: faults JSON -->    the court gets this fault script first
//	<!-- run: until SQL -->      first wait until the query says true
//	<!-- run: sql SQL -->        first run this
func TestDocumentedCommands(t *testing.T) {
	t.Parallel() // most of the time it waits
	reader := newReader(t)
	for _, path := range []string{"README.md", "docs/install.md", "docs/how-it-works.md", "docs/auditors.md", "docs/operators.md", "docs/databases.md", "docs/adapters.md"} {
		reader.read(filepath.Join("..", "..", path))
	}
	runbooks, err := filepath.Glob(filepath.Join("..", "..", "docs", "runbooks", "*.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range append(runbooks, filepath.Join("..", "..", "docs", "metrics.md")) {
		reader.read(path)
	}
}

// TestDocumentedTestsExist finds every test that the documents name.
func TestDocumentedTestsExist(t *testing.T) {
	command := regexp.MustCompile(`go test \./(\S+) -run '?\^?([A-Za-z0-9_|]+)`)
	scenario := regexp.MustCompile("make chaos RUN='?([A-Za-z0-9_|]+)|`(TestFault[A-Za-z0-9]+|TestSoak)`")
	found := 0
	for _, path := range []string{"README.md", "docs/guarantees.md"} {
		text, err := os.ReadFile(filepath.Join("..", "..", path))
		if err != nil {
			t.Fatal(err)
		}
		text = []byte(strings.ReplaceAll(string(text), `\|`, "|")) // as tables write it
		text = scenario.ReplaceAll(text, []byte("go test ./internal/chaos -run $1$2"))
		for _, m := range command.FindAllStringSubmatch(string(text), -1) {
			sources, err := filepath.Glob(filepath.Join("..", "..", m[1], "*_test.go"))
			if err != nil {
				t.Fatal(err)
			}
			var code []byte
			for _, source := range sources {
				b, err := os.ReadFile(source)
				if err != nil {
					t.Fatal(err)
				}
				code = append(code, b...)
			}
			for name := range strings.SplitSeq(m[2], "|") {
				found++
				if !bytes.Contains(code, []byte("\nfunc "+name)) { // -run takes beginnings too
					t.Errorf("%s: %s has no test %s", path, m[1], name)
				}
			}
		}
	}
	if found < 20 {
		t.Errorf("only %d tests are named", found)
	}
}

// reader follows the documents.
type reader struct {
	t        *testing.T
	dir      string
	database string
	actual   *strings.Replacer // from the addresses of the documents to free ones of this machine
	shown    *strings.Replacer // and back
	court    string
}

func newReader(t *testing.T) *reader {
	t.Helper()
	// Its own server: the documents look at all sessions.
	_, database := pgtest.Own(t, pgtest.Options{Settings: map[string]string{"max_connections": "50"}})
	r := &reader{t: t, dir: t.TempDir(), database: database}
	there := []string{"127.0.0.1:8081", freeAddress(t), "127.0.0.1:9464", freeAddress(t)}
	back := make([]string, 0, len(there))
	for i := 0; i < len(there); i += 2 {
		back = append(back, there[i+1], there[i])
	}
	r.actual, r.shown, r.court = strings.NewReplacer(there...), strings.NewReplacer(back...), "http://"+there[1]
	build := exec.CommandContext(t.Context(), "go", "build", "-o", r.dir, "./cmd/lockstep", "./cmd/courtsim")
	build.Dir = filepath.Join("..", "..")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return r
}

// freeAddress returns an address on which nobody listens. Its port is below the range
// for outgoing connections, so that no other test gets it by chance.
func freeAddress(t *testing.T) string {
	t.Helper()
	for {
		address := fmt.Sprint("127.0.0.1:", 10_000+rand.IntN(20_000))
		l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", address)
		if err == nil {
			_ = l.Close()
			return address
		}
		if t.Context().Err() != nil {
			t.Fatal(err)
		}
	}
}

var fenced = regexp.MustCompile("(?ms)((?:^<!-- run: [^\n]*-->\n)*)^```(sh|sql|yaml|json|csv|go)\n(.*?)^```\n(\n*```text\n(.*?)^```\n)?")

// read follows one document.
func (r *reader) read(path string) {
	r.t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		r.t.Fatal(err)
	}
	blocks := fenced.FindAllSubmatchIndex(text, -1)
	if len(blocks) == 0 {
		r.t.Errorf("%s: no blocks found", path)
	}
	var rewritten []byte
	end := 0
	for _, at := range blocks {
		part := func(n int) string {
			if at[2*n] < 0 {
				return ""
			}
			return string(text[at[2*n]:at[2*n+1]])
		}
		line := 1 + bytes.Count(text[:at[0]], []byte("\n"))
		where := fmt.Sprintf("%s:%d", path, line)
		got, shown := r.follow(where, part(1), part(2), part(3))
		if !shown || at[8] < 0 {
			continue
		}
		rewritten = append(rewritten, text[end:at[10]]...)
		if masked(got) == masked(part(5)) {
			got = part(5)
		} else if !*update {
			r.t.Errorf("%s prints\n%s\nthe document says\n%s", where, got, part(5))
		}
		rewritten = append(rewritten, got...)
		end = at[11]
	}
	if *update {
		writeFile(r.t, path, string(append(rewritten, text[end:]...)))
	}
}

// follow runs one block and returns its output, if it has one.
func (r *reader) follow(where, directions, language, text string) (printed string, shown bool) {
	r.t.Helper()
	role, background := "", false
	for d := range strings.Lines(directions) {
		word, rest, _ := strings.Cut(strings.TrimSuffix(strings.TrimPrefix(strings.TrimSpace(d), "<!-- run: "), " -->"), " ")
		switch word {
		case "not":
			return "", false
		case "file":
			if language == "yaml" {
				text = listening(text)
			}
			writeFile(r.t, filepath.Join(r.dir, rest), r.actual.Replace(text))
			return "", false
		case "background":
			background = true
		case "as":
			role = rest
		case "faults":
			r.faults(rest)
		case "until":
			r.until(where, rest)
		case "sql":
			if out, err := r.sql("", rest); err != nil {
				r.t.Fatalf("%s: %v: %s", where, err, out)
			}
		default:
			r.t.Fatalf("%s: unknown direction %q", where, word)
		}
	}
	switch {
	case language == "go":
		r.embed(where, text)
		return "", false
	case background:
		r.background(where, text)
		return "", false
	case language == "sh":
		return r.sh(where, text), true
	case language == "sql":
		out, err := r.sql(role, text)
		if pgErr, refused := errors.AsType[*pgconn.PgError](err); refused {
			out += "ERROR:  " + pgErr.Message + "\n"
			if pgErr.Hint != "" {
				out += "HINT:  " + pgErr.Hint + "\n"
			}
		} else if err != nil {
			r.t.Fatalf("%s: %v", where, err)
		}
		return r.shown.Replace(out), true
	}
	r.t.Fatalf("%s: a %s block without a direction", where, language)
	return "", false
}

func (r *reader) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = r.dir
	cmd.Env = append(os.Environ(), "DATABASE_URL="+r.database, "LOCKSTEP_CONFIG=", "HOME="+r.dir, "PATH="+r.dir+string(os.PathListSeparator)+os.Getenv("PATH"))
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 30 * time.Second
	return cmd
}

// sh runs a shell block. The documents themselves print exit codes.
func (r *reader) sh(where, text string) string {
	r.t.Helper()
	out, err := r.command(r.t.Context(), "sh", "-e", "-c", r.actual.Replace(text)).CombinedOutput()
	if err != nil {
		r.t.Fatalf("%s: %v: %s", where, err, out)
	}
	return r.shown.Replace(string(out))
}

// background starts the block's last line and stops it when the test ends.
func (r *reader) background(where, text string) {
	r.t.Helper()
	var out bytes.Buffer
	ctx, stop := context.WithCancel(context.Background())
	cmd := r.command(ctx, "sh", "-c", "exec "+r.actual.Replace(strings.TrimSpace(text)))
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		r.t.Fatalf("%s: %v", where, err)
	}
	r.t.Cleanup(func() {
		stop()
		_ = cmd.Wait()
		if code := cmd.ProcessState.ExitCode(); code != 0 {
			r.t.Errorf("%s: exit code %d: %s", where, code, out.String())
		}
	})
}

// embed runs a Go program from the documents until it has delivered, on a
// database of its own.
func (r *reader) embed(where, source string) {
	r.t.Helper()
	own := &reader{t: r.t, dir: r.t.TempDir(), database: pgtest.New(r.t), actual: r.actual, shown: r.shown}
	file := filepath.Join(own.dir, "main.go")
	writeFile(r.t, file, r.actual.Replace(source))
	build := exec.CommandContext(r.t.Context(), "go", "build", "-o", own.dir+"/embedded", file)
	build.Dir = filepath.Join("..", "..")
	if out, err := build.CombinedOutput(); err != nil {
		r.t.Fatalf("%s: %v: %s", where, err, out)
	}
	own.background(where, "./embedded")
	own.until(where, `SELECT EXISTS (SELECT FROM outbox.delivery_log WHERE outcome = 'delivered')`)
}

func (r *reader) faults(script string) {
	r.t.Helper()
	req, err := http.NewRequestWithContext(r.t.Context(), http.MethodPost, r.court+"/faults", strings.NewReader(script))
	if err != nil {
		r.t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		r.t.Fatal(err)
	}
	defer resp.Body.Close()
	if answer, _ := io.ReadAll(resp.Body); resp.StatusCode >= 300 {
		r.t.Fatalf("faults: %s: %s", resp.Status, answer)
	}
	http.DefaultClient.CloseIdleConnections()
}

func (r *reader) until(where, query string) {
	r.t.Helper()
	ctx := r.t.Context()
	conn, err := pgx.Connect(ctx, r.database)
	if err != nil {
		r.t.Fatal(err)
	}
	defer conn.Close(context.Background())
	waiting.For(r.t, waitTimeout, where+": "+query, func() (yes bool) {
		if err := conn.QueryRow(ctx, query).Scan(&yes); err != nil {
			r.t.Fatalf("%s: %v, waiting for %s", where, err, query)
		}
		return yes
	})
}

// sql runs a block and prints its result like psql.
func (r *reader) sql(role, text string) (string, error) {
	ctx := r.t.Context()
	conn, err := pgx.Connect(ctx, r.database)
	if err != nil {
		return "", err
	}
	defer conn.Close(context.Background())
	set := "SET TimeZone = 'UTC'"
	if role != "" {
		set += "; SET SESSION AUTHORIZATION " + r.actual.Replace(role)
	}
	if _, err := conn.Exec(ctx, set); err != nil {
		return "", err
	}
	var out strings.Builder
	for results := conn.PgConn().Exec(ctx, r.actual.Replace(text)); ; {
		if !results.NextResult() {
			return out.String(), results.Close()
		}
		reader := results.ResultReader()
		var names []string
		for _, f := range reader.FieldDescriptions() {
			names = append(names, f.Name)
		}
		var rows [][]string
		for reader.NextRow() {
			var row []string
			for _, v := range reader.Values() {
				row = append(row, string(v))
			}
			rows = append(rows, row)
		}
		tag, err := reader.Close()
		switch {
		case err != nil:
		case names == nil:
			fmt.Fprintln(&out, tag)
		default:
			table(&out, names, rows)
		}
	}
}

// table prints rows in psql's form.
func table(out io.Writer, names []string, rows [][]string) {
	widths := make([]int, len(names))
	for _, row := range append([][]string{names}, rows...) {
		for i, v := range row {
			widths[i] = max(widths[i], utf8.RuneCountInString(v))
		}
	}
	line := func(row []string) {
		for i, v := range row {
			if i > 0 {
				fmt.Fprint(out, " |")
			}
			if i < len(row)-1 {
				v = fmt.Sprintf(" %-*s", widths[i], v)
			} else if v != "" {
				v = " " + v
			}
			fmt.Fprint(out, v)
		}
		fmt.Fprintln(out)
	}
	line(names)
	for i, w := range widths {
		if i > 0 {
			fmt.Fprint(out, "+")
		}
		fmt.Fprint(out, strings.Repeat("-", w+2))
	}
	fmt.Fprintln(out)
	for _, row := range rows {
		line(row)
	}
	if len(rows) == 1 {
		fmt.Fprintln(out, "(1 row)")
	} else {
		fmt.Fprintf(out, "(%d rows)\n", len(rows))
	}
}

var (
	moment = regexp.MustCompile(`(?:-Timestamp: )\d+|\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(\.\d+)?(\+00|Z)?`)
	span   = regexp.MustCompile(`\d\d:\d\d:\d\d\.\d+|\b\d+(\.\d+)?(ms|s|m)\b`)
	anID   = regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}`)
	gap    = regexp.MustCompile(`[ -]+`)
)

// masked replaces the parts of an output that differ from run to run.
func masked(s string) string {
	s = moment.ReplaceAllString(s, "TIME")
	s = span.ReplaceAllString(s, "SPAN")
	s = anID.ReplaceAllString(s, "UUID")
	return strings.TrimSpace(gap.ReplaceAllString(s, " "))
}
