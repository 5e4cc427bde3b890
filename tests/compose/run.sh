#!/usr/bin/env bash
# The fleet in containers, for real: up, the demo's score, a script outside, SQL, two workers of which one is killed,
# the containers' confinement, down. One line per check. `make compose-test` runs it.
#
# It shares nothing with a fleet that runs here: project, image tag, secrets, ports and volumes are its own.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit 1
# shellcheck source=tests/compose/checks.sh
. tests/compose/checks.sh

if ! docker info >/dev/null 2>&1 || ! docker compose version >/dev/null 2>&1; then
  echo "make compose-test needs an engine that answers 'docker info', and 'docker compose'" >&2
  exit 1
fi

work=$(mktemp -d)
seen=$work/seen
mkdir "$seen"
python=.venv/bin/python
read -r broker_port database_port page_port < <("$python" tests/compose/free_ports.py 3)
export COMPOSE_PROJECT_NAME=gridfleet-test-$$
export GRIDFLEET_IMAGE_TAG=compose-test
any_user=$COMPOSE_PROJECT_NAME-any-user
export GRIDFLEET_SECRETS_DIR=$work/secrets
export GRIDFLEET_BROKER_PORT=$broker_port GRIDFLEET_DATABASE_PORT=$database_port GRIDFLEET_PAGE_PORT=$page_port
# a killed worker is noticed after the lease
export GRIDFLEET_LEASE_S=10 GRIDFLEET_HEARTBEAT_S=2 GRIDFLEET_RECONCILE_S=2 GRIDFLEET_REPUBLISH_S=10

finish() {
  local status=$?
  trap - EXIT INT TERM
  if [[ -n ${outside_pid:-} ]]; then kill "$outside_pid" 2>/dev/null; fi
  if ((${#failures[@]})); then
    docker compose logs --no-color --tail 40 >&2
  fi
  docker rm --force "$any_user" >/dev/null 2>&1
  docker compose down --volumes --remove-orphans --timeout 10 >"$work/down.log" 2>&1
  check "down leaves no container, volume or network" nothing_is_left
  docker image rm "gridfleet:$GRIDFLEET_IMAGE_TAG" >/dev/null 2>&1
  rm -rf "$work"
  summary "$status"
  # said in full: a bare exit in a trap repeats the status from before it
  ((status == 0 && ${#failures[@]} > 0)) && status=1
  exit "$status"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

engine_is
check "without secrets compose says what to do" missing_secrets_are_explained
check "secrets are made" sh deploy/make-secrets.sh
check "secrets are kept by a second run" secrets_are_kept
# what follows can't hold without a running fleet
check "the image is built" docker compose build || exit 1
check "docker compose up" docker compose up --detach || exit 1
wait_for 120 "the demo has queued its search" demo_has_exited || exit 1
wait_for 300 "the reporter's log ends with the demo's best score" reporter_ends_with_a_score || exit 1
show last_line_of_reporter

check "a second up succeeds" docker compose up --detach
wait_for 60 "the demo has ended again" demo_has_exited
check "it queued nothing again" equal 1 "SELECT count(*) FROM searches WHERE refit_of IS NULL"

outside outside --trials 3 --trees 100 &
outside_pid=$!
wait_for 180 "a script outside queues a search and gets its score" has_best_score outside
show tail -n 1 "$seen/outside.log"
check "psql reads it through the read-only role" equal 3 \
  "SELECT count(*) FROM outside WHERE rank_test_score >= 1 AND learning_rate > 0 AND mean_test_score > 0.6"
check "the best score in SQL is the script's" equal "$(best_score_of outside)" \
  "SELECT round(max(mean_test_score)::numeric, 6) FROM outside"
while read -r statement; do
  check "the read-only role is refused: $statement" refused "$statement"
done <tests/compose/refused.sql

check "a second worker starts" docker compose up --detach --no-recreate --scale worker=2 worker
outside killed --trials 12 --trees 700 &
outside_pid=$!
if wait_for 120 "two workers run trials of a search" two_workers_run_trials; then
  victim=$(reporter_sql "SELECT hostname FROM leases JOIN workers ON workers.id = worker_id
    ORDER BY expires_at DESC LIMIT 1")
  check "one of them is killed with SIGKILL" docker kill --signal KILL "$victim"
fi
wait_for 300 "the script outside gets its score all the same" has_best_score killed
show tail -n 1 "$seen/killed.log"
check "every trial is completed" equal "12 completed" "SELECT count(*) || ' ' || min(state) FROM killed"
check "each has one result of 3 splits" equal "12 36 36" "SELECT concat_ws(' ', count(DISTINCT trial_id), count(*),
  count(DISTINCT (trial_id, split))) FROM split_scores WHERE trial_id IN (SELECT trial_id FROM killed)"
check "each was completed by exactly one attempt" equal "12 12" "SELECT concat_ws(' ', count(*), count(DISTINCT trial_id))
  FROM attempts WHERE trial_id IN (SELECT trial_id FROM killed) AND outcome = 'completed'"
check "trials of the killed worker were tried again" positive "SELECT count(*)
  FROM attempts WHERE trial_id IN (SELECT trial_id FROM killed) AND outcome IN ('lease_expired', 'released') AND error IS NOT NULL"

check "a worker runs as uid 10001" equal_inside 10001 worker id -u
for service in worker scheduler reporter broker database; do
  check "$service: no capability, no new privilege, / is read-only" inside "$service" "$CONFINED"
done
check "no trial and no scheduler is on a network that is not internal" only_on_internal_networks worker scheduler
check "the page shows the demo's search to who has its password" page_shows pima
check "it shows nothing to others" page_shows_nothing_without_a_password
check "Prometheus' text has the demo's trials" page_has_metrics
check "a trial has no way out: no service of this machine, no DNS of others" worker_has_no_way_out
check "a worker is refused what only submitters may do" inside worker "python - <'/dev/stdin'" <tests/compose/worker_rights.py
check "nothing is published but on 127.0.0.1" published_on_loopback
wait_for 90 "all services are healthy" all_healthy
check "no secret is in a log, an environment or a command line" no_secret_shows

check "workers that are drained end with status 0 and stay away" drain
check "a worker of an unknown user id starts, without a cache volume" start_a_worker_of_any_user
wait_for 90 "it is ready" worker_of_any_user_is_ready || docker logs "$any_user"
outside drained --trials 2 --trees 20 &
outside_pid=$!
wait_for 120 "it evaluates what the drained ones leave" has_best_score drained

if check "the database speaks TLS" database_speaks_tls; then
  wait_for 30 "sslrootcert=system: an authority that the image does not know is refused" authority_is_strange_to_the_image
  for bundle in /etc/ssl/certs/ca-certificates.crt /etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem \
    /etc/pki/tls/certs/ca-bundle.crt /etc/ssl/ca-bundle.pem /etc/ssl/cert.pem; do
    check "sslrootcert=system: it is trusted in $bundle" authority_is_trusted_at "$bundle"
  done
fi
