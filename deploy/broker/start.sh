#!/bin/sh
# Starts Redis with one user, known by the hash of its password: the password is on no command line.
set -eu
umask 077

secret=/run/secrets/gridfleet_broker_password
password=$(cat "$secret")
if [ "${#password}" -lt 16 ]; then
  echo "$secret has fewer than 16 characters; make it anew with 'make secrets'" >&2
  exit 1
fi
hash=$(printf %s "$password" | sha256sum | cut -d ' ' -f 1)
sed "s/PASSWORD_HASH/$hash/" /etc/gridfleet/broker/users.acl >/tmp/users.acl
unset password hash

exec docker-entrypoint.sh redis-server /etc/gridfleet/broker/redis.conf
