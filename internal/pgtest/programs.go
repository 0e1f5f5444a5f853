package pgtest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// errNoPostgres is the first message that a newcomer may read. It says what to do.
var errNoPostgres = errors.New(`pgtest: no PostgreSQL was found. Do one of these:
  - install the server programs, 15 or newer   (Debian, Ubuntu: apt-get install postgresql; macOS: brew install postgresql)
  - start a Docker engine                      (the image is ` + DefaultImage + `, or ` + EnvImage + `)
  - name a running server whose user may create databases and roles:
      export ` + EnvURL + `=postgres://user:password@host:5432/postgres`)

// debianPrograms is where Debian and systems made from it keep the programs.
const debianPrograms = "/usr/lib/postgresql/*/bin"

// findPrograms returns the directory that holds initdb and postgres: the one
// that pg_config names, one on PATH, or the newest that matches pattern.
func findPrograms(ctx context.Context, pattern string) (string, error) {
	var dirs []string
	if out, err := exec.CommandContext(ctx, "pg_config", "--bindir").Output(); err == nil {
		dirs = append(dirs, strings.TrimSpace(string(out)))
	}
	if path, err := exec.LookPath("initdb"); err == nil {
		dirs = append(dirs, filepath.Dir(path))
		// initdb finds its libraries by the path of the file itself, not of a link to
		// it.
		if real, err := filepath.EvalSymlinks(path); err == nil {
			dirs = append(dirs, filepath.Dir(real))
		}
	}
	versioned, err := filepath.Glob(pattern)
	if err != nil {
		return "", err
	}
	slices.SortFunc(versioned, func(a, b string) int { return cmp.Compare(version(b), version(a)) })
	for _, dir := range append(dirs, versioned...) {
		if isProgram(filepath.Join(dir, "initdb")) && isProgram(filepath.Join(dir, "postgres")) {
			return dir, nil
		}
	}
	return "", errNoPostgres
}

// version reads the number out of /usr/lib/postgresql/15/bin.
func version(bin string) float64 {
	v, _ := strconv.ParseFloat(filepath.Base(filepath.Dir(bin)), 64) // other names sort last
	return v
}

func isProgram(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular() && info.Mode().Perm()&0o111 != 0
}

// Program returns the path of one of this machine's PostgreSQL programs, such
// as pg_dump.
func Program(ctx context.Context, name string) (string, error) {
	bin, err := findPrograms(ctx, debianPrograms)
	if err != nil {
		return "", err
	}
	path := filepath.Join(bin, name)
	if !isProgram(path) {
		return "", fmt.Errorf("pgtest: there is no %s in %s: install PostgreSQL's server programs", name, bin)
	}
	return path, nil
}
