#!/usr/bin/env bash
#
# Runs the tests of this package on a Docker engine of their own. Docker Compose is built
# from its module. The images come from this machine: those of this project, PostgreSQL,
# and Prometheus. Grafana is left out, because it is only to be had from a registry.

set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
cd "$here"
../testtools/install.sh prometheus

built=$(mktemp -d "${TMPDIR:-/tmp}/lockstep-compose-XXXXXX")
trap 'rm -rf "$built"' EXIT
chmod 711 "$built"

echo 'test-compose: building the programs, the tests and Docker Compose'
../../deploy/container/build.sh programs
go test -c -o "$built/compose.test" .
go build -o "$built/docker-compose" github.com/docker/compose/v5/cmd

COMPOSE=$built/docker-compose ../pgtest/docker/engine.sh "$here/inside.sh" "$built/compose.test"
echo 'test-compose: passed'
