package relay

import (
	"context"
	"time"
)

const (
	clockEvery     = 30 * time.Second // pause between comparisons of the clocks
	clockTolerance = 2 * time.Second  // a larger difference is logged
)

// clockLoop compares this machine's clock with the database's. Only the database's
// clock counts, so a difference does not affect deliveries. But it is confusing for
// people who compare the relay's own log with the delivery log.
func (r *Relay) clockLoop(ctx context.Context) {
	differed := false
	calls := r.caller("read the database's clock", "")
	for ctx.Err() == nil {
		ahead, within, err := r.store.ClockOffset(ctx)
		if err != nil {
			calls.failed(ctx, err)
		} else {
			calls.worked(ctx)
			r.config.Observer.Clock(ahead)
			differs := ahead.Abs()-within > clockTolerance
			switch {
			case differs:
				r.log.WarnContext(ctx, "database clock differs from this machine's: the database's decides; set both by NTP",
					"database_ahead_by", ahead.Round(time.Millisecond), "measured_within", within.Round(time.Millisecond))
			case differed:
				r.log.InfoContext(ctx, "database clock and this machine's agree again")
			}
			differed = differs
		}
		sleep(ctx, clockEvery)
	}
}
