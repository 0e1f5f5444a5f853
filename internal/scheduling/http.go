package scheduling

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"time"
)

// requestTimeout bounds the work for one request, in the database included.
const requestTimeout = 10 * time.Second

// api is the HTTP face of a [Service].
type api struct {
	service *Service
	log     *slog.Logger
	mux     *http.ServeMux
}

// NewHandler returns the HTTP API:
//
//	POST /hearings                  book
//	POST /hearings/{id}/reschedule  change the start (If-Match: "<version>" is optional)
//	POST /hearings/{id}/cancel      cancel, with a reason (If-Match is optional)
//	GET  /hearings                  list: from, to, courthouse, courtroom, status, limit, after
//	GET  /hearings/{id}             one hearing, and what the courts know of it
//	GET  /livez, /readyz
//
// Errors are application/problem+json (RFC 9457). It has no authentication of
// its own: it belongs behind whatever the agency uses. Each request leaves one
// log line, without its query and body.
func NewHandler(s *Service, log *slog.Logger) http.Handler {
	a := &api{service: s, log: log, mux: http.NewServeMux()}
	a.mux.HandleFunc("POST /hearings", a.book)
	a.mux.HandleFunc("POST /hearings/{id}/reschedule", a.reschedule)
	a.mux.HandleFunc("POST /hearings/{id}/cancel", a.cancel)
	a.mux.HandleFunc("GET /hearings", a.list)
	a.mux.HandleFunc("GET /hearings/{id}", a.get)
	a.mux.HandleFunc("GET /livez", a.livez)
	a.mux.HandleFunc("GET /readyz", a.readyz)
	return a
}

// ServeHTTP answers one request within [requestTimeout].
func (a *api) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	began := time.Now()
	ctx, cancel := context.WithTimeout(r.Context(), requestTimeout)
	defer cancel()
	r = r.WithContext(ctx)
	out := &statusWriter{ResponseWriter: w}
	out.Header().Set("Cache-Control", "no-store") // answers hold names
	out.Header().Set("X-Content-Type-Options", "nosniff")

	handler, route := a.mux.Handler(r)
	if route == "" {
		a.noRoute(out, r, handler)
	} else {
		a.mux.ServeHTTP(out, r)
	}
	a.log.LogAttrs(ctx, slog.LevelInfo, "request",
		slog.String("method", r.Method), slog.String("route", route), slog.Int("status", out.status),
		slog.Duration("took", time.Since(began)))
}

// noRoute says in our form what the mux would say as plain text: 404, or 405
// with the methods that are allowed.
func (a *api) noRoute(w http.ResponseWriter, r *http.Request, handler http.Handler) {
	said := headerOnly{header: http.Header{}}
	handler.ServeHTTP(&said, r)
	detail := "There is nothing at this path."
	if said.status == http.StatusMethodNotAllowed {
		allow := said.header.Get("Allow")
		w.Header().Set("Allow", allow)
		detail = "This path takes " + allow + "."
	}
	writeProblem(w, newProblem(said.status, detail))
}

func (a *api) fail(w http.ResponseWriter, r *http.Request, err error) {
	p := problemOf(err)
	if p.Status >= http.StatusInternalServerError {
		a.log.LogAttrs(r.Context(), slog.LevelError, "request failed",
			slog.String("route", r.Pattern), slog.String("error", loggable(err)))
	}
	writeProblem(w, p)
}

// startFields are the fields that say when.
type startFields struct {
	LocalStart string `json:"local_start"`
	Zone       string `json:"zone"`
	Fold       Fold   `json:"fold"`
}

func (a *api) book(w http.ResponseWriter, r *http.Request) {
	var in struct {
		ID          string `json:"id"`
		CaseNumber  string `json:"case_number"`
		CaseName    string `json:"case_name"`
		HearingType string `json:"hearing_type"`
		Courthouse  string `json:"courthouse"`
		Courtroom   string `json:"courtroom"`
		startFields
		DurationMinutes int `json:"duration_minutes"`
	}
	if err := decode(w, r, &in); err != nil {
		a.fail(w, r, err)
		return
	}
	h, err := a.service.Book(r.Context(), Booking{
		ID: in.ID, CaseNumber: in.CaseNumber, CaseName: in.CaseName, HearingType: in.HearingType,
		Courthouse: in.Courthouse, Courtroom: in.Courtroom,
		LocalStart: in.LocalStart, Zone: in.Zone, Fold: in.Fold, DurationMinutes: in.DurationMinutes,
		Headers: eventHeaders(r.Header),
	})
	if err != nil {
		a.fail(w, r, err)
		return
	}
	w.Header().Set("Location", "/hearings/"+h.ID)
	writeHearing(w, http.StatusCreated, h)
}

func (a *api) reschedule(w http.ResponseWriter, r *http.Request) {
	var in struct {
		startFields
		DurationMinutes int    `json:"duration_minutes"`
		Courthouse      string `json:"courthouse"`
		Courtroom       string `json:"courtroom"`
	}
	version, err := ifMatch(r.Header)
	if err == nil {
		err = decode(w, r, &in)
	}
	if err != nil {
		a.fail(w, r, err)
		return
	}
	h, err := a.service.Reschedule(r.Context(), Rescheduling{
		ID: r.PathValue("id"), IfVersion: version,
		LocalStart: in.LocalStart, Zone: in.Zone, Fold: in.Fold, DurationMinutes: in.DurationMinutes,
		Courthouse: in.Courthouse, Courtroom: in.Courtroom, Headers: eventHeaders(r.Header),
	})
	if err != nil {
		a.fail(w, r, err)
		return
	}
	writeHearing(w, http.StatusOK, h)
}

func (a *api) cancel(w http.ResponseWriter, r *http.Request) {
	var in struct {
		Reason string `json:"reason"`
	}
	version, err := ifMatch(r.Header)
	if err == nil {
		err = decode(w, r, &in)
	}
	if err != nil {
		a.fail(w, r, err)
		return
	}
	h, err := a.service.Cancel(r.Context(), Cancellation{
		ID: r.PathValue("id"), IfVersion: version, Reason: in.Reason, Headers: eventHeaders(r.Header),
	})
	if err != nil {
		a.fail(w, r, err)
		return
	}
	writeHearing(w, http.StatusOK, h)
}

func (a *api) list(w http.ResponseWriter, r *http.Request) {
	f, err := parseFilter(r.URL.Query())
	if err != nil {
		a.fail(w, r, err)
		return
	}
	page, err := a.service.List(r.Context(), f)
	if err != nil {
		a.fail(w, r, err)
		return
	}
	writeJSON(w, "application/json", http.StatusOK, page)
}

func (a *api) get(w http.ResponseWriter, r *http.Request) {
	h, err := a.service.Get(r.Context(), r.PathValue("id"))
	if err != nil {
		a.fail(w, r, err)
		return
	}
	view := hearingView{Hearing: h}
	view.Court, err = a.service.Court(r.Context(), h)
	switch {
	case errors.Is(err, errMayNotRead):
		view.CourtUnknown = err.Error() // the hearing itself is still worth showing
	case err != nil:
		a.fail(w, r, err)
		return
	}
	w.Header().Set("ETag", etag(h.Version))
	writeJSON(w, "application/json", http.StatusOK, view)
}

func (a *api) livez(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, "application/json", http.StatusOK, map[string]string{"status": "ok"})
}

func (a *api) readyz(w http.ResponseWriter, r *http.Request) {
	if err := a.service.Ready(r.Context()); err != nil {
		a.log.LogAttrs(r.Context(), slog.LevelWarn, "not ready", slog.String("error", loggable(err)))
		writeProblem(w, newProblem(http.StatusServiceUnavailable, "The database cannot be used now, or its schema is not migrated."))
		return
	}
	writeJSON(w, "application/json", http.StatusOK, map[string]string{"status": "ready"})
}

func writeHearing(w http.ResponseWriter, status int, h Hearing) {
	w.Header().Set("ETag", etag(h.Version))
	writeJSON(w, "application/json", status, h)
}

// statusWriter remembers the status for the log.
type statusWriter struct {
	http.ResponseWriter
	status int
}

func (w *statusWriter) WriteHeader(status int) {
	w.status = status
	w.ResponseWriter.WriteHeader(status)
}

// Unwrap lets http.MaxBytesReader and ResponseController reach the connection.
func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// headerOnly takes an answer's status and header, not its body.
type headerOnly struct {
	header http.Header
	status int
}

func (h *headerOnly) Header() http.Header         { return h.header }
func (h *headerOnly) Write(b []byte) (int, error) { return len(b), nil }
func (h *headerOnly) WriteHeader(status int)      { h.status = status }
