package main

import (
	"context"
	"log/slog"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"

	"github.com/hms-mkt/lockstep/relay"
)

// manager tells systemd how the relay is (sd_notify(3)): READY once it has started, STATUS
// with what it waits for, RELOADING, STOPPING, and WATCHDOG while no loop is stuck. Without
// NOTIFY_SOCKET it does nothing. It is safe for concurrent use.
type manager struct {
	relay *relay.Relay
	log   *slog.Logger
	said  string // the last STATUS
}

func newManager(r *relay.Relay, log *slog.Logger) *manager { return &manager{relay: r, log: log} }

// statusEvery is how often the status is looked at.
const statusEvery = 5 * time.Second

// loop tells systemd until ctx ends. The relay counts as started even while it waits for its
// database: systemd would only start it anew. It is stopped and started by the watchdog if a
// loop is stuck, but not if the database or a receiver is away.
func (m *manager) loop(ctx context.Context) {
	watchdog, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		m.log.WarnContext(ctx, "the watchdog of systemd is not used", "error", err)
	}
	if !m.tell(ctx, daemon.SdNotifyReady) {
		return
	}
	every := statusEvery
	if watchdog > 0 {
		every = min(every, watchdog/2)
	}
	ticks := time.NewTicker(every)
	defer ticks.Stop()
	for {
		m.look(ctx, watchdog > 0)
		select {
		case <-ctx.Done():
			m.tell(ctx, daemon.SdNotifyStopping+"\nSTATUS=finishes what is in flight")
			return
		case <-ticks.C:
		}
	}
}

// look tells the status if it has changed, and feeds the watchdog unless a loop is stuck.
func (m *manager) look(ctx context.Context, watchdog bool) {
	if stuck := m.relay.Alive(); stuck == nil && watchdog {
		m.tell(ctx, daemon.SdNotifyWatchdog)
	}
	bounded, cancel := context.WithTimeout(ctx, statusEvery/2)
	defer cancel()
	says := "relays events"
	if err := m.relay.Ready(bounded); err != nil {
		says = "not ready: " + err.Error()
	}
	if ctx.Err() == nil && says != m.said {
		m.said = says
		m.tell(ctx, "STATUS="+says)
	}
}

// reloading says that the configuration is being read again, and reloaded that this has ended.
func (m *manager) reloading() {
	m.tell(context.Background(), daemon.SdNotifyReloading+"\n"+daemon.SdNotifyMonotonicUsec())
}

func (m *manager) reloaded() { m.tell(context.Background(), daemon.SdNotifyReady) }

// tell sends a state, and reports whether anybody listens.
func (m *manager) tell(ctx context.Context, state string) bool {
	sent, err := daemon.SdNotify(false, state)
	if err != nil {
		m.log.WarnContext(ctx, "systemd was not told", "state", state, "error", err)
	}
	return sent || err != nil
}
