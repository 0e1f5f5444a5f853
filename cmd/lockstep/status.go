package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hms-mkt/lockstep/internal/config"
	"github.com/hms-mkt/lockstep/internal/output"
	"github.com/hms-mkt/lockstep/outbox"
)

// statusRow is a line of status. In the row without a sync, pending counts the
// events that no sync matches.
type statusRow struct {
	outbox.Status
	OldestSeconds    *float64  `json:"oldest_pending_age_seconds"`
	OldestPendingAge *struct{} `json:"oldest_pending_age,omitempty"` // hides the field of Status, which is in nanoseconds
	Note             string    `json:"note,omitempty"`

	UnmatchedTypes []unmatchedType `json:"unmatched_types,omitempty"` // in the row without a sync
}

// unmatchedType is a row of outbox.unmatched_type.
type unmatchedType struct {
	Type   string    `json:"type"`
	Events int64     `json:"events"`
	First  time.Time `json:"first"`
	Last   time.Time `json:"last"`
}

func (statusRow) Header() []string {
	return []string{"SYNC", "HOLD", "FAILED", "BLOCKED", "OLDEST", "DUE", "PENDING", "QUEUED", "RETRY", "SENDING", "LAST DELIVERED", "NOTE"}
}

func (s statusRow) Cells() []string {
	name, oldest := "(no sync matches)", ""
	if s.Sync != nil {
		name = *s.Sync
	}
	if s.Status.OldestPendingAge != nil {
		oldest = age(*s.Status.OldestPendingAge)
	}
	var notes []string
	if s.Note != "" {
		notes = append(notes, s.Note)
	}
	if s.Failed > 0 {
		notes = append(notes, fmt.Sprintf("%d failed wait for you: %s", s.Failed, listFailed(name)))
	}
	if s.Hold != nil {
		notes = append(notes, holdNote(*s.Hold, deref(s.HoldBy), s.HoldUntil, deref(s.HoldReason))+holdRemedy(*s.Hold, name, ""))
	}
	for i, h := range s.ScopeHolds {
		if i == mostScopesShown {
			notes = append(notes, fmt.Sprintf("%d more scopes on hold, see: SELECT * FROM outbox.hold", len(s.ScopeHolds)-i))
			break
		}
		notes = append(notes, fmt.Sprintf("scope %s %s", h.Scope, holdNote(h.Hold, h.By, h.Until, h.Reason)+holdRemedy(h.Hold, name, h.Scope)))
	}
	if s.Backfill != nil && deref(s.Hold) != string(outbox.HoldBackfill) { // the scope's hold says the same
		notes = append(notes, "events are being added: "+*s.Backfill)
	}
	for i, u := range s.UnmatchedTypes {
		if i == mostTypesShown {
			notes = append(notes, fmt.Sprintf("%d more types, see: SELECT * FROM outbox.unmatched_type", len(s.UnmatchedTypes)-i))
			break
		}
		notes = append(notes, fmt.Sprintf("%s: %s, the last at %s", u.Type, plural(int(u.Events), "event"), clock(&u.Last)))
	}
	if s.Unconfirmed > 0 {
		notes = append(notes, plural(int(s.Unconfirmed), "key")+" accepted and not confirmed, see: outbox.unconfirmed")
	}
	if s.Missed > 0 {
		notes = append(notes, plural(int(s.Missed), "event")+" without delivery, see: lockstep repair --dry-run")
	}
	hold := deref(s.Hold)
	if n := len(s.ScopeHolds); n > 0 {
		hold = strings.TrimPrefix(fmt.Sprintf("%s, %d of its scopes", hold, n), ", ")
	}
	cells := []string{name, hold, fmt.Sprint(s.Failed), fmt.Sprint(s.BlockedKeys), oldest}
	for _, n := range []int64{s.DueNow, s.Pending, s.Queued, s.Retry, s.Sending} {
		cells = append(cells, fmt.Sprint(n))
	}
	return append(cells, clock(s.LastDeliveredAt), strings.Join(notes, "; "))
}

// mostScopesShown is how many scopes on hold the table names. JSON has them all.
const mostScopesShown = 5

// mostTypesShown is how many unmatched types the table names. JSON has them all.
const mostTypesShown = 5

func holdNote(kind, by string, until *time.Time, reason string) string {
	text := "on hold by " + by
	if until != nil {
		word := "until"
		if kind == string(outbox.HoldAuth) || kind == string(outbox.HoldBreaker) {
			word = "next probe"
		}
		text += ", " + word + " " + clock(until)
	}
	return text + ": " + reason
}

// holdRemedy says what a person can do about a hold. Most holds end by themselves.
func holdRemedy(kind, sync, scope string) string {
	switch kind {
	case string(outbox.HoldAuth):
		return "; correct the credentials of the sync and reload the relays"
	case string(outbox.HoldOperator):
		return "; to end it: lockstep resume " + syncArguments(sync, scope)
	}
	return ""
}

// statusRows combines the counts of the database with the syncs of the file.
func statusRows(list []outbox.Status, f *config.File, known map[string]outbox.Registered, unmatched []unmatchedType) []statusRow {
	notes := map[string]string{}
	var rows []statusRow
	for _, s := range listSyncs(f, known) {
		notes[s.Name] = s.Note
		if !s.Registered {
			rows = append(rows, statusRow{Status: outbox.Status{Sync: &s.Name, ScopeHolds: []outbox.ScopeHold{}, Relays: []outbox.RelaySeen{}}, Note: s.Note})
		}
	}
	relays := allRelays(list)
	for _, s := range list {
		if s.Sync == nil && s.Pending == 0 && s.Missed == 0 {
			continue
		}
		row := statusRow{Status: s, Note: notes[deref(s.Sync)]}
		if s.Sync == nil {
			row.UnmatchedTypes = unmatched
		} else if s.RetiredAt == nil || s.Pending+s.Queued+s.Retry+s.Sending > 0 {
			row.Note = strings.TrimPrefix(row.Note+noRelay(s.Relays, relays), "; ")
		}
		if s.OldestPendingAge != nil {
			row.OldestSeconds = new(s.OldestPendingAge.Seconds())
		}
		rows = append(rows, row)
	}
	return rows
}

// allRelays are the relays of the database, which the row without a sync has.
func allRelays(list []outbox.Status) []outbox.RelaySeen {
	for _, s := range list {
		if s.Sync == nil {
			return s.Relays
		}
	}
	return nil
}

// noRelay says that nobody sends for a sync, given the relays that serve it and all relays.
func noRelay(serving, all []outbox.RelaySeen) string {
	isRunning := func(r outbox.RelaySeen) bool { return r.Running }
	switch {
	case !slices.ContainsFunc(all, isRunning):
		return "; no relay is running; start one with: lockstep run"
	case !slices.ContainsFunc(serving, isRunning):
		return "; no running relay serves this sync"
	}
	return ""
}

// relayRow is a line of status --relays: a row of outbox.relay.
type relayRow struct {
	Name      string    `json:"name"`
	Host      *string   `json:"host"`
	Version   *string   `json:"version"`
	Syncs     []string  `json:"syncs"`
	StartedAt time.Time `json:"started_at"`
	SeenAt    time.Time `json:"seen_at"`
	Running   bool      `json:"running"`
}

func (relayRow) Header() []string {
	return []string{"NAME", "HOST", "VERSION", "STATE", "STARTED", "SYNCS"}
}

func (r relayRow) Cells() []string {
	state := "running"
	if !r.Running {
		state = "not seen since " + clock(&r.SeenAt)
	}
	return []string{r.Name, deref(r.Host), deref(r.Version), state, clock(&r.StartedAt), strings.Join(r.Syncs, ", ")}
}

// printRelays prints the relays of the database.
func (a *app) printRelays(ctx context.Context, db *database) error {
	const list = `-- lockstep status: relays
SELECT name, host, version, syncs, started_at, seen_at, running FROM outbox.relay ORDER BY name, started_at`
	rows, err := query[relayRow](ctx, db.conn, list)
	if err != nil {
		return err
	}
	if err := output.Rows(a.stdout, a.format, rows...); err != nil {
		return err
	}
	if !slices.ContainsFunc(rows, func(r relayRow) bool { return r.Running }) {
		a.say("no relay is running; start one with: lockstep run")
	}
	return nil
}

// limits are the limits of status --max-lag and --max-failed.
type limits struct {
	lag    time.Duration
	failed int64
}

// exceeded returns a sentence for everything beyond the limits.
func (l limits) exceeded(rows []statusRow) []string {
	var found []string
	for _, s := range rows {
		if s.Sync == nil {
			continue
		}
		closed := deref(s.Hold) == string(outbox.HoldWindow) // its deliveries wait as planned
		if oldest := deref(s.Status.OldestPendingAge); l.lag > 0 && oldest > l.lag && !closed {
			found = append(found, fmt.Sprintf("%s: the oldest delivery that is not finished is %s old, more than %s", *s.Sync, age(oldest), age(l.lag)))
		}
		if l.failed >= 0 && s.Failed > l.failed {
			found = append(found, fmt.Sprintf("%s: %d failed, more than %d; see: %s", *s.Sync, s.Failed, l.failed, listFailed(*s.Sync)))
		}
	}
	return found
}

func (a *app) statusCommand() *cobra.Command {
	var (
		maxLag   duration
		tolerate int64
		relays   bool
	)
	c := &cobra.Command{
		Use:   "status",
		Short: "Show the state of each sync",
		Long: `Show the state of each sync: its hold, its scopes on hold (destinations such as
hosts), its open deliveries by state, and the keys that are blocked by a failed
or retried event. OLDEST is the age of the oldest delivery that is neither
finished nor failed. If events are being added to a sync, the note says what
they wait for. It also says if no running relay serves the sync. --relays lists
the relays themselves, with their versions; one that was not seen for 30 seconds
does not count as running. A sync of the database that is not in the configuration file is
called orphaned. The last line counts the events that no sync took when they were
written, by type. Times are UTC. lockstep top shows it live. The login needs the role outbox_auditor.

With --max-lag the command is a check. It exits with 3 when a delivery is older
than that, or when one has failed, because a failed delivery waits for an operator.
--max-failed N tolerates N failed deliveries per sync, -1 tolerates any number.
Without --max-lag it checks only failed deliveries. The age of deliveries is not
checked while a sync waits for its window to open.`,
		Example: `  lockstep status
  lockstep status --relays
  lockstep status --max-lag 5m > /dev/null || alert`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			l := limits{lag: time.Duration(maxLag), failed: -1}
			if cmd.Flags().Changed("max-lag") || cmd.Flags().Changed("max-failed") {
				l.failed = tolerate
			}
			if relays {
				return a.with(cmd, nil, roleAuditor, a.printRelays)
			}
			f, err := a.optionalFile()
			if err != nil {
				return err
			}
			return a.with(cmd, f, roleAuditor, func(ctx context.Context, db *database) error {
				rows, err := a.printStatus(ctx, db, f)
				if err != nil {
					return err
				}
				found := l.exceeded(rows)
				for _, sentence := range found {
					a.say("%s", sentence)
				}
				if len(found) > 0 {
					return errFound
				}
				return nil
			})
		},
	}
	c.Flags().Var(&maxLag, "max-lag", "exit with 3 if a delivery is open for longer than `D` (90s, 2h, 1d), or one has failed")
	c.Flags().Int64Var(&tolerate, "max-failed", 0, "failed deliveries per sync that the check tolerates; `N` = -1 tolerates any number")
	c.Flags().BoolVar(&relays, "relays", false, "list the relays of the database instead")
	for _, other := range []string{"max-lag", "max-failed"} {
		c.MarkFlagsMutuallyExclusive("relays", other)
	}
	return c
}

// printStatus prints the status.
func (a *app) printStatus(ctx context.Context, db *database, f *config.File) ([]statusRow, error) {
	list, err := db.store.Status(ctx)
	if err != nil {
		return nil, err
	}
	known, err := db.store.Syncs(ctx)
	if err != nil {
		return nil, err
	}
	const types = `-- lockstep status: unmatched types
SELECT type, events, first, last FROM outbox.unmatched_type ORDER BY events DESC, type`
	unmatched, err := query[unmatchedType](ctx, db.conn, types)
	if err != nil {
		return nil, err
	}
	rows := statusRows(list, f, known, unmatched)
	return rows, output.Rows(a.stdout, a.format, rows...)
}
