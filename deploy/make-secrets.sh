#!/bin/sh
# Makes the secrets that docker compose reads. Never changes one that is there, never prints a value.
#
# Files are 0644 and the folder is 0700: compose mounts each file with the owner and mode that it has here, into
# containers of several users (10001, redis, postgres), so each must be able to read it there; on this machine
# nobody but you gets through the folder.
set -eu
cd "$(dirname "$0")/.."

setting=GRIDFLEET_SECRETS_DIR
folder=${GRIDFLEET_SECRETS_DIR:-}
if [ -z "$folder" ] && [ -f .env ]; then
  folder=$(sed -n "s/^$setting=//p" .env | tail -n 1)
fi
if [ -z "$folder" ]; then
  folder=./secrets
  # without this line docker compose says what is missing, instead of starting half of it
  printf '%s=%s\n' "$setting" "$folder" >>.env
  echo "made  .env: $setting=$folder"
fi

umask 077
mkdir -p "$folder"
for name in \
  gridfleet_secret_key \
  gridfleet_broker_password \
  gridfleet_database_password \
  gridfleet_database_worker_password \
  gridfleet_database_reporter_password \
  gridfleet_database_superuser_password; do
  file=$folder/$name
  if [ -s "$file" ]; then
    echo "kept  $file"
    continue
  fi
  value=$(od -An -v -tx1 -N32 /dev/urandom | tr -d ' \n')
  if [ "${#value}" -ne 64 ]; then
    echo "/dev/urandom gave too few bytes for $file" >&2
    exit 1
  fi
  # moved into place when complete, so that an interrupted run leaves no half secret
  printf %s "$value" >"$file.new"
  chmod 0644 "$file.new"
  mv "$file.new" "$file"
  echo "made  $file"
done
