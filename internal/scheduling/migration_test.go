package scheduling_test

import (
	"testing"

	"github.com/hms-mkt/lockstep/internal/pgtest"
	"github.com/hms-mkt/lockstep/migrations"
)

func TestMigrationGoesDownAndUpAgain(t *testing.T) {
	url := pgtest.New(t)
	c := openAs(t, url, "")
	c.book("H-1", nil).want(201)
	if err := migrations.Down(t.Context(), url, migrations.Scheduling, false); err != nil {
		t.Fatal(err)
	}
	c.call("GET", "/readyz", "").want(503)
	if n := len(c.events("H-1")); n != 1 {
		t.Errorf("the outbox has %d events of the hearing, want 1: it is a set of its own", n)
	}
	if err := migrations.Up(t.Context(), url, migrations.Scheduling); err != nil {
		t.Fatal(err)
	}
	c.call("GET", "/readyz", "").want(200)
	c.book("H-1", nil).want(201)
}
