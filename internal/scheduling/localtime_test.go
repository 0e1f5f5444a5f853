package scheduling

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestWallTimesAndTheirInstants(t *testing.T) {
	const ny = "America/New_York"
	tests := []struct {
		name, local, zone string
		fold              Fold
		want              string // RFC 3339
	}{
		{"winter", "2027-01-15T10:00", ny, "", "2027-01-15T10:00:00-05:00"},
		{"summer", "2027-07-15T10:00", ny, "", "2027-07-15T10:00:00-04:00"},
		{"seconds that are zero", "2027-07-15T10:00:00", ny, "", "2027-07-15T10:00:00-04:00"},
		{"last minute before the gap", "2027-03-14T01:59", ny, "", "2027-03-14T01:59:00-05:00"},
		{"end of the gap", "2027-03-14T03:00", ny, "", "2027-03-14T03:00:00-04:00"},
		{"first of two", "2027-11-07T01:30", ny, FoldFirst, "2027-11-07T01:30:00-04:00"},
		{"second of two", "2027-11-07T01:30", ny, FoldSecond, "2027-11-07T01:30:00-05:00"},
		{"last minute before the fold", "2027-11-07T00:59", ny, "", "2027-11-07T00:59:00-04:00"},
		{"end of the fold", "2027-11-07T02:00", ny, "", "2027-11-07T02:00:00-05:00"},
		{"fold without need", "2027-07-15T10:00", ny, FoldSecond, "2027-07-15T10:00:00-04:00"},
		{"half an hour of summer time", "2027-10-03T02:45", "Australia/Lord_Howe", "", "2027-10-03T02:45:00+11:00"},
		{"no clock changes", "2027-03-14T02:30", "America/Phoenix", "", "2027-03-14T02:30:00-07:00"},
		{"UTC", "2027-03-14T02:30", "UTC", "", "2027-03-14T02:30:00Z"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			at, bad := resolve(tt.local, tt.zone, tt.fold)
			if bad != nil {
				t.Fatalf("refused: %+v", bad)
			}
			if got := at.Format(time.RFC3339); got != tt.want {
				t.Errorf("it starts at %s, want %s", got, tt.want)
			}
			if got := at.Format(localLayout); !strings.HasPrefix(tt.local, got) || at.Location().String() != tt.zone {
				t.Errorf("wall time %s in %s, want %s in %s", got, at.Location(), tt.local, tt.zone)
			}
		})
	}
}

func TestSkippedAndAmbiguousWallTimesAreRefused(t *testing.T) {
	tests := []struct {
		name, local, zone string
		field, code       string
		choices           []Choice
		says              string
	}{
		{
			"spring gap", "2027-03-14T02:30", "America/New_York", "local_start", CodeNonexistent,
			[]Choice{
				{LocalStart: "2027-03-14T01:59", StartsAt: "2027-03-14T01:59:00-05:00"},
				{LocalStart: "2027-03-14T03:00", StartsAt: "2027-03-14T03:00:00-04:00"},
			},
			"does not exist in America/New_York",
		},
		{
			"first minute of the gap", "2027-03-28T01:00", "Europe/London", "local_start", CodeNonexistent,
			[]Choice{
				{LocalStart: "2027-03-28T00:59", StartsAt: "2027-03-28T00:59:00Z"},
				{LocalStart: "2027-03-28T02:00", StartsAt: "2027-03-28T02:00:00+01:00"},
			},
			"clocks skip it",
		},
		{
			"a whole day that was left out", "2011-12-30T12:00", "Pacific/Apia", "local_start", CodeNonexistent,
			[]Choice{
				{LocalStart: "2011-12-29T23:59", StartsAt: "2011-12-29T23:59:00-10:00"},
				{LocalStart: "2011-12-31T00:00", StartsAt: "2011-12-31T00:00:00+14:00"},
			},
			"nearest valid times are 2011-12-29T23:59 and 2011-12-31T00:00",
		},
		{
			"autumn fold", "2027-11-07T01:30", "America/New_York", "fold", CodeAmbiguous,
			[]Choice{
				{LocalStart: "2027-11-07T01:30", Fold: FoldFirst, StartsAt: "2027-11-07T01:30:00-04:00"},
				{LocalStart: "2027-11-07T01:30", Fold: FoldSecond, StartsAt: "2027-11-07T01:30:00-05:00"},
			},
			`send "first" for 2027-11-07T01:30:00-04:00 or "second" for 2027-11-07T01:30:00-05:00`,
		},
		{
			"first minute of the fold", "2027-11-07T01:00", "America/New_York", "fold", CodeAmbiguous,
			[]Choice{
				{LocalStart: "2027-11-07T01:00", Fold: FoldFirst, StartsAt: "2027-11-07T01:00:00-04:00"},
				{LocalStart: "2027-11-07T01:00", Fold: FoldSecond, StartsAt: "2027-11-07T01:00:00-05:00"},
			},
			"comes twice",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, bad := resolve(tt.local, tt.zone, "")
			if len(bad) != 1 {
				t.Fatalf("got %+v, want one refusal", bad)
			}
			if bad[0].Field != tt.field || bad[0].Code != tt.code || !strings.Contains(bad[0].Detail, tt.says) {
				t.Errorf("got %+v", bad[0])
			}
			if diff := cmp.Diff(tt.choices, bad[0].Choices); diff != "" {
				t.Errorf("choices (-want +got):\n%s", diff)
			}
			for _, c := range bad[0].Choices {
				at, bad := resolve(c.LocalStart, tt.zone, c.Fold)
				if bad != nil || at.Format(time.RFC3339) != c.StartsAt {
					t.Errorf("the choice %+v gives %s, %+v", c, at, bad)
				}
			}
		})
	}
}

func TestMistakesInAStartAreNamed(t *testing.T) {
	tests := []struct {
		name, local, zone string
		fold              Fold
		fields            []string
	}{
		{"nothing at all", "", "", "", []string{"local_start", "zone"}},
		{"everything wrong", "soon", "Mars/Olympus", "third", []string{"local_start", "zone", "fold"}},
		{"an offset", "2027-03-15T10:00:00-04:00", "America/New_York", "", []string{"local_start"}},
		{"Z", "2027-03-15T10:00:00Z", "America/New_York", "", []string{"local_start"}},
		{"seconds", "2027-03-15T10:00:30", "America/New_York", "", []string{"local_start"}},
		{"a day that does not exist", "2027-02-29T10:00", "America/New_York", "", []string{"local_start"}},
		{"an hour of one digit", "2027-03-15T9:00", "America/New_York", "", []string{"local_start"}},
		{"a mistyped year", "0207-03-15T09:00", "America/New_York", "", []string{"local_start"}},
		{"the machine's own zone", "2027-03-15T09:00", "Local", "", []string{"zone"}},
		{"a path", "2027-03-15T09:00", "../../etc/passwd", "", []string{"zone"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, bad := resolve(tt.local, tt.zone, tt.fold)
			var fields []string
			for _, f := range bad {
				fields = append(fields, f.Field)
			}
			if diff := cmp.Diff(tt.fields, fields); diff != "" {
				t.Errorf("fields (-want +got):\n%s", diff)
			}
		})
	}
}

// TestEveryQuarterOfAYearHasTheRightInstants checks the arithmetic against the zone itself:
// a wall time has one meaning unless it is skipped or comes twice.
func TestEveryQuarterOfAYearHasTheRightInstants(t *testing.T) {
	for _, zone := range []string{"America/New_York", "Europe/London", "Australia/Lord_Howe", "Africa/Casablanca", "Pacific/Chatham"} {
		t.Run(zone, func(t *testing.T) {
			loc, err := time.LoadLocation(zone)
			if err != nil {
				t.Fatal(err)
			}
			// How often each wall time is shown, counted instant by instant.
			shown := map[time.Time]int{}
			year := time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC)
			for at := year.Add(-48 * time.Hour); at.Year() < 2028 || at.YearDay() < 3; at = at.Add(15 * time.Minute) {
				l := at.In(loc)
				shown[time.Date(l.Year(), l.Month(), l.Day(), l.Hour(), l.Minute(), 0, 0, time.UTC)]++
			}
			twice, never := 0, 0
			for wall := year; wall.Year() == 2027; wall = wall.Add(15 * time.Minute) {
				got := instantsOf(wall, loc)
				if len(got) != shown[wall] {
					t.Fatalf("%s has %d instants, the clocks show it %d times", wall.Format(localLayout), len(got), shown[wall])
				}
				switch len(got) {
				case 0:
					never++
				case 2:
					twice++
				}
			}
			if twice == 0 || never == 0 {
				t.Errorf("the year has %d quarters that come twice and %d that never come; the zone is no test", twice, never)
			}
		})
	}
}
