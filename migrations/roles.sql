-- Group roles of the outbox. Run as a role that may create roles, once per cluster.
SELECT format('CREATE ROLE %I NOLOGIN', wanted)
  FROM unnest(ARRAY['outbox_writer', 'outbox_relay', 'outbox_operator', 'outbox_auditor']) AS wanted
 WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = wanted)
\gexec
