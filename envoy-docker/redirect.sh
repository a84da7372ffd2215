#!/bin/sh
# Redirects what this network namespace's programs connect to, by TCP, to the sidecar's port; but neither what stays on
# the loopback interface nor what the sidecar itself connects to, which runs as user 1337.
set -eu

families=iptables
if [ -e /proc/net/if_inet6 ]; then families="iptables ip6tables"; fi
for iptables in $families; do
    "$iptables" --wait -t nat -A OUTPUT -p tcp ! -o lo -m owner ! --uid-owner 1337 -j REDIRECT --to-ports 15001
done
