//! What the NetworkPolicies stop, for both families. A connection counts if a server outside has heard of it, and each refusal
//! is checked against the same attempt without the policy.

use crate::{
    cluster::{Cluster, OUTSIDE, on_it},
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

/// How long an attempt waits for an answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// Labels that keep a pod without a sidecar.
pub const BARE: &str = "app: tried, sidecar.istio.io/inject: \"false\"";

/// Deletes these NetworkPolicies, does this, and applies the shipped manifests again.
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
pub const CLIENTS: [&str; 2] = ["client", "client-direct"];

/// Connects from a pod past its sidecar, as uid 1337 does, says this, and returns what it heard.
pub fn connect_as_1337(pod: &Pod, to: SocketAddr, say: &[u8]) -> Result<String> {
    let mut command = pod.host.command("setpriv");
    command.args(["--reuid", "1337", "--clear-groups", "busybox", "nc", "-w", &PATIENCE.as_secs().to_string()]);
    command.args([to.ip().to_string(), to.port().to_string()]);
    let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    // Left open until the answer is there: who ends its side at once hears nothing.
    let mut stdin = process.stdin.take().context("a pipe")?;
    stdin.write_all(say)?;
    let mut heard = String::new();
    process.stdout.take().context("a pipe")?.read_to_string(&mut heard)?;
    drop(stdin);
    process.wait()?;
    Ok(heard)
}

/// Sends a datagram from a pod, and returns the answer if there is one.
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

/// A way by which a pod could reach the outside without sluice.
#[derive(Clone, Copy)]
enum Way<'a> {
    /// The redirection leaves this user's connections alone.
    Uid1337(&'a Pod),
    /// A plain connection of the application: the pod has no sidecar, or the port is excluded.
    Plain(&'a Pod),
    Datagram(&'a Pod),
}

/// Tries these ways with both families at once, and returns what the servers outside saw from the pods' own addresses.
fn try_ways(ways: &[Way]) -> Result<Vec<Seen>> {
    let before = server::records().len();
    let mut own = Vec::new();
    thread::scope(|scope| {
        for way in ways {
            let (Way::Uid1337(pod) | Way::Plain(pod) | Way::Datagram(pod)) = *way;
            own.extend(&pod.addresses);
            for family in [0, 1] {
                scope.spawn(move || match way {
                    Way::Uid1337(_) => connect_as_1337(pod, outside(family, 25), b"").map(drop),
                    Way::Plain(_) => server::ask(&pod.host, outside(family, 25), b"").map(drop),
                    Way::Datagram(_) => datagram(pod, outside(family, 4433)).map(drop),
                });
            }
        }
    });
    let records = server::records();
    Ok(records[before..].iter().map(|record| record.seen.clone()).filter(|seen| own.contains(&seen.from)).collect())
}

/// Expects that none of these ways leads outside, as soon as the policies are enforced.
fn expect_closed(cluster: &Cluster, ways: &[Way]) -> Result<()> {
    cluster.eventually("enforced policies", |_| {
        let seen = try_ways(ways)?;
        ensure!(seen.is_empty(), "reached the outside: {seen:?}");
        println!("with the policies 0 of {} attempts reached the outside", 2 * ways.len());
        Ok(())
    })
}

/// Expects that all of these ways lead outside, with both families.
fn expect_open(cluster: &Cluster, ways: &[Way]) -> Result<()> {
    cluster.eventually("open ways", |_| {
        let seen = try_ways(ways)?;
        ensure!(seen.len() == 2 * ways.len(), "only these reached the outside: {seen:?}");
        println!("without them all {} did", seen.len());
        Ok(())
    })
}

#[test]
fn clients_reach_the_outside_by_the_routers_only() -> Result<()> {
    on_it(|cluster| {
        let steered = "app: tried, egress: sluice, sidecar.istio.io/inject: \"true\"";
        let exclude = "traffic.sidecar.istio.io/excludeOutboundPorts: \"25\"";
        let excluded = manifest("default", "excluded", steered, exclude, "sleep infinity");
        with_applied(cluster, &excluded, || {
            let excluded = &cluster.ready_pods("default", "app=tried")?[0];
            let clients = &cluster.clients;
            let mut ways = vec![Way::Plain(excluded), Way::Datagram(excluded)];
            ways.extend(clients.iter().flat_map(|client| [Way::Uid1337(client), Way::Datagram(client)]));
            expect_closed(cluster, &ways)?;
            for client in clients {
                let found = client.exec(cluster, "client", &["nslookup", "destination.example.com"])?;
                ensure!(OUTSIDE.iter().all(|address| found.contains(address)), "{found}");
                for (port, says) in conversations()? {
                    cluster.expect_routed(client, outside(0, port), &says)?;
                    cluster.expect_routed(client, outside(1, port), &says)?;
                }
            }
            cluster.expect_routed(excluded, outside(0, 443), &conversations()?[0].1)?;
            without_policies(cluster, "default", &CLIENTS, || expect_open(cluster, &ways))
        })
    })
}

#[test]
fn in_a_tenants_namespace_no_pod_reaches_the_outside_past_the_routers() -> Result<()> {
    on_it(|cluster| {
        let made = cluster.kubectl(&["kustomize", &cluster.manifests.join("tenants").to_string_lossy()])?;
        let tenant = "tenant-a";
        let named = |line: &str| line == "  namespace: tenant-a" || line == "  name: tenant-a";
        let wanted = |one: &&str| one.lines().any(named) && !one.contains("\nkind: Deployment\n");
        let manifests: Vec<&str> = made.split("\n---\n").filter(wanted).collect();
        let bare = manifest(tenant, "bare", BARE, "", "sleep infinity");
        with_applied(cluster, &(manifests.join("\n---\n") + "\n" + &bare), || {
            let bare = &cluster.ready_pods(tenant, "app=tried")?[0];
            let ways = [Way::Plain(bare), Way::Uid1337(bare), Way::Datagram(bare)];
            expect_closed(cluster, &ways)?;
            cluster.kubectl(&["delete", "networkpolicies", "--namespace", tenant, "--all"])?;
            expect_open(cluster, &ways)
        })
    })
}

/// Encodes the PROXY header of a sidecar for this destination.
fn proxy_header(to: SocketAddr) -> Vec<u8> {
    let addresses = match to.ip() {
        IpAddr::V4(ip) => [&[0x21, 0x11, 0, 12, 10, 244, 1, 9][..], &ip.octets()].concat(),
        IpAddr::V6(ip) => [&[0x21, 0x21, 0, 36, 0xfd][..], &[0; 15], &ip.octets()].concat(),
    };
    [b"\r\n\r\n\0\r\nQUIT\n", &addresses[..], &1234_u16.to_be_bytes(), &to.port().to_be_bytes()].concat()
}

/// Asks every router at its pods' addresses and at its services' ones for a connection to the outside, and returns how many
/// the server outside saw, and how many attempts there were.
fn through_routers(cluster: &Cluster, pod: &Pod) -> Result<(usize, usize)> {
    let mut routers: Vec<IpAddr> = cluster.routers()?.into_iter().flat_map(|router| router.addresses).collect();
    for router in ROUTERS {
        let service = cluster.get(&["--namespace", ROUTERS_NAMESPACE, "service", router])?;
        for address in list(&service, "/spec/clusterIPs") {
            routers.push(address.as_str().context("an address")?.parse()?);
        }
    }
    let attempts: Vec<SocketAddr> =
        routers.iter().flat_map(|address| [8080, 8081].map(|port| SocketAddr::new(*address, port))).collect();
    let before = server::records().len();
    thread::scope(|scope| {
        for to in &attempts {
            scope.spawn(|| connect_as_1337(pod, *to, &proxy_header(outside(0, 25))));
        }
    });
    let seen = server::records().len() - before;
    Ok((seen, attempts.len()))
}

#[test]
fn only_clients_reach_a_router() -> Result<()> {
    on_it(|cluster| {
        let namespace = "apiVersion: v1\nkind: Namespace\nmetadata: { name: foreign }\n";
        let labelled = manifest("foreign", "foreign", &format!("{BARE}, egress: sluice"), "", "sleep infinity");
        let unlabelled = manifest("default", "unlabelled", BARE, "", "sleep infinity");
        with_applied(cluster, &[namespace, &labelled, &unlabelled].concat(), || {
            let foreign = cluster.ready_pods("foreign", "app=tried")?.pop().context("a pod")?;
            let unlabelled = cluster.ready_pods("default", "app=tried")?.pop().context("a pod")?;
            let strangers = [foreign, unlabelled];
            let expect = |pod: &Pod, all: bool| {
                cluster.eventually("what the policies say", |cluster| {
                    let (seen, attempts) = through_routers(cluster, pod)?;
                    ensure!(seen == if all { attempts } else { 0 }, "{}: {seen} of {attempts}", pod.name);
                    println!("{}: {seen} of {attempts} attempts passed a router", pod.name);
                    Ok(())
                })
            };
            for client in &cluster.clients {
                expect(client, true)?;
            }
            for stranger in &strangers {
                expect(stranger, false)?;
            }
            without_policies(cluster, ROUTERS_NAMESPACE, &ROUTERS, || {
                strangers.iter().try_for_each(|stranger| expect(stranger, true))
            })?;

            // The probes come from the node, which the policies do not name.
            let router = cluster.routers()?.pop().context("a router")?;
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
fn the_api_server_is_reached_by_its_rule_after_dnat() -> Result<()> {
    on_it(|cluster| {
        let service = SocketAddr::new(cluster.service_address("default", "kubernetes")?, 443);
        let server = format!("--server=https://{service}");
        let reached = |pod: &Pod| {
            let version = ["--request-timeout=3s", &server, "get", "--raw=/version"];
            let steered = cluster.kubectl_from(&pod.host, &version).is_ok();
            let mut past = pod.host.command("setpriv");
            past.args(["--reuid", "1337", "--clear-groups", "busybox", "nc", "-w", "2"]);
            past.args([service.ip().to_string(), service.port().to_string()]);
            past.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            Ok::<_, anyhow::Error>([steered, past.status()?.success()])
        };
        let expect = |expected: bool| {
            cluster.eventually("what the rule says", |cluster| {
                for client in &cluster.clients {
                    let reached = reached(client)?;
                    ensure!(reached == [expected; 2], "{}: steered and past the sidecar: {reached:?}", client.name);
                }
                Ok(())
            })
        };
        expect(true)?;
        let policy = cluster.get(&["networkpolicy", "client-direct"])?;
        let rules = list(&policy, "/spec/egress");
        let is_api = |rule: &Value| rule["ports"][0]["port"] == 6443;
        let index = rules.iter().position(is_api).context("a rule for the API server")?;
        let patch = format!(r#"[{{"op": "remove", "path": "/spec/egress/{index}"}}]"#);
        cluster.kubectl(&["patch", "networkpolicy", "client-direct", "--type=json", "--patch", &patch])?;
        let outcome = expect(false);
        cluster.apply()?;
        outcome?;
        expect(true)
    })
}
