#!/bin/sh
# Makes the secrets that docker compose reads, and the workers' two keys, which belong to the secret key. Never changes a secret
# that is there, never prints one. Refuses links and what belongs to another user, who would know the secrets or choose
# where they are written.
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
check_own_file() {
  [ ! -L "$1" ] || refuse "$1 is a link"
  if [ -e "$1" ]; then
    [ -f "$1" ] || refuse "$1 is not a file"
    [ -O "$1" ] || refuse "$1 belongs to another user"
  fi
}

# moved into place when complete, so that an interrupted run leaves no half secret
write() {
  rm -f "$1.new"
  set -C # write to no file that is there, so through no link
  printf %s "$2" >"$1.new"
  set +C
  chmod 0644 "$1.new"
  mv "$1.new" "$1"
  echo "made  $1"
}

trimmed() {
  key=${1#"${1%%[![:space:]]*}"}
  printf %s "${key%"${key##*[![:space:]]}"}"
}

# The secret key's public key, as storage/signer.py makes it: of the Ed25519 key whose seed is SHA-256 of a label and the
# secret key. Its 16 first bytes say that an Ed25519 seed follows (RFC 8410).
public_key_of() {
  {
    printf '\060\056\002\001\000\060\005\006\003\053\145\160\004\042\004\040'
    printf 'gridfleet: Ed25519 seed: %s' "$(trimmed "$1")" | openssl dgst -sha256 -binary
  } | openssl pkey -inform DER -pubout -outform DER | tail -c 32 | od -An -v -tx1 | tr -d ' \n'
}

# the workers' key likewise: SHA-256 of another label and the secret key
worker_key_of() {
  printf 'gridfleet: worker key: %s' "$(trimmed "$1")" | openssl dgst -sha256 -binary | od -An -v -tx1 | tr -d ' \n'
}

for name in \
  gridfleet_secret_key \
  gridfleet_broker_password \
  gridfleet_database_password \
  gridfleet_database_worker_password \
  gridfleet_database_scheduler_password \
  gridfleet_database_reporter_password \
  gridfleet_database_superuser_password \
  gridfleet_page_password; do
  file=$folder/$name
  check_own_file "$file"
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
  write "$file" "$value"
done

derive() { # NAME COMMAND LENGTH VALUE: a key that is derived from the secret key
  file=$folder/$1
  check_own_file "$file"
  if [ "${#4}" -ne "$3" ] && [ -s "$file" ]; then
    echo "kept  $file, not compared with the secret key: openssl is missing or knows no Ed25519"
  elif [ "${#4}" -ne "$3" ]; then
    echo "openssl is missing or knows no Ed25519 (OpenSSL 1.1.1 does), so that $file can't be made; make it with" >&2
    echo "  docker compose run --rm --no-deps demo $2 >$file && chmod 0644 $file" >&2
    failed=yes
  elif [ -f "$file" ] && [ "$(cat "$file")" = "$4" ]; then
    echo "kept  $file"
  else
    write "$file" "$4"
  fi
}

secret_key=$(cat "$folder/gridfleet_secret_key")
failed=
# workers check with the one what the secret key signs, and sign with the other the models that they fit
derive gridfleet_public_key public-key 72 "ed25519:$(public_key_of "$secret_key" 2>/dev/null || :)"
derive gridfleet_worker_key worker-key 71 "worker:$(worker_key_of "$secret_key" 2>/dev/null || :)"
[ -z "$failed" ] || exit 1
