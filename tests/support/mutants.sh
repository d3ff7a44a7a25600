#!/bin/sh
# Plants each mistake of tests/mutants into a copy of the tree, one after the other, and runs the
# simulation: it must catch every one. The copy and what is built of it stay in target/mutants.
#
#   MUTANT=name    this one alone; a pattern of the shell will do
#   ONLY=model     by the simulation's tests with this in their names alone
set -eu

cd "$(dirname "$0")/../.."
mkdir -p "${CARGO_TARGET_DIR:-target}/mutants"
work=$(cd "${CARGO_TARGET_DIR:-target}/mutants" && pwd)
tree=$work/tree
log=$work/log
limit_seconds=1800
faults=0

say() { echo "mutants: $*"; }
fail() {
    say "$*" >&2
    exit 1
}

# Every file gets a new time: what is built may be of a mistake that an interrupted run left behind.
copy_tree() {
    rm -rf "$tree"
    mkdir "$tree"
    tar -c --exclude=./target --exclude=./.git . | tar -xmC "$tree"
}

in_tree() { (cd "$tree" && CARGO_TARGET_DIR=$work/target "$@") >"$log" 2>&1; }

change_tree() { in_tree patch --batch --silent --fuzz=0 -p1 "$@"; }

build() { in_tree "${CARGO:-cargo}" test --locked --quiet --test simulation --no-run; }

simulate() {
    in_tree env RUST_BACKTRACE=0 TEST_QUICK=1 timeout "$limit_seconds" \
        "${CARGO:-cargo}" test --locked --quiet --test simulation -- ${ONLY:+"$ONLY"}
}

# The first line that says what did not hold.
what_failed() {
    sed -n -e 's/^\.*Error: //p' -e '/ panicked at /{n;p;}' "$log" | head -n 1 | cut -c 1-120
}

fault() {
    printf '%-36s %s\n' "$1" "$2"
    faults=$((faults + 1))
}

# PATCH
try() {
    name=$(basename "$1" .patch)
    if ! change_tree <"$1"; then
        fault "$name" "DOES NOT APPLY"
        copy_tree
        return
    fi
    if build; then
        began=$(date +%s)
        status=0
        simulate || status=$?
        case $status in
        0) fault "$name" "NOT CAUGHT" ;;
        124) fault "$name" "NOT CAUGHT within $limit_seconds s" ;;
        *) printf '%-36s caught %4d s  %s\n' "$name" $(($(date +%s) - began)) "$(what_failed)" ;;
        esac
    else
        fault "$name" "DOES NOT COMPILE"
    fi
    change_tree --reverse <"$1"
}

command -v patch >/dev/null || fail "needs the program patch."
patches=tests/mutants/${MUTANT:-*}.patch
copy_tree
say "building the copy in $tree."
build || { cat "$log" >&2; fail "the copy does not compile."; }
say "running the simulation without a mistake."
simulate || { cat "$log" >&2; fail "the simulation fails without a mistake."; }
for patch in $patches; do
    [ -e "$patch" ] || fail "there is no $patch."
    try "$(pwd)/$patch"
done
[ "$faults" -eq 0 ] || fail "$faults of the mistakes were not caught, or could not be tried."
say "every mistake was caught."
