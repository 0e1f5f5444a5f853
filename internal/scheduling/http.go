package scheduling

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net/http"
	"time"
)

// requestTimeout bounds the work for one request, including the database.
const requestTimeout = 10 * time.Second

// api serves a [Service] over HTTP.
type api struct {
	service *Service
	log     *slog.Logger
	mux     *http.ServeMux
}

// NewHandler returns the HTTP API, and the pages of [Pages] beside it:
//
//	POST /hearings                  book
//	POST /hearings/{id}/reschedule  change the start (If-Match: "<version>" is optional)
//	POST /hearings/{id}/cancel      cancel, with a reason (If-Match is optional)
//	GET  /hearings                  list: from, to, courthouse, courtroom, case_number, status, limit, after
//	GET  /hearings/{id}             one hearing, and which courts have got it
//	GET  /livez, /readyz
//	GET  /                          the list of hearings for clerks, and pages from there
//
// Errors of the API are application/problem+json (RFC 9457). There is no authentication: put it behind
// a proxy that has. Each request is one log line, without its query and body.
func NewHandler(s *Service, p Pages, log *slog.Logger) http.Handler {
	a := &api{service: s, log: log, mux: http.NewServeMux()}
	a.handle("POST /hearings", a.book)
	a.handle("POST /hearings/{id}/reschedule", changing(s.Reschedule))
	a.handle("POST /hearings/{id}/cancel", changing(s.Cancel))
	a.handle("GET /hearings", a.list)
	a.handle("GET /hearings/{id}", a.get)
	a.handle("GET /livez", func(w http.ResponseWriter, _ *http.Request) error {
		return writeOK(w, map[string]string{"status": "ok"})
	})
	a.handle("GET /readyz", a.readyz)
	a.addPages(p)
	return a
}

// handler answers a request, or returns an error.
type handler func(w http.ResponseWriter, r *http.Request) error

func (a *api) handle(pattern string, h handler) {
	a.mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		if err := h(w, r); err != nil {
			p := problemOf(err)
			if p.Status >= http.StatusInternalServerError {
				a.log.LogAttrs(r.Context(), slog.LevelError, "request failed",
					slog.String("route", r.Pattern), slog.String("error", loggable(err)))
			}
			writeProblem(w, p)
		}
	})
}

// ServeHTTP answers one request within [requestTimeout].
func (a *api) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	began := time.Now()
	ctx, cancel := context.WithTimeout(r.Context(), requestTimeout)
	defer cancel()
	r = r.WithContext(ctx)
	out := &statusWriter{ResponseWriter: w}
	out.Header().Set("Cache-Control", "no-store") // answers have names of parties
	out.Header().Set("X-Content-Type-Options", "nosniff")

	handler, route := a.mux.Handler(r)
	if route == "" {
		a.noRoute(out, r, handler)
	} else {
		a.mux.ServeHTTP(out, r)
	}
	a.log.LogAttrs(ctx, slog.LevelInfo, "request",
		slog.String("method", r.Method), slog.String("route", route), slog.Int("status", cmp.Or(out.status, http.StatusOK)),
		slog.Duration("took", time.Since(began)))
}

// noRoute writes the mux's own answer as a problem: 404, or 405 with the allowed
// methods.
func (a *api) noRoute(w http.ResponseWriter, r *http.Request, handler http.Handler) {
	plain := headerOnly{header: http.Header{}}
	handler.ServeHTTP(&plain, r)
	detail := "There is nothing at this path."
	if plain.status == http.StatusMethodNotAllowed {
		allow := plain.header.Get("Allow")
		w.Header().Set("Allow", allow)
		detail = "This path takes " + allow + "."
	}
	writeProblem(w, newProblem(plain.status, detail))
}

func (a *api) book(w http.ResponseWriter, r *http.Request) error {
	var b Booking
	if err := decode(w, r, &b); err != nil {
		return err
	}
	h, err := a.service.Book(r.Context(), b, eventHeaders(r.Header))
	if err != nil {
		return err
	}
	w.Header().Set("Location", "/hearings/"+h.ID)
	w.Header().Set("ETag", etag(h.Version))
	writeJSON(w, "application/json", http.StatusCreated, h)
	return nil
}

// changing handles requests for a change of a hearing.
func changing[R any](change func(context.Context, Target, R) (Hearing, error)) handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		version, err := ifMatch(r.Header)
		if err != nil {
			return err
		}
		var in R
		if err := decode(w, r, &in); err != nil {
			return err
		}
		h, err := change(r.Context(), Target{ID: r.PathValue("id"), IfVersion: version, Headers: eventHeaders(r.Header)}, in)
		if err != nil {
			return err
		}
		w.Header().Set("ETag", etag(h.Version))
		return writeOK(w, h)
	}
}

func (a *api) list(w http.ResponseWriter, r *http.Request) error {
	f, err := parseFilter(r.URL.Query())
	if err != nil {
		return err
	}
	page, err := a.service.List(r.Context(), f)
	if err != nil {
		return err
	}
	return writeOK(w, page)
}

func (a *api) get(w http.ResponseWriter, r *http.Request) error {
	h, err := a.service.Get(r.Context(), r.PathValue("id"))
	if err != nil {
		return err
	}
	view := struct {
		Hearing
		Court        []Knowledge `json:"court"`
		CourtUnknown string      `json:"court_unknown,omitempty"` // why the court's state is not known
	}{Hearing: h}
	view.Court, err = a.service.Court(r.Context(), h)
	switch {
	case errors.Is(err, errMayNotRead):
		view.CourtUnknown = err.Error() // the hearing itself is shown nevertheless
	case err != nil:
		return err
	}
	w.Header().Set("ETag", etag(h.Version))
	return writeOK(w, view)
}

func (a *api) readyz(w http.ResponseWriter, r *http.Request) error {
	if err := a.service.Ready(r.Context()); err != nil {
		a.log.LogAttrs(r.Context(), slog.LevelWarn, "not ready", slog.String("error", loggable(err)))
		writeProblem(w, newProblem(http.StatusServiceUnavailable, "The database cannot be used now, or its schema is not migrated."))
		return nil
	}
	return writeOK(w, map[string]string{"status": "ready"})
}

func writeOK(w http.ResponseWriter, v any) error {
	writeJSON(w, "application/json", http.StatusOK, v)
	return nil
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

// headerOnly keeps an answer's status and header, not its body.
type headerOnly struct {
	header http.Header
	status int
}

func (h *headerOnly) Header() http.Header         { return h.header }
func (h *headerOnly) Write(b []byte) (int, error) { return len(b), nil }
func (h *headerOnly) WriteHeader(status int)      { h.status = status }
