package outbox

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5/pgtype"
)

// Heartbeat shows in outbox.relay that a relay is running. [NewHeartbeat] makes one.
type Heartbeat struct {
	instance      pgtype.UUID
	started       time.Time
	host, version string
	syncs         []string
}

// NewHeartbeat is for a relay that starts now and sends these syncs. Host and version may be
// empty.
func NewHeartbeat(host, version string, syncs []string) Heartbeat {
	return Heartbeat{instance: newToken(), started: time.Now(), host: host, version: version, syncs: syncs}
}

// Beat writes the row of the relay. If it is not called for 30 seconds, the relay counts as
// not running.
func (s *Store) Beat(ctx context.Context, h Heartbeat) error {
	const statement = `-- lockstep: heartbeat
INSERT INTO outbox.heartbeat (instance, name, host, version, syncs, started_at, seen_at)
VALUES ($1, $2, $3, $4, $5, clock_timestamp() - $6::interval, clock_timestamp())
ON CONFLICT (instance) DO UPDATE SET seen_at = clock_timestamp()`
	_, err := s.exec(ctx, statement, h.instance, s.relay, nullable(h.host), nullable(h.version), h.syncs, time.Since(h.started))
	return err
}

// EndBeat removes the row of the relay.
func (s *Store) EndBeat(ctx context.Context, h Heartbeat) error {
	_, err := s.exec(ctx, `DELETE FROM outbox.heartbeat WHERE instance = $1`, h.instance)
	return err
}
