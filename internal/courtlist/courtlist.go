// Package courtlist reads published lists of hearings in the JSON form of the
// courts and tribunals of England and Wales (civil, family, magistrates',
// social security and employment tribunals' daily lists).
//
// [Load] returns the sample lists that are built in, [Expand] lays a list over
// as many days as needed. All names in the samples are fictional.
package courtlist

import (
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"
	_ "time/tzdata" // Zone is known on machines without a zone database
)

// Zone is where the lists' courts are; the lists themselves give instants.
const Zone = "Europe/London"

// DefaultDuration is taken for a sitting without an end, or with one that is
// not after its start.
const DefaultDuration = 30 * time.Minute

// Hearing is one case before one court at one time.
type Hearing struct {
	ID          string // "" until [Expand] gives one
	CaseNumber  string
	CaseName    string // may hold names of parties; made of them where the list has none
	HearingType string
	Start       time.Time // in [Zone], on a whole minute
	Duration    time.Duration
	CourtHouse  string
	CourtRoom   string
}

//go:embed testdata/*.json testdata/LICENSE testdata/README.md
var samples embed.FS

// Load returns the hearings of the built-in sample lists, in the order of the
// files and, within one, of the list.
func Load() ([]Hearing, error) {
	names, err := fs.Glob(samples, "testdata/*.json")
	if err != nil {
		return nil, err
	}
	var all []Hearing
	for _, name := range names {
		b, err := samples.ReadFile(name)
		if err != nil {
			return nil, err
		}
		list, err := Parse(b)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		all = append(all, list...)
	}
	return all, nil
}

// Parse reads one published list. It reports everything that makes a hearing
// unfit to be booked: a case without a number, a sitting without a start.
func Parse(b []byte) ([]Hearing, error) {
	loc, err := time.LoadLocation(Zone)
	if err != nil {
		return nil, err
	}
	var doc document
	if err := json.Unmarshal(b, &doc); err != nil {
		return nil, fmt.Errorf("court list: %w", err)
	}
	var list []Hearing
	var bad []error
	for i, l := range doc.CourtLists {
		house := first(l.CourtHouse.Name, doc.Venue.Name, "Court house "+fmt.Sprint(i+1))
		for _, room := range l.CourtHouse.Rooms {
			for _, session := range room.Sessions {
				for _, sitting := range session.Sittings {
					found, err := sitting.hearings(loc)
					if err != nil {
						bad = append(bad, fmt.Errorf("court list %d, room %q: %w", i+1, clean(room.Name), err))
					}
					for _, h := range found {
						h.CourtHouse, h.CourtRoom = house, first(room.Name, "to be allocated")
						list = append(list, h)
					}
				}
			}
		}
	}
	if err := errors.Join(bad...); err != nil {
		return nil, err
	}
	if len(list) == 0 {
		return nil, errors.New("court list: no hearings in it; is it a published list in JSON?")
	}
	return list, nil
}

// The parts of the published form that are read; the lists differ in the rest.
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

func (s sitting) hearings(loc *time.Location) ([]Hearing, error) {
	start, err := time.Parse(time.RFC3339, clean(s.Start))
	if err != nil {
		return nil, fmt.Errorf("sitting start %.40q is not an instant (RFC 3339)", s.Start)
	}
	start = start.In(loc).Truncate(time.Minute)
	duration := DefaultDuration
	if end, err := time.Parse(time.RFC3339, clean(s.End)); err == nil {
		if d := end.Truncate(time.Minute).Sub(start); d > 0 {
			duration = d
		}
	}
	var list []Hearing
	for _, h := range s.Hearings {
		for _, c := range h.Cases {
			number := first(c.Number, c.URN)
			if number == "" {
				return nil, fmt.Errorf("the sitting at %s has a case without a number", start.Format(time.RFC3339))
			}
			list = append(list, Hearing{
				CaseNumber:  number,
				CaseName:    first(c.Name, caption(append(h.Parties, c.Parties...)), "Case "+number),
				HearingType: first(h.Type, c.Type, "Hearing"),
				Start:       start,
				Duration:    duration,
			})
		}
	}
	return list, nil
}

// caption makes "Surname v Organisation" of the first party on each side.
func caption(parties []party) string {
	var claimant, respondent string
	for _, p := range parties {
		name := first(p.Individual.Surname, p.Organisation.Name)
		switch role := clean(p.Role); {
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

// clean takes out line breaks, which the published lists have in the middle of
// words, and surplus space.
func clean(s string) string {
	s = strings.NewReplacer("\r", "", "\n", "").Replace(s)
	return strings.Join(strings.Fields(s), " ")
}

// first returns the first text that is not empty, cleaned.
func first(texts ...string) string {
	for _, s := range texts {
		if s = clean(s); s != "" {
			return s
		}
	}
	return ""
}
