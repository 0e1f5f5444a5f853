package scheduling

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strconv"

	"github.com/jackc/pgx/v5/pgconn"
)

// problem is an error answer of RFC 9457.
type problem struct {
	Type           string       `json:"type"`
	Title          string       `json:"title"`
	Status         int          `json:"status"`
	Detail         string       `json:"detail,omitempty"`
	Errors         []FieldError `json:"errors,omitempty"`
	CurrentVersion int64        `json:"current_version,omitempty"`
}

func newProblem(status int, detail string) problem {
	return problem{Type: "about:blank", Title: http.StatusText(status), Status: status, Detail: detail}
}

// Error makes a problem usable as the error of a request that is refused
// before it reaches the service.
func (p problem) Error() string { return p.Detail }

// problemOf turns an error of the service into an answer.
func problemOf(err error) problem {
	var (
		ready   problem
		invalid *InvalidError
		exists  *ExistsError
		version *VersionError
		state   *StateError
	)
	switch {
	case errors.As(err, &ready):
		return ready
	case errors.As(err, &invalid):
		p := newProblem(http.StatusUnprocessableEntity, invalid.Error())
		p.Type, p.Title, p.Errors = "urn:lockstep:scheduling:invalid", "The request is not valid", invalid.Fields
		return p
	case errors.As(err, &exists):
		p := newProblem(http.StatusConflict, exists.Error())
		p.Type, p.Title, p.CurrentVersion = "urn:lockstep:scheduling:exists", "The hearing exists already", exists.Version
		return p
	case errors.As(err, &version):
		p := newProblem(http.StatusPreconditionFailed, version.Error())
		p.Type, p.Title, p.CurrentVersion = "urn:lockstep:scheduling:version", "The hearing has changed meanwhile", version.Current
		return p
	case errors.As(err, &state):
		p := newProblem(http.StatusConflict, state.Error())
		p.Type, p.Title = "urn:lockstep:scheduling:state", "The hearing's status does not allow this"
		return p
	case errors.Is(err, ErrNotFound):
		return newProblem(http.StatusNotFound, "No hearing has this id.")
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
	_, _ = w.Write(append(b, '\n')) // the caller may be gone
}

func etag(version int64) string { return `"` + strconv.FormatInt(version, 10) + `"` }

// loggable describes an error of the database without the values of a row: the
// detail of a PostgreSQL error quotes whole rows, names of parties included.
func loggable(err error) string {
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok {
		s := "SQLSTATE " + pg.Code
		if pg.ConstraintName != "" {
			s += " constraint " + pg.ConstraintName
		}
		return s
	}
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return "deadline exceeded"
	case errors.Is(err, context.Canceled):
		return "caller left"
	}
	return err.Error()
}
