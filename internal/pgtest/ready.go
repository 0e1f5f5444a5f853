package pgtest

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// awaitReady returns when the server answers a query. It gives up when ctx
// ends or gone is closed.
func awaitReady(ctx context.Context, databaseURL string, gone <-chan struct{}) error {
	pause := time.NewTicker(5 * time.Millisecond)
	defer pause.Stop()
	for {
		err := answers(ctx, databaseURL)
		if err == nil {
			return nil
		}
		select {
		case <-gone:
			return errGone
		case <-ctx.Done():
			return fmt.Errorf("%w; last answer: %w", context.Cause(ctx), err)
		case <-pause.C:
		}
	}
}

func answers(ctx context.Context, databaseURL string) error {
	// A container's port may accept connections before its server does.
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, databaseURL)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(ctx) }()
	return conn.Ping(ctx)
}

// freePort returns a port below the range for outgoing connections. If a client keeps
// dialling a loopback port of that range while the server is down, it may connect to
// itself, and then the port is in use.
func freePort(ctx context.Context) (int, error) {
	const first, last = 15000, 29999
	var lc net.ListenConfig
	var err error
	for range 100 {
		port := first + rand.IntN(last-first+1)
		var l net.Listener
		if l, err = lc.Listen(ctx, "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port))); err == nil {
			return port, l.Close()
		}
	}
	return 0, fmt.Errorf("no free port between %d and %d: %w", first, last, err)
}

// firstWords shortens a statement for an error message, so that no password in its
// later part is shown.
func firstWords(sql string) string {
	words := strings.Fields(sql)
	return strings.Join(words[:min(3, len(words))], " ")
}
