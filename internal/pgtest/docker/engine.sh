#!/usr/bin/env bash
#
# engine.sh COMMAND...: runs a command beside a Docker engine of its own, without a
# registry and without touching the machine's own Docker or network.
#
# Needs: root on Linux, and the PostgreSQL server programs (Debian: postgresql). dockerd,
# iptables and ip come by ../../testtools/install.sh where they are missing.
#
# The engine has one image, of this machine's PostgreSQL: $LOCKSTEP_TEST_IMAGE. The command
# runs in the engine's network, mount and process namespaces, with DOCKER_HOST, and in a
# directory TMPDIR of its own. Everything that was started ends with the process namespace,
# everything written lies in one temporary directory; both go when this script ends, however
# it ends.

set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)

say() { printf 'engine: %s\n' "$*"; }
die() { say "$*" >&2; exit 1; }

[ "$(uname -s)" = Linux ] || die "needs Linux: on other systems use your own Docker engine"
[ "$(id -u)" = 0 ] || die "needs root, for dockerd and its namespaces; or use your own Docker engine"

"$here/../../testtools/install.sh" docker.io iptables iproute2
"$here/../../testtools/install.sh" docker-cli # comes with docker.io before Debian 13

work=$(mktemp -d "${TMPDIR:-/tmp}/lockstep-engine-XXXXXX")
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

say "collecting this machine's PostgreSQL"
"$here/rootfs.sh" "$work/rootfs"

say "starting dockerd in namespaces of its own"
unshare --net --mount --pid --fork --kill-child --mount-proc \
	bash "$here/inside.sh" "$work" "$cgroup" "$@" </dev/null &
child=$!
status=0
wait "$child" || status=$?
child=
exit "$status"
