package config

import (
	"slices"
	"strings"
)

// overlap reports whether one event type can match both patterns, in which * is any number
// of characters.
func overlap(a, b string) bool {
	// below[j] says whether the rest of a after its current character and b[j:] overlap.
	below := make([]bool, len(b)+1)
	for i := len(a); i >= 0; i-- {
		row := make([]bool, len(b)+1)
		for j := len(b); j >= 0; j-- {
			switch {
			case i == len(a) && j == len(b):
				row[j] = true
			case i < len(a) && a[i] == '*':
				row[j] = below[j] || j < len(b) && row[j+1]
			case j < len(b) && b[j] == '*':
				row[j] = row[j+1] || i < len(a) && below[j]
			case i < len(a) && j < len(b) && a[i] == b[j]:
				row[j] = below[j+1]
			}
		}
		below = row
	}
	return below[0]
}

// checkTypes refuses keys of the adapter's mappings by event type that no event of the sync
// has.
func (d *decoder) checkTypes(n *node, s *Sync) {
	events := s.Events
	given := n.at("events").items
	if s.Event != "" {
		events, given = []string{s.Event}, []*node{n.at("event")}
	}
	known, ok := d.kinds[s.Adapter.Kind]
	if !ok || len(events) == 0 || len(given) != len(events) || n.at("events").failed || n.at("event").failed {
		return
	}
	var names []string
	for i, e := range given {
		if e.ref != "" {
			names = append(names, "that of "+variables(e.ref))
		} else {
			names = append(names, events[i])
		}
	}
	for _, f := range fieldsOf(known.config) {
		if f.Tag.Get("keys") != keysAreEvents {
			continue
		}
		for _, item := range n.at("adapter", keyOf(f)).items {
			if !strings.Contains(item.key, "*") {
				s.TypeNames = append(s.TypeNames, item.key)
			}
			meets := func(event string) bool { return overlap(event, item.key) }
			if item.key == "" || len(item.key) <= maxTypeLen && slices.ContainsFunc(events, meets) {
				continue // the adapter refuses an empty key
			}
			d.atKey(item, "no event of this sync has this type. Its event types are %s: correct the type, or remove the entry%s",
				strings.Join(names, ", "), suggest(item.key, names))
		}
	}
}
