#!/bin/sh
# Makes the secrets that docker compose reads. Never changes one that is there, never prints a value. Refuses links
# and what belongs to another user, who would know the secrets or choose where they are written.
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

refuse() {
  echo "$1; remove it, or set $setting to a folder of your own" >&2
  exit 1
}

# with a slash at its end, a link would pass for the folder that it leads to
while [ "$folder" != "${folder%/}" ] && [ "$folder" != / ]; do
  folder=${folder%/}
done
umask 077
[ ! -L "$folder" ] || refuse "$folder is a link"
mkdir -p "$folder"
[ -d "$folder" ] && [ ! -L "$folder" ] || refuse "$folder is not a folder"
[ -O "$folder" ] || refuse "$folder belongs to another user"
case $(ls -ld "$folder") in
  d???------*) was_private=yes ;;
  *) was_private=no ;;
esac
chmod 0700 "$folder"
for name in \
  gridfleet_secret_key \
  gridfleet_broker_password \
  gridfleet_database_password \
  gridfleet_database_worker_password \
  gridfleet_database_reporter_password \
  gridfleet_database_superuser_password; do
  file=$folder/$name
  [ ! -L "$file" ] || refuse "$file is a link"
  if [ -e "$file" ]; then
    [ -f "$file" ] || refuse "$file is not a file"
    [ -O "$file" ] || refuse "$file belongs to another user"
  fi
  if [ -s "$file" ]; then
    echo "kept  $file"
    [ "$was_private" = yes ] || echo "      others could read it until now; if one may have, remove it and run this again"
    continue
  fi
  value=$(od -An -v -tx1 -N32 /dev/urandom | tr -d ' \n')
  if [ "${#value}" -ne 64 ]; then
    echo "/dev/urandom gave too few bytes for $file" >&2
    exit 1
  fi
  # moved into place when complete, so that an interrupted run leaves no half secret
  rm -f "$file.new"
  set -C # write to no file that is there, so through no link
  printf %s "$value" >"$file.new"
  set +C
  chmod 0644 "$file.new"
  mv "$file.new" "$file"
  echo "made  $file"
done
