#!/bin/sh
# Builds a stand-in for an official RabbitMQ image from a Debian release's own packages,
# for machines that have Docker and a Debian mirror but no image registry. For tests only:
# guest/guest from everywhere, and one Erlang cookie baked in.
#
#   rabbitmq-image.sh bookworm rabbitmq:3.10-management
#   rabbitmq-image.sh trixie   rabbitmq:4-management        (4.0)
set -eu

if [ $# -ne 2 ]; then
    echo "usage: $0 SUITE IMAGE" >&2
    exit 2
fi
suite=$1
image=$2

if ! command -v mmdebstrap >/dev/null; then
    if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
        echo "$0: mmdebstrap is missing; install it (Debian, Ubuntu: apt-get install mmdebstrap)" >&2
        exit 1
    fi
    echo "Installing mmdebstrap, which lays out Debian systems in a folder."
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends mmdebstrap >/dev/null
fi

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
trap 'exit 1' HUP INT TERM

cat >"$scratch/rabbitmq.conf" <<'END'
loopback_users = none
log.console = true
END
echo '[rabbitmq_management,rabbitmq_prometheus,rabbitmq_consistent_hash_exchange].' >"$scratch/enabled_plugins"
# Debian's start script writes the log to a file; Docker and the tests want it on stdout.
printf '#!/bin/sh\nexec /usr/lib/rabbitmq/bin/rabbitmq-server "$@"\n' >"$scratch/rabbitmq-server"

# A Debian machine's own mirror is known to answer; elsewhere mmdebstrap's default is the guess.
mirror=
if grep -qs '^ID=debian$' /etc/os-release; then
    # shellcheck disable=SC2016 # apt's placeholder
    mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | head -n 1)
fi

echo "Building $image from the packages of Debian $suite (about a minute, about 200 MB)."
# shellcheck disable=SC2016 # $1 is the hook's: the new system's root
mmdebstrap --quiet --variant=minbase --include=rabbitmq-server \
    --dpkgopt='path-exclude=/usr/share/doc/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' \
    --dpkgopt='path-exclude=/usr/share/man/*' \
    --customize-hook="upload $scratch/rabbitmq.conf /etc/rabbitmq/rabbitmq.conf" \
    --customize-hook="upload $scratch/enabled_plugins /etc/rabbitmq/enabled_plugins" \
    --customize-hook="upload $scratch/rabbitmq-server /usr/local/bin/rabbitmq-server" \
    --customize-hook='chmod 755 "$1/usr/local/bin/rabbitmq-server"' \
    --customize-hook='chmod 644 "$1/etc/rabbitmq/rabbitmq.conf" "$1/etc/rabbitmq/enabled_plugins"' \
    "$suite" "$scratch/system.tar" ${mirror:+"$mirror"}

# /usr/sbin, with Debian's tools, stands before /usr/lib/rabbitmq/bin: rabbitmq-plugins needs its wrapper.
docker import \
    --change 'ENV HOME=/var/lib/rabbitmq LANG=C.UTF-8 RABBITMQ_LOGS=-' \
    --change 'ENV PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/usr/lib/rabbitmq/bin' \
    --change 'EXPOSE 4369 5671 5672 15672 15692 25672' \
    --change 'VOLUME /var/lib/rabbitmq' \
    --change 'WORKDIR /var/lib/rabbitmq' \
    --change 'USER rabbitmq' \
    --change 'CMD ["rabbitmq-server"]' \
    "$scratch/system.tar" "$image" >/dev/null
echo "Built $image."
