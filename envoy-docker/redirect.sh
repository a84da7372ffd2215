#!/bin/sh
# Redirects the TCP connections of this network namespace's programs to the sidecar's port, but neither those on the loopback
# interface nor those of the sidecar, which runs as user 1337. That user's connections pass to the ports of the routers only,
# and everything else that would leave, as UDP, is refused.
#   redirect.sh ROUTERS...   their networks or addresses, IPv4 and IPv6
# RESOLVERS lists name servers outside the namespace, if programs ask them or Docker's resolver does so for them.
set -eu

families=iptables
if [ -e /proc/net/if_inet6 ]; then families="iptables ip6tables"; fi
for iptables in $families; do
    case $iptables in
        iptables) icmp="-p icmp -m conntrack --ctstate RELATED" is_ours='*.*' ;;
        *) icmp="-p ipv6-icmp ! --icmpv6-type echo-request" is_ours='*:*' ;; # without the others no neighbour is found
    esac
    add() { "$iptables" --wait "$@"; }
    add -t nat -A OUTPUT -p tcp ! -o lo -m owner ! --uid-owner 1337 -j REDIRECT --to-ports 15001

    add -A OUTPUT -o lo -j ACCEPT
    for router in "$@"; do
        # The ports of the tenants and of the probes: 8080 to 8082, 8090 and 8091, 8100 and 8101.
        case $router in $is_ours)
            add -A OUTPUT -p tcp -d "$router" -m owner --uid-owner 1337 \
                -m multiport --dports 8080:8082,8090:8091,8100:8101 -j ACCEPT ;;
        esac
    done
    for resolver in ${RESOLVERS-}; do
        case $resolver in $is_ours) add -A OUTPUT -p udp -d "$resolver" --dport 53 -j ACCEPT ;; esac
    done
    add -A OUTPUT -p tcp --syn -m owner --uid-owner 1337 -j REJECT --reject-with tcp-reset
    add -A OUTPUT -p tcp -j ACCEPT # redirected, or an answer
    # shellcheck disable=SC2086
    add -A OUTPUT $icmp -j ACCEPT
    add -A OUTPUT -j REJECT
done
