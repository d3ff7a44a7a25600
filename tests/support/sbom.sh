#!/bin/sh
# Writes what goes into each program, crate by crate with version, licence and checksum, as CycloneDX:
# target/sbom/. cargo-cyclonedx comes from crates.io where it is not installed (some minutes); the
# rest is read from Cargo.lock and cargo's own downloads.
set -eu

cd "$(dirname "$0")/../.."
target=${CARGO_TARGET_DIR:-target}
PATH=$PATH:$target/tools/bin

if ! command -v cargo-cyclonedx >/dev/null; then
    echo "sbom: installing cargo-cyclonedx into $target/tools."
    cargo install --quiet --locked --root "$target/tools" --version 0.5.9 cargo-cyclonedx
fi

# The tool writes beside Cargo.toml, and only there.
mkdir -p "$target/sbom"
cargo cyclonedx --quiet --format json --spec-version 1.5 --describe binaries \
    --target "$(rustc -vV | sed -n 's/^host: //p')"
for document in *_bin.cdx.json; do
    mv "$document" "$target/sbom/${document%_bin.cdx.json}.cdx.json"
    echo "sbom: $target/sbom/${document%_bin.cdx.json}.cdx.json"
done
