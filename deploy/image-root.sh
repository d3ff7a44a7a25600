#!/bin/sh
# Builds the programs and lays out the image's file system in a folder: root/ and the empty state/.
# The same bytes come out wherever the sources and cargo's home are: the linker and the compilers
# are told other names for both. What is left to hold equal is the toolchain, C compiler included.
#
#   image-root.sh FOLDER
set -eu

if [ $# -ne 1 ]; then
    echo "usage: $0 FOLDER" >&2
    exit 2
fi
mkdir -p "$1"
folder=$(cd "$1" && pwd)
cd "$(dirname "$0")/.."

target=$(rustc -vV | sed -n 's/^host: //p')
built=${CARGO_TARGET_DIR:-target}/$target/release
cargo_home=${CARGO_HOME:-$HOME/.cargo}

# --target, though it is this machine's own: build scripts and macros stay dynamic, as they must.
RUSTFLAGS="-C target-feature=+crt-static \
    --remap-path-prefix=$PWD=/customer-relay --remap-path-prefix=$cargo_home=/cargo" \
    CFLAGS="-ffile-prefix-map=$PWD=/customer-relay -ffile-prefix-map=$cargo_home=/cargo" \
    cargo build --locked --release --bins --target "$target"

rm -rf "$folder/root" "$folder/state"
mkdir -p "$folder/root/usr/local/bin" "$folder/root/etc/ssl/certs" "$folder/root/tmp" "$folder/state"
cp "$built/customer-relay" "$built/portal-simulator" "$folder/root/usr/local/bin/"

# Mozilla's, as Debian has them. Elsewhere the machine's own bundle stands in; a company's own
# authority goes into the container with SSL_CERT_FILE.
certificates=$folder/root/etc/ssl/certs/ca-certificates.crt
if [ -d /usr/share/ca-certificates/mozilla ]; then
    cat /usr/share/ca-certificates/mozilla/*.crt >"$certificates"
else
    for bundle in /etc/ssl/certs/ca-certificates.crt /etc/pki/tls/certs/ca-bundle.crt /etc/ssl/cert.pem; do
        [ ! -e "$certificates" ] && [ -e "$bundle" ] && cp "$bundle" "$certificates"
    done
    [ -e "$certificates" ] || { echo "$0: this machine has no root certificates." >&2; exit 1; }
fi

echo 'nonroot:x:65532:65532::/var/lib/customer-relay:/nonexistent' >"$folder/root/etc/passwd"
echo 'nonroot:x:65532:' >"$folder/root/etc/group"
chmod -R u=rwX,go=rX "$folder"
chmod 1777 "$folder/root/tmp"
