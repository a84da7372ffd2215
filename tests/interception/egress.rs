//! The egress of each source. Nothing leaves the pod without passing the sidecar.

use crate::{
    destination::{ECHO, GREETING, HTTP, TLS, read_all},
    network::await_line,
    topology::{
        DESTINATION, ROUTERS, SOURCES, Topology, destination_of, router, sidecar, with_endpoints, with_identity,
    },
};
use anyhow::{Context, Result};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use std::{
    io::{Read, Write},
    net::{IpAddr, Shutdown, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};
use testbed::{Envoy, Host, Module, envoy, for_each_module};

for_each_module! {
    each_source_reaches_its_destination_through_its_own_egress,
    no_user_bypasses_the_redirection,
}

fn each_source_reaches_its_destination_through_its_own_egress(module: Module) -> Result<()> {
    // With this timeout, the test notices if the sidecar waits for a client that sends nothing.
    let patient = sidecar(module)?.with("listener_filters_timeout: 0.2s", "listener_filters_timeout: 15s")?;
    let topology = Topology::start(&patient, &router()?)?;
    let mut roots = RootCertStore::empty();
    roots.add(topology.trusted.clone())?;
    let tls = Arc::new(ClientConfig::builder().with_root_certificates(roots).with_no_client_auth());
    for (source, number) in SOURCES {
        let family = usize::from(source.contains(':'));
        // The routers connect from their own addresses, in the address family of the destination.
        let (router, _) = ROUTERS[number][family].split_once('/').context("no prefix length")?;
        let router: IpAddr = router.parse()?;

        let mut client = topology.connect(source, HTTP)?;
        client.write_all(b"GET / HTTP/1.1\r\nHost: www.example.com\r\n\r\n")?;
        let answer = String::from_utf8(read_all(client)?)?;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("hello"), "{answer}");
        let request = b"GET / HTTP/1.1\r\nHost: www.example.com\r\n\r\n".to_vec();
        assert_eq!(topology.await_received(HTTP)?, (router, request), "{source}");

        let started = Instant::now();
        let mut client = topology.connect(source, GREETING)?;
        let mut greeting = [0; 11];
        client.read_exact(&mut greeting)?;
        assert_eq!(&greeting, b"220 ready\r\n");
        assert!(started.elapsed() < Duration::from_secs(10), "the sidecar waited for the client");
        client.write_all(b"QUIT\r\n")?;
        client.shutdown(Shutdown::Write)?;
        assert_eq!(topology.await_received(GREETING)?, (router, b"QUIT\r\n".to_vec()), "{source}");

        let client = ClientConnection::new(Arc::clone(&tls), "www.example.com".try_into()?)?;
        let mut client = StreamOwned::new(client, topology.connect(source, TLS)?);
        client.write_all(b"hello")?;
        let mut answer = Vec::new();
        client.read_to_end(&mut answer)?;
        assert_eq!(answer, b"hello");
        let port = client.sock.local_addr()?.port();
        drop(client);
        assert_eq!(topology.await_received(TLS)?, (router, b"www.example.com hello".to_vec()), "{source}");

        let client = SocketAddr::new(source.parse()?, port);
        let destination = SocketAddr::new(destination_of(source.parse()?), TLS);
        let (client, destination) = (client.to_string(), destination.to_string());
        let connection = [("source", client.as_str()), ("destination", destination.as_str())];
        let identity = ("identity", "spiffe://sluice.example/client");
        let decision = [identity, ("chain", "clients"), ("cluster", "clients")];
        await_line(&topology.egress[number], &[&connection[..], &decision].concat())?;
        let cluster = format!("egress{}", number + 1);
        let router = format!("spiffe://sluice.example/egress-router{}", number + 1);
        let decision = [("sni", "www.example.com"), ("decision", &cluster), ("cluster", &cluster), ("router", &router)];
        await_line(&topology.sidecar, &[&connection[..], &decision].concat())?;
    }
    topology.await_quiet()?;
    for (number, egress) in topology.egress.iter().enumerate() {
        assert_eq!(egress.stat("cluster.clients.upstream_cx_total")?, 6);
        assert_eq!(egress.stat("proxy_proto.egress.versions.v2.found")?, 6);
        assert_eq!(topology.sidecar.stat(&format!("wasmcustom.sluice.routed.egress{}", number + 1))?, 6);
    }
    assert_eq!(topology.sidecar.stat("cluster.unrouted.upstream_cx_none_healthy")?, 0);
    Ok(())
}

/// Runs a program in the pod as this user. The program sends a word to the echo server of the destination. Returns whether it
/// succeeded.
fn call_as(topology: &Topology, user: u32, destination: IpAddr, word: &str) -> Result<bool> {
    let script = format!("exec 3<>/dev/tcp/{destination}/{ECHO} && echo {word} >&3 && read line <&3");
    let mut command = topology.pod.command("setpriv");
    let user = user.to_string();
    command.args(["--reuid", &user, "--regid", &user, "--clear-groups", "bash", "-c", &script]);
    Ok(command.output()?.status.success())
}

fn no_user_bypasses_the_redirection(module: Module) -> Result<()> {
    let mut topology = Topology::new(module)?;
    for destination in DESTINATION {
        let (destination, _) = destination.split_once('/').context("no prefix length")?;
        let destination: IpAddr = destination.parse()?;
        // This user's connections are not redirected, but refused.
        assert!(!call_as(&topology, envoy::USER, destination, "sidecar")?);
        for user in [0, 1000] {
            assert!(call_as(&topology, user, destination, "client")?);
            let (peer, sent) = topology.await_received(ECHO)?;
            assert!(is_among(peer, ROUTERS.as_flattened()) && sent == b"client\n", "user {user} comes from {peer}");
        }
    }
    let alone = with_identity(&sidecar(module)?, &topology.certificates, "client")?;
    let alone = with_endpoints(&alone, &topology.certificates, "clients")?;
    topology.sidecar = Envoy::start_in(&Host::alone()?, &envoy::program()?, &alone, &[])?; // leaves the pod without a sidecar
    for source in ["10.1.0.2", "fd00:1::2"] {
        assert!(!call_as(&topology, 1000, destination_of(source.parse()?), "client")?);
    }
    assert!(topology.received.lock().expect("a server panicked").is_empty());
    Ok(())
}

/// Returns whether an address is in a list of addresses with prefix lengths.
fn is_among(address: IpAddr, list: &[&str]) -> bool {
    list.iter().any(|one| one.split_once('/').is_some_and(|(one, _)| one == address.to_string()))
}
