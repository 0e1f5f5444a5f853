#!/bin/sh
#
# Makes the passwords and the token of compose.yaml in secrets/, unless they are there.
# Containers read them as another user, so the files can be read by all, and the
# directory only by you.

set -eu
cd "$(dirname "$0")"
mkdir -p secrets
chmod 700 secrets
for name in owner_password relay_password scheduling_password auditor_password operator_password console_token grafana_password; do
	[ -s "secrets/$name" ] || od -An -N20 -tx1 /dev/urandom | tr -d ' \n' >"secrets/$name"
done
cat >secrets/scheduling_pgpass <<END
postgres:5432:agency:scheduling:$(cat secrets/scheduling_password)
postgres:5432:agency:auditor:$(cat secrets/auditor_password)
END
chmod 644 secrets/*
echo 'the passwords are in secrets/, the token of the console in secrets/console_token'
