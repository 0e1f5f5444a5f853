package relay

import (
	"context"
	"log/slog"
	"time"
)

const (
	maintainEvery  = 10 * time.Minute
	maintainRetry  = 10 * time.Second // after an error
	heldRetry      = 2 * time.Second  // while another session holds the lock
	heldIsTrouble  = time.Minute      // the maintenance of another relay takes less time
	sayHeldAgainIn = 10 * time.Minute // pause between messages about a lock that stays
)

// maintainLoop makes the next partitions of the log and applies retention.
func (r *Relay) maintainLoop(ctx context.Context) {
	defer r.maintain.end()
	var held heldMaintenance
	calls, retention := r.caller("maintain", ""), r.caller("read the retention", "")
	partitions := r.caller("read the log's partitions", "")
	retentionKnown := false
	for ctx.Err() == nil {
		r.maintain.begin()
		if !retentionKnown {
			retentionKnown = r.compareRetention(ctx, retention)
		}
		m, err := r.store.Maintain(ctx, r.config.KeepEvents, r.config.KeepLog)
		pause := time.Duration(0)
		if err != nil {
			pause = calls.failed(ctx, err)
		} else {
			calls.worked(ctx)
		}
		for _, what := range m.Done {
			r.log.InfoContext(ctx, "maintenance", "done", what)
		}
		for _, what := range m.Trouble {
			r.log.ErrorContext(ctx, "maintenance found trouble", "what", what)
		}
		if err == nil {
			held.note(ctx, r.log, time.Now(), m.Held)
		}
		r.checkLogAhead(ctx, partitions)
		r.maintain.end()
		switch {
		case err != nil:
			sleep(ctx, max(pause, maintainRetry))
		case len(m.Held) > 0:
			sleep(ctx, heldRetry)
		case m.More:
			sleep(ctx, 100*time.Millisecond)
		default:
			sleep(ctx, maintainEvery)
		}
	}
}

// compareRetention logs each retention that is longer in the database than in the
// configuration. It reports whether the database answered.
func (r *Relay) compareRetention(ctx context.Context, calls *caller) bool {
	kept, err := r.store.KeptLonger(ctx, r.config.KeepEvents, r.config.KeepLog)
	if err != nil {
		calls.failed(ctx, err)
		return false
	}
	calls.worked(ctx)
	for _, k := range kept {
		r.log.WarnContext(ctx, "the database keeps this longer than the configuration asks, and rules; its owner can change outbox.retention",
			"what", k.What, "kept", string(k.Keep), "asked", string(k.Asked))
	}
	return true
}

// checkLogAhead logs an error if next month's partition is missing. The relay stays ready:
// rows go to the default partition, and deliveries continue.
func (r *Relay) checkLogAhead(ctx context.Context, calls *caller) {
	months, err := r.store.LogMonthsAhead(ctx)
	if err != nil {
		calls.failed(ctx, err)
		return
	}
	calls.worked(ctx)
	r.config.Observer.LogAhead(months)
	if months < 1 {
		r.log.ErrorContext(ctx, "the delivery log has no partition for next month: rows would go to the default partition; see the lines about maintenance, or call outbox.maintain() as the owner",
			"months_ahead", months)
	}
}

// heldMaintenance says since when another session has the advisory lock of maintenance.
type heldMaintenance struct {
	since time.Time // zero if no session has it
	said  time.Time // time of the last error about it
}

func (h *heldMaintenance) note(ctx context.Context, log *slog.Logger, now time.Time, by []string) {
	if len(by) == 0 {
		*h = heldMaintenance{}
		return
	}
	switch {
	case h.since.IsZero():
		h.since = now
		log.InfoContext(ctx, "maintenance waits", "for", by)
	case now.Sub(h.since) >= heldIsTrouble && now.Sub(h.said) >= sayHeldAgainIn:
		h.said = now
		log.ErrorContext(ctx, "maintenance cannot run because another session holds its advisory lock: end that session",
			"for", by, "since", h.since.Round(time.Second))
	}
}
