#!/bin/sh
#
# Entry point of the image: like the official image's, it honours
# POSTGRES_USER, POSTGRES_PASSWORD, POSTGRES_PASSWORD_FILE and POSTGRES_DB when it
# first starts, and runs the arguments as user postgres.

set -eu

PATH=$(cat /etc/postgresql-bin):/usr/bin:/bin
export PATH
: "${PGDATA:=/var/lib/postgresql/data}"
export PGDATA

as_postgres() { setpriv --reuid=postgres --regid=postgres --clear-groups -- "$@"; }

case "${1:-}" in
'') set -- postgres ;;
-*) set -- postgres "$@" ;;
esac

if [ ! -s "$PGDATA/PG_VERSION" ]; then
	user=${POSTGRES_USER:-postgres}
	database=${POSTGRES_DB:-$user}
	[ -z "${POSTGRES_PASSWORD_FILE:-}" ] || POSTGRES_PASSWORD=$(cat "$POSTGRES_PASSWORD_FILE")
	if [ -z "${POSTGRES_PASSWORD:-}" ]; then
		echo 'POSTGRES_PASSWORD is not set' >&2
		exit 1
	fi
	mkdir -p "$PGDATA"
	chown postgres:postgres "$PGDATA" /run/postgresql
	chmod 700 "$PGDATA"
	(umask 077 && printf '%s' "$POSTGRES_PASSWORD" >/tmp/password)
	chown postgres:postgres /tmp/password
	as_postgres initdb --username="$user" --pwfile=/tmp/password --encoding=UTF8 --locale=C \
		--auth-local=trust --auth-host=scram-sha-256 --no-sync --no-instructions
	rm /tmp/password
	echo "listen_addresses = '*'" >>"$PGDATA/postgresql.conf"
	echo 'host all all all scram-sha-256' >>"$PGDATA/pg_hba.conf"
	if [ "$database" != postgres ]; then
		echo "CREATE DATABASE \"$database\"" | as_postgres postgres --single -j postgres >/dev/null
	fi
fi

exec setpriv --reuid=postgres --regid=postgres --clear-groups -- "$@"
