//! The connections that NetworkPolicies block, in both address families. A connection counts as open if a server outside records
//! it. As a control, each blocked attempt is repeated without the policy.

use crate::{
    cluster::{Cluster, OUTSIDE, on_cluster},
    conversations, outside,
    pod::{Pod, list, manifest, with_applied},
    server::{self, Seen},
    shipped::{ROUTERS, ROUTERS_NAMESPACE},
};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::{
    io::{Read, Write},
    net::{IpAddr, SocketAddr, UdpSocket},
    process::Stdio,
    thread,
    time::Duration,
};

/// The timeout of an attempt.
const PATIENCE: Duration = Duration::from_secs(2);

/// Labels of a pod without a sidecar.
pub const BARE: &str = "app: tried, sidecar.istio.io/inject: \"false\"";

/// Deletes these NetworkPolicies, runs `test`, and applies the shipped manifests again.
pub fn without_policies(
    cluster: &Cluster,
    namespace: &str,
    names: &[&str],
    test: impl FnOnce() -> Result<()>,
) -> Result<()> {
    cluster.kubectl(&[&["delete", "networkpolicies", "--namespace", namespace], names].concat())?;
    let outcome = test();
    cluster.apply()?;
    outcome
}

/// The policies of the clients.
pub const CLIENT_POLICIES: [&str; 2] = ["client", "client-direct"];

/// Connects from a pod as uid 1337, which bypasses its sidecar, sends bytes, and returns the answer.
pub fn connect_as_1337(pod: &Pod, to: SocketAddr, say: &[u8]) -> Result<String> {
    let mut command = pod.host.command("setpriv");
    command.args(["--reuid", "1337", "--clear-groups", "busybox", "nc", "-w", &PATIENCE.as_secs().to_string()]);
    command.args([to.ip().to_string(), to.port().to_string()]);
    let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    // Open until the answer has arrived, because a client that half-closes at once may get no answer.
    let mut stdin = process.stdin.take().context("busybox has no pipe")?;
    stdin.write_all(say)?;
    let mut answer = String::new();
    process.stdout.take().context("busybox has no pipe")?.read_to_string(&mut answer)?;
    drop(stdin);
    process.wait()?;
    Ok(answer)
}

/// Sends a datagram from a pod. Returns the answer, or nothing if there is none.
fn datagram(pod: &Pod, to: SocketAddr) -> Result<String> {
    let answer = pod.host.run(|| -> Result<String> {
        let socket = UdpSocket::bind(SocketAddr::new(pod.source(to.ip()), 0))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.send_to(b"hello", to)?;
        let mut answer = [0; 512];
        let length = socket.recv(&mut answer).unwrap_or(0);
        Ok(String::from_utf8_lossy(&answer[..length]).into_owned())
    });
    answer.with_context(|| format!("{} → {to}", pod.name))
}

/// An attempt of a pod to reach the outside without sluice.
#[derive(Clone, Copy)]
enum Bypass<'a> {
    /// A connection of user 1337, which is not redirected.
    Uid1337(&'a Pod),
    /// A plain connection of the application: the pod has no sidecar, or the port is excluded.
    Plain(&'a Pod),
    /// A UDP datagram.
    Datagram(&'a Pod),
}

/// Tries these attempts in both address families at the same time. Returns the connections from the pods' own addresses that the
/// servers outside recorded.
fn try_bypasses(attempts: &[Bypass]) -> Result<Vec<Seen>> {
    let before = server::records().len();
    let mut own = Vec::new();
    thread::scope(|scope| {
        for attempt in attempts {
            let (Bypass::Uid1337(pod) | Bypass::Plain(pod) | Bypass::Datagram(pod)) = *attempt;
            own.extend(&pod.addresses);
            for family in [0, 1] {
                scope.spawn(move || match attempt {
                    Bypass::Uid1337(_) => connect_as_1337(pod, outside(family, 25), b"").map(drop),
                    Bypass::Plain(_) => server::ask(&pod.host, outside(family, 25), b"").map(drop),
                    Bypass::Datagram(_) => datagram(pod, outside(family, 4433)).map(drop),
                });
            }
        }
    });
    let records = server::records();
    Ok(records[before..].iter().map(|record| record.seen.clone()).filter(|seen| own.contains(&seen.from)).collect())
}

/// Waits until the policies are enforced and none of these attempts leads outside.
fn expect_closed(cluster: &Cluster, attempts: &[Bypass]) -> Result<()> {
    cluster.eventually("enforced policies", |_| {
        let seen = try_bypasses(attempts)?;
        ensure!(seen.is_empty(), "reached the outside: {seen:?}");
        println!("with the policies, 0 of {} attempts reached the outside", 2 * attempts.len());
        Ok(())
    })
}

/// Waits until all of these attempts lead outside, in both address families.
fn expect_open(cluster: &Cluster, attempts: &[Bypass]) -> Result<()> {
    cluster.eventually("connections without the policies", |_| {
        let seen = try_bypasses(attempts)?;
        ensure!(seen.len() == 2 * attempts.len(), "only these reached the outside: {seen:?}");
        println!("without the policies, all {} attempts reached the outside", seen.len());
        Ok(())
    })
}

#[test]
fn clients_reach_the_outside_through_the_routers_only() -> Result<()> {
    on_cluster(|cluster| {
        let labels = "app: tried, egress: sluice, sidecar.istio.io/inject: \"true\"";
        let exclude = "traffic.sidecar.istio.io/excludeOutboundPorts: \"25\"";
        let excluded = manifest("default", "excluded", labels, exclude, "sleep infinity");
        with_applied(cluster, &excluded, || {
            let excluded = &cluster.ready_pods("default", "app=tried")?[0];
            let clients = &cluster.clients;
            let mut attempts = vec![Bypass::Plain(excluded), Bypass::Datagram(excluded)];
            attempts.extend(clients.iter().flat_map(|client| [Bypass::Uid1337(client), Bypass::Datagram(client)]));
            expect_closed(cluster, &attempts)?;
            for client in clients {
                let found = client.exec(cluster, "client", &["nslookup", "destination.example.com"])?;
                ensure!(OUTSIDE.iter().all(|address| found.contains(address)), "{found}");
                for (port, says) in conversations()? {
                    cluster.expect_routed(client, outside(0, port), &says)?;
                    cluster.expect_routed(client, outside(1, port), &says)?;
                }
            }
            cluster.expect_routed(excluded, outside(0, 443), &conversations()?[0].1)?;
            without_policies(cluster, "default", &CLIENT_POLICIES, || expect_open(cluster, &attempts))
        })
    })
}

#[test]
#[ignore = "slow: make test-mesh-full"]
fn no_pod_in_a_tenants_namespace_bypasses_the_routers() -> Result<()> {
    on_cluster(|cluster| {
        let made = cluster.kubectl(&["kustomize", &cluster.manifests.join("tenants").to_string_lossy()])?;
        let tenant = "tenant-a";
        let named = |line: &str| line == "  namespace: tenant-a" || line == "  name: tenant-a";
        let wanted = |one: &&str| one.lines().any(named) && !one.contains("\nkind: Deployment\n");
        let manifests: Vec<&str> = made.split("\n---\n").filter(wanted).collect();
        let bare = manifest(tenant, "bare", BARE, "", "sleep infinity");
        with_applied(cluster, &(manifests.join("\n---\n") + "\n" + &bare), || {
            let bare = &cluster.ready_pods(tenant, "app=tried")?[0];
            let attempts = [Bypass::Plain(bare), Bypass::Uid1337(bare), Bypass::Datagram(bare)];
            expect_closed(cluster, &attempts)?;
            cluster.kubectl(&["delete", "networkpolicies", "--namespace", tenant, "--all"])?;
            expect_open(cluster, &attempts)
        })
    })
}

/// The routers' ports: two for each tenant, and those for probes, metrics and Istio's agent, which the Services do not expose.
const CLIENTS_PORTS: [u16; 2] = [8080, 8081];
const TENANTS_PORTS: [u16; 6] = [8080, 8081, 8090, 8091, 8100, 8101];
const OPERATORS_PORTS: [u16; 3] = [8082, 8083, 15020];

/// Returns all socket addresses of the routers' pods and Services.
fn router_ports(cluster: &Cluster) -> Result<Vec<SocketAddr>> {
    let ports = |address: IpAddr, ports: &[u16]| -> Vec<SocketAddr> {
        ports.iter().map(|port| SocketAddr::new(address, *port)).collect()
    };
    let mut all = Vec::new();
    for address in cluster.routers()?.iter().flat_map(|router| &router.addresses) {
        all.extend(ports(*address, &[&TENANTS_PORTS[..], &OPERATORS_PORTS].concat()));
    }
    for router in ROUTERS {
        let service = cluster.get(&["--namespace", ROUTERS_NAMESPACE, "service", router])?;
        for address in list(&service, "/spec/clusterIPs") {
            all.extend(ports(address.as_str().context("a cluster IP is not a string")?.parse()?, &TENANTS_PORTS));
        }
    }
    Ok(all)
}

/// Returns whether a pod can connect without its sidecar.
fn is_open(pod: &Pod, to: SocketAddr) -> Result<bool> {
    let mut command = pod.host.command("setpriv");
    command.args(["--reuid", "1337", "--clear-groups", "busybox", "nc", "-w", &PATIENCE.as_secs().to_string()]);
    command.args([to.ip().to_string(), to.port().to_string()]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    Ok(command.status()?.success())
}

/// Returns the socket addresses to which a pod can connect without its sidecar.
fn open(pod: &Pod, sockets: &[SocketAddr]) -> Result<Vec<SocketAddr>> {
    thread::scope(|scope| {
        let attempts: Vec<_> = sockets.iter().map(|to| scope.spawn(|| Ok((*to, is_open(pod, *to)?)))).collect();
        let results: Result<Vec<_>> = attempts.into_iter().map(|one| one.join().expect("a thread panicked")).collect();
        Ok(results?.into_iter().filter(|(_, open)| *open).map(|(to, _)| to).collect())
    })
}

#[test]
#[ignore = "slow: make test-mesh-full"]
fn a_tenant_reaches_only_its_own_ports_of_the_routers_and_strangers_reach_none() -> Result<()> {
    on_cluster(|cluster| {
        let namespace = "apiVersion: v1\nkind: Namespace\nmetadata: { name: foreign }\n---\n\
                         apiVersion: v1\nkind: ServiceAccount\nmetadata: { name: client, namespace: foreign }\n";
        let labelled = manifest("foreign", "foreign", &format!("{BARE}, egress: sluice"), "", "sleep infinity");
        let unlabelled = manifest("default", "unlabelled", BARE, "", "sleep infinity");
        with_applied(cluster, &[namespace, &labelled, &unlabelled].concat(), || {
            let foreign = cluster.ready_pods("foreign", "app=tried")?.pop().context("no pod")?;
            let unlabelled = cluster.ready_pods("default", "app=tried")?.pop().context("no pod")?;
            let strangers = [foreign, unlabelled];
            let sockets = router_ports(cluster)?;
            let expect = |pod: &Pod, ports: &[u16]| {
                cluster.eventually("the ports that the policies admit", |_| {
                    let open = open(pod, &sockets)?;
                    let expected: Vec<SocketAddr> =
                        sockets.iter().copied().filter(|socket| ports.contains(&socket.port())).collect();
                    ensure!(open == expected, "{}: expected the ports {ports:?} to be open, got {open:?}", pod.name);
                    println!("{}: {} of {} ports are open: {ports:?}", pod.name, open.len(), sockets.len());
                    Ok(())
                })
            };
            for client in &cluster.clients {
                expect(client, &CLIENTS_PORTS)?;
            }
            for stranger in &strangers {
                expect(stranger, &[])?;
            }
            without_policies(cluster, ROUTERS_NAMESPACE, &ROUTERS, || {
                let all = [&TENANTS_PORTS[..], &OPERATORS_PORTS].concat();
                strangers.iter().try_for_each(|stranger| expect(stranger, &all))
            })?;

            // A new pod becomes ready although no policy names the node, from which the probes come.
            let router = cluster.routers()?.pop().context("no router")?;
            cluster.kubectl(&["delete", "pod", "--namespace", ROUTERS_NAMESPACE, &router.name])?;
            cluster.rolled_out(ROUTERS_NAMESPACE, router.app())?;
            for router in cluster.routers()? {
                let status: Vec<Value> = list(&router.object, "/status/containerStatuses");
                let fine = |status: &Value| status["ready"] == true && status["restartCount"] == 0;
                ensure!(status.len() == 1 && fine(&status[0]), "{}: {status:?}", router.name);
            }
            Ok(())
        })
    })
}

#[test]
#[ignore = "slow: make test-mesh-full"]
fn the_api_server_is_reachable_only_if_a_rule_admits_its_address_after_dnat() -> Result<()> {
    on_cluster(|cluster| {
        let service = SocketAddr::new(cluster.service_address("default", "kubernetes")?, 443);
        let server = format!("--server=https://{service}");
        let reached = |pod: &Pod| {
            let version = ["--request-timeout=3s", &server, "get", "--raw=/version"];
            let through_sidecar = cluster.kubectl_from(&pod.host, &version).is_ok();
            let mut past = pod.host.command("setpriv");
            past.args(["--reuid", "1337", "--clear-groups", "busybox", "nc", "-w", "2"]);
            past.args([service.ip().to_string(), service.port().to_string()]);
            past.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            Ok::<_, anyhow::Error>([through_sidecar, past.status()?.success()])
        };
        let expect = |expected: bool| {
            cluster.eventually("the effect of the rule", |cluster| {
                for client in &cluster.clients {
                    let reached = reached(client)?;
                    ensure!(
                        reached == [expected; 2],
                        "{}: reached through and past the sidecar: {reached:?}",
                        client.name
                    );
                }
                Ok(())
            })
        };
        expect(true)?;
        let policy = cluster.get(&["networkpolicy", "client-direct"])?;
        let rules = list(&policy, "/spec/egress");
        let is_api = |rule: &Value| rule["ports"][0]["port"] == 6443;
        let index = rules.iter().position(is_api).context("no rule for the API server")?;
        let patch = format!(r#"[{{"op": "remove", "path": "/spec/egress/{index}"}}]"#);
        cluster.kubectl(&["patch", "networkpolicy", "client-direct", "--type=json", "--patch", &patch])?;
        let outcome = expect(false);
        cluster.apply()?;
        outcome?;
        expect(true)
    })
}
