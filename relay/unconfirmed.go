package relay

import (
	"context"
	"time"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/outbox"
	"github.com/hms-mkt/lockstep/relay/mapping"
)

const (
	// confirmEvery is the pause between looks for accepted events. With half, the database is
	// asked twice as often. With double, an event that the receiver has processed is confirmed
	// later.
	confirmEvery = 5 * time.Second

	// confirmAtOnce is how many events are looked at in a round, one after the other. With
	// half, a receiver that accepts many events is read later. With double, it is read more.
	confirmAtOnce = 20
)

// confirmLoop looks at what the receiver has only accepted, until ctx ends. Without an
// adapter that can read, it only removes what a later delivery has settled.
func (p *pipeline) confirmLoop(ctx context.Context) {
	calls := p.relay.caller("settle accepted events", p.sync.Name)
	for ctx.Err() == nil {
		p = p.now()
		pause := confirmEvery
		if p.hold.Load() == nil {
			unconfirmed, err := p.relay.store.Unconfirmed(ctx, p.sync.Name, confirmAtOnce)
			for _, d := range unconfirmed {
				if err == nil && ctx.Err() == nil {
					err = p.confirm(ctx, d)
				}
			}
			switch {
			case ctx.Err() != nil:
				return
			case err != nil:
				pause = max(pause, calls.failed(ctx, err))
			default:
				calls.worked(ctx)
			}
		}
		sleep(ctx, pause)
	}
}

// confirm reads whether the receiver has processed an event, and notes it. Of a read that
// fails, and of one that finds something else, nothing is noted: the event stays unconfirmed.
func (p *pipeline) confirm(ctx context.Context, d *outbox.Delivery) error {
	reader, ok := p.sync.Adapter.(adapters.Reader)
	if !ok || p.abandoned.has(d.Event.ID) {
		return nil
	}
	r := p.evaluate(d, func(d *outbox.Delivery, w mapping.Watcher) rendered { return p.render(d, p.routeOf(d), w) })
	d.Body = r.body
	if m := p.message(d); r.err == nil && r.wanted && reader.Reads(m) {
		ctx, cancel := context.WithTimeoutCause(ctx, p.sync.AttemptTimeout(), errLeaseEnds)
		defer cancel()
		var result outbox.Result
		result.Delivery = d
		if reading, err := p.readInto(ctx, reader, m, &result); err == nil && reading.Standing == adapters.Equal {
			return p.relay.store.Confirm(context.WithoutCancel(ctx), p.sync.Name, d.Event.ID, settled+": "+result.Read.Code)
		}
	}
	return nil
}
