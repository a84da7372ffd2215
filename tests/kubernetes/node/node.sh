#!/bin/sh
# Node number $3 of the cluster in the folder $1, with the programs of $2: containerd, kubelet, kube-proxy and the enforcement
# of NetworkPolicies, in namespaces of their own; cluster.sh starts it and connects its eth0.
set -eux
run=$1 tools=$2 index=$3 name=node$3 here=$(dirname "$(readlink -f "$0")")
mount --make-rshared /
for folder in /run /var/lib /var/log; do mount -t tmpfs tmpfs $folder; done
mkdir -p /run/lock /run/netns /run/cluster /var/lib/containerd /var/lib/kubelet "$run/containerd$index"
mount --bind "$run/containerd$index" /var/lib/containerd # images need room on a disk
mount --bind "$here" /run/cluster                        # the configurations name files here
hostname "$name"
# The kubelet sets these, which are not in any namespace; it finds them set.
for setting in vm/overcommit_memory=1 kernel/panic=10 kernel/panic_on_oops=1 kernel/keys/root_maxkeys=1000000 kernel/keys/root_maxbytes=25000000; do
    file=/run/sysctl-$(basename "${setting%=*}")
    echo "${setting#*=}" >"$file"
    mount --bind "$file" "/proc/sys/${setting%=*}"
done

until ip link show eth0 2>/dev/null; do sleep 0.05; done
ip link set lo up
ip address add "172.18.0.1$index/16" dev eth0
ip address add "fc00:172:18::1$index/64" dev eth0 nodad
ip link set eth0 up
ip route add default via 172.18.0.1
ip -6 route add default via fc00:172:18::1
for other in 1 2; do
    [ $other != "$index" ] || continue
    ip route add "10.244.$other.0/24" via "172.18.0.1$other"
    ip -6 route add "fd00:10:244:$other::/64" via "fc00:172:18::1$other"
done
echo 1 >/proc/sys/net/ipv4/ip_forward
echo 1 >/proc/sys/net/ipv6/conf/all/forwarding

# The node's own part of the cgroups; supervise.sh removes what begins with this name.
cgroup=$(basename "$run")-$name
if [ -e /sys/fs/cgroup/cgroup.controllers ]; then # cgroup v2: not verified
    echo "+cpu +cpuset +io +memory +pids" >/sys/fs/cgroup/cgroup.subtree_control
    mkdir "/sys/fs/cgroup/$cgroup"
else
    for hierarchy in /sys/fs/cgroup/*/; do
        [ -e "$hierarchy/cgroup.procs" ] && mkdir "$hierarchy/$cgroup" || continue
        for file in cpuset.cpus cpuset.mems; do
            [ ! -e "$hierarchy/$file" ] || cat "$hierarchy/$file" >"$hierarchy/$cgroup/$file"
        done
    done
fi

# daemon NAME PROGRAM [ARGUMENT...]
daemon() {
    log="$run/logs/$name-$1.log"
    shift
    "$@" >"$log" 2>&1 &
}
mkdir -p /run/cni/configuration
cp -r /usr/lib/cni /run/cni/programs # Istio's plugin may join them
sed "s/NODE/$index/g" /run/cluster/cni.conflist >/run/cni/configuration/10-cluster.conflist
daemon containerd containerd --config /run/cluster/containerd.toml
until "$tools/bin/kubectl" --kubeconfig="$run/kubeconfig/admin" get --raw /readyz; do sleep 0.2; done
cp "$run/pki/ca.crt" /run/kubelet-clients.crt
cp "$run/kubeconfig/proxy" /run/proxy.kubeconfig
daemon kube-proxy "$tools/bin/kube-proxy" --config=/run/cluster/kube-proxy.yaml --hostname-override="$name"
daemon kubelet "$tools/bin/kubelet" --config=/run/cluster/kubelet.yaml --kubeconfig="$run/kubeconfig/$name" --hostname-override="$name" \
    --node-ip="172.18.0.1$index,fc00:172:18::1$index" --cgroup-root="/$cgroup"

# It expects to be a pod of a DaemonSet. Its own nftables rules need CONFIG_NFT_QUEUE, which not every kernel has; the rules
# of iptables hand it the same packets: the first ones of connections to or from pods.
account=/run/secrets/kubernetes.io/serviceaccount
mkdir -p $account
printf %s token-admin >$account/token
cp "$run/pki/apiserver.crt" $account/ca.crt
daemon network-policies env KUBERNETES_SERVICE_HOST=172.18.0.1 KUBERNETES_SERVICE_PORT=6443 "$tools/bin/kube-network-policies" \
    --hostname-override="$name" --disable-nri --netfilter-bug-1766-fix=false --metrics-bind-address=127.0.0.1:9080 -v=2
for program in iptables ip6tables; do
    rule() { $program --wait --table mangle "$@"; }
    rule --new-chain POLICIES
    rule --append POSTROUTING --jump POLICIES
    [ $program = iptables ] || rule --append POLICIES --protocol icmpv6 --jump RETURN
    rule --append POLICIES --match owner --uid-owner 0 --jump RETURN # of the node itself: probes
    rule --append POLICIES --match conntrack --ctstate RELATED,ESTABLISHED --jump RETURN
    rule --append POLICIES --jump NFQUEUE --queue-num 100
done
exec sleep infinity
