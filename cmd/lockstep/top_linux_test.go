package main

import (
	"testing"

	"golang.org/x/sys/unix"
)

func TestTopShowsChangesUntilAKeyEndsIt(t *testing.T) {
	w, _, _, _, _ := troubled(t)
	auditor := w.as(roleAuditor)
	begin := func() (*terminal, <-chan int) {
		c, done := newTerminal(t), make(chan int, 1)
		t.Cleanup(func() { c.types(t, "q\n") }) // ends the reading of keys, also if the test has failed
		go func() { done <- run(t.Context(), []string{"top"}, auditor.lookup, c.program, c.program, c.program) }()
		return c, done
	}
	c, done := begin()
	for _, text := range []string{"\x1b[?1049h", "no relay is running", "CourtCalendarSync", "no relay", "q ends"} {
		c.waits(t, text)
	}
	ask[string](w, `SELECT outbox.pause('CourtCalendarSync', 'relocation')::text`)
	c.waits(t, "relocation")
	if err := unix.IoctlSetWinsize(int(c.person.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 3, Col: 60}); err != nil {
		t.Fatal(err)
	}
	c.waits(t, "more lines: make the window taller")
	c.types(t, "q")
	c.waits(t, "\x1b[?1049l")
	if code := <-done; code != 0 {
		t.Errorf("q: exit code %d", code)
	}

	c, done = begin()
	c.waits(t, "q ends")
	c.types(t, "\x03")
	c.waits(t, "\x1b[?25h")
	if code := <-done; code != 0 {
		t.Errorf("Ctrl-C: exit code %d", code)
	}
}
