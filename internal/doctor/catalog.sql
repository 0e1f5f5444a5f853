-- lockstep doctor: what the schema consists of. One row per object; the same in PostgreSQL 15 and newer.
-- The months of the log are left out, because they come and go.
WITH relation AS (
    SELECT c.oid, c.relname, c.relkind, c.relacl, c.relowner, c.relrowsecurity, c.relpersistence
      FROM pg_class AS c
     WHERE c.relnamespace = 'outbox'::regnamespace
       AND c.relkind IN ('r', 'p', 'v', 'S')
       AND c.relname !~ '^delivery_log_[0-9]{4}_[0-9]{2}$'
), granted AS (
    SELECT 'schema outbox' AS place, a.* FROM pg_namespace AS n CROSS JOIN LATERAL aclexplode(n.nspacl) AS a WHERE n.nspname = 'outbox'
    UNION ALL
    SELECT format('%s outbox.%s', CASE r.relkind WHEN 'v' THEN 'view' WHEN 'S' THEN 'sequence' ELSE 'table' END, r.relname), a.*
      FROM relation AS r
     CROSS JOIN LATERAL aclexplode(r.relacl) AS a
    UNION ALL
    SELECT format('column outbox.%s.%s', r.relname, t.attname), a.*
      FROM relation AS r
      JOIN pg_attribute AS t ON t.attrelid = r.oid AND t.attnum > 0 AND NOT t.attisdropped
     CROSS JOIN LATERAL aclexplode(t.attacl) AS a
    UNION ALL
    SELECT 'function ' || p.oid::regprocedure, a.*
      FROM pg_proc AS p
     CROSS JOIN LATERAL aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) AS a
     WHERE p.pronamespace = 'outbox'::regnamespace
), item AS (
    SELECT format('%s outbox.%s', CASE r.relkind WHEN 'v' THEN 'view' WHEN 'S' THEN 'sequence' ELSE 'table' END, r.relname) AS name,
           CASE r.relkind
           WHEN 'v' THEN (SELECT string_agg(DISTINCT format('%s.%s', d.refobjid::regclass, a.attname), ' ' ORDER BY format('%s.%s', d.refobjid::regclass, a.attname))
                            FROM pg_rewrite AS w
                            JOIN pg_depend AS d ON d.classid = 'pg_rewrite'::regclass AND d.objid = w.oid AND d.refclassid = 'pg_class'::regclass AND d.refobjid <> r.oid
                            JOIN pg_attribute AS a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
                           WHERE w.ev_class = r.oid)
           WHEN 'S' THEN (SELECT format('%s increment %s cache %s cycle %s', s.seqtypid::regtype, s.seqincrement, s.seqcache, s.seqcycle) FROM pg_sequence AS s WHERE s.seqrelid = r.oid)
           ELSE r.relpersistence::text END AS definition
      FROM relation AS r
    UNION ALL
    SELECT format('column outbox.%s.%s', r.relname, a.attname),
           concat_ws(' ', format_type(a.atttypid, a.atttypmod), CASE WHEN a.attnotnull THEN 'NOT NULL' END,
                     CASE WHEN l.collname <> 'default' THEN 'COLLATE ' || l.collname END, nullif('IDENTITY ' || a.attidentity::text, 'IDENTITY '),
                     'DEFAULT ' || pg_get_expr(d.adbin, d.adrelid))
      FROM relation AS r
      JOIN pg_attribute AS a ON a.attrelid = r.oid AND a.attnum > 0 AND NOT a.attisdropped
      LEFT JOIN pg_collation AS l ON l.oid = a.attcollation
      LEFT JOIN pg_attrdef AS d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
     WHERE r.relkind <> 'S'
    UNION ALL
    SELECT format('constraint %s of outbox.%s', n.conname, r.relname), pg_get_constraintdef(n.oid)
      FROM relation AS r
      JOIN pg_constraint AS n ON n.conrelid = r.oid
     WHERE n.contype IN ('c', 'f', 'p', 'u', 'x')
    UNION ALL
    SELECT format('index outbox.%s', i.relname), pg_get_indexdef(i.oid) || CASE WHEN x.indisvalid THEN '' ELSE ' INVALID' END
      FROM relation AS r
      JOIN pg_index AS x ON x.indrelid = r.oid
      JOIN pg_class AS i ON i.oid = x.indexrelid
    UNION ALL
    SELECT format('trigger %s of outbox.%s', t.tgname, r.relname), pg_get_triggerdef(t.oid)
      FROM relation AS r
      JOIN pg_trigger AS t ON t.tgrelid = r.oid AND NOT t.tgisinternal
    UNION ALL
    SELECT 'function ' || p.oid::regprocedure,
           concat_ws(' ', pg_get_function_result(p.oid), l.lanname, p.provolatile, CASE WHEN p.prosecdef THEN 'SECURITY DEFINER' END, CASE WHEN p.proisstrict THEN 'STRICT' END,
                     array_to_string(p.proconfig, ', '), CASE WHEN p.prosqlbody IS NULL THEN md5(p.prosrc) ELSE 'SQL body' END)
      FROM pg_proc AS p
      JOIN pg_language AS l ON l.oid = p.prolang
     WHERE p.pronamespace = 'outbox'::regnamespace
    UNION ALL
    SELECT format('grant of %s on %s to %s', lower(g.privilege_type), g.place, coalesce(e.rolname, 'PUBLIC')), ''
      FROM granted AS g
      LEFT JOIN pg_roles AS e ON e.oid = g.grantee
     WHERE g.grantee = 0 OR e.rolname IN ('outbox_writer', 'outbox_relay', 'outbox_operator', 'outbox_auditor')
)
SELECT name, coalesce(regexp_replace(definition, '\s+', ' ', 'g'), '') AS definition
  FROM item
 ORDER BY name COLLATE "C"
