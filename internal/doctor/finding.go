package doctor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"golang.org/x/sync/errgroup"
)

// Severity says how bad a finding is.
type Severity string

// The severities.
const (
	OK      Severity = "ok"
	Warning Severity = "warning" // it may become a problem, or could not be checked
	Problem Severity = "problem" // deliveries stop or go wrong, or will soon
)

// Finding is something that a check has found.
type Finding struct {
	Name     string   `json:"name"` // of the check, or of the alert
	Severity Severity `json:"severity"`
	Sync     string   `json:"sync,omitempty"` // empty: it is not about one sync
	Says     string   `json:"says"`
	Remedy   string   `json:"remedy,omitempty"`
}

// Check looks at one thing.
type Check struct {
	Name string
	Fine string // what is true if Run finds nothing

	// Run returns what is wrong. An error means that it could not be checked.
	Run func(ctx context.Context) ([]Finding, error)
}

const (
	timeout  = 5 * time.Second // of a check
	parallel = 4               // checks at once
)

// run makes all checks, and returns what they find in the order of the checks.
func run(ctx context.Context, checks []Check) []Finding {
	found := make([][]Finding, len(checks))
	var g errgroup.Group
	g.SetLimit(parallel)
	for i, c := range checks {
		g.Go(func() error {
			found[i] = c.make(ctx)
			return nil
		})
	}
	_ = g.Wait() // the functions return nil
	return slices.Concat(found...)
}

// make makes the check within its timeout.
func (c Check) make(ctx context.Context) []Finding {
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("no answer within %s", timeout))
	defer cancel()
	found, err := c.Run(ctx)
	if err != nil {
		found = append(found, notChecked(ctx, err))
	}
	if len(found) == 0 {
		found = []Finding{{Severity: OK, Says: c.Fine}}
	}
	for i := range found {
		found[i].Name = cmp.Or(found[i].Name, c.Name)
	}
	return found
}

// Codes of PostgreSQL's errors.
const (
	insufficientPrivilege = "42501"
	queryCanceled         = "57014"
	invalidParameter      = "22023"
)

func sqlState(err error) string {
	if e, ok := errors.AsType[*pgconn.PgError](err); ok {
		return e.Code
	}
	return ""
}

// notChecked is the finding of a check that could not be made.
func notChecked(ctx context.Context, err error) Finding {
	f := Finding{Severity: Warning, Says: fmt.Sprintf("could not be checked: %v", err)}
	switch {
	case sqlState(err) == insufficientPrivilege:
		e, _ := errors.AsType[*pgconn.PgError](err)
		f.Says = "not checked, because the login may not look: " + e.Message
		f.Remedy = "run lockstep doctor with the login of a relay"
	case ctx.Err() != nil || sqlState(err) == queryCanceled:
		f.Says = fmt.Sprintf("could not be checked within %s", timeout)
		f.Remedy = "try again; if it stays so, see what the server is busy with: SELECT * FROM pg_stat_activity WHERE state <> 'idle'"
	}
	return f
}

// problem, warning and fine make findings.
func problem(remedy, format string, args ...any) Finding {
	return Finding{Severity: Problem, Says: fmt.Sprintf(format, args...), Remedy: remedy}
}

func warning(remedy, format string, args ...any) Finding {
	return Finding{Severity: Warning, Says: fmt.Sprintf(format, args...), Remedy: remedy}
}

func fine(format string, args ...any) Finding {
	return Finding{Severity: OK, Says: fmt.Sprintf(format, args...)}
}

// about returns the finding as one about a sync.
func (f Finding) about(sync string) Finding {
	f.Sync = sync
	return f
}
