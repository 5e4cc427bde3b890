#!/bin/bash
# The roles of a fleet and what each may do. PostgreSQL's image runs this once, when the database is new; run again,
# it sets all passwords to those of the secret files, and rights and settings of the roles to what is written here.
#
# On a managed PostgreSQL nobody is superuser. There it runs as a role with CREATEROLE that owns the database, does what
# that role may do, and says what it left out (docs/operations.md, "PostgreSQL without a superuser").
#
# It runs with more rights than the role that owns what is in the schema public. So it reaches nothing there by an
# unqualified name, and queries none of its tables and views.
set -eu

run_psql() {
  psql -v ON_ERROR_STOP=1 --no-psqlrc --quiet --username "${POSTGRES_USER:-postgres}" --dbname "${POSTGRES_DB:-gridfleet}" "$@"
}

export GRIDFLEET_SECRETS_DIR="${GRIDFLEET_SECRETS_DIR:-/run/secrets}"
is_superuser=$(run_psql --no-align --tuples-only --command 'SHOW is_superuser')
needed="database database_worker database_scheduler database_reporter"
[ "$is_superuser" = off ] || needed="$needed database_superuser"
for name in $needed; do
  if [ ! -s "$GRIDFLEET_SECRETS_DIR/gridfleet_${name}_password" ]; then
    echo "the secret gridfleet_${name}_password is missing or empty; make it with 'make secrets'" >&2
    exit 1
  fi
done

run_psql -v is_superuser="$is_superuser" <<'SQL'
-- first of all: with public in it, the owner's own operators and functions would run as superuser
SET search_path = pg_catalog, pg_temp;
SET client_min_messages = warning;
-- a statement that fails is logged with its text, and some of these hold a password
DO $$
BEGIN
  SET log_min_error_statement = panic;
EXCEPTION WHEN insufficient_privilege THEN NULL;
END
$$;
\set owner_password `cat "$GRIDFLEET_SECRETS_DIR/gridfleet_database_password"`
\set worker_password `cat "$GRIDFLEET_SECRETS_DIR/gridfleet_database_worker_password"`
\set scheduler_password `cat "$GRIDFLEET_SECRETS_DIR/gridfleet_database_scheduler_password"`
\set reporter_password `cat "$GRIDFLEET_SECRETS_DIR/gridfleet_database_reporter_password"`
SELECT current_database() AS database \gset

SELECT format('CREATE ROLE %I', name)
FROM unnest(ARRAY['gridfleet', 'gridfleet_worker', 'gridfleet_scheduler', 'gridfleet_reporter']) AS name
WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name) \gexec

BEGIN;
-- who is no superuser becomes the owner's member for this transaction, to change rights on what it owns
\if :is_superuser
\else
GRANT gridfleet TO CURRENT_USER;
\endif
-- a role may change its own settings, and one such as default_transaction_read_only would stop the fleet
ALTER ROLE gridfleet RESET ALL;
ALTER ROLE gridfleet_worker RESET ALL;
ALTER ROLE gridfleet_scheduler RESET ALL;
ALTER ROLE gridfleet_reporter RESET ALL;
SELECT format('ALTER ROLE %s IN DATABASE %I RESET ALL', setrole::regrole, datname)
FROM pg_db_role_setting JOIN pg_database ON pg_database.oid = setdatabase
WHERE setrole IN (
  'gridfleet'::regrole, 'gridfleet_worker'::regrole, 'gridfleet_scheduler'::regrole, 'gridfleet_reporter'::regrole
) \gexec
SELECT format('ALTER ROLE %I NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS', rolname)
FROM pg_roles
WHERE rolname IN ('gridfleet', 'gridfleet_worker', 'gridfleet_scheduler', 'gridfleet_reporter')
  AND (rolsuper OR rolcreatedb OR rolcreaterole OR rolreplication OR rolbypassrls) \gexec

\if :is_superuser
\set superuser_password `cat "$GRIDFLEET_SECRETS_DIR/gridfleet_database_superuser_password"`
ALTER ROLE CURRENT_USER PASSWORD :'superuser_password';
\endif
-- migrates and submits: a search makes a view
ALTER ROLE gridfleet LOGIN PASSWORD :'owner_password';
ALTER ROLE gridfleet_worker LOGIN PASSWORD :'worker_password';
-- reconciles, which workers may as well, and adds the trials that searches ask for, which they may not
ALTER ROLE gridfleet_scheduler LOGIN PASSWORD :'scheduler_password';
-- people and tools that only read
ALTER ROLE gridfleet_reporter LOGIN PASSWORD :'reporter_password';
-- together less than all connections, so that no role keeps another one or the superuser out
SELECT format('ALTER ROLE gridfleet CONNECTION LIMIT %s', current_setting('max_connections')::integer / 6),
       format('ALTER ROLE gridfleet_worker CONNECTION LIMIT %s', current_setting('max_connections')::integer / 2),
       format('ALTER ROLE gridfleet_scheduler CONNECTION LIMIT %s', current_setting('max_connections')::integer / 12),
       'ALTER ROLE gridfleet_reporter CONNECTION LIMIT 20' \gexec
-- no session can change this one: bytes on disk that each process of it may sort and hash in
DO $$
BEGIN
  ALTER ROLE gridfleet_reporter SET temp_file_limit = '100MB';
EXCEPTION WHEN insufficient_privilege THEN NULL;
END
$$;
-- defaults against accidents; a session may SET them to anything else
ALTER ROLE gridfleet_reporter SET default_transaction_read_only = on;
ALTER ROLE gridfleet_reporter SET statement_timeout = '30s';
ALTER ROLE gridfleet_reporter SET idle_in_transaction_session_timeout = '60s';
-- so that the owner may end a reader's session that is in the way of a migration (pg_terminate_backend)
GRANT gridfleet_reporter TO gridfleet;
GRANT gridfleet_worker TO gridfleet_scheduler;

SELECT format('REVOKE ALL ON DATABASE %I FROM PUBLIC', datname)
FROM pg_database
WHERE datname IN (current_database(), 'postgres', 'template1') AND pg_has_role(datdba, 'USAGE') \gexec
GRANT CONNECT ON DATABASE :"database" TO gridfleet, gridfleet_worker, gridfleet_reporter;
REVOKE ALL ON SCHEMA public FROM PUBLIC, gridfleet_worker, gridfleet_scheduler, gridfleet_reporter;
GRANT USAGE, CREATE ON SCHEMA public TO gridfleet;
GRANT USAGE ON SCHEMA public TO gridfleet_worker, gridfleet_reporter;

-- for every table and view that migrations and searches will make
ALTER DEFAULT PRIVILEGES FOR ROLE gridfleet IN SCHEMA public
  REVOKE ALL ON TABLES FROM gridfleet_worker, gridfleet_reporter;
ALTER DEFAULT PRIVILEGES FOR ROLE gridfleet IN SCHEMA public
  GRANT SELECT ON TABLES TO gridfleet_worker, gridfleet_reporter;

-- What else a table's rights are, for tables that are there, and in the transaction that makes or changes a table.
-- In a schema of the superuser's own, made anew: a function of this name in public could be the owner's.
DROP EVENT TRIGGER IF EXISTS guard_new_tables;
DROP ROUTINE IF EXISTS public.guard_table(text), public.guard_new_tables() CASCADE;
DROP SCHEMA IF EXISTS gridfleet_rights CASCADE;
CREATE SCHEMA gridfleet_rights;
GRANT USAGE ON SCHEMA gridfleet_rights TO gridfleet;

-- Payloads are code and data: nobody but submitters writes them, and reporters do not read them. What a search is,
-- what its trials are and what was scored is written once: storage/migrations/versions/0005_final_rows.py has the
-- triggers that keep what has ended.
CREATE FUNCTION gridfleet_rights.set_rights(relation regclass) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  name text := (SELECT relname FROM pg_class WHERE oid = relation);
  changes text[] := '{}';
BEGIN
  EXECUTE format('REVOKE ALL ON %s FROM gridfleet_worker, gridfleet_scheduler, gridfleet_reporter', relation);
  EXECUTE format('GRANT SELECT ON %s TO gridfleet_worker', relation);
  IF name NOT IN ('payloads', 'payload_chunks', 'best_model_chunks') THEN
    EXECUTE format('GRANT SELECT ON %s TO gridfleet_reporter', relation);
  END IF;
  -- of models only those of a refit that runs, which a trigger sees to (0018_best_models.py)
  IF name IN ('attempts', 'split_scores', 'curves', 'trial_warnings', 'texts', 'best_models', 'best_model_chunks') THEN
    EXECUTE format('GRANT INSERT ON %s TO gridfleet_worker', relation);
  -- of reports only those of a trial that runs, which a trigger sees to (0026_pruning.py)
  ELSIF name IN ('leases', 'events', 'reports') THEN
    EXECUTE format('GRANT INSERT, DELETE ON %s TO gridfleet_worker', relation);
  ELSIF name = 'workers' THEN
    -- a worker must not let others drain; of rows, a trigger lets it remove those of the long gone (0013_workers.py)
    EXECUTE format('GRANT INSERT (%s), DELETE ON %s TO gridfleet_worker', (
      SELECT string_agg(quote_ident(attname), ', ') FROM pg_attribute
      WHERE attrelid = relation AND attnum > 0 AND NOT attisdropped AND attname <> 'draining'
    ), relation);
  END IF;
  -- of what searches ask for, which a trigger sees to (0022_proposals.py)
  IF name = 'trials' THEN
    EXECUTE format('GRANT INSERT ON %s TO gridfleet_scheduler', relation);
  ELSIF name = 'searches' AND EXISTS (SELECT FROM pg_attribute WHERE attrelid = relation AND attname = 'is_exhausted') THEN
    EXECUTE format('GRANT UPDATE (n_asked, is_exhausted) ON %s TO gridfleet_scheduler', relation);
  END IF;
  IF name = 'searches' THEN
    changes := '{state, started_at, finished_at, paused_at, error}';
  ELSIF name = 'trials' THEN
    changes := '{
      state, attempt, worker_id, token, failures, deadline_at, not_before, cancel_requested,
      published_at, publish_count, started_at, finished_at, mean_test_score, std_test_score, mean_fit_time, fit_mode,
      fit_fallback_reason, build_time, trace_time, compile_time, train_time, score_time, record_time, error_type, error, exception,
      peak_memory_mb, seed, environment_digest, pruned_split, pruned_epoch, pruned_value
    }';
  ELSIF name = 'attempts' THEN
    changes := '{ended_at, outcome, error, peak_memory_mb}';
  ELSIF name = 'leases' THEN
    changes := '{expires_at, memory_mb}';
  ELSIF name = 'workers' THEN
    changes := '{last_seen_at, ended_at, stopped_reason}';
  ELSIF name = 'reconciler' THEN
    changes := '{hostname, pid, last_pass_at, notifies}';
  ELSIF name = 'events' THEN
    -- what schedulers write, which have this role too
    changes := '{n_tries, tried_at, not_before, sent_at, error}';
  END IF;
  -- of an older release's table, those that it has
  SELECT array_agg(quote_ident(attname)) INTO changes
  FROM pg_attribute WHERE attrelid = relation AND attname = ANY (changes) AND NOT attisdropped;
  IF changes IS NOT NULL THEN
    EXECUTE format('GRANT UPDATE (%s) ON %s TO gridfleet_worker', array_to_string(changes, ', '), relation);
  END IF;
END
$$;
CREATE FUNCTION gridfleet_rights.set_rights_of_new_tables() RETURNS event_trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  PERFORM gridfleet_rights.set_rights(pg_class.oid)
  FROM pg_event_trigger_ddl_commands() JOIN pg_class ON pg_class.oid = objid
  WHERE classid = 'pg_class'::regclass AND relkind IN ('r', 'p')
    AND relnamespace = 'public'::regnamespace AND relowner = 'gridfleet'::regrole;
END
$$;
-- migrations call this one too, for where there is no event trigger
CREATE FUNCTION gridfleet_rights.set_all_rights() RETURNS void
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
  SELECT gridfleet_rights.set_rights(oid)
  FROM pg_class
  WHERE relkind IN ('r', 'p', 'v', 'm') AND relnamespace = 'public'::regnamespace AND relowner = 'gridfleet'::regrole
$$;
SELECT FROM gridfleet_rights.set_all_rights() \g /dev/null
DO $$
BEGIN
  CREATE EVENT TRIGGER guard_new_tables ON ddl_command_end WHEN TAG IN ('CREATE TABLE', 'ALTER TABLE')
    EXECUTE FUNCTION gridfleet_rights.set_rights_of_new_tables();
EXCEPTION WHEN insufficient_privilege THEN NULL;
END
$$;

-- What PostgreSQL lets everybody do: make large objects, exported snapshots and records of the write-ahead log, which
-- fill the disk; use up transaction ids, until the server stops; run loops that no time limit ends; and take advisory
-- locks, one of which says which scheduler acts.
SELECT format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', oid::regprocedure)
FROM pg_proc
WHERE pronamespace = 'pg_catalog'::regnamespace
  AND proname ~ '^(lo_|lowrite$|pg_(try_)?advisory_|pg_logical_emit_message$|pg_export_snapshot$|(pg_current_xact_id|txid_current)$)'
  AND pg_has_role(proowner, 'USAGE')
  \gexec
SELECT format('GRANT EXECUTE ON FUNCTION %s TO gridfleet, gridfleet_worker', oid::regprocedure)
FROM pg_proc WHERE pronamespace = 'pg_catalog'::regnamespace AND proname ~ '^pg_(try_)?advisory_'
  AND pg_has_role(proowner, 'USAGE') \gexec
-- migrations make triggers
SELECT 'REVOKE USAGE ON LANGUAGE plpgsql FROM PUBLIC', 'GRANT USAGE ON LANGUAGE plpgsql TO gridfleet'
FROM pg_language WHERE lanname = 'plpgsql' AND pg_has_role(lanowner, 'USAGE') \gexec
\if :is_superuser
\else
REVOKE gridfleet FROM CURRENT_USER;
\endif
COMMIT;

SELECT current_setting('log_min_error_statement') <> 'panic' AS logs_statements,
       NOT EXISTS (SELECT FROM pg_event_trigger WHERE evtname = 'guard_new_tables') AS has_no_trigger,
       NOT EXISTS (SELECT FROM pg_db_role_setting
                   WHERE setrole = 'gridfleet_reporter'::regrole AND 'temp_file_limit=100MB' = ANY (setconfig)) AS has_no_bound,
       EXISTS (SELECT FROM pg_proc
               WHERE proname = 'lo_create' AND NOT pg_has_role(proowner, 'USAGE')) AS has_public_functions,
       EXISTS (SELECT FROM pg_database
               WHERE datname IN ('postgres', 'template1') AND NOT pg_has_role(datdba, 'USAGE')) AS has_other_databases
\gset
\if :logs_statements
\echo 'left out: log_min_error_statement. Had a statement with a password failed, the log of the server would have it.'
\endif
\if :has_no_bound
\echo 'left out: temp_file_limit of gridfleet_reporter. A query of a reader may fill the disk with temporary files.'
\endif
\if :has_no_trigger
\echo 'left out: the event trigger. "gridfleet db upgrade" sets the rights of new tables; run this again after any other CREATE TABLE of the owner.'
\endif
\if :has_public_functions
\echo 'left out: REVOKE on functions of PostgreSQL. Whoever has a password may make large objects, loops and advisory locks, and so fill the disk or stop the scheduler.'
\endif
\if :has_other_databases
\echo 'left out: REVOKE on the databases postgres and template1. The roles may connect there, where they own nothing.'
\endif
SQL
