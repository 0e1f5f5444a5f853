#!/usr/bin/env bash
#
# inside.sh WORK CGROUP COMMAND...: the part of engine.sh that runs in namespaces of
# its own, as their first process. WORK holds rootfs/, the image to be.

set -euo pipefail

work=$1
cgroup=$2
shift 2

ip link set lo up
# Sockets, locks and network namespaces of dockerd and containerd, apart from
# those of an engine that this machine may be running.
mount -t tmpfs -o mode=755 tmpfs /run

# Ports published on the loopback go through docker's own proxy: no packet
# filter is needed, and the kernel need not have one.
dockerd --data-root="$work/docker" --exec-root=/run/docker --pidfile=/run/docker.pid \
	--host=unix:///run/lockstep.sock --log-level=warn --cgroup-parent="/$cgroup" \
	--iptables=false --ip6tables=false --ip-masq=false >"$work/dockerd.log" 2>&1 &
dockerd=$!

fail() {
	printf '%s\ndockerd said last:\n' "$1" >&2
	tail -n 30 "$work/dockerd.log" >&2
	exit 1
}

# Not at the usual place, so that a test can also be without an engine.
export DOCKER_HOST=unix:///run/lockstep.sock
for _ in $(seq 300); do
	docker version >/dev/null 2>&1 && break
	kill -0 "$dockerd" 2>/dev/null || fail "dockerd has ended"
	sleep 0.1
done
docker version >/dev/null 2>&1 || fail "dockerd did not answer within 30 s"

image=lockstep-postgres:local
tar -C "$work/rootfs" -c . | docker import --change 'ENTRYPOINT ["/entrypoint.sh"]' --change 'CMD ["postgres"]' \
	--change 'EXPOSE 5432' - "$image" >/dev/null || fail "the image could not be imported"
docker image ls "$image"

export LOCKSTEP_TEST_IMAGE=$image
export TESTCONTAINERS_RYUK_DISABLED=true # its image is in a registry; the namespace cleans up instead
unset LOCKSTEP_TEST_DATABASE_URL
mkdir -m 1777 "$work/tmp" # goes with the rest, even if the command is killed
export TMPDIR=$work/tmp

status=0
"$@" </dev/null || status=$?

left=$(docker ps --all --quiet | wc -l)
if [ "$left" != 0 ]; then
	printf '%s containers were left behind:\n' "$left" >&2
	docker ps --all >&2
	status=1
fi
exit "$status"
