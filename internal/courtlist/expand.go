package courtlist

import (
	"fmt"
	"time"
)

// Expand lays list over as many court days as n hearings need, from the first
// Monday of March 2027 on, and gives each an id of its own. The wall time of
// each hearing stays; weekends are left out. The same list and n give the same
// hearings, and a larger n begins with those of a smaller one. An empty list
// gives none.
func Expand(list []Hearing, n int) []Hearing {
	if len(list) == 0 || n <= 0 {
		return nil
	}
	day := time.Date(2027, time.March, 1, 0, 0, 0, 0, time.UTC) // a Monday
	all := make([]Hearing, 0, n)
	for {
		for i, h := range list {
			if len(all) == n {
				return all
			}
			round := len(all)/len(list) + 1
			h.ID = fmt.Sprintf("H-2027-%06d", len(all)+1)
			// Rounds are new cases: a court would take the same number for the same case.
			h.CaseNumber = fmt.Sprintf("%s-%02d%03d", h.CaseNumber, round, i+1)
			h.Start = time.Date(day.Year(), day.Month(), day.Day(), h.Start.Hour(), h.Start.Minute(), 0, 0, h.Start.Location())
			all = append(all, h)
		}
		day = day.AddDate(0, 0, 1)
		for day.Weekday() == time.Saturday || day.Weekday() == time.Sunday {
			day = day.AddDate(0, 0, 1)
		}
	}
}
