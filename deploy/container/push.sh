#!/bin/sh
#
# push.sh IMAGE VERSION: builds the images for amd64 and arm64, and pushes IMAGE and IMAGE-demo.
# The release workflow runs it; it needs docker buildx and a login.

set -eu
cd "$(dirname "$0")/../.."

image=$1
version=$2
revision=$(git rev-parse HEAD)
created=$(git log -1 --format=%cI)

for arch in amd64 arm64; do
	mkdir -p "bin/push/$arch"
	CGO_ENABLED=0 GOOS=linux GOARCH=$arch go build -trimpath -ldflags='-s -w -buildid=' -o "bin/push/$arch/" ./cmd/lockstep ./cmd/courtsim ./cmd/scheduling
	cp LICENSE "bin/push/$arch/"
done

push() { # NAME [OPTION]...
	name=$1
	shift
	for arch in amd64 arm64; do
		docker buildx build --platform "linux/$arch" --provenance=false --push -f deploy/container/Dockerfile -t "$name:$version-$arch" \
			--build-arg "VERSION=$version" --build-arg "REVISION=$revision" --build-arg "CREATED=$created" "$@" "bin/push/$arch"
	done
	docker buildx imagetools create -t "$name:$version" -t "$name:latest" "$name:$version-amd64" "$name:$version-arm64"
}

push "$image-demo" --target demo
push "$image"
digest() { docker buildx imagetools inspect "$1:$version" --format '{{.Manifest.Digest}}'; }
{
	echo "digest=$(digest "$image")"
	echo "demo_digest=$(digest "$image-demo")"
} >>"${GITHUB_OUTPUT:-/dev/stdout}"
