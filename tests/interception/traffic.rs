//! Large streams, half-closed connections, and many connections.

use crate::{
    destination::{ECHO, GREETING, STREAM_LENGTH, STREAMS, TLS, hash_of, read_until_closed, streams},
    topology::{SOURCES, Topology},
};
use anyhow::Result;
use std::{
    io::{Read, Write},
    net::Shutdown,
    time::Duration,
};
use testbed::{Module, for_each_module};

for_each_module! {
    a_hundred_megabytes_arrive_each_way_and_each_side_half_closes_separately,
    a_client_that_half_closes_at_once_is_answered,
    five_hundred_concurrent_connections_are_forwarded,
    silent_clients_and_reset_connections_leave_nothing_open,
}

fn a_hundred_megabytes_arrive_each_way_and_each_side_half_closes_separately(module: Module) -> Result<()> {
    let topology = Topology::new(module)?;
    for (source, number) in [SOURCES[0], SOURCES[3]] {
        let client = topology.connect(source, STREAMS)?;
        assert_eq!(streams(&client, 1, 2)?, hash_of(2), "{source}");
        let (_, hash) = topology.await_received(STREAMS)?;
        assert_eq!(hash, hash_of(1).to_be_bytes(), "{source}");
        drop(client);
        let received = topology.egress[number].stat("cluster.clients.upstream_cx_rx_bytes_total")?;
        assert_eq!(received, STREAM_LENGTH as u64);
    }
    topology.await_quiet()
}

/// Runs clients that half-close right after sending. Returns the number of answered clients.
fn answers_after_immediate_half_close(topology: &Topology, clients: u64) -> Result<u64> {
    let mut answered = 0;
    for _ in 0..clients {
        let mut client = topology.connect("10.1.0.2", ECHO)?;
        client.write_all(b"?")?;
        // The sidecar may have closed the connection.
        let answer = client.shutdown(Shutdown::Write).map_err(Into::into).and_then(|()| read_until_closed(client));
        match answer.as_deref() {
            Ok(b"?") => answered += 1,
            Ok(b"") | Err(_) => {}
            Ok(other) => panic!("unexpected answer: {other:?}"),
        }
    }
    Ok(answered)
}

/// Envoy drops a connection whose client half-closes while a listener filter, such as the router's for the PROXY header, waits for
/// bytes. The sidecar sends TLS after the header, so it passes on the half-close only after the handshake.
fn a_client_that_half_closes_at_once_is_answered(module: Module) -> Result<()> {
    let topology = Topology::new(module)?;
    assert_eq!(answers_after_immediate_half_close(&topology, 200)?, 200);
    assert_eq!(topology.egress[0].stat("listener.0.0.0.0_8080.ssl.handshake")?, 200);
    topology.await_quiet()
}

fn five_hundred_concurrent_connections_are_forwarded(module: Module) -> Result<()> {
    const EACH: usize = 250;
    let topology = Topology::new(module)?;
    let mut clients = Vec::new();
    for number in 0..EACH {
        for (source, _) in &SOURCES[2 * (number % 2)..][..2] {
            let mut client = topology.connect(source, ECHO)?;
            client.write_all(&number.to_be_bytes())?;
            clients.push((number, client));
        }
        // Waiting for answers keeps the bursts small enough for a busy machine to handle within the connect timeout.
        for (number, client) in clients.iter_mut().rev().take(2) {
            let mut echo = [0; size_of::<usize>()];
            client.read_exact(&mut echo)?;
            assert_eq!(usize::from_be_bytes(echo), *number);
        }
    }
    for egress in &topology.egress {
        assert_eq!(egress.stat("cluster.clients.upstream_cx_active")?, EACH as u64);
    }
    drop(clients);
    topology.await_quiet()
}

fn silent_clients_and_reset_connections_leave_nothing_open(module: Module) -> Result<()> {
    let topology = Topology::new(module)?;
    // On port 443 the sidecar first waits for a server name.
    for port in [ECHO, TLS] {
        let silent = topology.connect("10.1.0.2", port)?;
        topology.egress[0].await_stat("cluster.clients.upstream_cx_active", 1)?;
        assert_eq!(topology.egress[0].stat("listener.0.0.0.0_8080.downstream_cx_active")?, 1);
        assert_eq!(topology.sidecar.stat("listener.0.0.0.0_15001.downstream_cx_active")?, 1);
        drop(silent);
        topology.await_received(port)?;
        topology.await_quiet()?;
    }

    let mut client = topology.connect("10.1.0.3", GREETING)?;
    client.write_all(b"QUIT")?;
    let mut greeting = [0; 11];
    client.read_exact(&mut greeting)?;
    topology.egress[1].await_stat("cluster.clients.upstream_cx_tx_bytes_total", 4)?;
    socket2::SockRef::from(&client).set_linger(Some(Duration::ZERO))?;
    drop(client);
    let (_, sent) = topology.await_received(GREETING)?;
    assert!(sent == b"QUIT" || String::from_utf8_lossy(&sent).contains("reset"), "{sent:?}");
    topology.await_quiet()
}
