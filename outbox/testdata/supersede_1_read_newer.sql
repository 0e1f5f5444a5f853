-- lockstep: read newer events
-- $1 sync, $2 keys, $3 whether the filter needs the payloads, $4 most deliveries per key
SELECT k.key, d.event_seq, d.rendered, e.id, coalesce(e.seq, d.event_seq), e.type, e.version, e.occurred_at,
       CASE WHEN $3 THEN e.payload END, CASE WHEN $3 THEN e.headers END
  FROM unnest($2::text[]) AS k (key)
 CROSS JOIN LATERAL (
       SELECT d.event_seq, d.event_id, d.body IS NOT NULL AS rendered
         FROM outbox.delivery AS d
        WHERE d.sync = $1 AND d.key = k.key AND (d.state = 'failed' OR d.due_at < 'infinity')
          AND d.event_seq > (SELECT l.judged FROM outbox.lane AS l WHERE l.sync = $1 AND l.key = k.key)
          AND d.event_seq > (SELECT min(f.event_seq) FROM outbox.delivery AS f WHERE f.sync = $1 AND f.key = k.key)
        ORDER BY d.event_seq
        LIMIT $4) AS d
  LEFT JOIN LATERAL (SELECT * FROM outbox.event WHERE id = d.event_id OFFSET 0) AS e ON true;
