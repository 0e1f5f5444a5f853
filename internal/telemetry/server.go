package telemetry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/singleflight"
)

// readyDeadline bounds the work of one /readyz.
const readyDeadline = 3 * time.Second

// Handler serves /livez and /readyz (200 if alive or ready returns nil, 503 with the reason
// if not) and /metrics. Simultaneous requests for /readyz share one call of ready. alive
// must return at once.
func (m *Metrics) Handler(alive func() error, ready func(context.Context) error) http.Handler {
	mux := http.NewServeMux()
	var checks singleflight.Group
	check := func() (any, error) {
		ctx, cancel := context.WithTimeoutCause(context.Background(), readyDeadline, fmt.Errorf("the check took longer than %s", readyDeadline))
		defer cancel()
		err := ready(ctx)
		if cause := context.Cause(ctx); err != nil && cause != nil {
			err = cause
		}
		return nil, err
	}
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) {
		if err := alive(); err != nil {
			answer(w, http.StatusServiceUnavailable, "not alive: "+err.Error())
			return
		}
		answer(w, http.StatusOK, "ok")
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if _, err, _ := checks.Do("", check); err != nil {
			answer(w, http.StatusServiceUnavailable, "not ready: "+err.Error())
			return
		}
		answer(w, http.StatusOK, "ready")
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError, Registry: m.registry}))
	return mux
}

func answer(w http.ResponseWriter, status int, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, strings.ReplaceAll(text, "\n", " ")+"\n")
}

// Server serves a handler until it is closed.
type Server struct {
	http    *http.Server
	done    chan error
	clients clients
}

// Serve serves h on l, which [Server.Close] closes.
func Serve(l net.Listener, h http.Handler, log *slog.Logger) *Server {
	s := &Server{
		http: &http.Server{
			Handler:           h,
			ReadHeaderTimeout: 5 * time.Second,
			ReadTimeout:       10 * time.Second,
			WriteTimeout:      30 * time.Second,
			IdleTimeout:       2 * time.Minute,
			MaxHeaderBytes:    16 << 10,
			ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelWarn),
		},
		done: make(chan error, 1),
	}
	s.http.ConnState = s.clients.note
	go func() { s.done <- s.http.Serve(l) }()
	return s
}

// Close waits two seconds for the answers that are being written, then closes their
// connections.
func (s *Server) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	err := s.http.Shutdown(ctx)
	if err != nil {
		err = s.http.Close()
	}
	if served := <-s.done; !errors.Is(served, http.ErrServerClosed) {
		err = errors.Join(err, served)
	}
	return err
}
