package outbox_test

import (
	"errors"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/hms-mkt/lockstep/outbox"
)

// The connections of a pool may lead to a primary that was demoted. After the first refusal they
// are closed, and the next call makes a new one.
func TestConnectionsThatAreReadOnlyAreLeft(t *testing.T) {
	d := newDesk(t)
	d.emit("H-1", 1)
	database := pgx.Identifier{d.text(`SELECT current_database()`)}.Sanitize()
	d.exec(`ALTER DATABASE ` + database + ` SET default_transaction_read_only = on`)
	s, err := outbox.Open(t.Context(), d.pool.Config().ConnString(), outbox.Options{MaxConnections: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	request := outbox.ClaimRequest{Sync: sync, Capacity: 1, Lanes: 1, Lease: time.Minute}
	if _, err := s.Syncs(t.Context()); err != nil { // connects
		t.Fatal(err)
	}
	d.exec(`SET default_transaction_read_only = off`)
	d.exec(`ALTER DATABASE ` + database + ` RESET default_transaction_read_only`)
	if _, err := s.Claim(t.Context(), request, &outbox.Arrivals{}); !errors.Is(err, outbox.ErrReadOnly) {
		t.Errorf("Claim on the old connection: %v, want ErrReadOnly", err)
	}
	if c, err := s.Claim(t.Context(), request, &outbox.Arrivals{}); err != nil || len(c.Deliveries) != 1 {
		t.Errorf("Claim after it: %d deliveries, %v; want 1", len(c.Deliveries), err)
	}
}
