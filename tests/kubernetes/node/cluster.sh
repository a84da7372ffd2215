#!/bin/sh
# Runs the control plane of Kubernetes and the network around the nodes, in separate namespaces. supervise.sh starts this script.
#
#   172.18.0.1, fc00:172:18::1      a bridge: the nodes' router, and the API server on port 6443
#   172.18.0.11, 172.18.0.12        the nodes, and their IPv6 addresses fc00:172:18::11 and ::12
#   10.244.N.0/24, fd00:10:244:N::/64   the pods of node N
#   10.96.0.0/16, fd00:10:96::/112  services
#   198.51.100.7, 198.51.100.9, 2001:db8::7   addresses of the host outside the cluster
#   10.88.0.4:5000                  the registry of the container images; 10.88.0.5 is reserved for the tests
set -eux
run=$1 tools=$2 here=$(dirname "$(readlink -f "$0")")
mount --make-rshared /
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /var/lib
mkdir -p /run/lock /run/netns
hostname control-plane

ip link set lo up
ip link add bridge type bridge mcast_snooping 0
ip address add 172.18.0.1/16 dev bridge
ip address add fc00:172:18::1/64 dev bridge nodad
ip link set bridge up
for address in 198.51.100.7/32 198.51.100.9/32 2001:db8::7/128 10.88.0.4/32 10.88.0.5/32; do
    ip address add $address dev lo
done
echo 1 >/proc/sys/net/ipv4/ip_forward
echo 1 >/proc/sys/net/ipv6/conf/all/forwarding

# Credentials: a token for each component, and a client certificate with which the API server authenticates to kubelets.
mkdir "$run/kubeconfig" "$run/pki" "$run/logs"
: >"$run/pki/tokens.csv"
# user NAME USER [GROUP]
user() {
    echo "token-$1,$2,$2${3:+,\"$3\"}" >>"$run/pki/tokens.csv"
    cat >"$run/kubeconfig/$1" <<KUBECONFIG
{"apiVersion": "v1", "kind": "Config", "current-context": "cluster",
 "clusters": [{"name": "cluster", "cluster": {"server": "https://172.18.0.1:6443", "insecure-skip-tls-verify": true}}],
 "users": [{"name": "user", "user": {"token": "token-$1"}}],
 "contexts": [{"name": "cluster", "context": {"cluster": "cluster", "user": "user"}}]}
KUBECONFIG
}
user admin tests system:masters
user controller-manager system:kube-controller-manager
user scheduler system:kube-scheduler
user proxy system:kube-proxy system:node-proxier
for node in node1 node2; do user $node system:node:$node system:nodes; done
(
    cd "$run/pki"
    openssl genrsa -out service-accounts.pem 2048
    openssl req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.crt -subj /CN=kubelet-clients -days 30
    openssl req -newkey rsa:2048 -nodes -keyout kubelet-client.key -out kubelet-client.csr -subj /O=system:masters/CN=api-server
    openssl x509 -req -in kubelet-client.csr -CA ca.crt -CAkey ca.key -CAcreateserial -out kubelet-client.crt -days 30
)

# daemon NAME PROGRAM [ARGUMENT...]
daemon() {
    name=$1
    shift
    "$@" >"$run/logs/$name.log" 2>&1 &
}
cat >/run/images.yaml <<REGISTRY
version: 0.1
log: { level: warn }
storage: { filesystem: { rootdirectory: $tools/images }, maintenance: { readonly: { enabled: true } } }
http: { addr: "10.88.0.4:5000" }
REGISTRY
daemon images docker-registry serve /run/images.yaml
daemon etcd etcd --data-dir=/run/etcd --listen-peer-urls=http://127.0.0.1:2380 --unsafe-no-fsync
# The API server calls webhooks at their pods' addresses, because no kube-proxy runs here.
daemon api-server "$tools/bin/kube-apiserver" --etcd-servers=http://127.0.0.1:2379 --secure-port=6443 --advertise-address=172.18.0.1 \
    --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction --allow-privileged --enable-aggregator-routing \
    --service-cluster-ip-range=10.96.0.0/16,fd00:10:96::/112 --cert-dir="$run/pki" --token-auth-file="$run/pki/tokens.csv" \
    --service-account-issuer=https://kubernetes.default.svc --api-audiences=https://kubernetes.default.svc,istio-ca \
    --service-account-key-file="$run/pki/service-accounts.pem" --service-account-signing-key-file="$run/pki/service-accounts.pem" \
    --kubelet-client-certificate="$run/pki/kubelet-client.crt" --kubelet-client-key="$run/pki/kubelet-client.key" \
    --kubelet-preferred-address-types=InternalIP

for index in ${NODES:-1 2}; do
    daemon "node$index" unshare --net --mount --uts --ipc --pid --fork --kill-child --mount-proc sh "$here/node.sh" "$run" "$tools" "$index"
    node=$!
    while [ "$(readlink "/proc/$node/ns/net")" = "$(readlink /proc/self/ns/net)" ]; do sleep 0.05; done
    ip link add "port$index" type veth peer name eth0 netns "$node"
    ip link set "port$index" master bridge up
    ip route add "10.244.$index.0/24" via "172.18.0.1$index"
    ip -6 route add "fd00:10:244:$index::/64" via "fc00:172:18::1$index"
done

until "$tools/bin/kubectl" --kubeconfig="$run/kubeconfig/admin" get --raw /readyz; do sleep 0.2; done
daemon controller-manager "$tools/bin/kube-controller-manager" --kubeconfig="$run/kubeconfig/controller-manager" --leader-elect=false \
    --root-ca-file="$run/pki/apiserver.crt" --service-account-private-key-file="$run/pki/service-accounts.pem" \
    --use-service-account-credentials --node-monitor-period=2s --node-monitor-grace-period=20s
daemon scheduler "$tools/bin/kube-scheduler" --kubeconfig="$run/kubeconfig/scheduler" --leader-elect=false
: >"$run/started"
exec sleep infinity
