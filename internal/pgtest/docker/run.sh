#!/usr/bin/env bash
#
# Runs Go tests against PostgreSQL in a real Docker container, on an engine of their
# own (see engine.sh).
#
#   internal/pgtest/docker/run.sh [PACKAGE[=RUN]]...     default: ./internal/pgtest
#
#   ./outbox              all tests of package outbox
#   ./outbox=TestAppend   those that -test.run=TestAppend selects
#
# The tests are compiled before, where there is a network. With a Docker engine at hand,
# 'LOCKSTEP_TEST_ROUTE=container make test' does the same on it.

set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
cd "$here/../../.."

say() { printf 'test-containers: %s\n' "$*"; }
die() { say "$*" >&2; exit 1; }

tests=$(mktemp -d "${TMPDIR:-/tmp}/lockstep-tests-XXXXXX")
trap 'rm -rf "$tests"' EXIT
# The server's account has to get through to the temporary directories.
chmod 711 "$tests"

[ $# -gt 0 ] || set -- ./internal/pgtest
: >"$tests/list"
for selection; do
	package=${selection%%=*}
	run=.
	[ "$package" = "$selection" ] || run=${selection#*=}
	binary=$tests/$(printf '%s' "$package" | tr -c 'A-Za-z0-9\n' _).test
	say "compiling $package"
	go test -c -o "$binary" "$package"
	[ -e "$binary" ] || die "package $package has no tests"
	printf '%s\t%s\t%s\n' "$(go list -f '{{.Dir}}' "$package")" "$binary" "$run" >>"$tests/list"
done

status=0
LOCKSTEP_TEST_ROUTE=container "$here/engine.sh" "$here/tests.sh" "$tests/list" || status=$?
[ "$status" = 0 ] || die "failed (status $status)"
say "passed"
