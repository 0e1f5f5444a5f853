#!/usr/bin/env bash
#
# rootfs.sh DIRECTORY: makes the root file system of a PostgreSQL image from
# the files of this machine: PostgreSQL, the shared libraries it needs, and a
# shell with awk and grep, which testcontainers uses to look into containers.

set -euo pipefail

root=$1
here=$(cd "$(dirname "$0")" && pwd)

if command -v pg_config >/dev/null; then
	bin=$(pg_config --bindir)
fi
if [ ! -x "${bin:-}/postgres" ]; then
	bin=$(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -V | tail -n 1)
fi
if [ ! -x "$bin/postgres" ]; then
	echo "no PostgreSQL server programs here: install Debian's postgresql" >&2
	exit 1
fi
# Debian's pg_config may be of a client package; postgres knows its own places,
# which are built in relative to its directory.
lib=$(dirname "$bin")/lib
share=/usr/share/postgresql/$(basename "$(dirname "$bin")")
if [ ! -d "$lib" ] || [ ! -d "$share" ]; then
	lib=$(pg_config --pkglibdir)
	share=$(pg_config --sharedir)
fi

mkdir -p "$root"/usr/{bin,sbin,lib,lib64} "$root"/{etc,proc,sys,dev,root} "$root/var/lib/postgresql"
for dir in bin sbin lib lib64; do
	ln -s "usr/$dir" "$root/$dir"
done
ln -s ../run "$root/var/run"
mkdir -p "$root/run/postgresql"
mkdir -m 1777 "$root/tmp"

# put FILE: copies the file a path leads to, under the path itself. Paths are
# taken below /usr, where the root's links lead.
put() {
	local dir
	dir=$(realpath "$(dirname "$1")")
	mkdir -p "$root$dir"
	cp -L --preserve=mode "$1" "$root$dir/"
}

programs=()
for name in sh awk grep setpriv mkdir chown chmod cat rm sleep id ls; do
	programs+=("$(command -v "$name")")
done
programs+=("$bin/postgres" "$bin/initdb" "$bin/pg_isready" "$bin/psql")
modules=()
for module in "$lib"/*.so; do
	case $module in
	*/llvmjit.so | */*perl*.so | */*python*.so | */pltcl.so) ;; # each would bring another language along
	*) modules+=("$module") ;;
	esac
done
for file in "${programs[@]}" "${modules[@]}"; do
	put "$file"
done
# ldd prints "name => path (address)", for the loader "path (address)".
ldd "${programs[@]}" "${modules[@]}" | awk '$2 == "=>" && $3 ~ /^\// { print $3 } $1 ~ /^\/.*ld-/ && $2 ~ /^\(/ { print $1 }' | sort -u |
	while read -r library; do put "$library"; done

for tree in "$share" /usr/share/zoneinfo /usr/lib/locale/C.utf8; do
	[ -d "$tree" ] || continue
	mkdir -p "$root$(dirname "$tree")"
	cp -a "$tree" "$root$(dirname "$tree")/"
done

cat >"$root/etc/passwd" <<'END'
root:x:0:0:root:/root:/bin/sh
postgres:x:999:999:PostgreSQL:/var/lib/postgresql:/bin/sh
END
cat >"$root/etc/group" <<'END'
root:x:0:
postgres:x:999:
END
# As in the official image, these are on the PATH.
ln -s "$bin/psql" "$bin/pg_isready" "$root/usr/bin/"
install -m 755 "$here/entrypoint.sh" "$root/entrypoint.sh"
printf '%s\n' "$bin" >"$root/etc/postgresql-bin"
