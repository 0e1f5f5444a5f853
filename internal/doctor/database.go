package doctor

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/hms-mkt/lockstep/outbox"
)

// server checks that the database answers, that Lockstep works with its engine, version and
// encoding, and that it keeps what it confirms.
func (o Options) server() Check {
	return Check{"server", "", func(ctx context.Context) (found []Finding, err error) {
		conn, err := o.Connect(ctx)
		if err != nil {
			return []Finding{problem("", "%v", err)}, nil
		}
		_ = conn.Close(ctx)
		state, err := o.Store.State(ctx)
		switch {
		case errors.Is(err, outbox.ErrServer):
			return []Finding{problem("", "%v", err)}, nil
		case err != nil && sqlState(err) != insufficientPrivilege: // then the check of the login says why
			return nil, err
		case state.ReadOnly != "":
			found = append(found, problem("", "the database accepts no writes: %s", state.ReadOnly))
		case state.Isolation != "" && state.Isolation != "read committed":
			found = append(found, problem("ALTER ROLE … SET default_transaction_isolation = 'read committed', for the login of the relays",
				"transactions of this login are %s, and a relay needs READ COMMITTED", state.Isolation))
		}
		const settings = `
SELECT name,
       CASE name WHEN 'fsync' THEN 'a crash of the server may lose deliveries and damage the database'
                 WHEN 'full_page_writes' THEN 'a crash of the server may damage the database'
                 ELSE 'a crash of the server may lose what was recorded last, and then it is sent again' END AS harm
  FROM pg_settings
 WHERE setting = 'off'
   AND name IN ('fsync', 'full_page_writes', 'synchronous_commit')
 ORDER BY name`
		type setting struct{ Name, Harm string }
		off, err := list[setting](ctx, o, settings)
		for _, s := range off {
			found = append(found, warning(fmt.Sprintf("turn %s on, as an administrator", s.Name), "%s is off: %s", s.Name, s.Harm))
		}
		if len(found) > 0 || err != nil {
			return found, err
		}
		type version struct{ Version string }
		answer, err := list[version](ctx, o, `SELECT split_part(version(), ' on ', 1) AS version`)
		for _, v := range answer {
			found = append(found, fine("%s, encoding UTF8, accepts writes", v.Version))
		}
		return found, err
	}}
}

// login checks that the login is a member of a group role of Lockstep.
func (o Options) login() Check {
	return Check{"login", "", func(ctx context.Context) ([]Finding, error) {
		const roles = `
SELECT session_user::text AS login,
       (SELECT a.rolsuper FROM pg_roles AS a WHERE a.rolname = session_user) AS superuser,
       array(SELECT r.rolname::text FROM pg_roles AS r
              WHERE r.rolname IN ('outbox_relay', 'outbox_operator', 'outbox_auditor', 'outbox_writer')
                AND pg_has_role(session_user, r.oid, 'USAGE')
              ORDER BY r.rolname) AS roles`
		type membership struct {
			Login     string
			Superuser bool
			Roles     []string
		}
		all, err := list[membership](ctx, o, roles)
		var found []Finding
		for _, m := range all {
			login := pgx.Identifier{m.Login}.Sanitize()
			readers := strings.Join(m.Roles, " ")
			switch {
			case m.Superuser:
				found = append(found, warning("give relays a login of their own, as an administrator: CREATE ROLE lockstep LOGIN IN ROLE outbox_relay",
					"login %s is a superuser, and a relay needs only the role outbox_relay", login))
			case !strings.Contains(readers, "outbox_relay") && !strings.Contains(readers, "outbox_operator") && !strings.Contains(readers, "outbox_auditor"):
				found = append(found, problem(fmt.Sprintf("as an administrator: GRANT outbox_relay TO %s; to look only: GRANT outbox_auditor TO %[1]s", login),
					"login %s is in no role that may read the outbox", login))
			default:
				found = append(found, fine("login %s is in %s", login, strings.Join(m.Roles, ", ")))
			}
		}
		return found, err
	}}
}

// schema checks the version of the schema.
func (o Options) schema() Check {
	return Check{"schema", "", func(ctx context.Context) ([]Finding, error) {
		state, err := o.Store.State(ctx)
		switch {
		case err != nil:
			return nil, err
		case state.Version == 0:
			return []Finding{problem("lockstep migrate up", "there is no outbox schema in this database")}, nil
		case state.Version < outbox.Schema:
			return []Finding{problem("lockstep migrate up", "the schema is version %d, and this program needs %d", state.Version, outbox.Schema)}, nil
		case state.Oldest > outbox.Schema:
			return []Finding{problem("install a newer lockstep", "the schema is version %d, which serves programs made for version %d and newer, and this one is made for %d",
				state.Version, state.Oldest, outbox.Schema)}, nil
		}
		return []Finding{fine("version %d", state.Version)}, nil
	}}
}

// triggers checks that all triggers of the schema are on.
func (o Options) triggers() Check {
	return Check{"triggers", "all are on", func(ctx context.Context) (found []Finding, err error) {
		const off = `
SELECT t.tgname::text AS name, t.tgrelid::regclass::text AS place
  FROM pg_trigger AS t
  JOIN pg_class AS c ON c.oid = t.tgrelid
 WHERE c.relnamespace = 'outbox'::regnamespace
   AND t.tgenabled NOT IN ('O', 'A')
   AND NOT t.tgisinternal
 ORDER BY 2, 1`
		type trigger struct{ Name, Place string }
		all, err := list[trigger](ctx, o, off)
		for _, t := range all {
			found = append(found, problem(fmt.Sprintf("as the owner: ALTER TABLE %s ENABLE TRIGGER %s; then: lockstep repair --dry-run", t.Place, pgx.Identifier{t.Name}.Sanitize()),
				"trigger %s of %s is off", t.Name, t.Place))
		}
		return found, err
	}}
}

// rowSecurity checks that no policy hides rows.
func (o Options) rowSecurity() Check {
	return Check{"row security", "hides no rows", func(ctx context.Context) (found []Finding, err error) {
		const active = `
SELECT c.oid::regclass::text AS place
  FROM pg_class AS c
 WHERE c.relnamespace = 'outbox'::regnamespace
   AND c.relkind IN ('r', 'p')
   AND c.relrowsecurity
 ORDER BY 1`
		type table struct{ Place string }
		all, err := list[table](ctx, o, active)
		for _, t := range all {
			found = append(found, problem(fmt.Sprintf("as the owner: ALTER TABLE %s DISABLE ROW LEVEL SECURITY", t.Place),
				"row-level security of %s may hide rows from relays", t.Place))
		}
		return found, err
	}}
}

// sequence checks that the numbers of new events rise.
func (o Options) sequence() Check {
	return Check{"sequence", "new events get rising numbers", func(ctx context.Context) ([]Finding, error) {
		type trouble struct{ Trouble *string }
		all, err := list[trouble](ctx, o, `SELECT outbox.sequence_trouble() AS trouble`)
		if err != nil || len(all) == 0 || all[0].Trouble == nil {
			return nil, err
		}
		says, remedy, _ := strings.Cut(*all[0].Trouble, "; ")
		return []Finding{problem(remedy, "%s", says)}, nil
	}}
}

// partitions checks that the log has partitions for the next months.
func (o Options) partitions() Check {
	return Check{"partitions", "", func(ctx context.Context) ([]Finding, error) {
		const remedy = "as the owner: SELECT * FROM outbox.maintain(), and see its text; a running relay calls it every ten minutes"
		months, err := o.Store.LogMonthsAhead(ctx)
		switch {
		case err != nil:
			return nil, err
		case months < 1:
			return []Finding{problem(remedy, "the delivery log has no partition for the next month")}, nil
		case months < 3:
			return []Finding{warning(remedy, "the delivery log has partitions for %d months ahead, not for 3", months)}, nil
		}
		return []Finding{fine("the delivery log has partitions for %d months ahead", months)}, nil
	}}
}
