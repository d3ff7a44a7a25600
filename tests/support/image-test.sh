#!/bin/sh
# Runs the image as it will be run: not as root, on a read-only file system, without capabilities.
# A RabbitMQ container, the image's simulator, the image's relay; the image's own `publish`; the
# events must be applied at the simulator, SIGTERM must end the relay orderly, and a second one must
# find the ledger. The broker is set up by the files of deploy/rabbitmq: its definitions, and users who
# may do nothing but what they need; the second relay may not even declare. Prints the size, and the time from `docker run` to the first call.
#
#   image-test.sh [IMAGE]
set -eu

image=${1:-customer-relay}
broker=rabbitmq:4-management
name=customer-relay-image-test-$$
rabbitmq=$(cd "$(dirname "$0")/../../deploy/rabbitmq" && pwd)
events=40
scratch=$(mktemp -d)

say() { echo "image test: $*"; }
fail() {
    say "$*" >&2
    for part in relay portal broker; do docker logs --tail 15 "$name-$part" >&2 2>&1 || true; done
    exit 1
}
clean_up() {
    docker rm --force --volumes "$name-relay" "$name-portal" "$name-broker" >/dev/null 2>&1 || true
    docker volume rm "$name" >/dev/null 2>&1 || true
    docker network rm "$name" >/dev/null 2>&1 || true
    rm -rf "$scratch"
}
trap clean_up EXIT
trap 'exit 1' HUP INT TERM

# SECONDS WHAT COMMAND…: until it succeeds.
wait_for() {
    tries=$(($1 * 10)) what=$2
    shift 2
    until "$@" >/dev/null 2>&1; do
        tries=$((tries - 1))
        [ "$tries" -gt 0 ] || fail "$what did not come."
        sleep 0.1
    done
}

# NAME-PART OPTIONS…: the image, hardened.
run_image() {
    part=$1
    shift
    docker run --name "$name-$part" --read-only --cap-drop ALL --security-opt no-new-privileges "$@"
}
milliseconds() { echo $(($(date +%s%N) / 1000000)); }
told_by() { docker logs "$name-$1" 2>&1 | grep -q "$2"; }
is_healthy() { [ "$(docker inspect --format '{{.State.Health.Status}}' "$name-$1")" = healthy ]; }
simulator() { docker exec "$name-portal" customer-relay healthy "http://127.0.0.1:8080$1"; }
has_applied() { simulator /control/stats | grep -q "\"applied\":$1,"; }
first_call() { simulator /control/requests | grep -o '"unix_ms":[0-9]*' | cut -d: -f2 | sort -n | head -n 1; }

user=$(docker image inspect --format '{{.Config.User}}' "$image")
[ "${user%%:*}" -gt 0 ] 2>/dev/null || fail "the image runs as '$user', which is not a number above 0."

printf demo-token >"$scratch/token"
printf demo-secret >"$scratch/secret_key"
printf demo-admin >"$scratch/admin_token"
cat >"$scratch/relay.toml" <<END
[portal]
base_url = "http://127.0.0.1:8080"
token_file = "/secrets/token"
secret_key_file = "/secrets/secret_key"
[admin]
token_file = "/secrets/admin_token"
END
mkdir "$scratch/passwords"
for user_name in relay relay-check crm; do
    printf %s "of-$user_name" >"$scratch/passwords/$user_name"
done
# USER: the broker for this one.
broker_of() { echo "CUSTOMER_RELAY__BROKER__URL=amqp://$1:of-$1@$name-broker:5672/%2f"; }
for n in $(seq "$events"); do
    echo "{\"entity_id\":\"C$n\",\"city\":\"Kochi\"}"
done >"$scratch/events.jsonl"
chmod -R a+rX "$scratch"
secrets="--volume $scratch:/secrets:ro --env CUSTOMER_RELAY_CONFIG=/secrets/relay.toml"

docker network create "$name" >/dev/null
docker volume create "$name" >/dev/null
docker run --detach --name "$name-broker" --network "$name" --volume "$rabbitmq:/set-up:ro" \
    --volume "$scratch/passwords:/passwords:ro" "$broker" >/dev/null
run_image portal --detach --network "$name" --entrypoint portal-simulator "$image" >/dev/null
wait_for 120 "the broker" told_by broker 'Server startup complete'

# The queues first, so that the events are there before the relay is.
docker exec "$name-broker" rabbitmqctl -q import_definitions /set-up/definitions.json >/dev/null
docker exec "$name-broker" /set-up/set-up.sh /passwords
# shellcheck disable=SC2086 # several words
run_image once --rm --network "$name" $secrets --env "$(broker_of crm)" "$image" publish /secrets/events.jsonl

# USER DECLARE
start_relay() {
    # shellcheck disable=SC2086
    run_image relay --detach --network "container:$name-portal" $secrets \
        --volume "$name:/var/lib/customer-relay" --env "$(broker_of "$1")" \
        --env "CUSTOMER_RELAY__BROKER__DECLARE=$2" "$image" >/dev/null
}
start=$(milliseconds)
start_relay relay apply
wait_for 60 "the last applied event" has_applied "$events"
first=$(($(first_call) - start))
wait_for 60 "the health check" is_healthy relay

docker stop --time 30 "$name-relay" >/dev/null
code=$(docker inspect --format '{{.State.ExitCode}}' "$name-relay")
[ "$code" = 0 ] || fail "SIGTERM ended the relay with $code, not 0."
docker rm "$name-relay" >/dev/null

# A new container with the same volume: the ledger is the one that the queue is fenced by.
start_relay relay-check check
# shellcheck disable=SC2086
run_image once --rm --network "$name" $secrets --env "$(broker_of crm)" "$image" publish /secrets/events.jsonl
wait_for 60 "the second relay's last applied event" has_applied $((2 * events))
# shellcheck disable=SC2086
run_image once --rm --network "container:$name-portal" $secrets --env "$(broker_of relay)" \
    --volume "$name:/var/lib/customer-relay" "$image" customer show C1 >"$scratch/shown" || fail "the ledger is not in the volume."
grep -q '^city' "$scratch/shown" || fail "the ledger does not know C1's city."

bytes=$(docker image inspect --format '{{.Size}}' "$image")
say "$events events applied as user $user on a read-only file system;" \
    "$first ms from docker run to the first call; image $((bytes / 1000000)) MB."
