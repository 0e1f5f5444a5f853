package main

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func readSamples(t *testing.T) []listed {
	t.Helper()
	list, err := loadSamples()
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func TestEverySampleListIsRead(t *testing.T) {
	list := readSamples(t)
	if len(list) != 24 {
		t.Errorf("the samples have %d hearings, want 24", len(list))
	}
	want := map[string]listed{
		"civil": {
			CaseNumber: "12345678", CaseName: "A Vs B", HearingType: "Hearing Type",
			Start: instant(t, "2023-05-15T17:00:00+01:00"), Duration: defaultDuration, CourtHouse: "PRESTON", CourtRoom: "1",
		},
		"employment, name made of the parties": {
			CaseNumber: "12341234", CaseName: "Claimant surname v Test Surname", HearingType: "This is a hearing type",
			Start: instant(t, "2022-02-13T09:30:00Z"), Duration: 2 * time.Hour, CourtHouse: "Leicester Crown Court", CourtRoom: "Court 1",
		},
		"family": {
			CaseNumber: "12341234", CaseName: "This is a case name", HearingType: "Directions",
			Start: instant(t, "2024-07-21T11:00:00+01:00"), Duration: 90 * time.Minute, CourtHouse: "This is the site name", CourtRoom: "This is the court room name",
		},
		"magistrates, with a reference for a number and no name of the house": {
			CaseNumber: "12345678", CaseName: "Case 12345678", HearingType: "FHDRA1 (First Hearing and Dispute Resolution Appointment)",
			Start: instant(t, "2022-01-27T15:00:00Z"), Duration: defaultDuration, CourtHouse: "Court house 4", CourtRoom: "CourtRoom 3",
		},
		"social security, without a type": {
			CaseNumber: "12341235", CaseName: "Surname v Respondent Organisation", HearingType: "Hearing",
			Start: instant(t, "2024-07-21T11:00:00+01:00"), Duration: defaultDuration, CourtHouse: "Test court house name", CourtRoom: "1",
		},
	}
	for name, w := range want {
		if !slices.ContainsFunc(list, func(h listed) bool { return cmp.Equal(h, w) }) {
			t.Errorf("%s: not in the list: %+v", name, w)
		}
	}
}

func instant(t *testing.T, s string) time.Time {
	t.Helper()
	v, err := time.Parse(time.RFC3339, s)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestLineBreaksInNamesAreRemoved(t *testing.T) {
	for _, file := range []string{"civilDailyCauseListWithNewLines.json", "magistratesPublicListWithNewLines.json"} {
		t.Run(file, func(t *testing.T) {
			list := readList(t, "testdata/odd/"+file)
			for _, h := range list {
				for _, s := range []string{h.CaseNumber, h.CaseName, h.HearingType, h.CourtHouse, h.CourtRoom} {
					if s == "" || strings.ContainsAny(s, "\r\n") || strings.Contains(s, "  ") {
						t.Errorf("%q is not clean", s)
					}
				}
			}
		})
	}
	h := readList(t, "testdata/odd/civilDailyCauseListWithNewLines.json")[0]
	if h.CourtHouse != "This is a court house name" || h.Start.Second() != 0 {
		t.Errorf("the first hearing is %+v", h)
	}
}

func readList(t *testing.T, name string) []listed {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	list, err := parseList(b)
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func TestListThatCannotBeBookedIsRefused(t *testing.T) {
	invalid, err := os.ReadFile("testdata/odd/civilDailyCauseListInvalid.json")
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct{ name, doc, want string }{
		{"no start", string(invalid), "sitting start"},
		{"not JSON", "<html>", "court list"},
		{"another document", `{"document":{}}`, "no hearings"},
		{
			"a case without a number",
			`{"courtLists":[{"courtHouse":{"courtRoom":[{"session":[{"sittings":[
				{"sittingStart":"2027-03-01T10:00:00Z","hearing":[{"case":[{"caseName":"A v B"}]}]}]}]}]}}]}`,
			"without a number",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := parseList([]byte(tt.doc)); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error is %v, want it to say %q", err, tt.want)
			}
		})
	}
}

func TestHearingsAreSpreadOverCourtDays(t *testing.T) {
	list := readSamples(t)
	all := expand(list, 500)
	if len(all) != 500 {
		t.Fatalf("%d hearings, want 500", len(all))
	}
	if diff := cmp.Diff(all[:60], expand(list, 60)); diff != "" {
		t.Errorf("sixty are not the first sixty of five hundred:\n%s", diff)
	}
	ids, cases, days := map[string]bool{}, map[string]bool{}, map[string]bool{}
	form := regexp.MustCompile(`^H-2027-\d{6}$`)
	for i, h := range all {
		if ids[h.ID] || !form.MatchString(h.ID) {
			t.Errorf("id %q is not new or not well-formed", h.ID)
		}
		if cases[h.CaseNumber] {
			t.Errorf("case number %q comes twice", h.CaseNumber)
		}
		ids[h.ID], cases[h.CaseNumber], days[h.Start.Format(time.DateOnly)] = true, true, true
		if wd := h.Start.Weekday(); wd == time.Saturday || wd == time.Sunday {
			t.Errorf("%s is on a %s", h.ID, wd)
		}
		if was := list[i%len(list)].Start; h.Start.Hour() != was.Hour() || h.Start.Location().String() != londonZone {
			t.Errorf("%s starts at %s, not at %s o'clock in %s", h.ID, h.Start, was.Format("15:04"), londonZone)
		}
		if h.Duration <= 0 || h.CaseName == "" || h.HearingType == "" || h.CourtHouse == "" || h.CourtRoom == "" {
			t.Errorf("%s cannot be booked: %+v", h.ID, h)
		}
	}
	if want := (500 + len(list) - 1) / len(list); len(days) != want {
		t.Errorf("they are on %d days, want %d", len(days), want)
	}
	if got := expand(nil, 5); got != nil {
		t.Errorf("an empty list became %v", got)
	}
}
