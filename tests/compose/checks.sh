# What tests/compose/run.sh checks, and how. Sourced by it.
# shellcheck shell=bash disable=SC2016,SC2034,SC2154

failures=()
SECONDS=0

check() { # NAME COMMAND…: one line, and the command's output where it fails
  local name=$1 started=$SECONDS output
  shift
  if output=$("$@" 2>&1); then
    printf 'ok: %s (%d s)\n' "$name" $((SECONDS - started))
  else
    printf 'FAILED: %s (%d s)\n' "$name" $((SECONDS - started))
    tail -n 20 <<<"$output" | sed 's/^/    /'
    failures+=("$name")
    return 1
  fi
}

wait_for() { # TIMEOUT_S NAME COMMAND…
  local timeout=$1 name=$2
  shift 2
  check "$name" poll "$timeout" "$@"
}

poll() { # TIMEOUT_S COMMAND…
  local until=$((SECONDS + $1)) output
  shift
  until output=$("$@" 2>&1); do
    if ((SECONDS >= until)); then
      printf '%s\nnot so in time: %s\n' "$output" "$*"
      return 1
    fi
    sleep 1
  done
}

show() { "$@" | sed 's/^/    /'; }

summary() { # STATUS
  if ((${#failures[@]})); then
    printf 'compose-test: %d checks FAILED after %d s\n' ${#failures[@]} $SECONDS
  elif (($1)); then
    printf 'compose-test: STOPPED after %d s\n' $SECONDS
  else
    printf 'compose-test: everything ok after %d s\n' $SECONDS
  fi
}

# --- secrets

missing_secrets_are_explained() {
  local output
  output=$(GRIDFLEET_SECRETS_DIR='' docker compose --env-file /dev/null config 2>&1) && return 1
  grep -F 'make secrets' <<<"$output"
}

secrets_are_kept() {
  local before
  before=$(cat "$GRIDFLEET_SECRETS_DIR"/*)
  sh deploy/make-secrets.sh && [[ $before == "$(cat "$GRIDFLEET_SECRETS_DIR"/*)" ]]
}

no_secret_shows() {
  docker compose logs --no-color >"$seen/logs" 2>&1
  docker compose ps --all --quiet | xargs docker inspect >"$seen/inspected"
  [[ -s $seen/logs && -s $seen/inspected ]] || return 1
  local secret
  for secret in "$GRIDFLEET_SECRETS_DIR"/*; do
    [[ $secret != */gridfleet_public_key ]] || continue
    if grep -rqFf "$secret" "$seen"; then
      echo "the value of $(basename "$secret") shows"
      return 1
    fi
  done
}

# --- what the fleet does

# not by `docker compose logs`, which puts escape sequences before lines
last_line_of_reporter() { docker logs --tail 1 "$(docker compose ps --quiet reporter)" 2>&1; }

reporter_ends_with_a_score() { last_line_of_reporter | grep -E '^best score: 0\.[0-9]+, best params: '; }

demo_has_exited() {
  [[ $(docker compose ps --all --format '{{.State}} {{.ExitCode}}' demo) == "exited 0" ]]
}

outside() { # NAME ARGUMENT…: becomes the script on the host, so call it with &; it prints to $seen/NAME.log
  exec env GRIDFLEET_DATABASE_URL=postgresql+psycopg://gridfleet@127.0.0.1:$GRIDFLEET_DATABASE_PORT/gridfleet \
    GRIDFLEET_BROKER_URL=redis://gridfleet@127.0.0.1:$GRIDFLEET_BROKER_PORT/0 \
    GRIDFLEET_CACHE_DIR=$work/cache \
    "$python" tests/compose/outside.py "$@" >"$seen/$1.log" 2>&1
}

best_score_of() { sed -n 's/^best score: \([^,]*\),.*/\1/p' "$seen/$1.log"; }

has_best_score() { # NAME: the script outside has ended well
  [[ -n $(best_score_of "$1") ]] || { cat "$seen/$1.log"; return 1; }
}

all_healthy() {
  local states
  states=$(docker compose ps --format '{{.Service}} {{.Health}}' | grep -v ' healthy$')
  [[ -z $states ]] || { echo "$states"; return 1; }
}

published_on_loopback() {
  [[ $(docker compose port broker 6379) == "127.0.0.1:$GRIDFLEET_BROKER_PORT" &&
    $(docker compose port database 5432) == "127.0.0.1:$GRIDFLEET_DATABASE_PORT" &&
    $(docker compose port reporter 8080) == "127.0.0.1:$GRIDFLEET_PAGE_PORT" ]] &&
    ! docker compose ps --format '{{.Ports}}' | grep -oE '[^ ,]+->' | grep -v '^127\.0\.0\.1:'
}

page() { # PATH ARGUMENT…: curl's arguments; the password is no argument, which others would see
  local path=$1
  shift
  curl --silent --show-error --max-time 30 "$@" "http://127.0.0.1:$GRIDFLEET_PAGE_PORT$path"
}

as_reader() { printf 'header = "Authorization: Bearer %s"\n' "$(cat "$GRIDFLEET_SECRETS_DIR/gridfleet_page_password")"; }

page_shows() { page / --fail --config <(as_reader) | grep -F "$1" >/dev/null; }

page_shows_nothing_without_a_password() {
  [[ $(page / --output /dev/null --write-out '%{http_code}') == 401 && $(page /healthz) == ok &&
    $(page / --header 'Host: attacker.example' --config <(as_reader) --output /dev/null --write-out '%{http_code}') == 403 ]]
}

page_has_metrics() { page /metrics --fail --config <(as_reader) | grep '^gridfleet_trials{.*state="completed"'; }

only_on_internal_networks() { # SERVICE…
  local service network
  for service; do
    for network in $(docker compose ps --quiet "$service" |
      xargs docker inspect --format '{{range $name, $_ := .NetworkSettings.Networks}}{{$name}} {{end}}'); do
      [[ $(docker network inspect --format '{{.Internal}}' "$network") == true ]] || { echo "$service: $network"; return 1; }
    done
  done
}

engine_is() { printf 'engine %s, compose %s\n' "$(docker version --format '{{.Server.Version}}')" "$(docker compose version --short)"; }

# every way out that a trial could try, against a service on this machine that each of its addresses reaches
worker_has_no_way_out() {
  local addresses port listener status
  mapfile -t addresses < <(hostname --all-ip-addresses | tr ' ' '\n' | grep .)
  # every bridge has a link-local address, which is valid on the container's side of it
  mapfile -t -O "${#addresses[@]}" addresses < <(ip -6 -oneline address show scope link | awk '{ print $4 }' | cut -d / -f 1)
  coproc "$python" tests/compose/listener.py
  listener=$COPROC_PID
  read -r port <&"${COPROC[0]}"
  docker compose exec -T worker python - "$port" "${addresses[@]}" <tests/compose/ways_out.py
  status=$?
  kill "$listener"
  return $status
}

nothing_is_left() {
  local kind left label=label=com.docker.compose.project=$COMPOSE_PROJECT_NAME
  for kind in "container ls --all" "volume ls" "network ls"; do
    # shellcheck disable=SC2086
    left=$(docker $kind --quiet --filter "$label")
    [[ -z $left ]] || { echo "$kind: $left"; return 1; }
  done
}

# as docs/operations.md says
drain() {
  local container workers
  mapfile -t workers < <(docker compose ps --quiet worker)
  ((${#workers[@]})) || return 1
  docker update --restart=no "${workers[@]}" && docker compose run --rm --no-deps migrate drain --all --wait || return 1
  for container in "${workers[@]}"; do
    poll 60 container_ended_with_0 "$container" || return 1
  done
}

container_ended_with_0() { [[ $(docker inspect --format '{{.State.Status}} {{.State.ExitCode}}' "$1") == "exited 0" ]]; }

# as an orchestrator may: a user id that the image does not know, / read-only, no cache volume
start_a_worker_of_any_user() {
  local secret broker_password database_password
  secret=$GRIDFLEET_SECRETS_DIR/gridfleet
  broker_password=$(cat "${secret}_broker_password")
  database_password=$(cat "${secret}_database_worker_password")
  GRIDFLEET_BROKER_URL=redis://gridfleet:$broker_password@broker:6379/0 \
    GRIDFLEET_DATABASE_URL=postgresql+psycopg://gridfleet_worker:$database_password@database:5432/gridfleet \
    GRIDFLEET_PUBLIC_KEY=$(cat "${secret}_public_key") GRIDFLEET_WORKER_KEY=$(cat "${secret}_worker_key") \
    docker run --detach --name "$any_user" --user 234567:234567 --read-only --tmpfs /tmp --cap-drop ALL \
    --security-opt no-new-privileges:true --network "${COMPOSE_PROJECT_NAME}_fleet" \
    --env GRIDFLEET_CACHE_DIR=/tmp/gridfleet --env GRIDFLEET_BROKER_URL --env GRIDFLEET_DATABASE_URL --env GRIDFLEET_PUBLIC_KEY --env GRIDFLEET_WORKER_KEY \
    "gridfleet:$GRIDFLEET_IMAGE_TAG" worker --concurrency 1
}

worker_of_any_user_is_ready() { docker logs "$any_user" 2>&1 | grep -F 'is ready'; }

# --- sslrootcert=system

database_speaks_tls() { # with a certificate that vouches for itself
  "$python" tests/certificates.py "$work" database || return
  for file in server.crt server.key; do
    docker compose exec -T --user postgres database sh -c 'umask 077 && cat >"$PGDATA/$0"' "$file" <"$work/$file" || return
  done
  docker compose exec -T --user postgres database psql --no-psqlrc --quiet --username postgres \
    --command "ALTER SYSTEM SET ssl = on" --command "SELECT pg_reload_conf()" </dev/null
}

searches_over_tls() { # OPTION…: of docker run; the list of searches
  local password
  password=$(cat "$GRIDFLEET_SECRETS_DIR/gridfleet_database_reporter_password")
  GRIDFLEET_BROKER_URL=redis://broker:6379/0 \
    GRIDFLEET_DATABASE_URL=postgresql+psycopg://gridfleet_reporter:$password@database:5432/gridfleet?sslrootcert=system \
    docker run --rm --read-only --tmpfs /tmp --network "${COMPOSE_PROJECT_NAME}_fleet" \
    --env GRIDFLEET_BROKER_URL --env GRIDFLEET_DATABASE_URL "$@" "gridfleet:$GRIDFLEET_IMAGE_TAG" list
}

authority_is_strange_to_the_image() {
  local output
  output=$(searches_over_tls 2>&1) && return 1
  grep -F 'certificate verify failed' <<<"$output"
}

authority_is_trusted_at() { # FILE: where a system keeps its authorities
  local options=(--volume "$work/server.crt:$1:ro")
  # Debian's own are out of sight then
  [[ $1 == /etc/ssl/certs/* ]] || options+=(--mount type=tmpfs,destination=/etc/ssl/certs)
  searches_over_tls "${options[@]}" | grep -F outside
}

# --- SQL, through the read-only role

reporter_sql() {
  docker compose exec -T database sh -c \
    'PGPASSWORD=$(cat /run/secrets/gridfleet_database_reporter_password) exec psql --no-psqlrc --no-align --tuples-only \
      --set ON_ERROR_STOP=1 --host database --username gridfleet_reporter --command "$1" gridfleet' sh "$1" </dev/null
}

equal() { # EXPECTED QUERY
  local found
  found=$(reporter_sql "$2") && [[ $found == "$1" ]] && return
  echo "expected $1, found $found: $2"
  return 1
}

positive() { # QUERY
  local found
  found=$(reporter_sql "$1") && ((found > 0))
}

refused() { # STATEMENT
  local output
  output=$(reporter_sql "$1") && return 1
  output=$(reporter_sql "$1" 2>&1)
  grep -E 'permission denied|must be owner|read-only transaction' <<<"$output" || { echo "$output"; return 1; }
}

two_workers_run_trials() {
  local found
  found=$(reporter_sql "SELECT count(DISTINCT hostname) FROM trials JOIN workers ON workers.id = worker_id
    WHERE state = 'running'") && ((found >= 2))
}

# --- inside the containers

inside() { # SERVICE SHELL-COMMAND
  docker compose exec -T "$1" sh -c "$2"
}

equal_inside() { # EXPECTED SERVICE COMMAND…
  local expected=$1 service=$2
  shift 2
  [[ $(docker compose exec -T "$service" "$@") == "$expected" ]]
}

CONFINED='
  test "$(id -u)" != 0 || { echo "runs as root"; exit 1; }
  # the init and the service below it
  for pid in 1 $(cat /proc/1/task/1/children); do
    grep -qE "^CapEff:\s0+$" "/proc/$pid/status" || { grep CapEff "/proc/$pid/status"; exit 1; }
    grep -qE "^NoNewPrivs:\s1$" "/proc/$pid/status" || { echo "process $pid may gain privileges"; exit 1; }
  done
  grep -qE "^[^ ]+ / [^ ]+ ro[, ]" /proc/mounts || { echo "/ is writable"; exit 1; }
  ! touch /written 2>/dev/null'
