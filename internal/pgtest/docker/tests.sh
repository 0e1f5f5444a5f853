#!/usr/bin/env bash
#
# tests.sh LIST: runs compiled tests on the engine. LIST has the directory, the test binary
# and -test.run of each, tab-separated.

set -euo pipefail

status=0
while IFS=$'\t' read -r directory binary run; do
	printf '%s: tests matching %s\n' "${directory##*/}" "$run"
	(cd "$directory" && "$binary" -test.run="$run" -test.timeout=10m </dev/null) || status=1
done <"$1"
exit "$status"
