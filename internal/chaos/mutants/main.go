// Command mutants builds Lockstep with one mistake after the other, and shows which test catches each
// mistake. So it tests the tests.
//
// It exits with 1 if no test catches a mistake, or if the code of a mistake's anchor does not exist. First
// it runs the tests without a mistake: a test that fails then cannot catch one.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/sync/errgroup"
)

func main() {
	only := flag.String("only", "", "the mutants whose names match this expression; default all")
	parallel := flag.Int("parallel", 2, "how many are tried at a time")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, *only, *parallel); err != nil {
		fmt.Fprintln(os.Stderr, "mutants:", err)
		os.Exit(1)
	}
}

// mutant is Lockstep with one mistake, and the test that has to catch it.
type mutant struct {
	name  string
	edits []edit
	dir   string // of the package with the test
	test  string // -run
}

// outcome is the result of a mutant.
type outcome struct {
	err   error  // it was not caught, and why
	by    string // the test that failed
	said  string // the first violation of an invariant that it named, or the first thing it said
	after time.Duration
}

func run(ctx context.Context, only string, parallel int) error {
	chosen, err := regexp.Compile(only)
	if err != nil {
		return err
	}
	root, err := filepath.Abs("../..")
	if err != nil {
		return err
	}
	list := slices.DeleteFunc(slices.Clone(mutants), func(m mutant) bool { return !chosen.MatchString(m.name) })
	if err := sound(ctx, root, list); err != nil {
		return err
	}
	outcomes := make([]outcome, len(list))
	var group errgroup.Group
	group.SetLimit(parallel)
	for i, m := range list {
		group.Go(func() error {
			if outcomes[i] = m.try(ctx, root); outcomes[i].err != nil {
				outcomes[i] = m.try(ctx, root) // scenarios are random: once it may slip through
			}
			fmt.Fprintf(os.Stderr, "%d of %d: %s: %s\n", i+1, len(list), m.name, outcomes[i].verdict())
			return nil
		})
	}
	_ = group.Wait()
	return report(list, outcomes)
}

func report(list []mutant, outcomes []outcome) error {
	survivors := 0
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "MISTAKE\tCAUGHT BY\tAFTER\tWHICH SAYS")
	for i, o := range outcomes {
		if o.err != nil {
			survivors++
		}
		fmt.Fprintf(w, "%s\t%s\t%.0fs\t%s\n", list[i].name, o.verdict(), o.after.Seconds(), o.said)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if survivors > 0 {
		return fmt.Errorf("%d of %d mistakes were not caught", survivors, len(list))
	}
	return nil
}

func (o outcome) verdict() string {
	if o.err != nil {
		return "NOT CAUGHT: " + o.err.Error()
	}
	return o.by
}

// sound runs the tests on Lockstep as it is.
func sound(ctx context.Context, root string, list []mutant) error {
	tests := map[string][]string{}
	for _, m := range list {
		if !slices.Contains(tests[m.dir], m.test) {
			tests[m.dir] = append(tests[m.dir], m.test)
		}
	}
	for dir, names := range tests {
		fmt.Fprintln(os.Stderr, "without a mistake:", dir)
		out, err := test(ctx, root, dir, strings.Join(names, "|"), "-v")
		if err != nil {
			return fmt.Errorf("%s fails without a mistake: %w\n%s", dir, err, out)
		}
		for _, name := range names {
			if !bytes.Contains(out, []byte("--- PASS: "+name)) {
				return fmt.Errorf("%s: there is no such test in %s", name, dir)
			}
		}
	}
	return nil
}

// try builds the mutant and lets its test catch it.
func (m mutant) try(ctx context.Context, root string) outcome {
	began := time.Now()
	dir, err := os.MkdirTemp("", "lockstep-mutant-")
	if err != nil {
		return outcome{err: err}
	}
	defer os.RemoveAll(dir)
	overlay, err := m.overlay(root, dir)
	if err != nil {
		return outcome{err: err}
	}
	out, err := test(ctx, root, m.dir, m.test, "-overlay", overlay)
	o := judge(out, err)
	o.after = time.Since(began)
	return o
}

// overlay writes the files with the mistake to dir, and the file that tells the
// go command to take them.
func (m mutant) overlay(root, dir string) (string, error) {
	edited := map[string]string{}
	for _, e := range m.edits {
		if err := e.apply(root, edited); err != nil {
			return "", err
		}
	}
	replaced := map[string]string{}
	for path, text := range edited {
		name, err := filepath.Rel(root, path)
		if err != nil {
			return "", err
		}
		replaced[path] = filepath.Join(dir, strings.ReplaceAll(name, "/", "_"))
		if err := os.WriteFile(replaced[path], []byte(text), 0o600); err != nil {
			return "", err
		}
	}
	raw, err := json.Marshal(map[string]any{"Replace": replaced})
	if err != nil {
		return "", err
	}
	file := filepath.Join(dir, "overlay.json")
	return file, os.WriteFile(file, raw, 0o600)
}

// test runs a test with a shorter timeout than usual, because most mistakes cause endless waits.
func test(ctx context.Context, root, dir, pattern string, flags ...string) ([]byte, error) {
	args := append([]string{"test", "-vet=off", "-count=1", "-timeout", "5m", "-run", pattern}, flags...)
	args = append(args, ".")
	switch dir {
	case chaos:
		args = append(args, "-patience", "25s")
	case outbox:
		args = append(args, "-rapid.nofailfile") // the mistake is not in the code
	}
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = filepath.Join(root, dir)
	return cmd.CombinedOutput()
}

var (
	failed    = regexp.MustCompile(`(?m)^ *--- FAIL: (\S+)`)
	spoke     = regexp.MustCompile(`(?m)^ +\w+_test\.go:\d+: (.+)$`)
	invariant = regexp.MustCompile(`^I\d`)
)

// judge finds out whether a test caught the mistake. A build that fails, or a
// test binary that dies, has caught nothing.
func judge(out []byte, err error) outcome {
	var exit *exec.ExitError
	caught := failed.FindSubmatch(out)
	switch {
	case err == nil:
		return outcome{err: errors.New("the test passes")}
	case !errors.As(err, &exit):
		return outcome{err: err}
	case caught == nil:
		return outcome{err: fmt.Errorf("no test failed, but the run did: %s", bytes.TrimSpace(out[max(0, len(out)-500):]))}
	}
	o := outcome{by: string(caught[1])}
	for _, name := range failed.FindAllSubmatch(out, -1) {
		// A case of a table tells more than the name of the test. The seed of a scenario does not.
		if of, _, _ := strings.Cut(string(name[1]), "/seed"); len(of) > len(o.by) {
			o.by = of
		}
	}
	for _, line := range spoke.FindAllSubmatch(out, -1) {
		text := string(line[1])
		switch {
		case strings.HasPrefix(text, "time="), strings.HasSuffix(text, " said:"):
			continue // a relay's log
		case strings.HasPrefix(text, "waited ") && !strings.Contains(text, " in vain "):
			continue // it is no failure
		}
		if o.said == "" || invariant.MatchString(text) && !invariant.MatchString(o.said) {
			o.said = text[:min(len(text), 120)]
		}
	}
	return o
}
