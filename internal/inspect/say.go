package inspect

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/hms-mkt/lockstep/adapters"
)

// Sentence is a text with times in it, which each reader sees in another zone.
type Sentence []Piece

// Piece is a part of a sentence: a text, or a time.
type Piece struct {
	Text string
	Time time.Time // zero: it is a text
}

// say makes a sentence of texts, numbers and times.
func say(parts ...any) Sentence {
	var s Sentence
	for _, part := range parts {
		switch p := part.(type) {
		case time.Time:
			s = append(s, Piece{Time: p})
		default:
			s = append(s, Piece{Text: adapters.Clean(fmt.Sprint(p), 0)})
		}
	}
	return s
}

// In returns the sentence as a text with times of one zone.
func (s Sentence) In(zone *time.Location) string {
	var b strings.Builder
	for _, p := range s {
		if p.Time.IsZero() {
			b.WriteString(p.Text)
			continue
		}
		b.WriteString(p.Time.In(zone).Format("2 Jan 2006 15:04:05 MST"))
	}
	return b.String()
}

// Standing says in one word how a receiver stands with a key.
type Standing string

// The standings of a lane.
const (
	UpToDate Standing = "up to date" // the receiver has the newest event
	Sending  Standing = "sending"
	Waiting  Standing = "waiting" // it will be sent without a person
	OnHold   Standing = "on hold"
	Failed   Standing = "failed" // it waits for a person
	NotSent  Standing = "not sent"
)

// Name returns how people call an event: by its version, or by its type and time.
func (e *Event) Name() string { return name(e.Version, e.Type) }

// Name returns how people call the event of a row of the log.
func (e *Entry) Name() string { return name(e.Version, e.EventType) }

func name(version *int64, kind string) string {
	switch {
	case version != nil:
		return fmt.Sprintf("version %d", *version)
	case kind != "":
		return "the event " + kind
	}
	return "an event"
}

// described is the name of an event with its type.
func described(version *int64, kind string) string {
	if version == nil || kind == "" {
		return name(version, kind)
	}
	return name(version, kind) + " (" + kind + ")"
}

// nameOf returns the name of an open delivery's event, perhaps with its type.
func (l *Lane) nameOf(d *Delivery, name func(*int64, string) string) string {
	for _, e := range l.Events {
		if e.ID == d.EventID {
			return name(e.Version, e.Type)
		}
	}
	return "event " + d.EventID
}

// Says answers "does the receiver have it?": how the lane stands, in one word and in
// sentences. The story must be the newest part.
func (l *Lane) Says(story *Story) (Standing, []Sentence) {
	if l.First != nil {
		return l.saysOpen(story)
	}
	var newest *LaneEvent
	var end *Entry
	if len(l.Events) > 0 {
		newest = &l.Events[0]
		if i := slices.IndexFunc(newest.Entries, func(e Entry) bool { return e.Finished() }); i >= 0 {
			end = &newest.Entries[i]
		}
	}
	switch {
	case newest == nil:
		return NotSent, []Sentence{say(l.Sync, " was sent no event of this key, as far as is known.")}
	case l.Has != nil && l.Has.EventID == newest.ID && end != nil && end.Delivered():
		return UpToDate, []Sentence{l.has(l.Sync)}
	case end == nil && l.Why != "":
		return NotSent, l.withHas(say(strings.TrimPrefix(l.Why, l.Sync+": "), "."))
	case end == nil:
		return NotSent, l.withHas(say(l.Sync, " has no open work for ", newest.Name(), ", and the log does not say what became of it."))
	case end.Delivered(): // an older event was sent again after the newest one
		return UpToDate, []Sentence{l.has(l.Sync), say("It had got ", newest.Name(), " before, at ", end.When(), ": an older version was sent again after it.")}
	case end.Outcome == "filtered":
		return NotSent, l.withHas(say(newest.Name(), " is not sent to ", l.Sync, ": ", cmp.Or(end.Reason, "the sync's condition leaves it out"), "."))
	case end.Outcome == "superseded":
		return NotSent, l.withHas(say(newest.Name(), " was not sent to ", l.Sync, ": ", cmp.Or(end.Reason, "a newer version replaced it"), "."))
	}
	return NotSent, l.withHas(say(l.Sync, " does not have ", described(newest.Version, newest.Type), ": ", Person(end.Actor), " gave it up at ", end.At, ": ", end.Reason, "."))
}

func (l *Lane) saysOpen(story *Story) (Standing, []Sentence) {
	d := l.First
	does := []any{l.Sync, " does not have ", l.nameOf(d, described)}
	standing, said := Waiting, []Sentence(nil)
	switch {
	case d.State == "failed":
		standing = Failed
		verb := "given up after " + times(d.Attempts)
		switch d.ErrorClass {
		case "permanent", "conflict":
			verb = "refused"
		case "mapping":
			verb = "not sent, because its fields could not be mapped"
		}
		said = append(said, say(append(does, ": it was ", verb, ": ", Answer(d.Error), ". It waits for a person.")...))
	case d.State == "sending" && d.LeaseUntil != nil && d.LeaseUntil.After(story.At):
		standing = Sending
		said = append(said, say(append(does, " yet. It is being sent now.")...))
	case len(l.Holds) > 0:
		standing = OnHold
		said = append(said, say(append(does, " yet.")...))
		if l.heldAbove {
			said[0] = say(append(does, " yet, because the whole sync is on hold, as said above.")...)
		}
		for _, h := range l.Holds { // sending continues when the last one has ended
			if h.Scope != "" || !l.heldAbove {
				said = append(said, h.Says(story.At))
			}
		}
	case d.State == "retry" && d.DueAt != nil && d.DueAt.After(story.At):
		said = append(said, say(append(does, " yet: ", Answer(d.Error), ". It will be tried again at ", *d.DueAt, ".")...))
	case d.State == "retry":
		said = append(said, say(append(does, " yet: ", Answer(d.Error), ". It is about to be tried again.")...))
	case d.ErrorClass == "backfill":
		said = append(said, say(append(does, " yet: ", d.Error, ".")...))
	case d.State == "sending":
		said = append(said, say(append(does, " yet. The relay that was sending it did not answer, and another one takes over.")...))
	case d.DueAt != nil && d.DueAt.After(story.At):
		said = append(said, say(append(does, " yet. It will be sent at ", *d.DueAt, ".")...))
	case !l.Served:
		said = append(said, say(append(does, " yet.")...))
	default:
		said = append(said, say(append(does, " yet. It is about to be sent.")...))
	}
	if behind := l.Open - 1; behind > 0 {
		said = append(said, say(atMost(behind, mostBehind-1), " of this key ", singular(behind, "waits", "wait"), " behind it."))
	}
	if !l.Served && d.State != "failed" {
		said = append(said, say("No running relay serves this sync, so nothing is sent."))
	}
	return standing, l.withHas(said...)
}

// Now says what becomes of an event of the lane that is not finished, "" if it is finished.
// The sentences of Says are about the first one.
func (l *Lane) Now(e *LaneEvent) string {
	switch {
	case e.Delivery == nil:
		return ""
	case l.First != nil && e.Delivery.EventSeq != l.First.EventSeq:
		return "waits behind " + l.nameOf(l.First, name)
	case e.Delivery.State == "failed":
		return "waits for a person"
	case e.Delivery.State == "sending":
		return "is being sent"
	case len(l.Holds) > 0:
		return "is sent next, when the hold has ended"
	}
	return "is sent next"
}

// has says which version the receiver has. It begins with the sync's name or "It".
func (l *Lane) has(who string) Sentence {
	if l.Has.Outcome == "accepted" {
		return say(who, " accepted ", described(l.Has.Version, l.Has.EventType), " for later processing at ", l.Has.When(), ".")
	}
	return say(who, " has ", described(l.Has.Version, l.Has.EventType), " since ", l.Has.When(), ".")
}

// withHas adds to sentences what the receiver has.
func (l *Lane) withHas(said ...Sentence) []Sentence {
	if l.Has != nil {
		return append(said, l.has("It"))
	}
	return said
}

// Says says why nothing is sent, and until when.
func (h *Hold) Says(now time.Time) Sentence {
	what := "Sending"
	if h.Scope != "" {
		what = "Sending to " + h.Scope
	}
	var s []any
	switch h.Kind {
	case "operator":
		s = []any{what, " was paused by ", Person(h.By), " at ", h.Since, ": ", h.Reason}
	case "backfill":
		s = []any{what, " waits since ", h.Since, " until older events are added: ", h.Reason}
	case "auth":
		s = []any{what, " is stopped since ", h.Since, ", because the receiver refuses our credentials: ", Answer(h.Reason)}
	case "breaker":
		s = []any{what, " is stopped since ", h.Since, ", because the receiver does not answer as it should: ", Answer(h.Reason)}
	case "throttle":
		s = []any{what, " waits since ", h.Since, ", because the receiver asked for a pause: ", Answer(h.Reason)}
	case "window":
		s = []any{what, " waits since ", h.Since, ": it is ", h.Reason} // such as: outside its window, opens Mon 2026-12-07 08:00 America/New_York
	default:
		s = []any{what, " is on hold (", h.Kind, ") since ", h.Since, ": ", h.Reason}
	}
	switch {
	case h.Until == nil && h.Kind == "operator":
		s = append(s, ". It continues when a person resumes it.")
	case h.Until == nil:
		s = append(s, ".")
	case (h.Kind == "auth" || h.Kind == "breaker") && !h.Until.After(now):
		s = append(s, ". It is about to be tried again.")
	case h.Kind == "auth" || h.Kind == "breaker":
		s = append(s, ". It will be tried again at ", *h.Until, ".")
	default:
		s = append(s, ". It continues at ", *h.Until, ".")
	}
	return say(s...)
}

// Says says what a row of the log is about, without what the row has in columns of its own.
func (e *Entry) Says() string {
	by := Person(e.Actor)
	switch e.Outcome {
	case "delivered":
		return "delivered"
	case "duplicate":
		return "delivered: the receiver already had it"
	case "accepted":
		return "accepted for later processing"
	case "filtered":
		return "not sent: the sync leaves it out"
	case "retry":
		return "failed for now, tried again later"
	case "failed":
		return "failed, left to a person"
	case "unknown":
		return "sent, but no answer came"
	case "read":
		if e.Error != "" {
			return "could not read what the receiver has"
		}
		return "read what the receiver has"
	case "step":
		return "one step is done, the next follows"
	case "lease_lost":
		return "an answer came after another relay had taken over"
	case "superseded":
		return "closed, a newer version replaces it"
	case "requeued":
		return by + " had it sent again"
	case "replayed":
		return by + " had it sent once more"
	case "discarded":
		return by + " gave it up"
	case "paused":
		return by + " paused sending"
	case "resumed":
		return by + " resumed sending"
	case "retired":
		return by + " retired the sync"
	case "sync_changed":
		return by + " changed the sync"
	case "reference_set":
		return by + " set what the receiver knows this key by"
	case "confirmed":
		return by + " confirmed that the receiver has processed it"
	case "reconciled":
		return by + " compared both calendars"
	}
	return e.Outcome
}

// Detail says what the receiver answered, or why a person did it.
func (e *Entry) Detail() string {
	if e.Actor != "" { // the error is that of the attempt before
		return adapters.Clean(e.Reason, 0)
	}
	detail := Answer(e.Error)
	if e.Error == "" {
		detail = ""
	}
	if e.Reason != "" {
		if detail != "" {
			detail += ": "
		}
		detail += e.Reason
	}
	return adapters.Clean(detail, 0)
}

// Answer shortens an error to what the receiver answered, if it says so.
func Answer(text string) string {
	text = request.ReplaceAllString(text, "")
	return cmp.Or(strings.TrimRight(adapters.Clean(text, 0), ". "), "no reason was recorded")
}

// request is the beginning of an error that says which request was answered.
var request = regexp.MustCompile(`^[A-Z]+ \S+: answered `)

// Person returns the name of the person in an actor, or the login if it is not shared.
func Person(actor string) string {
	_, person, shared := strings.Cut(actor, "/")
	if !shared {
		person = actor
	}
	return cmp.Or(adapters.Clean(person, 0), "somebody")
}

func times(n int) string {
	if n == 1 {
		return "1 attempt"
	}
	return fmt.Sprintf("%d attempts", n)
}

func singular(n int, one, several string) string {
	if n == 1 {
		return one
	}
	return several
}

// atMost counts events, or says that there are more than were counted.
func atMost(n, most int) string {
	if n >= most {
		return fmt.Sprintf("more than %d later events", most)
	}
	return fmt.Sprintf("%d later %s", n, singular(n, "event", "events"))
}
