package deploytest

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// systemd itself reads the units, and finds little that they could be kept from.
func TestSystemdUnits(t *testing.T) {
	dir := t.TempDir()
	program := filepath.Join(dir, "lockstep")
	if out, err := command(t, filepath.Join("..", ".."), "go", "build", "-o", program, "./cmd/lockstep"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, name := range []string{"lockstep.service", "lockstep-migrate.service"} {
		unit, err := os.ReadFile(filepath.Join(deploy, "systemd", name))
		if err != nil {
			t.Fatal(err)
		}
		copied := filepath.Join(dir, name)
		if err := os.WriteFile(copied, []byte(strings.ReplaceAll(string(unit), "/usr/local/bin/lockstep", program)), 0o600); err != nil {
			t.Fatal(err)
		}
		if out, err := command(t, dir, "systemd-analyze", "verify", copied); err != nil || strings.Contains(out, name) {
			t.Errorf("%s: %v %s", name, err, out)
		}
		// 20 is 2.0 on the scale of systemd, on which 10 is a service without any protection.
		if out, err := command(t, dir, "systemd-analyze", "security", "--offline=true", "--threshold=20", copied); err != nil {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
		// Each command and flag exists.
		args := strings.Fields(regexp.MustCompile(`ExecStart=\S+ (.*)`).FindStringSubmatch(string(unit))[1])
		if out, err := command(t, dir, program, append(args, "--help")...); err != nil || !strings.Contains(out, "Usage:") {
			t.Errorf("%s: %v: %v %s", name, args, err, out)
		}
	}
}
