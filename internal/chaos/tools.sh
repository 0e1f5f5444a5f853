#!/bin/sh
#
# Makes sure that the programs which the fault scenarios run beside PostgreSQL
# are there: PgBouncer and libfaketime. Silent when they are; else root gets
# them by apt-get, and anybody else is told what to install.

set -eu

[ "$(uname)" = Linux ] || exit 0 # no scenario runs elsewhere

missing=
command -v pgbouncer >/dev/null || [ -x /usr/sbin/pgbouncer ] || missing="$missing pgbouncer"
command -v faketime >/dev/null || missing="$missing faketime"
[ -n "$missing" ] || exit 0

if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
	echo "the fault scenarios need these programs:$missing (Debian, Ubuntu: sudo apt-get install$missing)" >&2
	exit 1
fi

echo "installing$missing" >&2
export DEBIAN_FRONTEND=noninteractive
# The packages' services stay off: their programs are all that is wanted.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
	trap 'rm -f "$policy"' EXIT
	printf '#!/bin/sh\nexit 101\n' >"$policy"
	chmod 755 "$policy"
fi
apt-get update -qq
# shellcheck disable=SC2086 # a list
apt-get install -y -qq --no-install-recommends $missing >/dev/null
