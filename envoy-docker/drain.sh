#!/bin/sh
# Runs an egress router and drains it at SIGTERM: it fails its probes, so that sidecars stop using it; after LEAVE seconds it stops
# listening; it ends when no connection is left, or DEADLINE seconds after the signal. Envoy alone would end at once.
#   drain.sh COMMAND...   the Envoy to run
# Envoy's image may have no shell, so the static busybox at the path BUSYBOX runs this script and all its commands.
set -u
busybox=${BUSYBOX-/drain/busybox}
admin=http://127.0.0.1:9901

# With `timeout`, because Debian's busybox crashes with `wget -T`.
get() { "$busybox" timeout 2 "$busybox" wget -q -O - "$admin$1"; }
post() { "$busybox" timeout 2 "$busybox" wget -q -O /dev/null --post-data= "$admin$1"; }
# Succeeds if no connections are left except those of probes and metrics.
is_quiet() {
    gauges=$(get '/stats?filter=cx_active') || return 1
    ! echo "$gauges" | "$busybox" grep -v -e admin -e ready -e metrics -e _808[23] | "$busybox" grep -q ': [1-9]'
}

drain() {
    trap '' TERM INT
    # Enforces the deadline in the background, even if the admin interface does not answer.
    { "$busybox" sleep "${DEADLINE-60}" && kill -KILL "$envoy"; } 2>/dev/null &
    deadline=$!
    post /healthcheck/fail
    "$busybox" sleep "${LEAVE-3}"
    post '/drain_listeners'
    while kill -0 "$envoy" 2>/dev/null && ! is_quiet; do "$busybox" sleep 0.2; done
    kill "$deadline" 2>/dev/null
    kill -TERM "$envoy" 2>/dev/null
}

"$@" &
envoy=$!
trap drain TERM INT
wait "$envoy"
wait "$envoy" # the signal ends the first `wait`
