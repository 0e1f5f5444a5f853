package scheduling

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
)

// Codes of [FieldError] that a program may want to act on.
const (
	CodeNonexistent = "nonexistent-local-time" // the clocks skip it
	CodeAmbiguous   = "ambiguous-local-time"   // it comes twice; send fold
)

// FieldError is a mistake in one field. It never quotes a case name.
type FieldError struct {
	Field   string   `json:"field"`
	Detail  string   `json:"detail"`
	Code    string   `json:"code,omitempty"`
	Choices []Choice `json:"choices,omitempty"` // valid starts near the refused one
}

// problem is the error of a refused request, and its answer as in RFC 9457.
type problem struct {
	Type           string       `json:"type"`
	Title          string       `json:"title"`
	Status         int          `json:"status"`
	Detail         string       `json:"detail,omitempty"`
	Errors         []FieldError `json:"errors,omitempty"`
	CurrentVersion int64        `json:"current_version,omitempty"`
}

func (p problem) Error() string { return p.Detail }

func newProblem(status int, detail string) problem {
	return problem{Type: "about:blank", Title: http.StatusText(status), Status: status, Detail: detail}
}

func notFound() error { return newProblem(http.StatusNotFound, "No hearing has this id.") }

// invalid refuses a request for the mistakes in its fields. It returns nil if there are
// none.
func invalid(fields []FieldError) error {
	if len(fields) == 0 {
		return nil
	}
	parts := make([]string, 0, len(fields))
	for _, f := range fields {
		parts = append(parts, f.Field+" "+f.Detail)
	}
	return problem{
		Type: "urn:lockstep:scheduling:invalid", Title: "The request is not valid", Status: http.StatusUnprocessableEntity,
		Detail: strings.Join(parts, "; "), Errors: fields,
	}
}

// existsAlready refuses a booking whose id is that of h.
func existsAlready(h Hearing) error {
	return problem{
		Type: "urn:lockstep:scheduling:exists", Title: "The hearing exists already", Status: http.StatusConflict, CurrentVersion: h.Version,
		Detail: fmt.Sprintf("hearing %s exists already (version %d); if this repeats an earlier request, that one was successful", h.ID, h.Version),
	}
}

// changedMeanwhile refuses a change whose caller has not seen the current version.
func changedMeanwhile(h Hearing, wanted int64) error {
	return problem{
		Type: "urn:lockstep:scheduling:version", Title: "The hearing has changed in the meantime", Status: http.StatusPreconditionFailed, CurrentVersion: h.Version,
		Detail: fmt.Sprintf("hearing %s is at version %d, not %d; read it again, then decide", h.ID, h.Version, wanted),
	}
}

// refused refuses a change that the hearing's status does not allow.
func refused(h Hearing, reason string) error {
	return problem{
		Type: "urn:lockstep:scheduling:state", Title: "The hearing's status does not allow this", Status: http.StatusConflict,
		Detail: "hearing " + h.ID + " " + reason,
	}
}

// problemOf is the answer to a request that failed with err.
func problemOf(err error) problem {
	if p, ok := errors.AsType[problem](err); ok {
		return p
	}
	return newProblem(http.StatusServiceUnavailable,
		"The database did not answer as expected. Try again; if this was a change, look first whether it was made.")
}

func writeProblem(w http.ResponseWriter, p problem) {
	switch p.Status {
	case http.StatusPreconditionFailed:
		w.Header().Set("ETag", etag(p.CurrentVersion))
	case http.StatusServiceUnavailable:
		w.Header().Set("Retry-After", "2")
	}
	writeJSON(w, "application/problem+json", p.Status, p)
}

func writeJSON(w http.ResponseWriter, contentType string, status int, v any) {
	b, err := json.Marshal(v)
	if err != nil { // cannot happen with this package's types
		http.Error(w, "the answer could not be written", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", contentType)
	w.WriteHeader(status)
	_, _ = w.Write(append(b, '\n')) // the caller may have closed the connection
}

func etag(version int64) string { return `"` + strconv.FormatInt(version, 10) + `"` }

// loggable describes an error of the database without the values of a row. The detail
// of a PostgreSQL error quotes whole rows, with names of parties.
func loggable(err error) string {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	switch {
	case ok && pg.ConstraintName != "":
		return "SQLSTATE " + pg.Code + " constraint " + pg.ConstraintName
	case ok:
		return "SQLSTATE " + pg.Code
	case errors.Is(err, context.DeadlineExceeded):
		return "deadline exceeded"
	case errors.Is(err, context.Canceled):
		return "caller left"
	}
	return err.Error()
}
