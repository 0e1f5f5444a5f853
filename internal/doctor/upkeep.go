package doctor

import (
	"cmp"
	"context"
	"fmt"
	"time"
)

// Ages from which an open transaction is found. It keeps dead rows, and sync apply waits for it.
const (
	oldTransaction     = 15 * time.Minute
	veryOldTransaction = 6 * time.Hour

	// oldSnapshot is in transactions, for sessions whose times the login may not see.
	oldSnapshot = 1_000_000
)

// transactions looks for old transactions and prepared ones. A parallel worker ends with its
// session, and autovacuum removes dead rows: nobody must end these.
func (o Options) transactions() Check {
	return Check{"transactions", "", func(ctx context.Context) (found []Finding, err error) {
		const open = `
SELECT 'session' AS kind, a.pid::text AS id, coalesce(a.usename::text, '') AS login, coalesce(a.application_name, '') AS application,
       clock_timestamp() - a.xact_start AS age, greatest(age(a.backend_xid), age(a.backend_xmin)) AS behind
  FROM pg_stat_activity AS a
 WHERE a.datname = current_database()
   AND a.pid <> pg_backend_pid()
   AND a.backend_type NOT IN ('parallel worker', 'autovacuum worker')
   AND (a.xact_start IS NOT NULL OR a.backend_xmin IS NOT NULL OR a.backend_xid IS NOT NULL)
UNION ALL
SELECT 'prepared', p.gid, p.owner::text, '', clock_timestamp() - p.prepared, age(p.transaction)
  FROM pg_prepared_xacts AS p
 WHERE p.database = current_database()
 ORDER BY age DESC NULLS LAST, behind DESC NULLS LAST
 LIMIT 100`
		type transaction struct {
			Kind, ID, Login, Application string
			Age                          *time.Duration
			Behind                       *int32
		}
		all, err := list[transaction](ctx, o, open)
		old := cmp.Or(o.oldTransaction, oldTransaction)
		hidden := false
		for _, t := range all {
			who := fmt.Sprintf("pid %s of %s (%s)", t.ID, t.Login, t.Application)
			end := fmt.Sprintf("end it if nobody needs it, as an administrator: SELECT pg_terminate_backend(%s)", t.ID)
			switch {
			case t.Kind == "prepared" && t.Age != nil && *t.Age > old:
				found = append(found, problem(fmt.Sprintf("let its transaction manager end it, or in this database: ROLLBACK PREPARED %s", quote(t.ID)),
					"the prepared transaction %s of %s is open for %s: it keeps its locks, and dead rows stay", t.ID, t.Login, round(*t.Age)))
			case t.Age == nil && t.Behind != nil && *t.Behind > oldSnapshot:
				found = append(found, warning(end, "%s has a snapshot that is %d transactions old: dead rows stay", who, *t.Behind))
			case t.Age == nil:
				hidden = true
			case *t.Age > veryOldTransaction:
				found = append(found, problem(end, "the transaction of %s is open for %s: dead rows stay, and the tables grow", who, round(*t.Age)))
			case *t.Age > old:
				found = append(found, warning(end, "the transaction of %s is open for %s: dead rows stay meanwhile", who, round(*t.Age)))
			}
		}
		if len(found) > 0 || err != nil {
			return found, err
		}
		if hidden {
			return []Finding{fine("none keeps an old snapshot; the times of other logins are visible only to members of pg_read_all_stats")}, nil
		}
		return []Finding{fine("none is older than %s", round(oldTransaction))}, nil
	}}
}

// Sizes of what a slot keeps, in bytes.
const (
	muchWAL = 1 << 30
	mostWAL = 10 << 30
)

// slots looks for replication slots that keep much of the write-ahead log.
func (o Options) slots() Check {
	return Check{"replication slots", "", func(ctx context.Context) (found []Finding, err error) {
		const kept = `
SELECT s.slot_name::text AS name, s.active, coalesce(s.wal_status, '') AS wal_status,
       coalesce(pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_receive_lsn() ELSE pg_current_wal_lsn() END, s.restart_lsn), 0)::bigint AS kept
  FROM pg_replication_slots AS s
 ORDER BY kept DESC, name`
		type slot struct {
			Name      string
			Active    bool
			WalStatus string
			Kept      int64
		}
		all, err := list[slot](ctx, o, kept)
		for _, s := range all {
			state := "is in use"
			if !s.Active {
				state = "is not in use"
			}
			remedy := fmt.Sprintf("repair its subscriber, or as an administrator: SELECT pg_drop_replication_slot(%s)", quote(s.Name))
			switch {
			case s.WalStatus == "lost":
				found = append(found, problem(remedy, "slot %s has lost its part of the write-ahead log: its subscriber must be made anew", s.Name))
			case s.Kept > mostWAL || s.WalStatus == "unreserved":
				found = append(found, problem(remedy, "slot %s %s and keeps %s of the write-ahead log: the disk may become full", s.Name, state, size(s.Kept)))
			case s.Kept > muchWAL:
				found = append(found, warning(remedy, "slot %s %s and keeps %s of the write-ahead log", s.Name, state, size(s.Kept)))
			case !s.Active:
				found = append(found, warning(remedy, "slot %s is not in use and keeps %s of the write-ahead log: it grows", s.Name, size(s.Kept)))
			}
		}
		if len(found) > 0 || err != nil {
			return found, err
		}
		return []Finding{fine("%d, none keeps more than %s", len(all), size(muchWAL))}, nil
	}}
}

// manyDead is from how many dead rows a table is found that has more dead rows than live ones.
const manyDead = 10_000

// vacuum looks for tables that are not vacuumed.
func (o Options) vacuum() Check {
	return Check{"vacuum", "keeps up with dead rows", func(ctx context.Context) (found []Finding, err error) {
		const off = `
SELECT name
  FROM pg_settings
 WHERE name IN ('autovacuum', 'track_counts')
   AND setting = 'off'
 ORDER BY name`
		type setting struct{ Name string }
		settings, err := list[setting](ctx, o, off)
		if err != nil {
			return nil, err
		}
		for _, s := range settings {
			found = append(found, problem(fmt.Sprintf("as an administrator: ALTER SYSTEM SET %s = on, then: SELECT pg_reload_conf()", s.Name), "%s is off in the server: tables grow without end", s.Name))
		}
		const tables = `
SELECT c.oid::regclass::text AS name, coalesce(s.n_live_tup, 0) AS live, coalesce(s.n_dead_tup, 0) AS dead, pg_table_size(c.oid) AS bytes,
       coalesce(c.reloptions::text LIKE '%autovacuum_enabled=false%' OR c.reloptions::text LIKE '%autovacuum_enabled=off%', false) AS off
  FROM pg_class AS c
  LEFT JOIN pg_stat_user_tables AS s ON s.relid = c.oid
 WHERE c.relnamespace = 'outbox'::regnamespace
   AND c.relkind = 'r'
 ORDER BY 1`
		type table struct {
			Name       string
			Live, Dead int64
			Bytes      int64
			Off        bool
		}
		all, err := list[table](ctx, o, tables)
		for _, t := range all {
			if t.Off {
				found = append(found, problem(fmt.Sprintf("as the owner: ALTER TABLE %s RESET (autovacuum_enabled)", t.Name), "autovacuum of %s is off: the table grows without end", t.Name))
			}
			if t.Dead > manyDead && t.Dead > t.Live {
				found = append(found, warning(fmt.Sprintf("as the owner: VACUUM %s; if the dead rows stay, end the oldest transaction", t.Name),
					"%s has %d dead rows and %d live ones, in %s", t.Name, t.Dead, t.Live, size(t.Bytes)))
			}
		}
		return found, err
	}}
}
