#!/bin/sh
# Runs node number $3 of the cluster in the folder $1 with the programs in $2: containerd, kubelet, kube-proxy and the enforcement
# of NetworkPolicies, in separate namespaces. cluster.sh starts this script and connects eth0.
set -eux
run=$1 tools=$2 index=$3 name=node$3 here=$(dirname "$(readlink -f "$0")")
mount --make-rshared /
for folder in /run /var/lib /var/log; do mount -t tmpfs tmpfs $folder; done
mkdir -p /run/lock /run/netns /run/cluster /var/lib/containerd /var/lib/kubelet "$run/containerd$index"
mount --bind "$run/containerd$index" /var/lib/containerd # images are too large for a tmpfs
mount --bind "$here" /run/cluster                        # the configurations refer to this path
hostname "$name"
# No namespace isolates these settings. The kubelet finds its values in these files and does not change the machine's settings.
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

# The node's cgroups. supervise.sh removes the cgroups that begin with this name.
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
cp -r /usr/lib/cni /run/cni/programs # a copy, so that Istio can add its plugin
sed "s/NODE/$index/g" /run/cluster/cni.conflist >/run/cni/configuration/10-cluster.conflist
daemon containerd containerd --config /run/cluster/containerd.toml
until "$tools/bin/kubectl" --kubeconfig="$run/kubeconfig/admin" get --raw /readyz; do sleep 0.2; done
cp "$run/pki/ca.crt" /run/kubelet-clients.crt
cp "$run/kubeconfig/proxy" /run/proxy.kubeconfig
daemon kube-proxy "$tools/bin/kube-proxy" --config=/run/cluster/kube-proxy.yaml --hostname-override="$name"
daemon kubelet "$tools/bin/kubelet" --config=/run/cluster/kubelet.yaml --kubeconfig="$run/kubeconfig/$name" --hostname-override="$name" \
    --node-ip="172.18.0.1$index,fc00:172:18::1$index" --cgroup-root="/$cgroup"

# kube-network-policies expects to run as a pod of a DaemonSet. Its nftables rules need CONFIG_NFT_QUEUE, which some kernels lack.
# These iptables rules pass it the same packets: the first packets of connections to or from pods.
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
    rule --append POLICIES --match owner --uid-owner 0 --jump RETURN # the node's own connections: probes
    rule --append POLICIES --match conntrack --ctstate RELATED,ESTABLISHED --jump RETURN
    rule --append POLICIES --jump NFQUEUE --queue-num 100
done
exec sleep infinity
