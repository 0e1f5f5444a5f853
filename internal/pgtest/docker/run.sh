#!/usr/bin/env bash
#
# Runs Go tests against PostgreSQL in a real Docker container, without a
# registry and without touching the machine's own Docker or network.
#
#   internal/pgtest/docker/run.sh [PACKAGE[=RUN]]...     default: ./internal/pgtest
#
#   ./outbox              all tests of package outbox
#   ./outbox=TestAppend   those that -test.run=TestAppend selects
#
# Needs: root on Linux; Go with this module's dependencies within reach; the
# PostgreSQL server programs (Debian: postgresql), which go into the image.
# dockerd, iptables and ip come by ../../testtools/install.sh where they are missing.
#
# What it does: compiles the tests here, where there is a network; copies the
# machine's PostgreSQL into a root file system; then, in network, mount and
# process namespaces of its own, starts dockerd, imports that file system as an
# image and runs the tests with LOCKSTEP_TEST_ROUTE=container. Everything that
# was started ends with the process namespace, everything written lies in one
# temporary directory; both go when this script ends, however it ends.

set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
cd "$here/../../.."

say() { printf 'test-containers: %s\n' "$*"; }
die() { say "$*" >&2; exit 1; }

[ "$(uname -s)" = Linux ] || die "needs Linux: on other systems start Docker and run 'LOCKSTEP_TEST_ROUTE=container make test'"
[ "$(id -u)" = 0 ] || die "needs root, for dockerd and its namespaces; with a Docker engine at hand run 'LOCKSTEP_TEST_ROUTE=container make test' instead"

tools=internal/testtools/install.sh
"$tools" docker.io iptables iproute2
"$tools" docker-cli # comes with docker.io before Debian 13

work=$(mktemp -d "${TMPDIR:-/tmp}/lockstep-containers-XXXXXX")
cgroup=lockstep-$(basename "$work")
child=
cleanup() {
	status=$?
	trap - EXIT
	if [ -n "$child" ]; then
		# The namespaces' first process dies with unshare, and all others with it.
		kill -KILL "$child" 2>/dev/null || true
		wait "$child" 2>/dev/null || true
	fi
	for _ in 1 2 3 4 5 6 7 8 9 10; do
		rm -rf "$work" 2>/dev/null && break
		sleep 0.5 # what was killed is still on its way out
	done
	[ ! -e "$work" ] || say "could not remove $work" >&2
	find /sys/fs/cgroup -depth -type d -path "*/$cgroup*" -exec rmdir {} + 2>/dev/null || true
	exit "$status"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
# The server's account has to get through to the temporary directories.
chmod 711 "$work"

[ $# -gt 0 ] || set -- ./internal/pgtest
mkdir "$work/tests"
: >"$work/list"
for selection; do
	package=${selection%%=*}
	run=.
	[ "$package" = "$selection" ] || run=${selection#*=}
	binary=$work/tests/$(printf '%s' "$package" | tr -c 'A-Za-z0-9\n' _).test
	say "compiling $package"
	go test -c -o "$binary" "$package"
	[ -e "$binary" ] || die "package $package has no tests"
	printf '%s\t%s\t%s\n' "$(go list -f '{{.Dir}}' "$package")" "$binary" "$run" >>"$work/list"
done

say "collecting this machine's PostgreSQL"
"$here/rootfs.sh" "$work/rootfs"

say "starting dockerd in namespaces of its own"
unshare --net --mount --pid --fork --kill-child --mount-proc \
	bash "$here/inside.sh" "$work" "$cgroup" </dev/null &
child=$!
status=0
wait "$child" || status=$?
child=
[ "$status" = 0 ] || die "failed (status $status)"
say "passed"
