package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/hms-mkt/lockstep/internal/config"
	"github.com/hms-mkt/lockstep/outbox"
	"github.com/hms-mkt/lockstep/relay"
)

// Exit codes; they are public.
const (
	exitFailed     = 1
	exitUsage      = 2
	exitFound      = 3
	exitNotDrained = 4
)

// usageError is a mistake on the command line or in the configuration.
type usageError struct{ err error }

func (e usageError) Error() string { return e.err.Error() }
func (e usageError) Unwrap() error { return e.err }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// ranError marks an error of a command itself. Other errors come from cobra and are
// mistakes of usage.
type ranError struct{ err error }

func (e ranError) Error() string { return e.err.Error() }
func (e ranError) Unwrap() error { return e.err }

// errFound means that a check found something, which the command has printed already.
var errFound = errors.New("the check found something")

func exitCode(err error) int {
	var (
		ran      ranError
		usage    usageError
		problems config.Problems
	)
	switch {
	case err == nil:
		return 0
	case !errors.As(err, &ran), errors.As(err, &usage), errors.As(err, &problems), errors.Is(err, outbox.ErrNeedsFrom):
		return exitUsage
	case errors.Is(err, errFound):
		return exitFound
	case errors.Is(err, relay.ErrNotDrained):
		return exitNotDrained
	}
	return exitFailed
}

// report writes an error to stderr: what failed, why, and what to do. With
// --log-format json, it writes lines of the log.
func (a *app) report(command string, err error) {
	var (
		ran      ranError
		problems config.Problems
		pgErr    *pgconn.PgError
	)
	if err == nil || errors.Is(err, errFound) {
		return
	}
	if errors.As(err, &problems) {
		a.reportProblems(problems)
		return
	}
	text, hint := err.Error(), ""
	if errors.As(err, &pgErr) && pgErr.Hint != "" {
		// A refusal by the outbox's own functions needs no SQLSTATE.
		text, hint = strings.ReplaceAll(text, pgErr.Error(), pgErr.Message), pgErr.Hint
		text = strings.TrimSuffix(text, " (hint: "+hint+")") // of migrations, which other programs call too
	}
	switch {
	case errors.Is(err, outbox.ErrNeedsFrom):
		hint = "write from: beginning, from: now or a time into the sync's section, or run: lockstep sync apply NAME --from now"
	case !errors.As(err, &ran):
		hint = fmt.Sprintf("Try: %s --help", command)
	}
	if a.logFormat == formatJSON {
		args := []any{"error", text}
		if hint != "" {
			args = append(args, "hint", hint)
		}
		jsonLog(a.stderr, slog.LevelInfo).Error("lockstep failed", append(args, "exit_code", exitCode(err))...)
		return
	}
	fmt.Fprintf(a.stderr, "lockstep: %s\n", text)
	switch {
	case hint != "" && errors.As(err, &ran):
		fmt.Fprintln(a.stderr, "hint:", hint)
	case hint != "":
		fmt.Fprintln(a.stderr, hint)
	}
}

func (a *app) reportProblems(problems config.Problems) {
	if a.logFormat != formatJSON {
		fmt.Fprintf(a.stderr, "%v\nlockstep: %s\n", problems, plural(len(problems), "problem"))
		return
	}
	log := jsonLog(a.stderr, slog.LevelInfo)
	logProblems(context.Background(), log, problems)
	log.Error("lockstep failed", "error", plural(len(problems), "problem"), "exit_code", exitUsage)
}

func logProblems(ctx context.Context, log *slog.Logger, problems config.Problems) {
	for _, p := range problems {
		log.ErrorContext(ctx, "configuration is wrong", "file", p.File, "line", p.Line, "column", p.Column, "path", p.Path, "error", p.Text)
	}
}

func logWarnings(ctx context.Context, log *slog.Logger, warnings config.Problems) {
	for _, p := range warnings {
		log.WarnContext(ctx, "configuration is probably wrong", "file", p.File, "line", p.Line, "column", p.Column, "path", p.Path, "warning", p.Text)
	}
}

// plural counts things: "1 problem", "2 problems", "2 deliveries", "2 relays".
func plural[N int | int64](n N, one string) string {
	switch {
	case n == 1:
	case strings.HasSuffix(one, "y") && !strings.HasSuffix(one, "ey") && !strings.HasSuffix(one, "ay"):
		one = one[:len(one)-1] + "ies"
	default:
		one += "s"
	}
	return fmt.Sprintf("%d %s", n, one)
}
