package scheduling

import (
	"fmt"
	"slices"
	"strings"
	"time"
	_ "time/tzdata" // has the zones for machines without a zone database
)

// localLayout is how wall times are written; hearings start on a whole minute.
const localLayout = "2006-01-02T15:04"

// Fold names one of the two instants of a wall time that comes twice.
type Fold string

// The folds: before and after the clocks were put back.
const (
	FoldFirst  Fold = "first"
	FoldSecond Fold = "second"
)

// Choice is a valid start that is offered instead of a refused one.
type Choice struct {
	LocalStart string `json:"local_start"`
	Fold       Fold   `json:"fold,omitempty"` // to be sent with an ambiguous LocalStart
	StartsAt   string `json:"starts_at"`      // RFC 3339 with the zone's offset then
}

// resolve returns the instant of a wall time in a zone, in that zone. It returns all
// mistakes in the three fields.
func resolve(local, zone string, fold Fold) (time.Time, []FieldError) {
	var bad checks
	wall, detail := parseLocal(local)
	if detail != "" {
		bad.add("local_start", "%s", detail)
	}
	loc, detail := loadZone(zone)
	if detail != "" {
		bad.add("zone", "%s", detail)
	}
	if fold != "" && fold != FoldFirst && fold != FoldSecond {
		bad.add("fold", `is neither "first" nor "second"`)
	}
	if len(bad) > 0 {
		return time.Time{}, bad
	}
	instants := instantsOf(wall, loc)
	switch {
	case len(instants) == 0:
		return time.Time{}, []FieldError{doesNotExist(wall, loc)}
	case len(instants) > 1 && fold == "":
		return time.Time{}, []FieldError{isAmbiguous(wall, loc, instants)}
	case fold == FoldSecond:
		return instants[len(instants)-1], nil
	}
	return instants[0], nil
}

func parseLocal(s string) (wall time.Time, detail string) {
	if s == "" {
		return wall, "is missing; give the wall time at the courthouse, such as 2027-03-15T10:00"
	}
	if _, err := time.Parse(time.RFC3339, s); err == nil {
		return wall, "has an offset; give the wall time without it, such as 2027-03-15T10:00, and the IANA name in zone"
	}
	minute := s
	if len(s) == len(localLayout)+len(":00") {
		minute = strings.TrimSuffix(s, ":00")
	}
	wall, err := time.Parse(localLayout, minute)
	if err != nil || wall.Format(localLayout) != minute { // Parse takes T9:00 too
		return wall, "is not a wall time on a whole minute, such as 2027-03-15T10:00"
	}
	if wall.Year() < 2000 || wall.Year() > 2199 {
		return wall, fmt.Sprintf("is in the year %d; hearings are between 2000 and 2199", wall.Year())
	}
	return wall, ""
}

func loadZone(name string) (loc *time.Location, detail string) {
	const hint = "give an IANA name such as America/New_York"
	if name == "" {
		return nil, "is missing; " + hint
	}
	if name == "Local" || len(name) > 64 {
		return nil, "is not the name of a zone; " + hint
	}
	loc, err := time.LoadLocation(name)
	if err != nil {
		return nil, "is not in the zone database; " + hint
	}
	return loc, ""
}

// period is a span in which a zone keeps one offset.
type period struct {
	from   time.Time // zero for the first span of the zone
	offset int       // seconds east of UTC
}

// periods returns the spans of loc around a wall time, oldest first. Offsets
// are less than 26 hours apart, so no other span can contain the wall time.
func periods(wall time.Time, loc *time.Location) []period {
	var list []period
	end := wall.Add(26 * time.Hour)
	for t := wall.Add(-26 * time.Hour); ; {
		from, until := t.In(loc).ZoneBounds()
		_, offset := t.In(loc).Zone()
		list = append(list, period{from, offset})
		if until.IsZero() || until.After(end) {
			return list
		}
		t = until
	}
}

// instantsOf returns all instants at which the clocks of loc show wall, oldest first.
func instantsOf(wall time.Time, loc *time.Location) []time.Time {
	var found []time.Time
	for _, p := range periods(wall, loc) {
		t := wall.Add(-time.Duration(p.offset) * time.Second).In(loc)
		if _, offset := t.Zone(); offset == p.offset {
			found = append(found, t)
		}
	}
	slices.SortFunc(found, time.Time.Compare)
	return slices.CompactFunc(found, time.Time.Equal)
}

func doesNotExist(wall time.Time, loc *time.Location) FieldError {
	e := FieldError{
		Field:  "local_start",
		Code:   CodeNonexistent,
		Detail: fmt.Sprintf("%s does not exist in %s: the clocks skip it", wall.Format(localLayout), loc),
	}
	list := periods(wall, loc)
	for i := 1; i < len(list); i++ {
		gapStart := list[i].from.UTC().Add(time.Duration(list[i-1].offset) * time.Second)
		gapEnd := list[i].from.UTC().Add(time.Duration(list[i].offset) * time.Second)
		if !wall.Before(gapStart) && wall.Before(gapEnd) {
			e.Choices = []Choice{
				choice(list[i].from.Add(-time.Minute).In(loc), ""),
				choice(list[i].from.In(loc), ""),
			}
			e.Detail += fmt.Sprintf("; the nearest valid times are %s and %s", e.Choices[0].LocalStart, e.Choices[1].LocalStart)
		}
	}
	return e
}

func isAmbiguous(wall time.Time, loc *time.Location, instants []time.Time) FieldError {
	first, second := choice(instants[0], FoldFirst), choice(instants[len(instants)-1], FoldSecond)
	return FieldError{
		Field:   "fold",
		Code:    CodeAmbiguous,
		Choices: []Choice{first, second},
		Detail: fmt.Sprintf(`is needed: %s comes twice in %s, because the clocks are put back; send "first" for %s or "second" for %s`,
			wall.Format(localLayout), loc, first.StartsAt, second.StartsAt),
	}
}

func choice(t time.Time, fold Fold) Choice {
	return Choice{LocalStart: t.Format(localLayout), Fold: fold, StartsAt: t.Format(time.RFC3339)}
}
