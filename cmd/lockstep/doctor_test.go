package main

import (
	"net/url"
	"strings"
	"testing"

	"github.com/hms-mkt/lockstep/internal/doctor"
	"github.com/hms-mkt/lockstep/internal/pgtest"
	"github.com/hms-mkt/lockstep/internal/waiting"
	"github.com/hms-mkt/lockstep/migrations"
)

func TestDoctor(t *testing.T) {
	w := newWorld(t)
	relay, auditor := w.as(roleRelay), w.as(roleAuditor)
	relay.run("doctor").wants(t, exitFound, "configuration", "COURT_TOKEN is not set")
	relay.env["COURT_TOKEN"], auditor.env["COURT_TOKEN"] = "court-token-canary", "court-token-canary"
	relay.run("doctor").wants(t, exitFound, "no relay is running", "lockstep run", "not registered: lockstep run registers it")
	w.relayUntil(`SELECT EXISTS (SELECT FROM outbox.sync)`)
	if _, err := w.conn.Exec(t.Context(), `INSERT INTO outbox.heartbeat (instance, name, version, syncs, started_at, seen_at)
		SELECT gen_random_uuid(), 'relay', $1, '{CourtCalendarSync}', now(), now()`, thisBuild().Version); err != nil {
		t.Fatal(err)
	}
	relay.run("doctor").wants(t, 0, w.court.Listener.Addr().String()+": reached", "those of the file are as in the database", "the schema is as the migrations make it")
	for _, f := range decode[[]doctor.Finding](t, auditor.run("doctor", "--output", "json").wants(t, 0)) {
		if f.Name == "sequence" && f.Severity != doctor.Warning || f.Name == "drift" && f.Severity != doctor.OK {
			t.Errorf("with the login of an auditor: %+v", f)
		}
	}
}

func TestDoctorWithoutADatabase(t *testing.T) {
	w := newWorld(t)
	w.env["DATABASE_URL"] = "postgres://nobody@127.0.0.1:1/agency"
	w.run("doctor").wants(t, exitFound, "cannot be reached", "1 problem, 0 warnings")
	w.env["DATABASE_URL"] = pgtest.Empty(t)
	w.run("doctor").wants(t, exitFound, "there is no outbox schema in this database", "lockstep migrate up")
}

func TestDoctorOfReceivers(t *testing.T) {
	w := newWorld(t)
	w.court.Close()
	w.run("doctor").wants(t, exitFound, "receiver", "connection refused")
	if r := w.run("doctor", "--no-network"); strings.Contains(r.stdout, "refused") {
		t.Errorf("--no-network connects: %s", r.stdout)
	}
	w.run("doctor", "--no-network", "--tokens").wants(t, exitUsage, "exclude each other")
}

// A file that a relay refuses still says where the database is.
func TestDoctorOfAFileThatARelayRefuses(t *testing.T) {
	w := newWorld(t)
	w.configure("database: {url: '" + w.env["DATABASE_URL"] + "'}")
	delete(w.env, "DATABASE_URL")
	w.run("doctor").wants(t, exitFound, "no syncs", "the schema is as the migrations make it")
	w.env["LOCKSTEP_CONFIG"] = ""
	w.run("doctor").wants(t, exitUsage, "no database")
}

// Like a relay, the doctor takes the host that accepts writes. If none does, it says so.
func TestDoctorWithSeveralHosts(t *testing.T) {
	t.Parallel()
	primary, database := pgtest.Own(t, pgtest.Options{})
	if err := migrations.Up(t.Context(), database, migrations.Outbox); err != nil {
		t.Fatal(err)
	}
	standby, err := primary.Standby(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = standby.Stop() })
	first, second := parsed(t, standby.URL("agency")), parsed(t, database)
	s := &shell{t: t, env: map[string]string{"DATABASE_URL": first.String()}}
	waiting.For(t, waitTimeout, "the standby has the schema", func() bool {
		return strings.Contains(s.run("doctor").stdout, "the schema is as the migrations make it")
	})
	s.run("doctor").wants(t, exitFound, "accepts no writes", "standby")
	first.Host += "," + second.Host
	s.env["DATABASE_URL"] = first.String()
	if r := s.run("doctor").wants(t, exitFound, "no relay is running"); strings.Contains(r.stdout, "standby") {
		t.Errorf("the doctor examines the standby: %s", r.stdout)
	}
}

func parsed(t *testing.T, text string) *url.URL {
	t.Helper()
	u, err := url.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return u
}
