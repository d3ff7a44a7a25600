#!/bin/sh
# Builds the image customer-relay with this machine's cargo; asks no image registry for anything.
#
#   image.sh [IMAGE]
set -eu

image=${1:-customer-relay}
here=$(cd "$(dirname "$0")" && pwd)
cd "$here/.."
layout=${CARGO_TARGET_DIR:-target}/image

"$here/image-root.sh" "$layout"
docker build --quiet --file "$here/Dockerfile" --target prebuilt --tag "$image" "$layout" >/dev/null
bytes=$(docker image inspect --format '{{.Size}}' "$image")
echo "Built $image: $((bytes / 1000000)) MB ($(du -sh "$layout/root/usr/local/bin" | cut -f1)B of them the two programs)."
