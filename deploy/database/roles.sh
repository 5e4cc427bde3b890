#!/bin/bash
# The roles of a fleet and what each may do. PostgreSQL's image runs this once, when the database is new; run again,
# it sets all passwords to those of the secret files.
set -eu

for name in database database_worker database_reporter database_superuser; do
  if [ ! -s "/run/secrets/gridfleet_${name}_password" ]; then
    echo "the secret gridfleet_${name}_password is missing or empty; make it with 'make secrets'" >&2
    exit 1
  fi
done

psql -v ON_ERROR_STOP=1 --no-psqlrc --quiet --username "${POSTGRES_USER:-postgres}" --dbname "${POSTGRES_DB:-gridfleet}" <<'SQL'
-- a statement that fails is logged with its text, and some of these hold a password
SET log_min_error_statement = panic;
\set owner_password `cat /run/secrets/gridfleet_database_password`
\set worker_password `cat /run/secrets/gridfleet_database_worker_password`
\set reporter_password `cat /run/secrets/gridfleet_database_reporter_password`
\set superuser_password `cat /run/secrets/gridfleet_database_superuser_password`
SELECT current_database() AS database \gset

SELECT format('CREATE ROLE %I', name)
FROM unnest(ARRAY['gridfleet', 'gridfleet_worker', 'gridfleet_reporter']) AS name
WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name) \gexec

BEGIN;
ALTER ROLE CURRENT_USER PASSWORD :'superuser_password';
-- migrates and submits: a search makes a view
ALTER ROLE gridfleet LOGIN PASSWORD :'owner_password';
-- workers and the scheduler
ALTER ROLE gridfleet_worker LOGIN PASSWORD :'worker_password';
-- people and tools that only read; the missing grants are the barrier, for a session may switch its settings off
ALTER ROLE gridfleet_reporter LOGIN CONNECTION LIMIT 20 PASSWORD :'reporter_password';
ALTER ROLE gridfleet_reporter SET default_transaction_read_only = on;
ALTER ROLE gridfleet_reporter SET statement_timeout = '30s';
ALTER ROLE gridfleet_reporter SET idle_in_transaction_session_timeout = '60s';

REVOKE ALL ON DATABASE :"database", postgres, template1 FROM PUBLIC;
GRANT CONNECT ON DATABASE :"database" TO gridfleet, gridfleet_worker, gridfleet_reporter;
REVOKE ALL ON SCHEMA public FROM PUBLIC;
GRANT USAGE, CREATE ON SCHEMA public TO gridfleet;
GRANT USAGE ON SCHEMA public TO gridfleet_worker, gridfleet_reporter;

-- for every table and view that migrations and searches will make
ALTER DEFAULT PRIVILEGES FOR ROLE gridfleet IN SCHEMA public GRANT SELECT ON TABLES TO gridfleet_reporter;
ALTER DEFAULT PRIVILEGES FOR ROLE gridfleet IN SCHEMA public GRANT SELECT, INSERT, UPDATE ON TABLES TO gridfleet_worker;

-- Payloads are code and data: nobody but submitters writes them, and reporters do not read them. What a search is
-- and what was scored is written once. Default privileges know no exception, so it is made for tables that are there,
-- and in the transaction that makes a table.
CREATE OR REPLACE FUNCTION guard_table(name text) RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog AS $$
BEGIN
  IF name IN ('public.payloads', 'public.payload_chunks') THEN
    EXECUTE format('REVOKE ALL ON %s FROM gridfleet_reporter', name);
  END IF;
  IF name IN ('public.payloads', 'public.payload_chunks', 'public.alembic_version') THEN
    EXECUTE format('REVOKE INSERT, UPDATE ON %s FROM gridfleet_worker', name);
  ELSIF name IN ('public.searches', 'public.trials') THEN
    EXECUTE format('REVOKE INSERT ON %s FROM gridfleet_worker', name);
  ELSIF name IN ('public.split_scores', 'public.epochs') THEN
    EXECUTE format('REVOKE UPDATE ON %s FROM gridfleet_worker', name);
  END IF;
END
$$;
CREATE OR REPLACE FUNCTION guard_new_tables() RETURNS event_trigger LANGUAGE plpgsql SET search_path = pg_catalog AS $$
DECLARE
  made record;
BEGIN
  FOR made IN SELECT object_identity AS name FROM pg_event_trigger_ddl_commands() WHERE command_tag = 'CREATE TABLE'
  LOOP
    PERFORM public.guard_table(made.name);
  END LOOP;
END
$$;
SELECT count(guard_table('public.' || tablename)) FROM pg_tables WHERE schemaname = 'public' \g /dev/null
SET LOCAL client_min_messages = warning;
DROP EVENT TRIGGER IF EXISTS guard_new_tables;
CREATE EVENT TRIGGER guard_new_tables ON ddl_command_end WHEN TAG IN ('CREATE TABLE') EXECUTE FUNCTION guard_new_tables();

-- PostgreSQL lets everybody make large objects, which fill the disk, and take advisory locks, one of which says which
-- scheduler acts
SELECT format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', oid::regprocedure)
FROM pg_proc WHERE pronamespace = 'pg_catalog'::regnamespace AND proname ~ '^(lo_|lowrite$|pg_(try_)?advisory_)' \gexec
SELECT format('GRANT EXECUTE ON FUNCTION %s TO gridfleet, gridfleet_worker', oid::regprocedure)
FROM pg_proc WHERE pronamespace = 'pg_catalog'::regnamespace AND proname ~ '^pg_(try_)?advisory_' \gexec
COMMIT;
SQL
