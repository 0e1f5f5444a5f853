package config

import (
	"slices"
	"strings"

	"go.yaml.in/yaml/v4"
)

// Outline returns the names of the syncs in a file and the event types that they name. It
// reads what it can: the file may have mistakes, and variables that are not set. It is for
// shell completion.
func Outline(data []byte) (syncs, types []string) {
	var file struct {
		Syncs []struct {
			Name, Event string
			Events      []string
		}
	}
	_ = yaml.Unmarshal(data, &file) // what precedes a mistake is read
	for _, s := range file.Syncs {
		syncs, types = append(syncs, s.Name), append(append(types, s.Event), s.Events...)
	}
	incomplete := func(s string) bool { return s == "" || strings.ContainsAny(s, "$*") }
	return slices.DeleteFunc(syncs, incomplete), slices.DeleteFunc(types, incomplete)
}
