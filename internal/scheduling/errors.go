package scheduling

import (
	"errors"
	"fmt"
	"strings"
)

// ErrNotFound means that no hearing has the id.
var ErrNotFound = errors.New("no hearing has this id")

// Codes of [FieldError] that a program may want to act on.
const (
	CodeNonexistent = "nonexistent-local-time" // the clocks skip it
	CodeAmbiguous   = "ambiguous-local-time"   // it comes twice; send fold
)

// FieldError is what is wrong with one field. It never quotes a case name.
type FieldError struct {
	Field   string   `json:"field"`
	Detail  string   `json:"detail"`
	Code    string   `json:"code,omitempty"`
	Choices []Choice `json:"choices,omitempty"` // valid starts near the one refused
}

// InvalidError refuses a request: all that is wrong with its fields.
type InvalidError struct {
	Fields []FieldError
}

// Error lists the fields.
func (e *InvalidError) Error() string {
	parts := make([]string, 0, len(e.Fields))
	for _, f := range e.Fields {
		parts = append(parts, f.Field+" "+f.Detail)
	}
	return strings.Join(parts, "; ")
}

// ExistsError refuses a booking whose id is taken.
type ExistsError struct {
	ID      string
	Version int64 // of the hearing that has it
}

// Error says how to tell a repeated request from a clash.
func (e *ExistsError) Error() string {
	return fmt.Sprintf("hearing %s exists already (version %d); if this repeats an earlier request, it was booked then", e.ID, e.Version)
}

// VersionError refuses a change whose caller had not seen the current version.
type VersionError struct {
	ID              string
	Wanted, Current int64
}

// Error says what to do.
func (e *VersionError) Error() string {
	return fmt.Sprintf("hearing %s is at version %d, not %d; read it again and decide anew", e.ID, e.Current, e.Wanted)
}

// StateError refuses a change that the hearing's status does not allow.
type StateError struct {
	ID, Reason string
}

// Error gives the reason.
func (e *StateError) Error() string { return fmt.Sprintf("hearing %s %s", e.ID, e.Reason) }
