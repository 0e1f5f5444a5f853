package deploytest

import (
	"context"
	"debug/buildinfo"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/mod/module"
	modzip "golang.org/x/mod/zip"

	"github.com/hms-mkt/lockstep/internal/pgtest"
	"github.com/hms-mkt/lockstep/internal/waiting"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// The SBOM names exactly the modules that the program itself names.
func TestTheSBOMSaysWhatIsInTheProgram(t *testing.T) {
	dir, err := filepath.Abs(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	program, sbom := filepath.Join(dir, "lockstep"), filepath.Join(dir, "sbom.json")
	if out, err := command(t, filepath.Join("..", ".."), "go", "build", "-o", program, "./cmd/lockstep"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if out, err := command(t, dir, "go", "run", "github.com/CycloneDX/cyclonedx-gomod/cmd/cyclonedx-gomod@v1.10.0", "bin", "-std", "-json", "-output", sbom, program); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	text, err := os.ReadFile(sbom)
	if err != nil {
		t.Fatal(err)
	}
	var bill struct {
		BOMFormat  string
		Components []struct{ Name, Version, Type string }
	}
	if err := json.Unmarshal(text, &bill); err != nil {
		t.Fatal(err)
	}
	info, err := buildinfo.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"std " + info.GoVersion}
	for _, m := range info.Deps {
		want = append(want, m.Path+" "+m.Version)
	}
	var got []string
	for _, c := range bill.Components {
		got = append(got, c.Name+" "+c.Version)
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) || bill.BOMFormat != "CycloneDX" || len(want) < 20 {
		t.Errorf("the SBOM names %v, the program %v", got, want)
	}
}

// go install takes the program from a module proxy, as a user does.
func TestGoInstall(t *testing.T) {
	const version = "v0.1.0"
	source, proxy, bin := t.TempDir(), t.TempDir(), t.TempDir()
	archive := filepath.Join(t.TempDir(), "source.tar")
	if out, err := command(t, filepath.Join("..", ".."), "git", "archive", "--output", archive, "HEAD"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if out, err := command(t, source, "tar", "-xf", archive); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	files := filepath.Join(proxy, "github.com", "hms-mkt", "lockstep", "@v")
	if err := os.MkdirAll(files, 0o700); err != nil {
		t.Fatal(err)
	}
	packed, err := os.Create(filepath.Join(files, version+".zip"))
	if err != nil {
		t.Fatal(err)
	}
	if err := modzip.CreateFromDir(packed, module.Version{Path: "github.com/hms-mkt/lockstep", Version: version}, source); err != nil {
		t.Fatal(err)
	}
	if err := packed.Close(); err != nil {
		t.Fatal(err)
	}
	mod, err := os.ReadFile(filepath.Join(source, "go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{version + ".mod": string(mod), version + ".info": fmt.Sprintf(`{"Version": %q, "Time": "2026-01-01T00:00:00Z"}`, version), "list": version + "\n"} {
		if err := os.WriteFile(filepath.Join(files, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	others, err := command(t, source, "go", "env", "GOPROXY")
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("GOPROXY", "file://"+proxy+","+strings.TrimSpace(others))
	t.Setenv("GONOSUMDB", "github.com/hms-mkt/*")
	t.Setenv("GOBIN", bin)
	t.Setenv("GOFLAGS", "-modcacherw")
	t.Setenv("GOMODCACHE", filepath.Join(t.TempDir(), "mod"))
	for _, name := range []string{"lockstep", "courtsim"} {
		if out, err := command(t, bin, "go", "install", "github.com/hms-mkt/lockstep/cmd/"+name+"@"+version); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	if out, err := command(t, bin, filepath.Join(bin, "lockstep"), "version"); err != nil || !strings.HasPrefix(out, "lockstep "+version+" (go") {
		t.Errorf("%v: %s", err, out)
	}
	delivers(t, bin)
}

// delivers follows docs/install.md with the programs of a directory, from an empty database to a
// delivered event.
func delivers(t *testing.T, bin string) {
	t.Helper()
	_, database := pgtest.Own(t, pgtest.Options{})
	lockstep := filepath.Join(bin, "lockstep")
	t.Setenv("DATABASE_URL", database)
	t.Setenv("LOCKSTEP_CONFIG", "")
	if out, err := command(t, bin, lockstep, "migrate", "up"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	court := begins(t, filepath.Join(bin, "courtsim"), "--listen", "127.0.0.1:0")
	file := filepath.Join(bin, "lockstep.yaml")
	config := fmt.Sprintf(`database: {url: "${DATABASE_URL}"}
listen: 127.0.0.1:0
syncs:
  - name: CourtCalendarSync
    events: ["scheduling:*"]
    adapter: {kind: rest, url: "%s/api/calendar", external_id: /id}
    mapping: {hearingId: case_reference, scheduledAt: start_time, location: courtroom}
`, court)
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	begins(t, lockstep, "run", "--config", file, "--log-format", "json")
	conn, err := pgx.Connect(t.Context(), database)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	_, err = conn.Exec(t.Context(), `INSERT INTO outbox.event (type, key, payload)
		VALUES ('scheduling:created', 'H-1', '{"hearingId": "H-1", "scheduledAt": "2027-03-01T14:00:00-05:00", "location": "3A"}')`)
	if err != nil {
		t.Fatal(err)
	}
	waiting.For(t, time.Minute, "the event is delivered", func() (yes bool) {
		if err := conn.QueryRow(t.Context(), `SELECT EXISTS (SELECT FROM outbox.delivery_log WHERE key = 'H-1' AND outcome = 'delivered')`).Scan(&yes); err != nil {
			t.Fatal(err)
		}
		return yes
	})
}
