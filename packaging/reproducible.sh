#!/bin/sh
# Builds the last commit twice, in two directories, the second time with another
# umask, time zone and language, and its programs with an empty build cache, and
# compares every byte of what a release has. Prints the checksums.
set -eu
cd "$(dirname "$0")/.."
[ -z "$(git status --porcelain)" ] || echo "reproducible: what is not committed is not built" >&2
tmp=$(mktemp -d)
trap 'chmod -R u+w "$tmp"; rm -rf "$tmp"' EXIT

# build DIRECTORY [VARIABLE=VALUE...]: the variables are for the programs alone;
# what else takes part, such as nfpm, is part of no release.
build() {
	dir=$1
	shift
	mkdir -p "${dir%/*}"
	git clone --quiet . "$dir"
	make -s -C "$dir" build "$@" >&2
	(cd "$dir/bin" && sha256sum oci-mainpid-hook notify-mainpid podman-pause oci-mainpid) >"$dir.sums"
	for arch in amd64 arm64; do make -s -C "$dir" deb rpm GOARCH=$arch >&2; done
	(cd "$dir/bin" && sha256sum sbom/* ./*.deb ./*.rpm) >>"$dir.sums"
}
# Neither the flags of a make that runs this, nor a version that it was given.
unset MAKEFLAGS MAKELEVEL VERSION SOURCE_DATE_EPOCH
build "$tmp/first"
umask 077
export TZ=Asia/Tokyo LC_ALL=C.UTF-8
build "$tmp/the/second" GOCACHE="$tmp/cache"
cat "$tmp/first.sums"
diff -u "$tmp/first.sums" "$tmp/the/second.sums" >&2 || {
	echo "reproducible: the second build differs from the first" >&2
	exit 1
}
