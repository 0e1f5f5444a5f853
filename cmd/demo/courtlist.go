package main

import (
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"
	_ "time/tzdata" // londonZone is known on machines without a zone database
)

// The samples are published lists of hearings in the JSON form of the courts
// and tribunals of England and Wales. All names in them are fictional.
//
//go:embed testdata/*.json testdata/LICENSE testdata/README.md
var samples embed.FS

// londonZone is the zone of the courts in the samples. The lists give instants.
const londonZone = "Europe/London"

// defaultDuration is the duration of a sitting whose list gives no valid end.
const defaultDuration = 30 * time.Minute

// listed is a hearing of a published list.
type listed struct {
	ID          string // "" until expand sets it
	CaseNumber  string
	CaseName    string // may hold names of parties
	HearingType string
	Start       time.Time // in londonZone, on a whole minute
	Duration    time.Duration
	CourtHouse  string
	CourtRoom   string
}

// hearings returns n hearings of the samples.
func hearings(n int) ([]listed, error) {
	list, err := loadSamples()
	if err != nil {
		return nil, err
	}
	// The samples have texts such as "This is a case number", which are of no use to
	// the viewer.
	list = slices.DeleteFunc(list, func(h listed) bool {
		return strings.Contains(h.CaseNumber+h.CourtHouse+h.CourtRoom, "This is")
	})
	return expand(list, n), nil
}

// loadSamples returns the hearings of all samples, in the order of the files.
func loadSamples() ([]listed, error) {
	names, err := fs.Glob(samples, "testdata/*.json")
	if err != nil {
		return nil, err
	}
	var all []listed
	for _, name := range names {
		b, err := samples.ReadFile(name)
		if err != nil {
			return nil, err
		}
		list, err := parseList(b)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		all = append(all, list...)
	}
	return all, nil
}

// expand spreads list over as many court days as n hearings need, from the
// first Monday of March 2027 on, and gives each hearing its own id. The wall
// times stay the same, weekends are left out. A larger n begins with the
// hearings of a smaller one.
func expand(list []listed, n int) []listed {
	var all []listed
	day := time.Date(2027, time.March, 1, 0, 0, 0, 0, time.UTC) // a Monday
	for round := 1; len(list) > 0 && len(all) < n; round++ {
		for i, h := range list[:min(len(list), n-len(all))] {
			h.ID = fmt.Sprintf("H-2027-%06d", len(all)+1)
			// Each round has new cases, because a court takes the same number for the
			// same case.
			h.CaseNumber = fmt.Sprintf("%s-%02d%03d", h.CaseNumber, round, i+1)
			h.Start = time.Date(day.Year(), day.Month(), day.Day(), h.Start.Hour(), h.Start.Minute(), 0, 0, h.Start.Location())
			all = append(all, h)
		}
		day = workday(day.AddDate(0, 0, 1))
	}
	return all
}

// workday returns day, or the Monday after it if it is on a weekend.
func workday(day time.Time) time.Time {
	for day.Weekday() == time.Saturday || day.Weekday() == time.Sunday {
		day = day.AddDate(0, 0, 1)
	}
	return day
}

// These are the parts of a published list that the demo reads. The lists differ in
// their other parts.
type (
	document struct {
		Venue struct {
			Name string `json:"venueName"`
		} `json:"venue"`
		CourtLists []struct {
			CourtHouse struct {
				Name  string `json:"courtHouseName"`
				Rooms []struct {
					Name     string `json:"courtRoomName"`
					Sessions []struct {
						Sittings []sitting `json:"sittings"`
					} `json:"session"`
				} `json:"courtRoom"`
			} `json:"courtHouse"`
		} `json:"courtLists"`
	}
	sitting struct {
		Start    string `json:"sittingStart"`
		End      string `json:"sittingEnd"`
		Hearings []struct {
			Type    string  `json:"hearingType"`
			Parties []party `json:"party"`
			Cases   []struct {
				Name    string  `json:"caseName"`
				Number  string  `json:"caseNumber"`
				URN     string  `json:"caseUrn"` // magistrates' courts
				Type    string  `json:"caseType"`
				Parties []party `json:"party"`
			} `json:"case"`
		} `json:"hearing"`
	}
	party struct {
		Role       string `json:"partyRole"`
		Individual struct {
			Surname string `json:"individualSurname"`
		} `json:"individualDetails"`
		Organisation struct {
			Name string `json:"organisationName"`
		} `json:"organisationDetails"`
	}
)

// parseList reads one published list. The error names every sitting that
// cannot be booked because a start or a case number is missing.
func parseList(b []byte) ([]listed, error) {
	zone, err := time.LoadLocation(londonZone)
	if err != nil {
		return nil, err
	}
	var doc document
	if err := json.Unmarshal(b, &doc); err != nil {
		return nil, fmt.Errorf("court list: %w", err)
	}
	var list []listed
	var bad []error
	for i, l := range doc.CourtLists {
		house := firstText(l.CourtHouse.Name, doc.Venue.Name, fmt.Sprint("Court house ", i+1))
		for _, room := range l.CourtHouse.Rooms {
			for _, session := range room.Sessions {
				for _, s := range session.Sittings {
					found, err := s.hearings(zone, house, firstText(room.Name, "to be allocated"))
					if err != nil {
						bad = append(bad, fmt.Errorf("court list %d, room %q: %w", i+1, cleanText(room.Name), err))
					}
					list = append(list, found...)
				}
			}
		}
	}
	if len(bad) == 0 && len(list) == 0 {
		return nil, errors.New("court list: no hearings in it; is it a published list in JSON?")
	}
	return list, errors.Join(bad...)
}

func (s sitting) hearings(zone *time.Location, house, room string) ([]listed, error) {
	start, err := time.Parse(time.RFC3339, cleanText(s.Start))
	if err != nil {
		return nil, fmt.Errorf("sitting start %.40q is not an instant (RFC 3339)", s.Start)
	}
	start = start.In(zone).Truncate(time.Minute)
	duration := defaultDuration
	if end, err := time.Parse(time.RFC3339, cleanText(s.End)); err == nil && end.Truncate(time.Minute).After(start) {
		duration = end.Truncate(time.Minute).Sub(start)
	}
	var list []listed
	for _, h := range s.Hearings {
		for _, c := range h.Cases {
			number := firstText(c.Number, c.URN)
			if number == "" {
				return nil, fmt.Errorf("the sitting at %s has a case without a number", start.Format(time.RFC3339))
			}
			list = append(list, listed{
				CaseNumber:  number,
				CaseName:    firstText(c.Name, caption(append(h.Parties, c.Parties...)), "Case "+number),
				HearingType: firstText(h.Type, c.Type, "Hearing"),
				Start:       start,
				Duration:    duration,
				CourtHouse:  house,
				CourtRoom:   room,
			})
		}
	}
	return list, nil
}

// caption makes "Surname v Organisation" of the first party on each side.
func caption(parties []party) string {
	var claimant, respondent string
	for _, p := range parties {
		name := firstText(p.Individual.Surname, p.Organisation.Name)
		switch role := cleanText(p.Role); {
		case strings.HasSuffix(role, "REPRESENTATIVE"):
		case claimant == "" && (strings.HasPrefix(role, "APPLICANT") || role == "PROSECUTING_AUTHORITY"):
			claimant = name
		case respondent == "" && (role == "RESPONDENT" || role == "DEFENDANT"):
			respondent = name
		}
	}
	if claimant == "" || respondent == "" {
		return ""
	}
	return claimant + " v " + respondent
}

// cleanText removes line breaks and surplus spaces. The published lists have
// line breaks in the middle of words.
func cleanText(s string) string {
	s = strings.NewReplacer("\r", "", "\n", "").Replace(s)
	return strings.Join(strings.Fields(s), " ")
}

// firstText returns the first text that is not empty, cleaned.
func firstText(texts ...string) string {
	for _, s := range texts {
		if s = cleanText(s); s != "" {
			return s
		}
	}
	return ""
}
