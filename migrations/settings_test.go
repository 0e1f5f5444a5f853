package migrations_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/hms-mkt/lockstep/internal/outboxtest"
	"github.com/hms-mkt/lockstep/internal/pgtest"
)

// hostile are settings of a session that change the meaning or the form of text.
const hostile = `
SET standard_conforming_strings = off; SET escape_string_warning = on; SET backslash_quote = off;
SET datestyle = 'German, DMY'; SET timezone = 'Pacific/Kiritimati'; SET intervalstyle = 'sql_standard';
SET bytea_output = 'escape'; SET array_nulls = off; SET quote_all_identifiers = on; SET transform_null_equals = on;
SET extra_float_digits = -15; SET row_security = off; SET xmlbinary = hex; SET search_path = evil, pg_catalog;
SET default_transaction_deferrable = on; SET enable_indexscan = off; SET enable_seqscan = off; SET join_collapse_limit = 1`

// Every function does the same, whatever its caller has set.
func TestSettingsOfTheCallerChangeNothing(t *testing.T) {
	state := func(settings string) []string {
		url := pgtest.New(t)
		d := outboxtest.Connect(t, url)
		d.Do("CREATE SCHEMA evil; GRANT USAGE ON SCHEMA evil TO PUBLIC")
		d.Do("CREATE FUNCTION evil.clock_timestamp() RETURNS timestamptz LANGUAGE sql RETURN 'infinity'::timestamptz")
		d.Do("CREATE FUNCTION evil.replace(text, text, text) RETURNS text LANGUAGE sql RETURN 'evil'")
		session := func(role string) outboxtest.Session {
			s := outboxtest.As(t, url, role)
			if settings != "" {
				s.Do(settings)
			}
			return s
		}
		writer, relay, operator := session("outbox_writer"), session("outbox_relay"), session("outbox_operator")
		event := func(insert string, args ...any) string {
			return outboxtest.One[string](writer, insert, args...)
		}

		relay.Do("INSERT INTO outbox.sync (name, patterns) VALUES ('court', $1)", []string{`a_b\*`, "x:*"})
		d.Do("DROP TABLE outbox." + outboxtest.One[string](d, "SELECT max(c.relname) FROM pg_class AS c WHERE c.relname ~ '^delivery_log_[0-9]' AND c.relkind = 'r'"))
		old := old(d, 90)
		relay.Do("SELECT * FROM outbox.maintain()")
		if got := months(d); len(got) != 4 {
			t.Errorf("months %v with %s, without %s", got, settings, old)
		}
		first := event(`INSERT INTO outbox.event (type, key, payload) VALUES ($1, $2, '{}') RETURNING id::text`, `a_b\c`, `k\n'1`)
		event(`INSERT INTO outbox.event (type, key, payload) VALUES ($1, $2, '{}') RETURNING id::text`, `aXb\c`, `k\n'1`) // unmatched
		second := event(`SELECT outbox.emit('x:y', $1, '{"d": "01.02.2027"}', 7, '{}', NULL)::text`, `k\2`)
		d.Fail(first)
		d.Fail(second)
		operator.Do("SELECT set_config('lockstep.actor', $1, false)", `N. N. \`)
		operator.Do(`UPDATE outbox.delivery SET state = 'pending' WHERE state = 'failed' AND key = $1`, `k\n'1`)
		operator.Do("SELECT outbox.requeue('court', $1, NULL, $2)", `k\2`, "said \\ \t \x1b ")
		operator.Do("SELECT outbox.discard('court', $1, $2)", first, `\d`)
		d.Deliver(second)
		operator.Do("SELECT outbox.replay('court', $1, $2)", second, `\r`)
		operator.Do("SELECT outbox.pause('court', $1, '2037-01-02 03:04:05+00')", `\p`)
		operator.Do("SELECT outbox.pause('court', $1, NULL, $2)", `\p`, `a\b`)
		operator.Do("SELECT outbox.resume('court', $1)", `a\b`)
		operator.Do("SELECT outbox.set_reference('court', $1, $2, NULL, $3)", `k\2`, `E\1`, `\s`)
		d.Past("INSERT INTO outbox.event (type, key, payload) VALUES ($1, 'unseen', '{}')", `a_b\z`)
		relay.Do("SELECT * FROM outbox.maintain()")
		operator.Do("SELECT * FROM outbox.repair()")
		operator.Do("SELECT outbox.retire('court', $1)", `\t`)
		operator.Do("SELECT outbox.resume_retired('court', $1)", `\u`)
		for _, view := range []string{"status", "failed", "blocked_key", "open_delivery", "unmatched_type"} {
			operator.Do("SELECT * FROM outbox." + view)
		}
		operator.Do("SELECT outbox.why_not_delivered($1)", second)
		got := months(d)
		got = append(got, outboxtest.List[string](d, `SELECT pg_get_expr(c.relpartbound, c.oid) FROM pg_class AS c WHERE c.relname ~ '^delivery_log_[0-9]' AND c.relkind = 'r' ORDER BY c.relname`)...)
		got = append(got, outboxtest.List[string](d, "SELECT concat_ws('|', name, patterns::text, likes::text, hold_kind, hold_until, hold_reason, retired_at) FROM outbox.sync")...)
		got = append(got, outboxtest.List[string](d, "SELECT concat_ws('|', key, state, event_seq, revision, error) FROM outbox.open_delivery ORDER BY event_seq")...)
		got = append(got, outboxtest.List[string](d, "SELECT concat_ws('|', event_seq, type) FROM outbox.unmatched ORDER BY event_seq")...)
		got = append(got, outboxtest.List[string](d, `SELECT concat_ws('|', sync, outcome, key, event_type, split_part(actor, '/', 2), regexp_replace(reason, '20\d\d-\d\d-\d\d \d\d:\d\d:\d\d\.\d+\+00', 'TIME')) FROM outbox.delivery_log WHERE outcome <> 'delivered' OR event_type IS NOT NULL ORDER BY id`)...)
		return append(got, outboxtest.List[string](d, "SELECT concat_ws('|', key, external_id) FROM outbox.external_ref")...)
	}
	want := state("")
	if diff := cmp.Diff(want, state(hostile)); diff != "" {
		t.Errorf("with other settings (+) than the default (-)\n%s", diff)
	}
	if len(want) < 15 {
		t.Errorf("only %q", want)
	}
}
