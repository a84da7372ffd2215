#!/bin/sh
# Runs a Kubernetes cluster in the folder $1 with the programs in $2 until standard input is closed, and then removes the cluster.
# The test process holds the other end of this input, so that the cluster is removed even if the process is killed.
set -eu
run=$1 tools=$2 here=$(dirname "$(readlink -f "$0")")
setsid unshare --net --mount --uts --ipc --pid --fork --kill-child --mount-proc \
    sh "$here/cluster.sh" "$run" "$tools" </dev/null >"$run/cluster.log" 2>&1 &
cluster=$!
trap '' HUP INT TERM
echo "$cluster" >"$run/unshare.pid"
cat >/dev/null || true
kill -KILL "$cluster"
exec 2>/dev/null # hides the shell's report of the signal
wait "$cluster" || true

# The first process of the namespaces is killed with unshare. The cluster's cgroups can be removed only after all of its processes
# have ended. With cgroup v1, each controller has its own hierarchy.
name=$(basename "$run")
for attempt in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
    left=$(find /sys/fs/cgroup -maxdepth 2 -type d -name "$name-*")
    [ -n "$left" ] || break
    find $left -depth -type d -exec rmdir {} + || sleep 0.5
done
rm -rf "$run"
