package relay

import (
	"context"
	"log/slog"
	"time"
)

const (
	alertEvery = 5 * time.Second
	alertMore  = 100 * time.Millisecond // after a call that has not looked at all deliveries
)

// alertLoop tells people what has changed: in the log, and by operator events for the syncs
// that take them. The database lets one relay at a time do it, so each change is in the log
// of one relay.
func (r *Relay) alertLoop(ctx context.Context) {
	calls := r.caller("raise alerts", "")
	for ctx.Err() == nil {
		pause := alertEvery
		raised, more, err := r.store.RaiseAlerts(ctx)
		if err != nil {
			pause = max(pause, calls.failed(ctx, err))
		} else {
			calls.worked(ctx)
		}
		for _, a := range raised {
			level := slog.LevelWarn
			switch a.Severity {
			case "critical":
				level = slog.LevelError
			case "info":
				level = slog.LevelInfo
			}
			args := []any{"type", a.Type, "sync", a.Sync, "says", a.Says, "count", a.N}
			if a.EventID != nil {
				args = append(args, "event", *a.EventID)
			}
			r.log.Log(ctx, level, "alert", args...)
		}
		for _, a := range raised {
			r.config.Observer.Alert(a.Type, a.Sync, a.N)
		}
		if more {
			pause = alertMore
		}
		sleep(ctx, pause)
	}
}
