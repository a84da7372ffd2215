//! A tenant's hostile application and hostile manifest try all ways out, and the test checks what the destinations see.
//! Each way has its own destination, so that a connection that arrives shows which way it took.

use crate::{
    cluster::{Cluster, on_cluster},
    hostile_pods::{Pods, with_pods},
    hostile_sidecar::{ask_the_sidecar, expect_no_credentials, expect_no_permissions},
    hostile_ways::{OWN, Routers, Way, Ways, forged, genuine, plain, private, sidecars, squatters},
    identity::connect,
    server,
    shipped::ROUTERS,
    tls,
};
use anyhow::{Result, ensure};
use std::{
    collections::BTreeSet,
    fmt::Write as _,
    io::Write as _,
    net::{IpAddr, SocketAddr},
    thread,
    time::{Duration, Instant},
};

/// Networks whose addresses all belong to the host outside: public ones, private ones and a cloud's metadata service.
const NETWORKS: [&str; 8] = [
    "198.51.100.128/25",
    "2001:db8::1:0/112",
    "10.88.0.64/26",
    "192.168.77.0/24",
    "100.64.77.0/24",
    "169.254.169.254/32",
    "fd12:3456::/64",
    "fec0:77::/64",
];

/// Tries all ways at the same time and prints a table. Returns the rows that differ from the expected result.
fn try_all(cluster: &Cluster, ways: &[Way], pods: &Pods, routers: &Routers) -> Result<Vec<String>> {
    let before = server::records().len();
    let answers: Vec<String> = thread::scope(|scope| {
        let attempts: Vec<_> = ways.iter().map(|way| scope.spawn(|| (way.attempt)())).collect();
        let answers = attempts.into_iter().map(|thread| thread.join().expect("a thread panicked"));
        answers.map(|answer| answer.unwrap_or_else(|error| format!("{error:#}")).escape_default().to_string()).collect()
    });
    thread::sleep(Duration::from_secs(1)); // for connections that are under way
    let records = server::records()[before..].to_vec();
    let mut table = format!("{:<66}  {:<14}  {:<14}  result\n", "way", "allowed router", "seen");
    let mut wrong = Vec::new();
    for (way, answer) in ways.iter().zip(&answers) {
        let at = |to: &SocketAddr| to.ip() == way.server.ip() && [0, to.port()].contains(&way.server.port());
        let sources = records.iter().filter(|record| at(&record.seen.to)).map(|record| record.seen.from);
        let from = sources.collect::<BTreeSet<IpAddr>>();
        let seen = from.iter().map(|from| pods.name_of(cluster, *from)).collect::<Result<BTreeSet<_>>>()?;
        let expected: BTreeSet<String> = way.router.into_iter().map(str::to_owned).collect();
        let shown = |names: &BTreeSet<String>| {
            if names.is_empty() { "-".to_owned() } else { names.iter().cloned().collect::<Vec<_>>().join(",") }
        };
        let answer = answer.chars().take(70).collect::<String>();
        let row = format!("{:<66}  {:<14}  {:<14}  {answer}", way.name, shown(&expected), shown(&seen));
        writeln!(table, "{row}")?;
        if seen != expected {
            wrong.push(row);
        }
    }
    println!("\n{table}");
    // As a control, every server must accept a connection: from router 2's pod to the servers on that pod, from `pods.squatter` to
    // the squatters' servers, and from router 1's pod to all others.
    let host = |at: SocketAddr| match at.port() {
        0 => &pods.squatter.host,
        _ if routers.pods[1].addresses.contains(&at.ip()) => &routers.pods[1].host,
        _ => &routers.pods[0].host,
    };
    let asked = thread::scope(|scope| {
        let asked = ways.iter().map(|way| {
            let (host, mut at) = (host(way.server), way.server);
            scope.spawn(move || {
                if at.port() == 4433 {
                    return anyhow::Ok(()); // policies.rs tests the UDP server
                }
                if at.port() == 0 {
                    at.set_port(8080);
                }
                host.run(|| Ok(connect(at)?.write_all(b"hello")?))
            })
        });
        asked
            .collect::<Vec<_>>()
            .into_iter()
            .map(|thread| thread.join().expect("a thread panicked"))
            .collect::<Vec<_>>()
    });
    for (way, control) in ways.iter().zip(asked) {
        if let Err(error) = control {
            wrong.push(format!("{}: the server at {} does not answer: {error:#}", way.name, way.server));
        }
    }
    Ok(wrong)
}

/// Expects that the tenant reaches only its own port of its router's pod, and not the ports of other tenants, probes, metrics, the
/// admin interface and Istio's agent.
fn expect_closed_ports(pods: &Pods, routers: &Routers) -> Result<()> {
    let reached = |port: u16| pods.labelled.host.run(|| connect(routers.pod(0, port))).is_ok();
    let ports = [8080, 8082, 8083, 8100, 15000, 15020, 15021, 15090];
    let open = thread::scope(|scope| {
        let attempts = ports.map(|port| scope.spawn(move || reached(port).then_some(port)));
        attempts.map(|thread| thread.join().expect("a thread panicked"))
    });
    let open: Vec<u16> = open.into_iter().flatten().collect();
    ensure!(open.is_empty() && reached(OWN), "ports open to tenant-a: {open:?}; its own port: {}", reached(OWN));
    println!("ports of its router's pod that are closed to tenant-a: {ports:?}");
    Ok(())
}

#[test]
fn a_hostile_application_gets_out_through_its_own_router_only() -> Result<()> {
    on_cluster(|cluster| {
        let started = Instant::now();
        for network in NETWORKS {
            cluster.outside.call("ip", &format!("route replace local {network} dev lo"))?;
        }
        let outcome = with_pods(cluster, |pods| {
            let routers = Routers::find(cluster)?;
            let own = tls::client(Some(&pods.own_certificate(cluster)?))?;
            let mut ways = Ways::default();
            let listed = ways.address(443);
            ways.add_to("another tenant's client, as a control", Some(ROUTERS[1]), listed, |to| {
                plain(&pods.other_tenant, to, b"hello".to_vec())
            });
            forged(&mut ways, cluster, pods, &routers)?;
            genuine(&mut ways, pods, &routers, &own);
            private(&mut ways, cluster, pods, &routers, &own)?;
            sidecars(&mut ways, pods, &routers);
            squatters(&mut ways, cluster, pods)?;
            println!("{:.0?} until the pods were ready", started.elapsed());
            let wrong = try_all(cluster, &ways.list, pods, &routers)?;
            println!("{:.0?} until all ways were tried", started.elapsed());
            expect_closed_ports(pods, &routers)?;
            expect_no_credentials(cluster, pods)?;
            expect_no_permissions(cluster)?;
            let wrong = [wrong, ask_the_sidecar(cluster, pods)?].concat();
            println!("{:.0?} until the sidecar was asked", started.elapsed());
            ensure!(
                wrong.is_empty(),
                "{} unexpected results of {} ways:\n{}",
                wrong.len(),
                ways.list.len(),
                wrong.join("\n")
            );
            Ok(())
        });
        // If the routes stayed, the sidecars' agents in later tests would ask this metadata service which cloud this is.
        for network in NETWORKS {
            cluster.outside.call("ip", &format!("route delete local {network} dev lo"))?;
        }
        outcome
    })
}
