package scheduling

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Event types of this module. The key is the hearing's id, the version its row's.
const (
	EventCreated   = "scheduling:created"
	EventUpdated   = "scheduling:updated"
	EventCancelled = "scheduling:cancelled"
)

// Status of a hearing.
type Status string

// The statuses. A cancelled hearing stays cancelled: a new date is a new hearing.
const (
	Booked    Status = "booked"
	Cancelled Status = "cancelled"
)

// Hearing is one row of scheduling.hearing.
type Hearing struct {
	ID           string
	CaseNumber   string
	CaseName     string // may hold names of parties: never log it
	HearingType  string
	Status       Status
	CancelReason string // code, "" unless cancelled
	Courthouse   string
	Courtroom    string
	LocalStart   time.Time // wall time at the courthouse; its location is UTC and means nothing
	Zone         string    // IANA name
	StartsAt     time.Time // the instant, in Zone
	Duration     time.Duration
	Version      int64 // from 1, raised by each change
	CreatedAt    time.Time
	UpdatedAt    time.Time

	eventID string // event that told of this version
}

// MarshalJSON writes the hearing as the HTTP API shows it.
func (h Hearing) MarshalJSON() ([]byte, error) {
	return json.Marshal(struct {
		ID              string    `json:"id"`
		CaseNumber      string    `json:"case_number"`
		CaseName        string    `json:"case_name"`
		HearingType     string    `json:"hearing_type"`
		Status          Status    `json:"status"`
		CancelReason    string    `json:"cancel_reason,omitempty"`
		Courthouse      string    `json:"courthouse"`
		Courtroom       string    `json:"courtroom"`
		LocalStart      string    `json:"local_start"`
		Zone            string    `json:"zone"`
		StartsAt        string    `json:"starts_at"`
		DurationMinutes int       `json:"duration_minutes"`
		Version         int64     `json:"version"`
		CreatedAt       time.Time `json:"created_at"`
		UpdatedAt       time.Time `json:"updated_at"`
	}{
		h.ID, h.CaseNumber, h.CaseName, h.HearingType, h.Status, h.CancelReason, h.Courthouse, h.Courtroom,
		h.LocalStart.Format(localLayout), h.Zone, h.StartsAt.Format(time.RFC3339), h.minutes(),
		h.Version, h.CreatedAt.UTC(), h.UpdatedAt.UTC(),
	})
}

func (h Hearing) minutes() int { return int(h.Duration / time.Minute) }

// payload is what courts are told. The case name is not in it.
func (h Hearing) payload() (json.RawMessage, error) {
	b, err := json.Marshal(struct {
		HearingID       string `json:"hearingId"`
		CaseNumber      string `json:"caseNumber"`
		HearingType     string `json:"hearingType"`
		Status          Status `json:"status"`
		CancelReason    string `json:"cancelReason,omitempty"`
		ScheduledAt     string `json:"scheduledAt"`
		LocalStart      string `json:"localStart"`
		Zone            string `json:"zone"`
		DurationMinutes int    `json:"durationMinutes"`
		Courthouse      string `json:"courthouse"`
		Location        string `json:"location"`
	}{
		h.ID, h.CaseNumber, h.HearingType, h.Status, h.CancelReason, h.StartsAt.Format(time.RFC3339),
		h.LocalStart.Format(localLayout), h.Zone, h.minutes(), h.Courthouse, h.Courtroom,
	})
	if err != nil {
		return nil, fmt.Errorf("payload of hearing %s: %w", h.ID, err)
	}
	return b, nil
}

// Booking asks for a new hearing.
type Booking struct {
	ID              string // optional: letters, digits and ._- ; "" draws H-<year>-<number>
	CaseNumber      string
	CaseName        string // optional
	HearingType     string
	Courthouse      string
	Courtroom       string
	LocalStart      string // wall time, such as 2027-03-15T10:00
	Zone            string // IANA name
	Fold            Fold   // needed only when LocalStart comes twice
	DurationMinutes int    // 1 to 10080

	Headers map[string]string // kept with the event, such as traceparent
}

// Rescheduling asks for another start; the other fields are optional.
type Rescheduling struct {
	ID              string
	IfVersion       *int64 // refuse unless the hearing is at this version
	LocalStart      string
	Zone            string // "" keeps the zone
	Fold            Fold
	DurationMinutes int    // 0 keeps the duration
	Courthouse      string // "" keeps the courthouse
	Courtroom       string // "" keeps the courtroom

	Headers map[string]string
}

// Cancellation asks to cancel a hearing.
type Cancellation struct {
	ID        string
	IfVersion *int64
	Reason    string // code such as settled or judge_unavailable; no free text, it goes to the courts

	Headers map[string]string
}

const (
	maxMinutes  = 7 * 24 * 60
	maxText     = 200
	maxCaseName = 500
)

var (
	idForm     = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)
	reasonForm = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_-]{0,39}$`)
)

// checks collects what is wrong with the fields of a request.
type checks []FieldError

func (c *checks) add(field, format string, args ...any) {
	*c = append(*c, FieldError{Field: field, Detail: fmt.Sprintf(format, args...)})
}

func (c *checks) text(field, s string, limit int) {
	switch {
	case !utf8.ValidString(s), strings.ContainsFunc(s, unicode.IsControl):
		c.add(field, "holds control characters")
	case utf8.RuneCountInString(s) > limit:
		c.add(field, "is longer than %d characters", limit)
	}
}

func (c *checks) required(field, s string) {
	if strings.TrimSpace(s) == "" {
		c.add(field, "is missing")
		return
	}
	c.text(field, s, maxText)
}

func (c *checks) minutes(n int) {
	if n < 1 || n > maxMinutes {
		c.add("duration_minutes", "is %d, not between 1 and %d", n, maxMinutes)
	}
}

func (c checks) err() error {
	if len(c) == 0 {
		return nil
	}
	return &InvalidError{Fields: c}
}

// hearing checks the booking and turns it into a hearing.
func (b Booking) hearing() (Hearing, error) {
	var c checks
	if b.ID != "" && !idForm.MatchString(b.ID) {
		c.add("id", "is not of at most 64 letters, digits, dots, underscores and hyphens; leave it out to get one")
	}
	c.required("case_number", b.CaseNumber)
	c.text("case_name", b.CaseName, maxCaseName)
	c.required("hearing_type", b.HearingType)
	c.required("courthouse", b.Courthouse)
	c.required("courtroom", b.Courtroom)
	c.minutes(b.DurationMinutes)
	s, bad := resolve(b.LocalStart, b.Zone, b.Fold)
	c = append(c, bad...)
	return Hearing{
		ID: b.ID, CaseNumber: b.CaseNumber, CaseName: b.CaseName, HearingType: b.HearingType, Status: Booked,
		Courthouse: b.Courthouse, Courtroom: b.Courtroom, LocalStart: s.wall, Zone: s.zone, StartsAt: s.at,
		Duration: time.Duration(b.DurationMinutes) * time.Minute, Version: 1,
	}, c.err()
}

// apply checks the request against the hearing and returns the hearing changed.
func (r Rescheduling) apply(h Hearing) (Hearing, error) {
	if h.Status == Cancelled {
		return h, &StateError{ID: h.ID, Reason: "is cancelled; book a new hearing"}
	}
	var c checks
	if r.Courthouse != "" {
		h.Courthouse = r.Courthouse
		c.required("courthouse", r.Courthouse)
	}
	if r.Courtroom != "" {
		h.Courtroom = r.Courtroom
		c.required("courtroom", r.Courtroom)
	}
	if r.DurationMinutes != 0 {
		h.Duration = time.Duration(r.DurationMinutes) * time.Minute
		c.minutes(r.DurationMinutes)
	}
	zone := r.Zone
	if zone == "" {
		zone = h.Zone
	}
	s, bad := resolve(r.LocalStart, zone, r.Fold)
	c = append(c, bad...)
	h.LocalStart, h.Zone, h.StartsAt = s.wall, s.zone, s.at
	return h, c.err()
}

// apply checks the request against the hearing and returns the hearing cancelled.
func (r Cancellation) apply(h Hearing) (Hearing, error) {
	var c checks
	switch {
	case r.Reason == "":
		c.add("reason", "is missing; give a code such as settled, adjourned or judge_unavailable")
	case !reasonForm.MatchString(r.Reason):
		c.add("reason", "is not a code of at most 40 letters, digits, underscores and hyphens; no free text, it is sent to the courts")
	}
	if err := c.err(); err != nil {
		return h, err
	}
	if h.Status == Cancelled && h.CancelReason != r.Reason {
		return h, &StateError{ID: h.ID, Reason: "is cancelled already, with reason " + h.CancelReason}
	}
	h.Status, h.CancelReason = Cancelled, r.Reason
	return h, nil
}

// sameAs reports whether a change would change nothing a court could see.
func (h Hearing) sameAs(o Hearing) bool {
	return h.Status == o.Status && h.CancelReason == o.CancelReason && h.Courthouse == o.Courthouse &&
		h.Courtroom == o.Courtroom && h.LocalStart.Equal(o.LocalStart) && h.Zone == o.Zone &&
		h.StartsAt.Equal(o.StartsAt) && h.Duration == o.Duration
}
