CREATE VIEW outbox.open_delivery AS
SELECT d.sync, d.event_seq, d.event_id, d.key,
       CASE WHEN d.state = 'failed' THEN 'failed'
            WHEN NOT f.leads OR d.error_class = 'backfill' THEN 'queued'
            WHEN l.claim IS NOT NULL THEN 'sending'
            ELSE d.state END COLLATE "C" AS state,
       d.attempts, d.due_at, CASE WHEN s.sends THEN l.claim END AS claim, CASE WHEN s.sends THEN l.claimed_by END AS claimed_by,
       CASE WHEN s.sends THEN l.due_at END AS lease_until, d.error_class, d.error, d.created_at, d.total_attempts, d.charged, d.unclear, d.spent_ms,
       CASE WHEN f.leads THEN coalesce(l.crashes, 0) ELSE 0 END AS crashes, d.revision, d.body_sha256, d.mapping_version,
       d.needed_by, d.escalates_at
  FROM outbox.delivery AS d
 CROSS JOIN LATERAL (
       SELECT NOT EXISTS (SELECT FROM outbox.delivery AS o
                           WHERE o.sync = d.sync AND o.key = d.key AND o.event_seq < d.event_seq) AS leads
       OFFSET 0) AS f
  LEFT JOIN outbox.lane AS l ON l.sync = d.sync AND l.key = d.key
 CROSS JOIN LATERAL (SELECT f.leads AND d.state <> 'failed' AND l.claim IS NOT NULL AS sends) AS s;
COMMENT ON VIEW outbox.open_delivery IS 'Open deliveries with their state: sending is the first delivery of a lane that a relay has claimed, queued is behind another of its key or waits for a backfill. Bodies are in outbox.delivery only.';

CREATE VIEW outbox.failed AS
SELECT d.sync, d.key, d.event_id, e.type AS event_type, e.version, d.attempts, d.total_attempts, d.error_class, d.error,
       d.created_at, clock_timestamp() - d.created_at AS age
  FROM outbox.delivery AS d
  LEFT JOIN outbox.event AS e ON e.id = d.event_id
 WHERE d.state = 'failed';
COMMENT ON VIEW outbox.failed IS 'Deliveries that wait for an operator.';

CREATE VIEW outbox.blocked_key AS
SELECT d.sync, d.key, d.event_id, d.event_seq, d.state, behind.behind, d.attempts, d.due_at, d.error_class, d.error
  FROM outbox.delivery AS d
 CROSS JOIN LATERAL (
       SELECT count(*) AS behind FROM outbox.delivery AS b
        WHERE b.sync = d.sync AND b.key = d.key AND b.event_seq > d.event_seq) AS behind
 WHERE d.state IN ('failed', 'retry')
   AND behind.behind > 0
   AND NOT EXISTS (SELECT FROM outbox.delivery AS f
                    WHERE f.sync = d.sync AND f.key = d.key AND f.event_seq < d.event_seq);
COMMENT ON VIEW outbox.blocked_key IS 'Keys whose first unfinished event is failed or in retry, and how many events wait behind it.';

CREATE VIEW outbox.unmatched_type AS
SELECT type, count(*) AS events, min(inserted_at) AS first, max(inserted_at) AS last
  FROM outbox.unmatched
 GROUP BY type;
COMMENT ON VIEW outbox.unmatched_type IS 'Types of events that no sync took when they were written: how many events are retained, and when the first and the last one was written.';

CREATE VIEW outbox.status AS
WITH delivery AS ( -- the states of outbox.open_delivery and the keys of outbox.blocked_key, in one scan
    SELECT d.sync, d.created_at, d.due_at, d.state AS stored, d.first AND d.next_seq IS NOT NULL AS blocks,
           CASE WHEN d.state = 'failed' THEN 'failed'
                WHEN NOT d.first OR d.error_class = 'backfill' THEN 'queued'
                WHEN l.claim IS NOT NULL THEN 'sending'
                ELSE d.state END AS state
      FROM (SELECT sync, key, state, error_class, due_at, created_at,
                   lag(event_seq) OVER lane IS NULL AS first, lead(event_seq) OVER lane AS next_seq
              FROM outbox.delivery
            WINDOW lane AS (PARTITION BY sync, key ORDER BY event_seq)) AS d
      LEFT JOIN outbox.lane AS l ON d.first AND l.sync = d.sync AND l.key = d.key
), open AS (
    SELECT sync,
           count(*) FILTER (WHERE state IN ('pending', 'retry') AND due_at <= clock_timestamp()) AS due_now,
           count(*) FILTER (WHERE state = 'pending') AS pending,
           count(*) FILTER (WHERE state = 'queued')  AS queued,
           count(*) FILTER (WHERE state = 'retry')   AS retry,
           count(*) FILTER (WHERE state = 'sending') AS sending,
           count(*) FILTER (WHERE state = 'failed')  AS failed,
           count(*) FILTER (WHERE blocks AND stored IN ('failed', 'retry')) AS blocked_keys,
           clock_timestamp() - min(created_at) FILTER (WHERE state <> 'failed') AS oldest_pending_age
      FROM delivery
     GROUP BY sync
), held AS (
    SELECT DISTINCT ON (sync, scope) sync, scope, kind, until, reason, by
      FROM outbox.hold
     WHERE kind IN ('auth', 'breaker') OR until IS NULL OR until > clock_timestamp()
     -- Not outbox.hold_rank: whoever may read a view would need EXECUTE on each function in it.
     ORDER BY sync, scope, array_position(ARRAY['operator', 'backfill', 'auth', 'breaker', 'throttle', 'window'], kind)
), held_scope AS (
    SELECT sync, jsonb_agg(jsonb_build_object('scope', scope, 'hold', kind, 'until', until, 'reason', reason, 'by', by) ORDER BY scope) AS holds
      FROM held
     WHERE scope <> ''
     GROUP BY sync
), known_relay AS (
    SELECT syncs, jsonb_build_object('name', name, 'host', host, 'version', version, 'started_at', started_at, 'seen_at', seen_at, 'running', running) AS relay
      FROM outbox.relay
     ORDER BY name, started_at
), serving AS (
    SELECT served.sync, jsonb_agg(r.relay) AS relays FROM known_relay AS r CROSS JOIN unnest(r.syncs) AS served (sync) GROUP BY served.sync
)
SELECT s.name AS sync, h.kind AS hold,
       coalesce(o.due_now, 0) AS due_now, coalesce(o.pending, 0) AS pending, coalesce(o.queued, 0) AS queued,
       coalesce(o.retry, 0) AS retry, coalesce(o.sending, 0) AS sending, coalesce(o.failed, 0) AS failed,
       coalesce(o.blocked_keys, 0) AS blocked_keys, o.oldest_pending_age, s.last_delivered_at,
       h.until AS hold_until, h.reason AS hold_reason, h.by AS hold_by, s.retired_at, s.backfill_reason AS backfill,
       coalesce(c.holds, '[]') AS scope_holds, coalesce(r.relays, '[]') AS relays,
       CASE WHEN s.retired_at IS NULL THEN (SELECT count(*) FROM outbox.missed AS m WHERE m.type LIKE ANY (s.likes)) ELSE 0 END AS missed
  FROM outbox.sync AS s
  LEFT JOIN held AS h ON h.sync = s.name AND h.scope = ''
  LEFT JOIN held_scope AS c ON c.sync = s.name
  LEFT JOIN open AS o ON o.sync = s.name
  LEFT JOIN serving AS r ON r.sync = s.name
UNION ALL
SELECT NULL, NULL, 0, (SELECT count(*) FROM outbox.unmatched), 0, 0, 0, 0, 0, NULL, NULL, NULL, NULL, NULL, NULL, NULL, '[]',
       (SELECT coalesce(jsonb_agg(relay), '[]') FROM known_relay),
       (SELECT count(*) FROM outbox.missed AS m WHERE NOT EXISTS (SELECT FROM outbox.sync AS s WHERE s.retired_at IS NULL AND m.type LIKE ANY (s.likes)));
COMMENT ON VIEW outbox.status IS 'One row per sync. hold is about the whole sync, scope_holds lists its scopes on hold, backfill says what a backfill does or waits for. In the row without a sync, pending counts the events that no sync matched, and relays has all relays of the database. missed counts the events of the sync that have no delivery because they were written with triggers off.';
