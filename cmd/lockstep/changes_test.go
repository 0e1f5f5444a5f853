package main

import (
	"slices"
	"strings"
	"testing"
)

func TestChangesSayWhoDidWhatAndWhy(t *testing.T) {
	w, h1, h2, _, _ := troubled(t)
	operator, auditor := w.as(roleOperator), w.as(roleAuditor)
	operator.run("requeue", "--sync", "CourtCalendarSync", "--all", "--actor", "maria", "--reason", "the court repaired it").wants(t, 0)
	operator.run("discard", h2, "--actor", "jo", "--reason", "entered by hand").wants(t, 0)
	operator.run("replay", h1, "--actor", "jo", "--reason", "the court lost it").wants(t, 0)
	operator.run("pause", "CourtCalendarSync", "--actor", "maria", "--reason", "the court moves").wants(t, 0)

	all := decode[[]changeRow](t, auditor.run("changes", "-o", "json").wants(t, 0))
	var said []string
	for _, c := range all {
		_, person, _ := strings.Cut(c.Actor, "/")
		slices.Sort(c.Keys)
		said = append(said, strings.Join(append([]string{person, c.Action, c.Reason}, c.Keys...), " "))
	}
	want := []string{
		"maria requeued the court repaired it H-2 H-3", "jo discarded entered by hand H-2",
		"jo replayed the court lost it H-1", "maria paused the court moves",
	}
	if !slices.Equal(said, want) {
		t.Errorf("got %q, want %q", said, want)
	}
	if all[0].Rows != 2 || all[0].EventID != "" || all[1].EventID != h2 {
		t.Errorf("got %+v", all)
	}
	for name, test := range map[string]struct {
		args []string
		want int
	}{
		"by name":   {[]string{"--by", "jo"}, 2},
		"by actor":  {[]string{"--by", all[0].Actor}, 2},
		"by action": {[]string{"--action", "requeued"}, 1},
		"by sync":   {[]string{"--sync", "CourtCalendarSync", "--since", "1h"}, 4},
		"limit":     {[]string{"--limit", "1"}, 1},
		"until":     {[]string{"--until", "1h"}, 0},
	} {
		if got := decode[[]changeRow](t, auditor.run(append([]string{"changes", "-o", "json"}, test.args...)...).wants(t, 0)); len(got) != test.want {
			t.Errorf("%s: %d changes, want %d: %+v", name, len(got), test.want, got)
		}
	}
	auditor.run("changes", "--limit", "1").wants(t, 0, "ROWS", "the court moves", "there are older changes; to see them: --limit, up to 10000, or --until ")
	auditor.run("changes", "--sync", "Typo").wants(t, 0, `sync "Typo" has no rows; known are CourtCalendarSync`)
	auditor.run("changes", "--action", "requeue").wants(t, exitUsage, `--action "requeue": want one of requeued, replayed`)
	auditor.run("changes", "--limit", "0").wants(t, exitUsage, "--limit 0: want 1 to 10000")
	w.as(roleRelay).run("changes").wants(t, 0)
}
