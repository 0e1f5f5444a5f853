package relay

import (
	"context"
	"time"

	"github.com/hms-mkt/lockstep/outbox"
)

// Store is the interface of a relay to the database. Use an [outbox.Store], made by
// [outbox.Open]. The methods are called by several goroutines at once, and each returns
// within a bounded time.
type Store interface {
	// Claims and recordings of deliveries.

	Claim(context.Context, outbox.ClaimRequest, *outbox.Arrivals) (outbox.Claims, error)
	ClaimOne(context.Context, outbox.OneRequest) (outbox.Claims, error)
	Record(ctx context.Context, sync string, results []outbox.Result) outbox.Recorded

	LastReached(ctx context.Context, sync, key string) (eventType string, err error)

	// Holds, and slow work for a sync.

	Hold(ctx context.Context, sync, scope string, kind outbox.HoldKind, d time.Duration, reason string) error
	Probe(ctx context.Context, sync, scope string, within time.Duration) (outbox.Probe, error)
	ProbeAgain(ctx context.Context, sync, scope string, probes int, in time.Duration, untried bool) error
	Lift(ctx context.Context, sync, scope string) error
	LiftUnused(ctx context.Context, sync, scope string) (bool, error)
	ScopeHolds(ctx context.Context, sync string) ([]outbox.Hold, error)
	EndHolds(ctx context.Context, sync string, within time.Duration) error
	KeepWindow(ctx context.Context, sync string, w outbox.Window) (kept bool, now time.Time, err error)
	NoteDelivery(ctx context.Context, sync string, at time.Time) (bool, error)
	ReleaseBackfilled(ctx context.Context, sync string, page int) (int, error)
	Unconfirmed(ctx context.Context, sync string, n int) ([]*outbox.Delivery, error)
	Confirm(ctx context.Context, sync, eventID, reason string) error
	RepairTimes(ctx context.Context, sync, after string, page int) (string, error)

	// The relay as a whole.

	Check(context.Context) error
	CheckPrivileges(context.Context) error
	CheckNumbers(context.Context) error
	Beat(context.Context, outbox.Heartbeat) error
	EndBeat(context.Context, outbox.Heartbeat) error
	Register(context.Context, []outbox.Registration) (map[string]outbox.Registered, error)
	Syncs(context.Context) (map[string]outbox.Registered, error)
	NewBackfill(sync string) *outbox.Backfill
	Listen(ctx context.Context, listening func(), wake func(sync string)) error
	Maintain(ctx context.Context, keepEvents, keepLog outbox.Retention) (outbox.Maintenance, error)
	KeptLonger(ctx context.Context, keepEvents, keepLog outbox.Retention) ([]outbox.Kept, error)
	LogMonthsAhead(context.Context) (int, error)
	RaiseAlerts(context.Context) (raised []outbox.Raised, more bool, err error)
	ClockOffset(context.Context) (ahead, within time.Duration, err error)
}

var _ Store = (*outbox.Store)(nil)
