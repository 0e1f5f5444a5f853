package scheduling

import (
	"fmt"
	"html/template"
	"strings"
	"time"
	"unicode"

	"github.com/hms-mkt/lockstep/internal/page"
)

// told is what a clerk reads about a hearing and one court.
type told struct {
	System string        // a name for people
	Sync   string        // the name that operators use
	Tone   string        // good, wait, bad or "": of the style sheet
	State  string        // two or three words
	Since  template.HTML // the time that belongs to State, or ""
	Why    string        // a sentence, or ""
}

// tell says it in the words of a clerk. Times are in the zone of the courthouse.
func (h Hearing) tell(k Knowledge, now time.Time) told {
	t := told{System: systemName(k.Sync), Sync: k.Sync}
	since := k.since
	switch k.State {
	case "delivered", "accepted":
		since = k.At
		switch {
		case k.GotIt != nil && !*k.GotIt:
			t.Tone, t.State = "bad", "has an older version"
			t.Why = "It was sent again after the newest one."
		case k.State == "accepted":
			t.Tone, t.State = "good", "has accepted it"
			t.Why = "It works on it later."
		default:
			t.Tone, t.State = "good", "has it"
		}
	case "failed":
		t.Tone, t.State = "bad", "was not told"
		if k.errorClass == "permanent" || k.errorClass == "conflict" {
			t.State = "refused it"
		}
		t.Why = k.reason() + " A person must decide what to do; the operators see it."
	case "sending":
		t.Tone, t.State, t.Why = "wait", "is being told", ""
	case "waiting":
		t.Tone, t.State, t.Why = "wait", "waits", k.waitsFor(h.zone(), now)
	case "missed":
		t.Tone, t.State, t.Why = "bad", "was not told", "The change was written past the outbox. The operators must repair it."
	case "discarded":
		t.State, t.Why = "is not told", "The operators gave this change up."
	case "superseded":
		t.State, t.Why = "is not told", "A later change took its place."
	case "filtered":
		t.State, t.Why = "is not told", "The rules of this system leave the hearing out."
	default: // not_sent, retired
		t.State, t.Why = "is not told", "Such changes are not sent to this system."
	}
	if k.Version != nil && *k.Version != h.Version && k.At != nil {
		t.Why = strings.TrimSpace(t.Why + fmt.Sprintf(" It has version %d of %d.", *k.Version, h.Version))
	}
	if since != nil {
		t.Since = page.TimeNear(since.In(h.zone()), now)
	}
	return t
}

// waitsFor says what an open delivery waits for.
func (k Knowledge) waitsFor(zone *time.Location, now time.Time) string {
	clock := func(at *time.Time) string {
		local := at.In(zone)
		if local.Format(time.DateOnly) == now.In(zone).Format(time.DateOnly) {
			return local.Format("15:04")
		}
		return local.Format("Mon 2 Jan, 15:04")
	}
	until := ""
	if k.holdUntil != nil {
		until = " until " + clock(k.holdUntil)
	}
	switch {
	case k.behind && k.frontState == "failed":
		return "An earlier change of this hearing was not taken. " + k.reason() + " It goes first; a person must decide about it."
	case k.hold == "operator":
		return "An operator paused it" + until + ": " + k.holdReason + "."
	case k.hold == "auth":
		return "The system does not accept our sign-in. The operators must mend it."
	case k.hold == "throttle":
		return "The system asked us to wait" + until + "."
	case k.hold == "breaker" && k.holdUntil != nil:
		return "The system does not answer. It is tried again at " + clock(k.holdUntil) + "."
	case k.hold == "window":
		return "The system takes no changes at this time" + strings.Replace(until, "until", "before", 1) + "."
	case k.hold != "":
		return "Sending is held back" + until + ": " + k.holdReason + "."
	case k.frontState == "retry" && k.dueAt != nil:
		return "The last attempt did not work. " + k.reason() + " It is tried again at " + clock(k.dueAt) + "."
	case k.behind:
		return "An earlier change of this hearing is sent first."
	}
	return "It is in line and is sent soon."
}

// reason is the error as a sentence, without the address that the request went to.
func (k Knowledge) reason() string {
	if _, answer, ok := strings.Cut(k.error, ": answered "); ok {
		return "The system answered " + strings.TrimSuffix(answer, ".") + "."
	}
	return "The reason: " + strings.TrimSuffix(k.error, ".") + "."
}

// zone is the zone of the courthouse.
func (h Hearing) zone() *time.Location { return h.StartsAt.Location() }

// systemName makes a name for people of a sync's name: "Court calendar" of
// "CourtCalendarSync". A name in another form stays as it is.
func systemName(sync string) string {
	name := strings.TrimSuffix(sync, "Sync")
	if name == "" || strings.ContainsFunc(name, func(r rune) bool { return !unicode.IsLetter(r) }) {
		return sync
	}
	var out strings.Builder
	var before rune
	for i, r := range name {
		if i > 0 && unicode.IsUpper(r) && unicode.IsLower(before) {
			out.WriteByte(' ')
			r = unicode.ToLower(r)
		}
		out.WriteRune(r)
		before = r
	}
	return out.String()
}
