#!/bin/sh
#
# Installs the programs that tests need in addition to PostgreSQL.
#
#   internal/testtools/install.sh PACKAGE...     Debian's names, such as pgbouncer
#
# It prints nothing if all programs exist, from any source. Otherwise, as root on
# Debian, it installs the missing ones with apt-get. For any other user it says
# what to install. Only one call of this script installs at a time.

set -eu

# missing PACKAGE... prints the packages whose programs are missing.
missing() {
	for package; do
		case $package in
		chromium) command -v chromium || command -v google-chrome ;;
		default-jdk-headless) command -v javac ;;
		docker-cli) command -v docker ;;
		docker.io) command -v dockerd ;;
		iproute2) command -v ip ;;
		systemd) command -v systemd-analyze ;;
		libxml2-utils) command -v xmllint ;;
		libpostgresql-jdbc-java) [ -e /usr/share/java/postgresql.jar ] ;;
		nodejs) command -v node ;;
		python3-hl7) /usr/bin/python3 -c 'import hl7.mllp' 2>/dev/null ;;
		python3-psycopg) /usr/bin/python3 -c 'import psycopg' 2>/dev/null ;;
		pgbouncer) command -v pgbouncer || [ -x /usr/sbin/pgbouncer ] ;;
		php-cli) command -v php ;;
		php-soap) php -m 2>/dev/null | grep -x soap ;;
		*) command -v "$package" ;;
		esac >/dev/null || printf ' %s' "$package"
	done
}

lacks=$(missing "$@")
[ -n "$lacks" ] || exit 0
fail() {
	echo "the tests need these programs:$lacks (Debian, Ubuntu: sudo apt-get install$lacks)" >&2
	exit 1
}
[ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || fail

exec 9</var/lib/apt
flock 9
lacks=$(missing "$@") # another call may have installed them
[ -n "$lacks" ] || exit 0

echo "installing$lacks" >&2
export DEBIAN_FRONTEND=noninteractive
# The packages' services do not start: only their programs are needed.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
	trap 'rm -f "$policy"' EXIT
	printf '#!/bin/sh\nexit 101\n' >"$policy"
	chmod 755 "$policy"
fi
apt-get update -qq </dev/null || fail
# shellcheck disable=SC2086 # a list
apt-get install -y -qq --no-install-recommends -o DPkg::Lock::Timeout=300 $lacks </dev/null >/dev/null || fail
