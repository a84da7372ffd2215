//! The CPU time that mutual TLS takes in the sidecar and in the router. `make bench-egress` prints the table.

use crate::{
    destination::ECHO,
    load::exchange,
    topology::{Topology, router, sidecar},
};
use anyhow::{Result, ensure};
use std::{
    io::{Read, Write},
    thread,
    time::Duration,
};
use testbed::{Config, Module, envoy};

const ROUNDS: usize = 3;
const CONNECTIONS: u32 = 1_000;
/// The amount of data that one connection sends and receives back, in megabytes (10^6 bytes).
const MEGABYTES: u32 = 200;

/// Returns a configuration in which each TLS transport socket is plaintext.
fn without_tls(config: &Config) -> Result<Config> {
    let indentation = |line: &str| line.len() - line.trim_start().len();
    let (mut text, mut skipped) = (String::new(), None);
    for line in config.text().lines() {
        if skipped.is_some_and(|indent| line.trim().is_empty() || indentation(line) >= indent) {
            continue;
        }
        skipped = (line.trim() == "name: envoy.transport_sockets.tls").then(|| indentation(line));
        let raw = "{ \"@type\": type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer }";
        match skipped {
            Some(indent) => {
                let indent = " ".repeat(indent);
                text += &format!("{indent}name: envoy.transport_sockets.raw_buffer\n{indent}typed_config: {raw}\n");
            }
            None => text += &format!("{line}\n"),
        }
    }
    ensure!(text.contains("raw_buffer") && !text.contains("transport_sockets.tls"), "TLS is still configured:\n{text}");
    text += "# /etc/sluice/, which the topology replaces in every configuration, is not used.\n";
    config.with(config.text(), &text.replace("ON_DOWNSTREAM_TLS_HANDSHAKE", "IMMEDIATE"))
}

/// Returns the milliseconds of CPU time that this work takes in the sidecar and in the router, divided by `count`.
fn measure(topology: &Topology, count: u32, work: impl FnOnce() -> Result<()>) -> Result<[f64; 2]> {
    let spent = || -> Result<[Duration; 2]> { Ok([topology.sidecar.cpu_time()?, topology.egress[0].cpu_time()?]) };
    let before = spent()?;
    work()?;
    let after = spent()?;
    Ok([0, 1].map(|proxy| (after[proxy] - before[proxy]).as_secs_f64() * 1_000.0 / f64::from(count)))
}

/// Returns milliseconds per connection in the sidecar and in the router, then those per MB.
fn cost(sidecar: &Config, router: &Config, has_tls: bool) -> Result<[f64; 4]> {
    let topology = Topology::start(sidecar, router)?;
    let handshakes = || envoy::value(&topology.egress[0].get("/stats")?, "listener.0.0.0.0_8080.ssl.handshake");
    let connect = || -> Result<()> {
        exchange(&topology, "10.1.0.2")?;
        thread::sleep(Duration::from_millis(1)); // below the limit of new connections
        Ok(())
    };
    (0..100).try_for_each(|_| connect())?; // warm
    let before = handshakes().unwrap_or(0);
    let connections = measure(&topology, CONNECTIONS, || (0..CONNECTIONS).try_for_each(|_| connect()))?;
    let counted = handshakes().unwrap_or(0) - before;
    ensure!(counted == if has_tls { CONNECTIONS.into() } else { 0 }, "{counted} handshakes");

    let mut client = topology.connect("10.1.0.2", ECHO)?;
    let megabyte = vec![b'x'; 1_000_000];
    let data = measure(&topology, 2 * MEGABYTES, || {
        thread::scope(|scope| {
            let (mut writer, sent) = (client.try_clone()?, &megabyte);
            let sender = scope.spawn(move || (0..MEGABYTES).try_for_each(|_| writer.write_all(sent)));
            let mut received = vec![0; megabyte.len()];
            for _ in 0..MEGABYTES {
                client.read_exact(&mut received)?;
                ensure!(received == megabyte, "other bytes");
            }
            Ok(sender.join().expect("no panic")?)
        })
    })?;
    Ok([connections[0], connections[1], data[0], data[1]])
}

#[test]
#[ignore = "a measurement: make bench-egress"]
fn the_cost_of_mutual_tls() -> Result<()> {
    let (sidecar, router) = (sidecar(Module::Wasm)?, router()?);
    let versions = "tls_maximum_protocol_version: TLSv1_3 }";
    let with_curve = |config: &Config, curve: &str| {
        config.with(versions, &format!("tls_maximum_protocol_version: TLSv1_3, ecdh_curves: [{curve}] }}"))
    };
    let variants = [
        ("plaintext", without_tls(&sidecar)?, without_tls(&router)?, false),
        ("mutual TLS, as shipped", sidecar.clone(), router.clone(), true),
        ("`ecdh_curves: [X25519]`", with_curve(&sidecar, "X25519")?, with_curve(&router, "X25519")?, true),
        ("`ecdh_curves: [P-256]`", with_curve(&sidecar, "P-256")?, with_curve(&router, "P-256")?, true),
    ];
    let mut rounds = vec![Vec::new(); variants.len()];
    for _ in 0..ROUNDS {
        for ((_, sidecar, router, has_tls), costs) in variants.iter().zip(&mut rounds) {
            costs.push(cost(sidecar, router, *has_tls)?);
        }
    }
    println!("| CPU time | sidecar, ms a connection | router, ms a connection | sidecar, ms a MB | router, ms a MB |");
    println!("| --- | --- | --- | --- | --- |");
    for ((name, ..), costs) in variants.iter().zip(&rounds) {
        let cell = |column: usize| {
            let mut values: Vec<f64> = costs.iter().map(|cost| cost[column]).collect();
            values.sort_by(f64::total_cmp);
            let spread = (values[ROUNDS - 1] - values[0]) / 2.0;
            format!("{:.2} ±{spread:.2}", values[ROUNDS / 2])
        };
        println!("| {name} | {} |", [cell(0), cell(1), cell(2), cell(3)].join(" | "));
    }
    Ok(())
}
