package main

import (
	"strings"
	"testing"
	"time"
)

func TestLiveProgressRedrawsItsLines(t *testing.T) {
	var b strings.Builder
	p := &progress{out: &b, live: true, width: func() int { return 12 }, began: time.Now()}
	p.show([]string{"one", "a line that is too long"})
	p.say("the court is down")
	p.clear()
	erase := "\x1b[2A\r\x1b[J"
	lines := "one\na line that\n"
	want := lines + erase + "  0.0s  the court is down\n" + lines + erase
	if b.String() != want {
		t.Errorf("got\n%q, want\n%q", b.String(), want)
	}
}

func TestPlainProgressWritesALineNowAndThen(t *testing.T) {
	var b strings.Builder
	p := newProgress(&b, false, noEnv)
	p.show([]string{"░░  too early", "x"})
	p.last = time.Now().Add(-plainEvery)
	p.show([]string{"░░  3 of 9 changes made", "x"})
	p.say("done")
	if got, want := b.String(), "  0.0s  3 of 9 changes made\n  0.0s  done\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestColoursCanBeTurnedOff(t *testing.T) {
	if got := (palette{}).red("1"); got != "1" {
		t.Errorf("without colours: %q", got)
	}
	if got, want := (palette{on: true}).green("0"), "\x1b[32m0\x1b[0m"; got != want {
		t.Errorf("with colours: %q, want %q", got, want)
	}
	env := func(name string) (string, bool) { return map[string]string{"NO_COLOR": "1"}[name], name == "NO_COLOR" }
	if newProgress(&strings.Builder{}, false, env).colour {
		t.Error("NO_COLOR is not honoured")
	}
}
