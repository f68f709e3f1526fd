#!/usr/bin/env bash
# A real cluster of several nodes on one machine: each in a network namespace with its own address, host name and /tmp.
#
#   cluster/local.sh up [WORKERS [CPUS]]     a head without work, two workers of one CPU each, and `out`, outside of it
#   cluster/local.sh run NODE COMMAND ...    run something on a node: head, w1, w2, ... or out
#   cluster/local.sh kill NODE               end every process of a node at once, as a power cut does
#   cluster/local.sh start NODE              start a node again
#   cluster/local.sh wait COUNT              return once so many nodes are alive
#   cluster/local.sh link NODE up|down       plug a node's network in or out
#   cluster/local.sh down                    end and remove all of it, and nothing else
#
# Needs root, iproute2 and util-linux. METAGEN_LOCAL names it and its folder, so that two can stand side by side.
set -euo pipefail

NAME=${METAGEN_LOCAL:-mg}
NET=${METAGEN_LOCAL_NET:-10.77.0}
ROOM=/var/tmp/metagen-local-$NAME
TREE=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
BIN=${METAGEN_BIN:-$TREE/.venv/bin}

fail() { echo "local.sh: $*" >&2; exit 2; }

address() {
    case $1 in
        bridge) echo "$NET.1" ;;
        head) echo "$NET.10" ;;
        out) echo "$NET.9" ;;
        w[0-9]*) echo "$NET.$((10 + ${1#w}))" ;;
        *) fail "no node $1; there are head, w1, w2, ... and out" ;;
    esac
}

node_env() {  # what every process of a node is given
    echo "RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$ROOM/token RAY_USAGE_STATS_ENABLED=0 RAY_enable_autoscaler_v2=0"
    echo "RAY_API_SERVER_ADDRESS=http://$NET.10:8265 GLOO_SOCKET_IFNAME=eth0 PYTHONPATH=$TREE"
}

make_node() {
    local node=$1 at
    at=$(address "$node")
    ip netns add "$NAME-$node"
    ip link add "$NAME-$node" type veth peer name eth0 netns "$NAME-$node"
    ip link set "$NAME-$node" master "$NAME-bridge" up
    ip -n "$NAME-$node" addr add "$at/24" dev eth0
    ip -n "$NAME-$node" link set eth0 up
    ip -n "$NAME-$node" link set lo up
    mkdir -p "$ROOM/$node"
}

inside() {  # NODE COMMAND ...: with the node's network, host name and /tmp
    local node=$1
    shift
    # A tree that itself lies in /tmp stays visible there.
    # shellcheck disable=SC2016,SC2046
    exec ip netns exec "$NAME-$node" unshare --mount --uts sh -c '
        case $3 in /tmp/*) mkdir -p "$1/${3#/tmp/}" && mount --bind "$3" "$1/${3#/tmp/}" || exit 2 ;; esac
        mount --rbind "$1" /tmp && hostname "$2" && shift 3 && exec env "$@"
    ' sh "$ROOM/$node" "$NAME-$node" "$TREE" $(node_env) "$@"
}

start_node() {
    local node=$1 at
    at=$(address "$node")
    if [ "$node" = head ]; then
        set -- --head --num-cpus=0 --port=6379 --dashboard-host="$at" --dashboard-port=8265
    else
        set -- --address="$NET.10:6379" --num-cpus="$(cat "$ROOM/cpus")" --labels="metagen/market=on-demand"
    fi
    (inside "$node" "$BIN/ray" start --block --node-ip-address="$at" --object-store-memory=200000000 "$@" \
        > "$ROOM/$node.log" 2>&1) &
    disown
}

end_node() {
    local pids
    pids=$(ip netns pids "$NAME-$1" 2>/dev/null || true)
    # shellcheck disable=SC2086
    [ -z "$pids" ] || kill -KILL $pids 2>/dev/null || true
}

nodes() { ip netns list | sed -n "s/^$NAME-\([a-z0-9]*\).*/\1/p"; }

start_late_ones_again() {  # Ray gives a node 30 s to register, which a loaded machine may not keep
    local node
    for node in $(nodes); do
        grep -qs "timed out during startup" "$ROOM/$node.log" || continue
        end_node "$node"
        start_node "$node"
    done
}

wait_for() {  # COUNT: until so many nodes are alive
    local deadline=$((SECONDS + 240))
    until [ "$(run_in head timeout 60 "$BIN/python" - "$NET.10:6379" 2>/dev/null <<'PY'
import sys
import ray

ray.init(address=sys.argv[1], logging_level="ERROR")
print(sum(node["Alive"] for node in ray.nodes()))
PY
    )" = "$1" ]; do
        [ $SECONDS -lt $deadline ] || fail "the cluster did not come up; see $ROOM/*.log"
        start_late_ones_again
        sleep 1
    done
}

run_in() { (inside "$@"); }

up() {
    local workers=${1:-2} node
    [ "$(id -u)" = 0 ] || fail "namespaces need root"
    [ ! -e "$ROOM" ] || fail "$NAME stands already, or was left half-way: cluster/local.sh down"
    mkdir -p "$ROOM"
    (umask 077; od -An -N32 -tx1 /dev/urandom | tr -d ' \n' > "$ROOM/token")
    echo "${2:-1}" > "$ROOM/cpus"
    ip link add "$NAME-bridge" type bridge
    ip addr add "$(address bridge)/24" dev "$NAME-bridge"
    ip link set "$NAME-bridge" up
    for node in out head $(seq -f 'w%g' 1 "$workers"); do make_node "$node"; done
    start_node head
    wait_for 1
    for node in $(seq -f 'w%g' 1 "$workers"); do start_node "$node"; done
    wait_for $((1 + workers))
    echo "$NAME: head $NET.10, $workers workers; jobs at http://$NET.10:8265, token in $ROOM/token"
}

down() {
    local node
    for node in $(nodes); do
        end_node "$node"
        ip netns delete "$NAME-$node" 2>/dev/null || true
        ip link delete "$NAME-$node" 2>/dev/null || true
    done
    ip link delete "$NAME-bridge" 2>/dev/null || true
    rm -rf "$ROOM"
}

verb=${1:-}
[ $# -eq 0 ] || shift
case $verb in
    up) up "$@" ;;
    down) down ;;
    run) [ $# -ge 2 ] || fail "run NODE COMMAND ..."; address "$1" > /dev/null; inside "$@" ;;
    kill) end_node "${1:?NODE}" ;;
    start) start_node "${1:?NODE}" ;;
    wait) wait_for "${1:?COUNT}" ;;
    link) ip link set "$NAME-${1:?NODE}" "${2:?up or down}" ;;
    *) sed -n '2,13s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
