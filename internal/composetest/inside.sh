#!/usr/bin/env bash
#
# inside.sh TESTS: makes the images on the engine, and runs the tests.

set -euo pipefail
cd "$(dirname "$0")"

../../deploy/container/build.sh images

# An image of this machine's Prometheus, with the libraries that it needs.
prometheus=$(mktemp -d)
for file in $(command -v prometheus) $(ldd "$(command -v prometheus)" | awk '$2 == "=>" { print $3 } $1 ~ /^\// { print $1 }'); do
	mkdir -p "$prometheus$(dirname "$file")"
	cp -L "$file" "$prometheus$file"
done
mkdir -p "$prometheus/prometheus" "$prometheus/etc/prometheus"
chown 65534:65534 "$prometheus/prometheus"
tar -C "$prometheus" -c . | docker import --change 'USER 65534' --change "ENTRYPOINT [\"$(command -v prometheus)\"]" - lockstep-prometheus:local >/dev/null
rm -rf "$prometheus"

export LOCKSTEP_IMAGE=lockstep DEMO_IMAGE=lockstep-demo POSTGRES_IMAGE=$LOCKSTEP_TEST_IMAGE PROMETHEUS_IMAGE=lockstep-prometheus:local
"$1" -test.v -test.timeout=8m
