package pgtest

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"
)

// startURL uses the server that the environment names.
func startURL(ctx context.Context) (*Server, error) {
	u, err := url.Parse(os.Getenv(EnvURL))
	// The value has a password in it, and url.Error quotes the value, so the message
	// does not have the error.
	if err != nil || (u.Scheme != "postgres" && u.Scheme != "postgresql") || strings.Trim(u.Path, "/") == "" {
		return nil, fmt.Errorf("pgtest: %s is not of the form postgres://user:password@host:port/database?options", EnvURL)
	}
	s := &Server{route: URL, admin: *u, engine: foreign{}}
	ctx, cancel := bounded(ctx)
	defer cancel()
	if err := s.exec(ctx, "SELECT 1"); err != nil {
		return nil, fmt.Errorf("%w; check %s, or unset it to let the tests start a server", err, EnvURL)
	}
	return s, nil
}

// foreign is the engine of a server that belongs to others. It does not kill or stop
// the server.
type foreign struct{}

func (foreign) kill(context.Context) error     { return errForeign }
func (foreign) shutdown(context.Context) error { return errForeign }
func (foreign) boot(context.Context) error     { return errForeign }
func (foreign) stop() error                    { return nil }

var errForeign = fmt.Errorf("the server of %s is not ours to kill: %w (use Options.Route local or container)",
	EnvURL, errors.ErrUnsupported)
