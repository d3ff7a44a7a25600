#!/bin/sh
# Makes sure that there is a RabbitMQ for the tests (both releases, where Docker runs) or, with
# --demo, for the demo (one is enough). Quick when nothing is missing.
#
#   TEST_AMQP_URL=amqp://…   a broker is given: nothing to do
#   TEST_BROKER=local        no Docker, the installed package
#   TEST_BROKER=docker       nothing but Docker
#   CI=…                     an image that cannot be had is an error
set -eu

here=$(cd "$(dirname "$0")" && pwd)
pull_limit_seconds=120
ways_out="Ways out: start Docker; or install the package rabbitmq-server; or name a running broker in TEST_AMQP_URL=amqp://…"
policy=/usr/sbin/policy-rc.d
policy_is_ours=

say() { echo "setup: $*"; }
fail() {
    echo "setup: $*" >&2
    exit 1
}

docker_works() {
    command -v docker >/dev/null && timeout 20 docker version >/dev/null 2>&1
}

have_image() { docker image inspect "$1" >/dev/null 2>&1; }

# IMAGE SUITE: the official image, else one built from that Debian release's packages.
get_image() {
    have_image "$1" && return
    say "RabbitMQ image $1 is missing; asking the registry for it (at most $pull_limit_seconds s)."
    if timeout "$pull_limit_seconds" docker pull --quiet "$1" >/dev/null 2>&1; then
        return
    fi
    say "no registry has it for us; building a stand-in from the packages of Debian $2."
    "$here/rabbitmq-image.sh" "$2" "$1"
}

# Fails when no image at all can be had.
get_images() {
    old=rabbitmq:3.10-management
    new=rabbitmq:4-management
    if [ "$wanted" = demo ]; then
        have_image "$new" || have_image "$old" || get_image "$new" trixie
        return
    fi
    missing=
    get_image "$new" trixie || missing="$missing $new"
    get_image "$old" bookworm || missing="$missing $old"
    [ -n "$missing" ] || return 0
    [ -z "${CI:-}" ] || fail "cannot get the image:$missing. CI tests every release."
    [ "$missing" != " $new $old" ] || return
    say "WARNING: cannot get the image:$missing; that release stays untested."
}

have_package() { [ -x /usr/lib/rabbitmq/bin/rabbitmq-server ] || command -v rabbitmq-server >/dev/null; }

as_root() {
    if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo "$@"; fi
}

drop_policy() {
    [ -z "$policy_is_ours" ] || as_root rm -f "$policy"
    policy_is_ours=
}

# The tests run private nodes: the broker that the package would start for the whole machine stays off.
install_package() {
    command -v apt-get >/dev/null || return
    [ "$(id -u)" -eq 0 ] || command -v sudo >/dev/null || return
    say "installing the package rabbitmq-server (about 20 MB, and Erlang), without starting its system-wide broker."
    if [ ! -e "$policy" ]; then
        trap drop_policy EXIT
        trap 'exit 1' HUP INT TERM
        policy_is_ours=yes
        printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" >/dev/null
        as_root chmod 755 "$policy"
    fi
    as_root apt-get update -qq &&
        as_root env DEBIAN_FRONTEND=noninteractive \
            apt-get install -qq -y --no-install-recommends rabbitmq-server >/dev/null || return
    drop_policy
    if [ -d /run/systemd/system ]; then
        as_root systemctl disable --quiet --now rabbitmq-server
    fi
}

case ${1:-} in
'') wanted=tests ;;
--demo) wanted=demo ;;
*)
    echo "usage: $0 [--demo]" >&2
    exit 2
    ;;
esac

if [ -n "${TEST_AMQP_URL:-}" ]; then
    exit 0
fi
if [ "${TEST_BROKER:-}" != local ]; then
    if docker_works; then
        if get_images; then
            exit 0
        fi
    elif [ "${TEST_BROKER:-}" = docker ]; then
        fail "TEST_BROKER=docker, but Docker does not work here."
    fi
    [ "${TEST_BROKER:-}" != docker ] || fail "TEST_BROKER=docker, but there is no image."
    have_package || say "Docker offers no RabbitMQ here; falling back to the package rabbitmq-server."
fi
have_package || install_package || fail "there is no RabbitMQ and none can be installed. $ways_out"
