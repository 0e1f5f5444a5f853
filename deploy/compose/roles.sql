-- The logins of compose.yaml. It may be run again: a changed password is set.
\set relay `cat /run/secrets/relay_password`
\set scheduling `cat /run/secrets/scheduling_password`
\set auditor `cat /run/secrets/auditor_password`
\set operator `cat /run/secrets/operator_password`
SELECT format('CREATE ROLE %I LOGIN', name) FROM unnest(ARRAY['relay', 'scheduling', 'auditor', 'operator']) AS name
 WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name) \gexec
ALTER ROLE relay PASSWORD :'relay';
ALTER ROLE scheduling PASSWORD :'scheduling';
ALTER ROLE auditor PASSWORD :'auditor';
ALTER ROLE operator PASSWORD :'operator';
GRANT outbox_relay TO relay;
GRANT outbox_writer TO scheduling;
GRANT outbox_auditor TO auditor;
GRANT outbox_operator TO operator;
GRANT USAGE ON SCHEMA scheduling TO scheduling, auditor;
GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA scheduling TO scheduling;
GRANT USAGE ON ALL SEQUENCES IN SCHEMA scheduling TO scheduling;
