//! Egress routers that are down, and a module that traps.

use crate::{
    destination::{ECHO, GREETING, read_all, read_until_closed},
    topology::{SOURCES, Topology, router, sidecar},
    trapping_module::trapping_module,
};
use anyhow::{Context, Result, ensure};
use std::{
    io::{Read, Write},
    net::Shutdown,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};
use testbed::{DEADLINE, Envoy, Module, for_each_module};

for_each_module! {
    an_unreachable_egress_fails_only_its_own_clients,
    with_failover_clients_of_a_stopped_egress_use_the_other,
}

/// Sends bytes to the echo server, reads them back and half-closes. Fails unless the other side closes too.
fn echo(topology: &Topology, source: &str) -> Result<()> {
    let mut client = topology.connect(source, ECHO)?;
    client.write_all(source.as_bytes())?;
    let mut echo = vec![0; source.len()];
    client.read_exact(&mut echo)?;
    client.shutdown(Shutdown::Write)?;
    ensure!(echo == source.as_bytes() && read_all(client)?.is_empty(), "{source} received other bytes than it sent");
    Ok(())
}

/// Runs clients of an egress one after the other until `stop` is set. Returns the numbers of answered and lost connections.
fn clients(topology: &Topology, source: &str, stop: &AtomicBool) -> (u64, u64) {
    let (mut answered, mut lost) = (0, 0);
    while !stop.load(Ordering::Relaxed) {
        if echo(topology, source).is_ok() { answered += 1 } else { lost += 1 }
    }
    (answered, lost)
}

fn an_unreachable_egress_fails_only_its_own_clients(module: Module) -> Result<()> {
    let keepalive = "keepalive_time: 1, keepalive_interval: 1";
    let sidecar = sidecar(module)?.with("keepalive_time: 30, keepalive_interval: 10", keepalive)?;
    let mut topology = Topology::start(&sidecar, &router()?)?;
    let mut stranded = topology.connect("10.1.0.2", ECHO)?;
    stranded.write_all(b"here")?;
    stranded.read_exact(&mut [0; 4])?;
    let mut established = topology.connect("10.1.0.3", ECHO)?;
    established.write_all(b"here")?;
    established.read_exact(&mut [0; 4])?;
    let stop = AtomicBool::new(false);
    let cut_off = "INPUT -p tcp -m multiport --dports 8080,8082 -j DROP"; // the router neither answers nor refuses
    topology.routers[0].call("iptables", &format!("--wait -A {cut_off}"))?;
    let (received, took, (answered, lost)) = thread::scope(|scope| {
        let others = scope.spawn(|| clients(&topology, "10.1.0.3", &stop));
        let started = Instant::now();
        let received = topology.connect("10.1.0.2", GREETING).and_then(read_until_closed);
        let took = started.elapsed();
        stop.store(true, Ordering::Relaxed);
        (received, took, others.join().expect("the clients panicked"))
    });
    assert_eq!(received?, b"");
    // The sidecar makes one or two attempts of 2 s, until the probes fail.
    assert!((0.9..6.0).contains(&took.as_secs_f64()), "{took:?}");
    assert!(answered > 3 && lost == 0, "{answered} answered, {lost} lost");
    assert_eq!(read_until_closed(stranded)?, b"");
    topology.sidecar.await_stat("cluster.egress1.membership_healthy", 0)?;
    topology.routers[0].call("iptables", &format!("--wait -D {cut_off}"))?;
    topology.sidecar.await_stat("cluster.egress1.membership_healthy", 1)?;

    topology.take_down(0)?;
    let started = Instant::now();
    assert_eq!(read_until_closed(topology.connect("10.1.0.2", GREETING)?)?, b"");
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
    established.write_all(b"still here")?;
    established.shutdown(Shutdown::Write)?;
    assert_eq!(read_all(established)?, b"still here");
    Ok(())
}

fn with_failover_clients_of_a_stopped_egress_use_the_other(module: Module) -> Result<()> {
    let mut topology = Topology::start_with(&sidecar(module)?, &router()?, "failover")?;
    for (source, _) in SOURCES {
        echo(&topology, source)?;
    }
    let connections = |egress: &Envoy| egress.stat("cluster.clients.upstream_cx_total");
    assert_eq!(
        (connections(&topology.egress[0])?, connections(&topology.egress[1])?),
        (2, 2),
        "while both routers run"
    );
    topology.take_down(0)?;
    topology.sidecar.await_stat("cluster.egress1.membership_healthy", 1)?;
    for number in 0..80 {
        let (source, _) = SOURCES[number % 4];
        echo(&topology, source).with_context(|| format!("connection {number}, {}", topology.sidecar.end_of_log()))?;
    }
    assert_eq!(connections(&topology.egress[1])?, 2 + 80);
    Ok(())
}

#[test]
fn a_sidecar_with_a_trapping_wasm_module_closes_connections_and_reloads_it() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let trapping = trapping_module(folder.path())?;
    let shipped = Module::Wasm.path()?;
    let sidecar = sidecar(Module::Wasm)?.with(
        shipped.to_str().context("the path is not UTF-8")?,
        trapping.to_str().context("the path is not UTF-8")?,
    )?;
    let topology = Topology::start(&sidecar, &router()?)?;
    let started = Instant::now();
    while !topology.sidecar.get("/stats?filter=vm_reload_success")?.lines().any(|line| line.ends_with(": 1")) {
        assert_eq!(read_until_closed(topology.connect("10.1.0.2", GREETING)?)?, b"");
        ensure!(started.elapsed() < DEADLINE, "{}", topology.sidecar.end_of_log());
        thread::sleep(Duration::from_millis(50));
    }
    assert!(topology.received.lock().expect("a server panicked").is_empty());
    Ok(())
}
