#!/bin/sh
# Users with the rights they need and no others, and the limits of the queues. For the default names
# and virtual host; run it where rabbitmqctl works. The queues themselves:
#
#   rabbitmqctl import_definitions definitions.json      (or a relay with broker.declare = "apply")
#
#   set-up.sh FOLDER     with one file a user, which holds its password: relay, relay-check, crm
set -eu

if [ $# -ne 1 ]; then
    echo "usage: $0 FOLDER" >&2
    exit 2
fi

folder=$1

# USER CONFIGURE WRITE READ. For a moment the broker's host shows the password among its processes.
user() {
    rabbitmqctl -q add_user "$1" "$(cat "$folder/$1")"
    rabbitmqctl -q set_permissions "$1" "$2" "$3" "$4"
}

# With broker.declare = "apply": makes its queues, and binds one to the CRM's exchange, which it makes
# too if the CRM has not. Everything it publishes goes through the default exchange; "amq.default" is
# that one's name in permissions.
[ ! -e "$folder/relay" ] ||
    user relay '^(customer-relay\..*|crm\.events)$' '^(customer-relay\..*|amq\.default)$' \
        '^(customer-relay\..*|crm\.events)$'

# With broker.declare = "check": makes nothing but the locks of the one active relay and of whoever looks
# through the dead letters, queues that go with their connections. Without that right (^$) it says at start that nothing keeps a second one out.
[ ! -e "$folder/relay-check" ] ||
    user relay-check '^customer-relay\.(active|scan)$' '^amq\.default$' '^customer-relay\..*$'

# The CRM publishes to its exchange, and makes it.
[ ! -e "$folder/crm" ] || user crm '^crm\.events$' '^crm\.events$' '^$'

# NAME PATTERN DEFINITION. An operator's policy stands above the queue's arguments. Every pattern is
# anchored: a delivery-limit for ".*" would count the looks at dead letters and then delete them.
limit() { rabbitmqctl -q set_operator_policy "$1" "$2" "$3" --apply-to queues --priority 10; }

# All of the relay's queues refuse what is too much (reject-publish). A full work queue is the CRM's
# to notice: its publishes are not confirmed. A full tier or dead-letter queue keeps the relay from
# settling: it holds the message unacked, says so, and tries on; nothing is lost either way.
limit customer-relay-work '^customer-relay\.work$' '{"max-length-bytes": 8589934592}'
limit customer-relay-retry '^customer-relay\.retry\.[0-9]+ms$' '{"max-length-bytes": 1073741824}'
limit customer-relay-dead '^customer-relay\.dead$' '{"max-length-bytes": 4294967296}'
