#!/bin/sh
# Makes sure that there are a RabbitMQ (both releases, where Docker runs), a PostgreSQL and libfaketime
# for the tests or, with --demo, a RabbitMQ for the demo (one is enough). Quick when nothing is missing.
#
#   TEST_AMQP_URL=amqp://…           a broker is given: none is needed
#   TEST_BROKER=local                no Docker, the installed package
#   TEST_BROKER=docker               nothing but Docker
#   TEST_POSTGRES_URL=postgres://…   a PostgreSQL is given: none is needed
#   TEST_POSTGRES=local, =docker     as for the broker
#   CI=…                             a RabbitMQ image that cannot be had is an error
set -eu

here=$(cd "$(dirname "$0")" && pwd)
pull_limit_seconds=120
policy=/usr/sbin/policy-rc.d
no_cluster=/etc/postgresql-common/createcluster.d/customer-relay.conf
ours=

say() { echo "setup: $*"; }
fail() {
    echo "setup: $*" >&2
    exit 1
}

docker_works() {
    command -v docker >/dev/null && timeout 20 docker version >/dev/null 2>&1
}

have_image() { docker image inspect "$1" >/dev/null 2>&1; }

# IMAGE: there already, or from the registry.
pull_image() {
    have_image "$1" && return
    say "the image $1 is missing; asking the registry for it (at most $pull_limit_seconds s)."
    timeout "$pull_limit_seconds" docker pull --quiet "$1" >/dev/null 2>&1
}

# IMAGE SUITE: the official image, else one built from that Debian release's packages.
get_image() {
    pull_image "$1" && return
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

as_root() {
    if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo "$@"; fi
}

clean_up() {
    for file in $ours; do as_root rm -f "$file"; done
    ours=
}

# FILE MODE LINES: there while we install; a file that somebody else put there stays.
put() {
    [ ! -e "$1" ] || return 0
    trap clean_up EXIT
    trap 'exit 1' HUP INT TERM
    ours="$ours $1"
    as_root mkdir -p "$(dirname "$1")"
    printf '%b\n' "$3" | as_root tee "$1" >/dev/null
    as_root chmod "$2" "$1"
}

can_install() {
    command -v apt-get >/dev/null || return
    [ "$(id -u)" -eq 0 ] || command -v sudo >/dev/null
}

# PACKAGE SIZE: the tests run private servers; the one that the package would start for the whole
# machine stays off.
install_package() {
    can_install || return
    say "installing the package $1 ($2), without starting its system-wide server."
    put "$policy" 755 '#!/bin/sh\nexit 101'
    as_root apt-get update -qq &&
        as_root env DEBIAN_FRONTEND=noninteractive \
            apt-get install -qq -y --no-install-recommends "$1" >/dev/null || return
    clean_up
    if [ -d /run/systemd/system ]; then
        as_root systemctl disable --quiet --now "$1"
    fi
}

have_rabbitmq() { [ -x /usr/lib/rabbitmq/bin/rabbitmq-server ] || command -v rabbitmq-server >/dev/null; }

install_rabbitmq() { install_package rabbitmq-server "about 20 MB, and Erlang"; }

get_rabbitmq() {
    [ -z "${TEST_AMQP_URL:-}" ] || return 0
    if [ "${TEST_BROKER:-}" != local ]; then
        if docker_works; then
            if get_images; then return; fi
        elif [ "${TEST_BROKER:-}" = docker ]; then
            fail "TEST_BROKER=docker, but Docker does not work here."
        fi
        [ "${TEST_BROKER:-}" != docker ] || fail "TEST_BROKER=docker, but there is no image."
        have_rabbitmq || say "Docker offers no RabbitMQ here; falling back to the package rabbitmq-server."
    fi
    have_rabbitmq || install_rabbitmq || fail "there is no RabbitMQ and none can be installed. Ways out: start Docker; or install the package rabbitmq-server; or name a running broker in TEST_AMQP_URL=amqp://…"
}

have_postgres() {
    for programs in /usr/lib/postgresql/*/bin; do
        if [ -x "$programs/initdb" ] && [ -x "$programs/postgres" ]; then return; fi
    done
    command -v initdb >/dev/null && command -v postgres >/dev/null
}

# Debian's package would lay out a system-wide cluster, too.
install_postgres() {
    can_install || return
    put "$no_cluster" 644 'create_main_cluster = false'
    install_package postgresql "about 60 MB"
}

get_postgres() {
    [ -z "${TEST_POSTGRES_URL:-}" ] || return 0
    image=postgres:17
    if [ "${TEST_POSTGRES:-}" = docker ]; then
        docker_works || fail "TEST_POSTGRES=docker, but Docker does not work here."
        pull_image "$image" || fail "TEST_POSTGRES=docker, but there is no image $image."
        return
    fi
    if [ "${TEST_POSTGRES:-}" != local ] && docker_works; then
        if pull_image "$image"; then return; fi
        say "no registry has it for us; falling back to the package postgresql."
    fi
    have_postgres || install_postgres || fail "there is no PostgreSQL and none can be installed. Ways out: start Docker; or install the package postgresql; or name a running server in TEST_POSTGRES_URL=postgres://…"
}

have_faketime() {
    for library in /usr/lib/*/faketime/libfaketimeMT.so.1 /usr/lib*/faketime/libfaketimeMT.so.1; do
        if [ -f "$library" ]; then return; fi
    done
    return 1
}

install_faketime() {
    can_install || return
    say "installing the package libfaketime (0.1 MB)."
    as_root apt-get update -qq &&
        as_root env DEBIAN_FRONTEND=noninteractive \
            apt-get install -qq -y --no-install-recommends libfaketime >/dev/null
}

# Sets the clock of a relay alone.
get_faketime() {
    have_faketime || install_faketime || fail "there is no libfaketime and it cannot be installed. Way out: install the package libfaketime."
}

case ${1:-} in
'') wanted=tests ;;
--demo) wanted=demo ;;
*)
    echo "usage: $0 [--demo]" >&2
    exit 2
    ;;
esac

get_rabbitmq
if [ "$wanted" = tests ]; then
    get_postgres
    get_faketime
fi
