package relay

import (
	"context"
	"os"
	"sync"
	"time"

	"github.com/hms-mkt/lockstep/outbox"
)

const (
	// beatEvery is the pause between heartbeats. After six that are missing, outbox.relay says
	// that the relay is not running.
	beatEvery = 5 * time.Second

	// endBeatWithin bounds the call that removes the heartbeat. If the database is away, a stop
	// must not take longer for it.
	endBeatWithin = 2 * time.Second
)

// beat shows in outbox.relay that this relay is running, also while it drains, until the
// caller calls end.
func (r *Relay) beat(ctx context.Context) (end func()) {
	host, _ := os.Hostname() // empty if it has none
	var syncs []string
	for _, p := range r.pipelines {
		syncs = append(syncs, p.sync.Name)
	}
	h := outbox.NewHeartbeat(host, r.config.Version, syncs)
	ctx, stop := context.WithCancel(context.WithoutCancel(ctx))
	var beating sync.WaitGroup
	beating.Go(func() {
		_ = r.supervise("heartbeat", func() error { r.beatLoop(ctx, h); return nil }) // it returns no error
	})
	return func() {
		stop()
		beating.Wait()
		r.endBeat(ctx, h)
	}
}

func (r *Relay) beatLoop(ctx context.Context, h outbox.Heartbeat) {
	calls := r.caller("write the heartbeat", "")
	for ctx.Err() == nil {
		pause := beatEvery
		if err := r.store.Beat(ctx, h); err != nil {
			pause = max(pause, calls.failed(ctx, err))
		} else {
			calls.worked(ctx)
		}
		sleep(ctx, pause)
	}
}

// endBeat removes the heartbeat. If that fails, outbox.maintain removes it later.
func (r *Relay) endBeat(ctx context.Context, h outbox.Heartbeat) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), endBeatWithin)
	defer cancel()
	if err := r.store.EndBeat(ctx, h); err != nil {
		r.log.WarnContext(ctx, "the heartbeat could not be removed: outbox.relay lists this relay for an hour", "error", err)
	}
}
