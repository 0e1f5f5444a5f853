package outbox_test

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/hms-mkt/lockstep/internal/pgtest"
	"github.com/hms-mkt/lockstep/outbox"
)

func TestOtherServersAreRefused(t *testing.T) {
	for version, want := range map[string]string{
		"PostgreSQL 15.18 (Debian 15.18-0+deb12u1) on x86_64-pc-linux-gnu, compiled by gcc (Debian 12.2.0-14+deb12u1) 12.2.0, 64-bit": "",
		"PostgreSQL 18beta1 on x86_64-pc-linux-musl, compiled by gcc":                                                                 "",
		"PostgreSQL 17.5 (EnterpriseDB Advanced Server 17.5.0) on x86_64-pc-linux-gnu":                                                "",
		"PostgreSQL 14.12 on aarch64-unknown-linux-gnu, compiled by gcc":                                                              `"PostgreSQL 14.12": upgrade the server`,
		"PostgreSQL 8.0.2 on i686-pc-linux-gnu, compiled by GCC gcc (GCC) 3.4.2 20041017 (Red Hat 3.4.2-6.fc3), Redshift 1.0.56242":   `"PostgreSQL 8.0.2"`,
		"PostgreSQL 12.12 (Greenplum Database 7.1.0 build commit:e7c2b1f) on x86_64-pc-linux-gnu":                                     `Greenplum Database 7.1.0`,
		"PostgreSQL 15.2-YB-2.25.0.0-b0 on x86_64-pc-linux-gnu, compiled by clang":                                                    `"PostgreSQL 15.2-YB-2.25.0.0-b0"`,
		"CockroachDB CCL v24.1.0 (x86_64-pc-linux-gnu, built 2024/05/15 21:28:29, go1.22.2)":                                          `"CockroachDB CCL v24.1.0 (x86_64`,
		"PostgreSQL 99999999999999999999 on a machine":                                                                                "",
	} {
		err := outbox.JudgeServer(version, "UTF8")
		switch {
		case want == "" && err != nil, want != "" && (!errors.Is(err, outbox.ErrServer) || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "needs PostgreSQL 15 or newer")):
			t.Errorf("%.40s: got %v, want %q", version, err, want)
		case outbox.IsTemporary(err):
			t.Errorf("%.40s: a relay would wait for another engine", version)
		}
	}
}

func TestDatabaseThatIsNotUTF8IsRefused(t *testing.T) {
	for _, encoding := range []string{"LATIN1", "SQL_ASCII"} {
		s := openStore(t, encoded(t, encoding), outbox.Options{})
		err := s.Check(t.Context())
		if !errors.Is(err, outbox.ErrServer) || !strings.Contains(err.Error(), "this one is in "+encoding) || outbox.Brief(err) != err.Error() {
			t.Errorf("%s: got %v", encoding, err)
		}
	}
}

// encoded returns the URL of an empty database in an encoding.
func encoded(t *testing.T, encoding string) string {
	t.Helper()
	u, err := url.Parse(pgtest.Empty(t))
	if err != nil {
		t.Fatal(err)
	}
	admin, err := pgx.Connect(t.Context(), u.String())
	if err != nil {
		t.Fatal(err)
	}
	name := strings.TrimPrefix(u.Path, "/") + "_" + strings.ToLower(encoding)
	t.Cleanup(func() {
		if _, err := admin.Exec(context.Background(), "DROP DATABASE IF EXISTS "+name+" WITH (FORCE)"); err != nil {
			t.Error(err)
		}
		_ = admin.Close(context.Background())
	})
	if _, err := admin.Exec(t.Context(), "CREATE DATABASE "+name+" TEMPLATE template0 LOCALE 'C' ENCODING '"+encoding+"'"); err != nil {
		t.Fatal(err)
	}
	u.Path = "/" + name
	return u.String()
}

// The settings of a login change nothing for a relay. This holds too if the URL says that
// there is a transaction pooler, through which most settings cannot be sent.
func TestSettingsOfTheLoginChangeNothing(t *testing.T) {
	hostile := map[string]string{
		"datestyle": "German, DMY", "intervalstyle": "sql_standard", "timezone": "Asia/Kolkata", "bytea_output": "escape",
		"standard_conforming_strings": "off", "escape_string_warning": "off", "client_encoding": "LATIN1", "extra_float_digits": "-10",
		"lc_messages": "C", "quote_all_identifiers": "on", "row_security": "off",
	}
	for mode, c := range map[string]struct {
		parameters string
		also       map[string]string
	}{
		"direct":  {"&datestyle=SQL&TimeZone=Asia/Tokyo&DateStyle=German", map[string]string{"search_path": "evil, pg_catalog", "idle_session_timeout": "1ms", "array_nulls": "off"}},
		"pooler":  {"&default_query_exec_mode=exec", nil},
		"no plan": {"&default_query_exec_mode=cache_describe", nil},
	} {
		t.Run(mode, func(t *testing.T) {
			d := newDesk(t)
			login := pgtest.AsRole(t, d.pool.Config().ConnString(), "outbox_relay")
			u, err := url.Parse(login)
			if err != nil {
				t.Fatal(err)
			}
			d.exec(`CREATE SCHEMA evil; GRANT USAGE ON SCHEMA evil TO PUBLIC`)
			d.exec(`CREATE FUNCTION evil.clock_timestamp() RETURNS timestamptz LANGUAGE sql RETURN 'infinity'::timestamptz`)
			for _, settings := range []map[string]string{hostile, c.also} {
				for name, value := range settings {
					if name != "search_path" {
						value = "'" + value + "'"
					}
					d.exec(fmt.Sprintf(`ALTER ROLE %s SET %s = %s`, u.User.Username(), name, value))
				}
			}
			s := openStore(t, login+c.parameters, outbox.Options{Name: "hostile"})
			if err := s.Check(t.Context()); err != nil {
				t.Fatal(err)
			}
			a := &outbox.Arrivals{}
			claim := func() *outbox.Delivery {
				t.Helper()
				claims, err := s.Claim(t.Context(), outbox.ClaimRequest{Sync: sync, Capacity: 1, Lanes: 1, Lease: time.Minute}, a)
				if err != nil || len(claims.Deliveries) != 1 {
					t.Fatalf("claimed %d, %v", len(claims.Deliveries), err)
				}
				return claims.Deliveries[0]
			}
			d.exec(`INSERT INTO outbox.event (type, key, payload, occurred_at) VALUES ('x', 'Dvořák\1', '{"court": "Dvořák \\ \u0041"}', '2027-03-04 05:06:07.123456+00')`)
			first := claim()
			body := []byte("Dvořák\x00\\\xff")
			if done := s.Record(t.Context(), sync, []outbox.Result{{
				Delivery: withBody(first, body), Outcome: outbox.Retry, Attempt: true, Class: "transient", Error: `Dvořák \ '`,
				AnsweredAt: time.Now(), SHA256: strings.Repeat("a", 64),
			}}); done.Err != nil || !done.Done[0] {
				t.Fatalf("record: %+v", done)
			}
			second := claim()
			if second.Key != `Dvořák\1` || !slices.Equal(second.Body, body) || string(second.Event.Payload) != `{"court": "Dvořák \\ A"}` ||
				!second.Event.OccurredAt.Equal(time.Date(2027, 3, 4, 5, 6, 7, 123456000, time.UTC)) {
				t.Errorf("claimed %+v, event %+v, body %q", second, second.Event, second.Body)
			}
			if got := d.text(`SELECT error FROM outbox.delivery_log`); got != `Dvořák \ '` {
				t.Errorf("logged %q", got)
			}
			d.exec(`UPDATE outbox.delivery SET created_at = created_at - interval '40 days 1 hour'`)
			list, err := s.Status(t.Context())
			if err != nil || list[0].OldestPendingAge == nil || *list[0].OldestPendingAge < 40*24*time.Hour {
				t.Errorf("status %+v, %v", list, err)
			}
			if _, err := s.Maintain(t.Context(), "90 days", "84 months"); err != nil {
				t.Error(err)
			}
			if _, err := s.Syncs(t.Context()); err != nil {
				t.Error(err)
			}
			if err := s.Hold(t.Context(), sync, "", outbox.HoldThrottle, time.Minute, `Dvořák \`); err != nil {
				t.Error(err)
			}
			claims, err := s.Claim(t.Context(), outbox.ClaimRequest{Sync: sync, Capacity: 1, Lanes: 1, Lease: time.Minute}, a)
			if err != nil || claims.Hold == nil || claims.Hold.Reason != `Dvořák \` || time.Until(claims.Hold.Until) > 2*time.Minute || time.Until(claims.Hold.Until) < 0 {
				t.Errorf("hold %+v, %v", claims.Hold, err)
			}
			now := time.Now()
			kept, clock, err := s.KeepWindow(t.Context(), sync, outbox.Window{From: now.Add(-time.Hour), Until: now.Add(time.Hour), Reason: `Dvořák \`})
			if err != nil || !kept || time.Since(clock).Abs() > time.Minute || d.text(`SELECT reason FROM outbox.hold WHERE kind = 'window' AND until > now()`) != `Dvořák \` {
				t.Errorf("window kept: %t at %s, %v", kept, clock, err)
			}
			if kept, _, err = s.KeepWindow(t.Context(), sync, outbox.Window{Open: true, Until: now.AddDate(1000, 0, 0)}); err != nil || !kept {
				t.Errorf("window kept: %t, %v", kept, err)
			}
		})
	}
}

func withBody(d *outbox.Delivery, body []byte) *outbox.Delivery {
	d.Body = body
	return d
}

// The cause of a login that is read-only is not taken for a standby.
func TestReadOnlyLoginIsNamedAsTheCause(t *testing.T) {
	admin := newDesk(t)
	login := pgtest.AsRole(t, admin.pool.Config().ConnString(), "outbox_relay")
	u, err := url.Parse(login)
	if err != nil {
		t.Fatal(err)
	}
	admin.exec(`ALTER ROLE ` + u.User.Username() + ` SET default_transaction_read_only = on`)
	for what, at := range map[string]struct{ url, want string }{
		"the login":     {login, "for the login: turn it off with ALTER ROLE"},
		"the URL":       {login + "&default_transaction_read_only=on", "by the database URL"},
		"several hosts": {strings.Replace(login, u.Host, u.Host+","+u.Host, 1), "for the login: turn it off with ALTER ROLE"},
	} {
		if err := openStore(t, at.url, outbox.Options{}).Check(t.Context()); !outbox.IsTemporary(err) || !strings.Contains(err.Error(), at.want) {
			t.Errorf("%s: got %v", what, err)
		}
	}
}

// The numbers of events must rise in the order of the inserts, or a writer gets an error, or an event comes before others
// of its key that were sent already.
func TestNumbersThatBeginAnewAreNoticed(t *testing.T) {
	const remedy = "ALTER SEQUENCE outbox.event_seq_seq INCREMENT BY 1 NO CYCLE CACHE 1"
	for name, c := range map[string]struct{ change, want, remedy string }{
		"new database":              {"SELECT", "", ""},
		"events":                    {"INSERT INTO outbox.event (type, key, payload) SELECT 'x', 'k', '{}' FROM generate_series(1, 5)", "", ""},
		"number left out":           {"SELECT nextval('outbox.event_seq_seq')", "", ""},
		"restart without events":    {"ALTER SEQUENCE outbox.event_seq_seq RESTART", "", ""},
		"restart":                   {"INSERT INTO outbox.event (type, key, payload) SELECT 'x', 'k', '{}' FROM generate_series(1, 5); ALTER TABLE outbox.event ALTER COLUMN seq RESTART", "next event would get number 1, but numbers up to 5 were used", "SELECT setval('outbox.event_seq_seq', 5)"},
		"logical replication":       {"INSERT INTO outbox.event (type, key, payload) SELECT 'x', 'k', '{}' FROM generate_series(1, 5); SELECT setval('outbox.event_seq_seq', 3)", "next event would get number 4, but numbers up to 5 were used", "SELECT setval('outbox.event_seq_seq', 5)"},
		"truncated":                 {"INSERT INTO outbox.external_ref (sync, key, external_id, event_seq) VALUES ('s', 'k', 'E', 7); TRUNCATE outbox.event RESTART IDENTITY", "numbers up to 7 were used", "SELECT setval('outbox.event_seq_seq', 7)"},
		"unmatched events are left": {"INSERT INTO outbox.unmatched (event_seq, event_id, type, inserted_at) VALUES (9, gen_random_uuid(), 'x', now())", "numbers up to 9 were used", "SELECT setval('outbox.event_seq_seq', 9)"},
		"replay":                    {"INSERT INTO outbox.delivery (sync, key, event_seq, event_id) VALUES ('s', 'k', 8, gen_random_uuid())", "numbers up to 8 were used", "SELECT setval('outbox.event_seq_seq', 8)"},
		"cache":                     {"ALTER SEQUENCE outbox.event_seq_seq CACHE 10", "has a cache", remedy},
		"cycle":                     {"ALTER SEQUENCE outbox.event_seq_seq CYCLE", "cycles", remedy},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDesk(t)
			d.exec(c.change)
			err := d.a.CheckNumbers(t.Context())
			if c.want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if !errors.Is(err, outbox.ErrNumbers) || outbox.IsTemporary(err) || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "as the owner: "+c.remedy) {
				t.Errorf("got %v, want %q and %q", err, c.want, c.remedy)
			}
			m, err := d.a.Maintain(t.Context(), "90 days", "84 months")
			if err != nil || !slices.ContainsFunc(m.Trouble, func(said string) bool { return strings.Contains(said, c.want) }) {
				t.Errorf("maintain says %q, %v", m.Trouble, err)
			}
			d.exec(c.remedy)
			if err := d.a.CheckNumbers(t.Context()); err != nil {
				t.Errorf("after the remedy: %v", err)
			}
		})
	}
}
