#!/bin/sh
#
# Builds the images lockstep and lockstep-demo with the Docker engine at hand.
#
#   deploy/container/build.sh [programs]
#
# With "programs" it only builds the static programs, into bin/image. Without a compiler
# at hand, "images" makes the images of programs that are there.

set -eu
cd "$(dirname "$0")/../.."

out=bin/image
version=$(git describe --tags --always --dirty 2>/dev/null || echo unknown)
revision=$(git rev-parse HEAD 2>/dev/null || echo unknown)
created=$(git log -1 --format=%cI 2>/dev/null || echo unknown)

programs() {
	mkdir -p "$out"
	CGO_ENABLED=0 GOOS=linux go build -trimpath -ldflags='-s -w' -o "$out/" ./cmd/lockstep ./cmd/courtsim ./cmd/scheduling
	cp LICENSE "$out/"
}

image() { # NAME [OPTION]...
	name=$1
	shift
	docker build --quiet -f deploy/container/Dockerfile -t "$name:$version" -t "$name:latest" \
		--build-arg "VERSION=$version" --build-arg "REVISION=$revision" --build-arg "CREATED=$created" "$@" "$out"
}

case ${1:-all} in
programs) programs ;;
images)
	image lockstep
	image lockstep-demo --target demo
	;;
all)
	programs
	image lockstep
	image lockstep-demo --target demo
	;;
*)
	echo "usage: $0 [programs|images]" >&2
	exit 2
	;;
esac
