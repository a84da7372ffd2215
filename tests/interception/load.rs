//! Keeps a ledger of clients' connections during events that must not disturb them: restarts, a killed router, scans and idle
//! strangers.

use crate::{
    destination::{ECHO, GREETING, HTTP, read_all},
    network::{RouterNetwork, greeting, header_for},
    topology::{STANDBY, Topology, router, sidecar, with_identity},
};
use anyhow::{Context, Result, ensure};
use std::{
    fs,
    io::{Read, Write},
    net::{Shutdown, TcpStream},
    os::unix::fs::PermissionsExt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};
use testbed::{Envoy, Host, Module, Signal, envoy, kill};

/// The connections of a load: the number of answered ones, and the errors of the others.
#[derive(Default)]
pub struct Ledger {
    pub answered: u64,
    pub lost: Vec<String>,
}

/// Exchanges a word with the echo server of the destination, and closes the connection gracefully.
pub fn exchange(topology: &Topology, source: &str) -> Result<()> {
    let mut client = topology.connect(source, ECHO)?;
    client.write_all(b"hello")?;
    let mut echo = [0; 5];
    client.read_exact(&mut echo)?;
    client.shutdown(Shutdown::Write)?;
    ensure!(&echo == b"hello" && read_all(client)?.is_empty(), "the echo differs from the bytes that were sent");
    Ok(())
}

/// Runs `work` while clients connect from this source one after the other. Returns their ledger.
pub fn under_load(topology: &Topology, source: &str, work: impl FnOnce() -> Result<()>) -> Result<Ledger> {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let load = scope.spawn(|| {
            let mut ledger = Ledger::default();
            let started = Instant::now();
            while !stop.load(Ordering::Relaxed) {
                match exchange(topology, source) {
                    Ok(()) => ledger.answered += 1,
                    Err(error) => ledger.lost.push(format!("{:?}: {error:#}", started.elapsed())),
                }
            }
            ledger
        });
        let worked = work();
        stop.store(true, Ordering::Relaxed);
        let ledger = load.join().expect("the load panicked");
        worked.map(|()| ledger)
    })
}

/// An Envoy in a host. The shipped script drains it at SIGTERM.
struct DrainableRouter {
    envoy: Envoy,
    _folder: tempfile::TempDir,
}

/// Starts a router of egress 1 in this host behind the shipped `drain.sh`.
fn start_drainable(topology: &Topology, host: &Host) -> Result<DrainableRouter> {
    let folder = tempfile::tempdir()?;
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755))?;
    let program = folder.path().join("envoy");
    let script = testbed::root().join("envoy-docker/drain.sh");
    let (script, envoy) = (script.display(), envoy::program()?);
    let command = format!(
        "#!/bin/sh\nBUSYBOX=/bin/busybox LEAVE=3 DEADLINE=20 exec /bin/busybox sh {script} setpriv --pdeathsig KILL -- {} \"$@\"\n",
        envoy.display()
    );
    fs::write(&program, command)?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    let config = with_identity(&router()?, &topology.certificates, "egress-router1")?;
    Ok(DrainableRouter { envoy: Envoy::start_in(host, &program, &config, &[])?, _folder: folder })
}

impl DrainableRouter {
    fn terminate(&self) -> Result<()> {
        kill(self.envoy.id(), Signal::SIGTERM)
    }

    fn await_end(&self) -> Result<Duration> {
        let started = Instant::now();
        // The process stays a zombie until its owner waits for it.
        let stat = format!("/proc/{}/stat", self.envoy.id());
        while !fs::read_to_string(&stat).unwrap_or_default().contains(") Z ") {
            ensure!(started.elapsed() < Duration::from_secs(40), "the router did not end");
            thread::sleep(Duration::from_millis(20));
        }
        Ok(started.elapsed())
    }
}

#[test]
fn a_rolling_restart_under_load_loses_and_cuts_no_connection() -> Result<()> {
    let mut topology = Topology::new(Module::Wasm)?;
    let second = topology.network.host(&STANDBY[0])?;
    let mut second_router = start_drainable(&topology, &second)?;
    topology.take_down(0)?;
    let mut first_router = start_drainable(&topology, &topology.routers[0])?;
    topology.sidecar.await_stat("cluster.egress1.membership_healthy", 2)?;
    // Their clients hold these connections while the first router drains, and close them before its deadline.
    let mut held = Vec::new();
    for _ in 0..20 {
        let mut client = topology.connect("10.1.0.2", ECHO)?;
        client.write_all(b"held")?;
        client.read_exact(&mut [0; 4])?;
        held.push(client);
    }
    let ledger = under_load(&topology, "10.1.0.2", || {
        first_router.terminate()?;
        thread::sleep(Duration::from_secs(6));
        for mut client in held.drain(..) {
            client.write_all(b"held")?;
            client.read_exact(&mut [0; 4]).context("a held connection was cut")?;
        }
        first_router.await_end()?;
        first_router = start_drainable(&topology, &topology.routers[0])?;
        topology.sidecar.await_stat("cluster.egress1.membership_healthy", 2)?;
        second_router.terminate()?;
        second_router.await_end()?;
        second_router = start_drainable(&topology, &second)?;
        topology.sidecar.await_stat("cluster.egress1.membership_healthy", 2)
    })?;
    println!("{} answered, {} lost", ledger.answered, ledger.lost.len());
    assert!(ledger.answered > 100 && ledger.lost.is_empty(), "{} answered, {:?}", ledger.answered, ledger.lost);
    Ok(())
}

#[test]
fn a_drain_ends_at_its_deadline_although_a_client_stays_connected() -> Result<()> {
    let mut topology = Topology::new(Module::Wasm)?;
    topology.take_down(0)?;
    let router = start_drainable(&topology, &topology.routers[0])?;
    topology.sidecar.await_stat("cluster.egress1.membership_healthy", 1)?;
    let mut stays = topology.connect("10.1.0.2", ECHO)?;
    stays.write_all(b"stays")?;
    stays.read_exact(&mut [0; 5])?;
    router.terminate()?;
    let took = router.await_end()?;
    assert!((19.0..26.0).contains(&took.as_secs_f64()), "expected a drain of 19 to 26 s, took {took:?}");
    Ok(())
}

/// A kill cuts the router's connections. The sidecar retries new ones at the second router.
#[test]
fn a_killed_router_loses_no_new_connections() -> Result<()> {
    let mut topology = Topology::new(Module::Wasm)?;
    let second = topology.network.host(&STANDBY[0])?;
    let config = with_identity(&router()?, &topology.certificates, "egress-router1")?;
    let _second_router = Envoy::start_in(&second, &envoy::program()?, &config, &[])?;
    topology.sidecar.await_stat("cluster.egress1.membership_healthy", 2)?;
    let victim = topology.egress[0].id();
    let ledger = under_load(&topology, "10.1.0.2", || {
        thread::sleep(Duration::from_secs(1));
        kill(victim, Signal::SIGKILL)?;
        thread::sleep(Duration::from_secs(5));
        Ok(())
    })?;
    println!("{} answered, lost: {:?}", ledger.answered, ledger.lost);
    // The kill cuts the connection that is established at that moment.
    assert!(ledger.answered > 50 && ledger.lost.len() <= 1, "{} answered, {:?}", ledger.answered, ledger.lost);
    topology.take_down(0)?;
    Ok(())
}

/// Queries the admin interface until `stop` is set. Returns the time of its slowest answer.
fn slowest_answer(egress: &Envoy, stop: &AtomicBool) -> Result<Duration> {
    let mut slowest = Duration::ZERO;
    while !stop.load(Ordering::Relaxed) {
        let started = Instant::now();
        egress.get("/ready")?;
        slowest = slowest.max(started.elapsed());
        thread::sleep(Duration::from_millis(100));
    }
    Ok(slowest)
}

#[test]
fn a_scan_and_idle_strangers_do_not_disturb_another_tenant() -> Result<()> {
    let network = RouterNetwork::new(&router()?)?;
    let good = crate::tls::client(Some(&network.certificates.identity("tenant-b")?))?;
    let scanner = Arc::clone(&network.client);
    // 2,000 silent connections from an address that no list contains.
    let idle: Vec<TcpStream> = (0..2000)
        .map(|_| network.send_to(&network.stranger, 8080, b""))
        .collect::<Result<_>>()
        .context("cannot open the connections of idle strangers")?;
    let stop = AtomicBool::new(false);
    let (answered, lost, slowest, scanned) = thread::scope(|scope| -> Result<_> {
        let admin = scope.spawn(|| slowest_answer(&network.egress, &stop));
        let scanners: Vec<_> = (0..8_u32)
            .map(|worker| {
                let (network, scanner, stop) = (&network, &scanner, &stop);
                scope.spawn(move || -> Result<u32> {
                    let mut scanned = 0;
                    while !stop.load(Ordering::Relaxed) {
                        // The router does not refuse these destinations. Nothing listens there.
                        let number = scanned * 8 + worker;
                        let to = format!("198.51.{}.{}:9", 101 + number / 250 % 100, 1 + number % 250);
                        let socket = network.send_to(&network.peer, 8080, &header_for(&to))?;
                        socket.set_read_timeout(Some(Duration::from_millis(20)))?;
                        _ = greeting(socket, scanner);
                        scanned += 1;
                    }
                    Ok(scanned)
                })
            })
            .collect();
        let (mut answered, mut lost) = (0, Vec::new());
        let started = Instant::now();
        while started.elapsed() < Duration::from_secs(15) {
            let socket = network.send_to(&network.peer, 8100, &header_for("198.51.100.7:25"))?;
            match greeting(socket, &good) {
                Ok(received) if received == b"220 ready\r\n" => answered += 1,
                other => lost.push(format!("{other:?}")),
            }
        }
        stop.store(true, Ordering::Relaxed);
        let mut scanned = 0;
        for scanner in scanners {
            scanned += scanner.join().expect("a scanner panicked")?;
        }
        Ok((answered, lost, admin.join().expect("the measurement panicked")?, scanned))
    })?;
    println!("{answered} answered, {} lost, {scanned} scanned in 15 s, slowest answer {slowest:?}", lost.len());
    assert!(answered > 50 && lost.is_empty(), "{answered} answered, {lost:?}");
    assert!(slowest < Duration::from_secs(1), "the slowest answer of the admin interface took {slowest:?}");
    assert!(scanned > 1_000, "only {scanned} destinations were scanned");
    drop(idle);
    Ok(())
}

#[test]
fn the_sidecar_limits_the_rate_of_its_application() -> Result<()> {
    let limited =
        sidecar(Module::Wasm)?.with("max_tokens: 1000, tokens_per_fill: 500", "max_tokens: 10, tokens_per_fill: 1")?;
    let topology = Topology::start(&limited, &router()?)?;
    for _ in 0..30 {
        _ = topology.connect("10.1.0.2", GREETING)?;
    }
    topology.sidecar.await_stat_that("local_rate_limit.outbound.rate_limited", |limited| limited >= 15)?;
    Ok(())
}

#[test]
fn refused_and_allowed_destinations_share_the_rate_limit_of_a_tenant() -> Result<()> {
    let limited = router()?.with(
        "max_tokens: 2000, tokens_per_fill: 1000, fill_interval: 1s",
        "max_tokens: 10, tokens_per_fill: 1, fill_interval: 60s",
    )?;
    let network = RouterNetwork::new(&limited)?;
    let ask = |to: &str| network.ask(&network.peer, &header_for(to));
    assert_eq!(ask("198.51.100.7:25")?.0, b"220 ready\r\n");
    for _ in 0..20 {
        assert_eq!(ask("10.0.0.1:25")?.0, b"");
    }
    assert!(network.egress.stat("local_rate_limit.clients.rate_limited")? >= 5);
    assert_eq!(ask("198.51.100.7:25")?.0, b"", "refused connections did not count");
    Ok(())
}

/// Follows the recipe in docs/transparent-egress.md for a host with several addresses.
#[test]
fn a_router_connects_from_the_address_it_is_bound_to() -> Result<()> {
    let addresses = "{ source_address: { address: 198.51.100.33, port_value: 0 }, \
                     extra_source_addresses: [{ address: { address: \"2001:db8::33\", port_value: 0 } }] }";
    let cluster = "{ name: clients, type: ORIGINAL_DST,";
    let bound = router()?.with(cluster, &format!("{cluster} upstream_bind_config: {addresses},"))?;
    let mut topology = Topology::new(Module::Wasm)?;
    topology.take_down(0)?;
    for address in ["198.51.100.31/32", "198.51.100.33/32", "2001:db8::31/128", "2001:db8::33/128"] {
        topology.routers[0].call("ip", &format!("address add {address} dev eth0"))?;
    }
    thread::sleep(Duration::from_secs(2)); // until duplicate address detection is done
    let config = with_identity(&bound, &topology.certificates, "egress-router1")?;
    topology.egress[0] = Envoy::start_in(&topology.routers[0], &envoy::program()?, &config, &[])?;
    topology.sidecar.await_stat("cluster.egress1.membership_healthy", 1)?;
    for (source, expected) in [("10.1.0.2", "198.51.100.33"), ("fd00:1::2", "2001:db8::33")] {
        let mut client = topology.connect(source, HTTP)?;
        client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")?;
        read_all(client)?;
        let (peer, _) = topology.await_received(HTTP)?;
        assert_eq!(peer.to_string(), expected, "{source}");
    }
    Ok(())
}
