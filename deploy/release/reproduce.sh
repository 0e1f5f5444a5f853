#!/bin/sh
#
# reproduce.sh [GOOS/GOARCH]...: builds lockstep of the commit at hand twice, in two clones
# and with two caches, as the release does, and compares the bytes.

set -eu

[ $# -gt 0 ] || set -- linux/amd64
root=$(cd "$(dirname "$0")/../.." && pwd)
work=$(mktemp -d "${TMPDIR:-/tmp}/lockstep-reproduce-XXXXXX")
trap 'rm -rf "$work"' EXIT

for place in one two-with-another-name; do
	git clone --quiet "$root" "$work/$place/source"
	for platform; do
		(cd "$work/$place/source" && GOCACHE="$work/$place/cache" GOFLAGS= CGO_ENABLED=0 GOOS=${platform%/*} GOARCH=${platform#*/} \
			go build -trimpath -ldflags='-s -w -buildid=' -o "$work/$place/$platform/lockstep" ./cmd/lockstep)
	done
done
for platform; do
	one=$(sha256sum <"$work/one/$platform/lockstep")
	two=$(sha256sum <"$work/two-with-another-name/$platform/lockstep")
	if [ "$one" != "$two" ]; then
		echo "$platform: two builds of one commit differ" >&2
		exit 1
	fi
	echo "$platform: both builds have the SHA-256 ${one%% *}"
done
