package mapping

import (
	"archive/zip"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hms-mkt/lockstep/outbox"
)

// Zones that only some machines have are refused, because another relay could not map the
// event: localtime is the machine's own zone, and posix/… belongs to one distribution.
func TestTheZonesOfTheMachineAreNotUsed(t *testing.T) {
	for _, name := range []string{"localtime", "posix/America/New_York", "posixrules", "../zoneinfo/UTC", "america/new_york"} {
		m := Mapping{Fields: []Field{{From: "t", To: "t", Time: &TimeFormat{Zone: name}}}}
		if _, err := m.Compile(); err == nil || !strings.Contains(err.Error(), "is unknown: write an IANA name") {
			t.Errorf("time.zone %s: %v", name, err)
		}
		m = Mapping{Compute: []Computed{{To: "t", Expr: `string(date(event.t).In(timezone("` + name + `")).Year())`}}}
		if _, err := m.Compile(); err == nil || !strings.Contains(err.Error(), "needs an IANA name") {
			t.Errorf("timezone(%q): %v", name, err)
		}
	}
}

// zoneDigests makes TestMapWithZones print the result of a mapping with time zones.
const zoneDigests = "MAPPING_TEST_PRINT_ZONES"

// [TestZoneFile] runs TestMapWithZones in processes with other zones.
func TestMapWithZones(t *testing.T) {
	if os.Getenv(zoneDigests) == "" {
		return
	}
	with := Mapping{Fields: []Field{{From: "t", To: "t", Time: &TimeFormat{Zone: "America/New_York", Format: "hl7"}}}}
	computed := Mapping{Compute: []Computed{{To: "t", Expr: `date(event.t).In(timezone("America/New_York"))`}}}
	without := Mapping{Fields: []Field{{From: "t", To: "t", Time: &TimeFormat{Format: "hl7"}}}}
	version, err := ZoneVersion()
	t.Log("zones", version, err)
	for _, m := range []Mapping{with, computed, without} {
		mapper, err := m.Compile()
		if err != nil {
			t.Log("refused:", err)
			continue
		}
		body, err := mapper.Map(outbox.Event{Payload: raw(`{"t":"2027-03-01T14:00:00Z"}`)}, Sending{}, nil)
		t.Log(string(body), err, mapper.Version())
	}
}

// A zone file replaces the built-in zones and changes the version of the mappings that use zones.
func TestZoneFile(t *testing.T) {
	run := func(file string) []string {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestMapWithZones$", "-test.v")
		cmd.Env = append(os.Environ(), zoneDigests+"=1", ZoneFile+"="+file)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		var lines []string
		for line := range strings.Lines(string(out)) {
			if _, text, ok := strings.Cut(line, "zones_test.go:"); ok {
				_, text, _ = strings.Cut(text, ": ")
				lines = append(lines, strings.TrimSpace(text))
			}
		}
		if len(lines) != 4 {
			t.Fatalf("want 4 lines: %s", out)
		}
		return lines
	}
	builtIn := run("")
	if builtIn[0] != "zones 2025c <nil>" || !strings.HasPrefix(builtIn[1], `{"t":"20270301090000-0500"}`) {
		t.Fatalf("built in: %q", builtIn)
	}

	other := filepath.Join(t.TempDir(), "zones.zip")
	zipZones(t, other, map[string]string{"America/New_York": "Asia/Tokyo"})
	moved := run(other)
	if !strings.HasPrefix(moved[0], "zones "+other+" (") || !strings.HasPrefix(moved[1], `{"t":"20270301230000+0900"}`) {
		t.Errorf("with a file in which New York is Tokyo: %q", moved)
	}
	version := func(line string) string { return line[strings.LastIndex(line, " "):] }
	for i, uses := range []bool{1: true, 2: true, 3: false} {
		if changed := version(builtIn[i]) != version(moved[i]); i > 0 && changed != uses {
			t.Errorf("mapping %d: built in %q, with the file %q", i, builtIn[i], moved[i])
		}
	}

	missing := run(filepath.Join(t.TempDir(), "none.zip"))
	for _, line := range missing[:3] {
		if !strings.Contains(line, "cannot be used") || !strings.Contains(line, "unset the variable to use the built-in zones") {
			t.Errorf("a file that does not exist: %q", line)
		}
	}
	if !strings.HasPrefix(missing[3], `{"t":"20270301140000Z"}`) && !strings.HasPrefix(missing[3], `{"t":"20270301140000+0000"}`) {
		t.Errorf("a mapping without zones needs no zone file: %q", missing[3])
	}
}

// zipZones writes a zone file in which each zone has the content of a built-in one.
func zipZones(t *testing.T, name string, content map[string]string) {
	t.Helper()
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	w := zip.NewWriter(f)
	z, err := openZones("")
	if err != nil {
		t.Fatal(err)
	}
	for zone, from := range content {
		data, err := fs.ReadFile(z.files, from)
		if err != nil {
			t.Fatal(err)
		}
		part, err := w.Create(zone)
		if err == nil {
			_, err = part.Write(data)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}
