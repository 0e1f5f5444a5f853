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

// Event types of this module. The key is the hearing's id, the version is that of its row.
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

// Hearing is one row of scheduling.hearing. Its JSON is that of the HTTP API.
type Hearing struct {
	ID              string    `json:"id"`
	CaseNumber      string    `json:"case_number"`
	CaseName        string    `json:"case_name"` // may hold names of parties: never log it
	HearingType     string    `json:"hearing_type"`
	Status          Status    `json:"status"`
	CancelReason    string    `json:"cancel_reason,omitempty"` // code, "" unless cancelled
	Courthouse      string    `json:"courthouse"`
	Courtroom       string    `json:"courtroom"`
	LocalStart      string    `json:"local_start"` // wall time at the courthouse, such as 2027-03-15T10:00
	Zone            string    `json:"zone"`        // IANA name
	StartsAt        time.Time `json:"starts_at"`   // the instant, in Zone
	DurationMinutes int       `json:"duration_minutes"`
	Version         int64     `json:"version"` // from 1, raised by each change
	CreatedAt       time.Time `json:"created_at"`
	UpdatedAt       time.Time `json:"updated_at"`
	EventID         string    `json:"-"` // event of this version
}

// payload is the event's payload, which courts get. The case name is not in it.
func (h Hearing) payload() (json.RawMessage, error) {
	return json.Marshal(struct {
		HearingID       string    `json:"hearingId"`
		CaseNumber      string    `json:"caseNumber"`
		HearingType     string    `json:"hearingType"`
		Status          Status    `json:"status"`
		CancelReason    string    `json:"cancelReason,omitempty"`
		ScheduledAt     time.Time `json:"scheduledAt"`
		LocalStart      string    `json:"localStart"`
		Zone            string    `json:"zone"`
		DurationMinutes int       `json:"durationMinutes"`
		Courthouse      string    `json:"courthouse"`
		Location        string    `json:"location"`
	}{
		h.ID, h.CaseNumber, h.HearingType, h.Status, h.CancelReason, h.StartsAt,
		h.LocalStart, h.Zone, h.DurationMinutes, h.Courthouse, h.Courtroom,
	})
}

// Booking asks for a new hearing.
type Booking struct {
	ID              string `json:"id"` // optional: letters, digits and ._- ; "" draws H-<year>-<number>
	CaseNumber      string `json:"case_number"`
	CaseName        string `json:"case_name"` // optional
	HearingType     string `json:"hearing_type"`
	Courthouse      string `json:"courthouse"`
	Courtroom       string `json:"courtroom"`
	LocalStart      string `json:"local_start"` // wall time, such as 2027-03-15T10:00
	Zone            string `json:"zone"`        // IANA name
	Fold            Fold   `json:"fold"`        // needed only when LocalStart comes twice
	DurationMinutes int    `json:"duration_minutes"`
}

// Rescheduling asks for another start. The other fields are optional.
type Rescheduling struct {
	LocalStart      string `json:"local_start"`
	Zone            string `json:"zone"` // "" keeps the zone
	Fold            Fold   `json:"fold"`
	DurationMinutes int    `json:"duration_minutes"` // 0 keeps the duration
	Courthouse      string `json:"courthouse"`       // "" keeps the courthouse
	Courtroom       string `json:"courtroom"`        // "" keeps the courtroom
}

// Cancellation asks to cancel a hearing.
type Cancellation struct {
	Reason string `json:"reason"` // code such as settled or judge_unavailable; no free text, it goes to the courts
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

// checks collects the mistakes in the fields of a request.
type checks []FieldError

func (c *checks) add(field, format string, args ...any) {
	*c = append(*c, FieldError{Field: field, Detail: fmt.Sprintf(format, args...)})
}

func (c *checks) text(field, s string, limit int) {
	switch {
	case !utf8.ValidString(s), strings.ContainsFunc(s, unicode.IsControl):
		c.add(field, "has control characters; remove them")
	case utf8.RuneCountInString(s) > limit:
		c.add(field, "is longer than %d characters; shorten it", limit)
	}
}

func (c *checks) required(field, s string) {
	if strings.TrimSpace(s) == "" {
		c.add(field, "is missing")
		return
	}
	c.text(field, s, maxText)
}

// hearing checks the booking and turns it into a hearing.
func (b Booking) hearing() (Hearing, error) {
	var c checks
	if b.ID != "" && !idForm.MatchString(b.ID) {
		c.add("id", "must be at most 64 letters, digits, dots, underscores and hyphens; leave it out to get one")
	}
	c.required("case_number", b.CaseNumber)
	c.text("case_name", b.CaseName, maxCaseName)
	c.required("hearing_type", b.HearingType)
	return Hearing{ID: b.ID, CaseNumber: b.CaseNumber, CaseName: b.CaseName, HearingType: b.HearingType, Status: Booked}.
		place(c, Rescheduling{b.LocalStart, b.Zone, b.Fold, b.DurationMinutes, b.Courthouse, b.Courtroom})
}

// apply checks the request against the hearing and returns the hearing changed.
func (r Rescheduling) apply(h Hearing) (Hearing, error) {
	if h.Status == Cancelled {
		return h, refused(h, "is cancelled; book a new hearing")
	}
	if r.Zone == "" {
		r.Zone = h.Zone
	}
	if r.DurationMinutes == 0 {
		r.DurationMinutes = h.DurationMinutes
	}
	if r.Courthouse == "" {
		r.Courthouse = h.Courthouse
	}
	if r.Courtroom == "" {
		r.Courtroom = h.Courtroom
	}
	return h.place(nil, r)
}

// place returns h with the time and the place of r. c has the other mistakes of the
// request.
func (h Hearing) place(c checks, r Rescheduling) (Hearing, error) {
	c.required("courthouse", r.Courthouse)
	c.required("courtroom", r.Courtroom)
	if r.DurationMinutes < 1 || r.DurationMinutes > maxMinutes {
		c.add("duration_minutes", "is %d, not between 1 and %d", r.DurationMinutes, maxMinutes)
	}
	at, bad := resolve(r.LocalStart, r.Zone, r.Fold)
	c = append(c, bad...)
	h.LocalStart, h.StartsAt, h.Zone = at.Format(localLayout), at, r.Zone
	h.DurationMinutes, h.Courthouse, h.Courtroom = r.DurationMinutes, r.Courthouse, r.Courtroom
	return h, invalid(c)
}

// apply checks the request against the hearing and returns the hearing cancelled.
func (r Cancellation) apply(h Hearing) (Hearing, error) {
	var c checks
	switch {
	case r.Reason == "":
		c.add("reason", "is missing; give a code such as settled, adjourned or judge_unavailable")
	case !reasonForm.MatchString(r.Reason):
		c.add("reason", "must be a code of at most 40 letters, digits, underscores and hyphens; no free text, because courts get it")
	case h.Status == Cancelled && h.CancelReason != r.Reason:
		return h, refused(h, "is cancelled already, with reason "+h.CancelReason)
	}
	h.Status, h.CancelReason = Cancelled, r.Reason
	return h, invalid(c)
}

// sameAs reports whether a change of o to h changes nothing.
func (h Hearing) sameAs(o Hearing) bool {
	if h.StartsAt.Equal(o.StartsAt) {
		h.StartsAt = o.StartsAt // the same instant, in any location
	}
	return h == o
}
