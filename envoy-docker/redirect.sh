#!/bin/sh
# Redirects outgoing TCP connections of this network namespace to the sidecar's port, except those on the loopback interface and
# those of the sidecar, which runs as user 1337. User 1337 may connect only to the ports of the routers. All other outgoing traffic,
# such as UDP, is refused, except ICMP errors and, in IPv6, all ICMP messages other than echo requests.
#   redirect.sh ROUTERS...   the routers' networks or addresses, IPv4 and IPv6
# RESOLVERS lists name servers outside the namespace that programs, or Docker's resolver on their behalf, may query.
set -eu

families=iptables
if [ -e /proc/net/if_inet6 ]; then families="iptables ip6tables"; fi
for iptables in $families; do
    case $iptables in
        iptables) icmp="-p icmp -m conntrack --ctstate RELATED" is_ours='*.*' ;;
        *) icmp="-p ipv6-icmp ! --icmpv6-type echo-request" is_ours='*:*' ;; # neighbour discovery needs the other types
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
    add -A OUTPUT -p tcp -j ACCEPT # redirected connections and replies
    # shellcheck disable=SC2086
    add -A OUTPUT $icmp -j ACCEPT
    add -A OUTPUT -j REJECT
done
