package outbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// silence reports a database that did not answer within the timeout of the store.
type silence time.Duration

func (d silence) Error() string {
	return fmt.Sprintf("database did not answer within %s", time.Duration(d))
}

// Brief returns a text about a database error without the address of the database and the
// name of the login. Anybody may read it, for example in a health check.
func Brief(err error) string {
	switch pgErr, ok := errors.AsType[*pgconn.PgError](err); {
	case errors.Is(err, ErrServer), errors.Is(err, ErrReadOnly), errors.Is(err, ErrSchema), errors.Is(err, ErrIsolation), errors.Is(err, ErrNumbers):
		return err.Error()
	case errors.Is(err, ErrPrivilege):
		return ErrPrivilege.Error()
	case ok:
		return "the database says SQLSTATE " + pgErr.Code
	default:
		return "the database cannot be reached"
	}
}

const poolerHint = "through a transaction pooler, add default_query_exec_mode=exec to the database URL"

// needsHint reports an error that comes from a transaction pooler whose URL lacks the
// parameter of poolerHint: the pooler refuses settings at the start of a connection, or
// mixes up prepared statements.
func needsHint(err error) bool {
	pgErr, ok := errors.AsType[*pgconn.PgError](err)
	return ok && (pgErr.Code == "26000" || pgErr.Code == "42P05" || strings.Contains(pgErr.Message, "unsupported startup parameter"))
}

// judge handles the error of every call; ctx is the context of the call. If the server is
// gone, stopping or read-only, judge drops all connections of the pool. They lead to the
// same server, and one call after the other would fail to find that out. If the caller's
// own deadline was shorter, the error says nothing about the server.
func (s *Store) judge(ctx context.Context, err error) error {
	err = plain(err)
	_, silent := errors.AsType[silence](context.Cause(ctx))
	switch {
	case err == nil:
		return nil
	case needsHint(err):
		return fmt.Errorf("%w (%s)", err, poolerHint)
	case hasCode(err, readOnly), errors.Is(err, pgconn.ErrReadOnlyConnection):
		s.reset()
		return fmt.Errorf("%w: %w", ErrReadOnly, err)
	case errors.Is(err, ErrReadOnly), silent, isBroken(err) && !pgconn.Timeout(err),
		// connection, shutdown by an administrator, crash, starting up or in recovery, database dropped
		hasCode(err, "08", "57P01", "57P02", "57P03", "57P04"):
		s.reset()
	}
	return err
}

// readOnly is the SQLSTATE of a server that accepts no writes.
const readOnly = "25006"

// hasCode reports whether err is a server's error of one of the classes or codes.
func hasCode(err error, prefixes ...string) bool {
	pgErr, ok := errors.AsType[*pgconn.PgError](err)
	return ok && slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(pgErr.Code, p) })
}

// NoSuchDatabase reports whether the server has no database of that name.
func NoSuchDatabase(err error) bool { return hasCode(err, "3D000") }

// IsTemporary reports whether a later call may succeed without help: the server cannot be
// reached, restarts, is overloaded or read-only, or asks to repeat the transaction.
func IsTemporary(err error) bool {
	if err == nil || needsHint(err) {
		return false
	}
	if errors.Is(err, ErrReadOnly) || errors.Is(err, pgconn.ErrReadOnlyConnection) {
		return true
	}
	if _, ok := errors.AsType[*pgconn.PgError](err); ok {
		// Connection; rollback, which includes a standby's conflict with recovery; resources; object in use; operator
		// intervention; read-only; transaction idle or open for too long; no such database yet; input or output.
		return hasCode(err, "08", "40", "53", "55", "57", readOnly, "25P03", "25P04", "3D000", "58030")
	}
	_, refused := errors.AsType[*pgconn.ConnectError](err)
	return refused || isBroken(err) || pgconn.SafeToRetry(err) ||
		errors.Is(err, context.DeadlineExceeded) || errors.Is(err, pgx.ErrTxClosed)
}

// IsConflict reports whether the server asks to repeat a transaction because of another
// one: a serialization failure, a deadlock or a lock timeout.
func IsConflict(err error) bool { return hasCode(err, "40", "55P03") }

// isBroken reports whether a connection broke.
func isBroken(err error) bool {
	if _, refused := errors.AsType[*pgconn.ConnectError](err); refused {
		return false // there was no connection
	}
	_, network := errors.AsType[*net.OpError](err)
	return network || errors.Is(err, net.ErrClosed) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, pgconn.ErrConnClosed)
}
