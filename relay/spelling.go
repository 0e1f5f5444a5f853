package relay

import (
	"context"
	"slices"
	"strings"
	"sync"
)

// maxSeenTypes bounds the event types that a spelling remembers. Later ones are not checked.
const maxSeenTypes = 1000

// spelling notices event types that are spelt almost like a name in the configuration. The
// zero value notices nothing. It is safe for concurrent use.
type spelling struct {
	names []string // see [Sync.TypeNames]

	mu      sync.RWMutex
	seen    map[string]bool // event types
	matched map[string]bool // names that are an event's type
}

func newSpelling(names []string) *spelling {
	return &spelling{names: names, seen: map[string]bool{}, matched: map[string]bool{}}
}

// first returns the name that an event's type is almost like, at the first event of this
// type, unless an event had the name itself. Otherwise it returns "".
func (s *spelling) first(eventType string) string {
	if len(s.names) == 0 {
		return ""
	}
	s.mu.RLock()
	done := s.seen[eventType] || len(s.seen) >= maxSeenTypes
	s.mu.RUnlock()
	if done {
		return ""
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.seen[eventType] {
		return ""
	}
	s.seen[eventType] = true
	if slices.Contains(s.names, eventType) {
		s.matched[eventType] = true
		return ""
	}
	if name := SimilarType(eventType, s.names); !s.matched[name] {
		return name
	}
	return ""
}

// checkSpelling warns of an event's type that the configuration probably names otherwise.
func (p *pipeline) checkSpelling(ctx context.Context, eventType string) {
	if name := p.spelling.first(eventType); name != "" {
		p.log.WarnContext(ctx, "the adapter has no entry for this event type, but one for a name that is almost the same, which no event has had so far: correct the one that is misspelt; this is said once for each type",
			"type", eventType, "entry", name)
	}
}

// SimilarType returns the name in [Sync.TypeNames] that is spelt almost like an event type
// which has no name there, such as scheduling:cancelled for scheduling:canceled. It
// returns "" if the type has a name, or none is almost the same.
//
// Only one place may differ, by two characters at most, within a word of five characters
// or more, and not at its beginning: opened and reopened are two things. Digits must be the
// same: v1 and v2 are too.
func SimilarType(eventType string, names []string) string {
	if slices.Contains(names, eventType) {
		return ""
	}
	for _, name := range names {
		if !strings.Contains(name, "*") && isMisspelt(strings.ToLower(eventType), strings.ToLower(name)) {
			return name
		}
	}
	return ""
}

const (
	maxMisspelt  = 2 // characters that differ
	shortestWord = 5
)

func isMisspelt(a, b string) bool {
	from := 0
	for from < min(len(a), len(b)) && a[from] == b[from] {
		from++
	}
	same := 0 // at the end
	for same < min(len(a), len(b))-from && a[len(a)-1-same] == b[len(b)-1-same] {
		same++
	}
	inA, inB := a[from:len(a)-same], b[from:len(b)-same]
	switch {
	case max(len(inA), len(inB)) > maxMisspelt, strings.ContainsFunc(inA+inB, isDigit):
		return false
	case len(inA)+len(inB) == 0: // only upper and lower case differ
		return true
	case strings.Trim(inA+inB, separators) == "": // scheduling.cancelled, scheduling:cancelled
		return true
	}
	begin := strings.LastIndexAny(a[:from], separators) + 1
	word := func(s string) int {
		if end := strings.IndexAny(s[from:], separators); end >= 0 {
			return from + end - begin
		}
		return len(s) - begin
	}
	return from > begin && min(word(a), word(b)) >= shortestWord
}

// separators are between the words of an event type.
const separators = ":._-/ "

func isDigit(r rune) bool { return '0' <= r && r <= '9' }
