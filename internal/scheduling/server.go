package scheduling

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"time"
)

// ErrNotDrained means that a stop cut off requests that were in flight.
var ErrNotDrained = errors.New("stopped before all requests were answered")

// drain is how long a stop waits for requests in flight. No request takes longer.
const drain = requestTimeout + 2*time.Second

// Serve serves the API and the pages on ln until ctx ends. Then it lets requests in flight finish and
// returns nil, or [ErrNotDrained] if they take too long.
func Serve(ctx context.Context, ln net.Listener, s *Service, p Pages, log *slog.Logger) error {
	srv := &http.Server{
		Handler:           NewHandler(s, p, log),
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       15 * time.Second,
		WriteTimeout:      30 * time.Second,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(ln) }()
	log.InfoContext(ctx, "serving", "address", ln.Addr().String())
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	log.InfoContext(ctx, "stopping", "drain", drain)
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), drain)
	defer cancel()
	if err := srv.Shutdown(last); err != nil {
		_ = srv.Close() // cuts off the rest
		return ErrNotDrained
	}
	log.InfoContext(ctx, "stopped")
	return nil
}
