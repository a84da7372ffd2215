//! The connections that an egress router accepts.

use crate::{
    destination::read_until_closed,
    identity::Certificates,
    network::{RouterNetwork, await_line, await_lines, greeting, header, header_for},
    topology::{router, with_identity},
};
use anyhow::Result;
use std::{io::Write, net::TcpStream};
use testbed::{Config, envoy};

#[test]
fn the_router_accepts_headers_from_its_peers_only() -> Result<()> {
    let network = RouterNetwork::new(&router()?)?;
    let valid = header_for("198.51.100.7:25");
    for from in [&network.peer, &network.stranger] {
        // As a control for the refused headers below, a peer with a valid header gets an answer.
        let (greeting, connected) = network.ask(from, &valid)?;
        let is_peer = std::ptr::eq(from, &network.peer);
        assert_eq!(greeting, if is_peer { b"220 ready\r\n".as_slice() } else { b"" });
        assert_eq!(connected, 1, "only the peer may get a connection, although both headers are valid");
    }
    network.egress.await_access(&["\"peer\":\"10.1.0.100:"])?;
    await_line(&network.egress, &[("source", "10.1.0.2:1234"), ("chain", "stranger"), ("cluster", "stranger")])?;
    assert_eq!(network.egress.stat("cluster.stranger.upstream_cx_none_healthy")?, 1);

    let ipv4 = [[10, 1, 0, 2], [198, 51, 100, 7]].concat();
    let rest = [ipv4.as_slice(), &1234_u16.to_be_bytes(), &25_u16.to_be_bytes()].concat();
    const FORBIDDEN: &str = "cluster.forbidden.upstream_cx_none_healthy";
    const ERROR: &str = "proxy_proto.egress.versions.v2.error";
    const VERSION_1: &str = "proxy_proto.egress.versions.v1.disallowed";
    const NO_HEADER: &str = "proxy_proto.egress.not_found_disallowed";
    const TIMEOUT: &str = "listener.0.0.0.0_8080.downstream_pre_cx_timeout";
    let mut lines = 2; // for the two valid headers above
    await_lines(&network.egress, lines)?;
    for (case, bytes, counter) in [
        ("LOCAL", header(0x20, 0x00, b""), FORBIDDEN),
        ("LOCAL with addresses", header(0x20, 0x11, &rest), FORBIDDEN),
        ("UNKNOWN", header(0x21, 0x00, b""), ERROR),
        ("UNKNOWN with addresses", header(0x21, 0x00, &rest), ERROR),
        ("a socket file", header(0x21, 0x31, &[0; 216]), ERROR),
        ("another version", header(0x31, 0x11, &rest), ERROR),
        ("another command", header(0x22, 0x11, &rest), ERROR),
        ("addresses cut short", header(0x21, 0x11, &rest[..8]), ERROR),
        ("a header cut short", valid[..20].to_vec(), TIMEOUT),
        ("half a signature", valid[..6].to_vec(), TIMEOUT),
        ("version 1", b"PROXY TCP4 10.1.0.2 198.51.100.7 1234 25\r\n".to_vec(), VERSION_1),
        ("version 1, UNKNOWN", b"PROXY UNKNOWN\r\n".to_vec(), VERSION_1),
        ("no header", b"EHLO example.com\r\n".to_vec(), NO_HEADER),
        ("nothing", Vec::new(), TIMEOUT),
    ] {
        let before = network.egress.stat(counter)?;
        let received = match counter {
            FORBIDDEN => network.ask(&network.peer, &bytes)?.0,
            _ => read_until_closed(network.send_to(&network.peer, 8080, &bytes)?)?,
        };
        assert_eq!((received, network.connections()?), (Vec::new(), 1), "{case}");
        lines += 1;
        await_lines(&network.egress, lines)?;
        let counted = network.egress.stat(counter)?;
        assert_eq!(counted, before + 1, "{case}: {counter}\n{}", network.egress.get("/stats?usedonly")?);
    }
    Ok(())
}

#[test]
fn the_router_refuses_its_own_address_even_if_no_list_contains_it() -> Result<()> {
    let unlisted = router()?
        .with("10.1.0.20, prefix_len: 30", "192.0.2.0, prefix_len: 24")?
        .with("\"fd00:1::20\", prefix_len: 125", "\"2001:db8:1::\", prefix_len: 64")?
        .with("{ address_prefix: 10.0.0.0, prefix_len: 8 }", "{ address_prefix: 10.2.0.0, prefix_len: 16 }")?
        .with("{ address_prefix: \"fc00::\", prefix_len: 7 }", "{ address_prefix: \"fd99::\", prefix_len: 16 }")?;
    let network = RouterNetwork::new(&unlisted)?;
    for (router_address, destination) in [("10.1.0.21:8080", "10.1.0.21:25"), ("[fd00:1::21]:8080", "[fd00:1::21]:25")]
    {
        let mut client = network.peer.run(|| TcpStream::connect(router_address))?;
        client.write_all(&header_for(destination))?;
        assert_eq!(greeting(client, &network.client)?, b"", "{destination}");
        let fields = [("destination", destination), ("chain", "clients"), ("cluster", "forbidden")];
        await_line(&network.egress, &fields)?;
    }
    assert_eq!(network.connections()?, 0);
    Ok(())
}

#[test]
fn a_full_router_refuses_connections_but_answers_probes() -> Result<()> {
    let small = router()?
        .with("max_active_downstream_connections: 13000", "max_active_downstream_connections: 2")?
        .with("max_connections: 100", "max_connections: 1")?;
    let network = RouterNetwork::new(&small)?;
    let header = header_for("198.51.100.7:25");
    let open: Vec<TcpStream> = (0..2).map(|_| network.send_to(&network.peer, 8080, &header)).collect::<Result<_>>()?;
    network.egress.await_stat("listener.0.0.0.0_8080.downstream_cx_active", 2)?;
    assert_eq!(network.ask(&network.peer, &header)?, (Vec::new(), 0));
    network.egress.await_stat("listener.0.0.0.0_8080.downstream_global_cx_overflow", 1)?;

    let probe = || -> Result<String> {
        let mut client = network.stranger.run(|| TcpStream::connect(("10.1.0.21", 8082)))?;
        client.write_all(b"GET /ready HTTP/1.1\r\nHost: router\r\nConnection: close\r\n\r\n")?;
        let answer = String::from_utf8(read_until_closed(client)?)?;
        Ok(answer.lines().next().unwrap_or_default().to_owned())
    };
    let await_probes = |count| network.egress.await_stat("connection_limit.ready.active_connections", count);
    assert_eq!(probe()?, "HTTP/1.1 200 OK");
    await_probes(0)?;
    network.egress.post("/healthcheck/fail")?;
    assert_eq!(probe()?, "HTTP/1.1 503 Service Unavailable");
    await_probes(0)?;
    let idle = network.stranger.run(|| TcpStream::connect(("10.1.0.21", 8082)))?;
    await_probes(1)?;
    assert_eq!(probe()?, "", "connections to the port of probes must be limited too");
    assert_eq!(network.egress.stat("connection_limit.ready.limited_connections")?, 1);
    drop((open, idle));
    Ok(())
}

#[test]
fn a_router_without_a_list_of_peers_does_not_start() -> Result<()> {
    let entry = "- { address_prefix: 172.30.80.10, prefix_len: 32 } # the sidecar of compose.yaml";
    let others = [
        "- { address_prefix: \"fd00:172:30:80::11\", prefix_len: 128 }",
        "- { address_prefix: 172.30.80.40, prefix_len: 29 } # those of compose.tenants.yaml",
        "- { address_prefix: \"fd00:172:30:80::40\", prefix_len: 125 }",
    ];
    let config = Config::file(&testbed::root().join("envoy-docker/egress-router.yaml"))?;
    let certificates = Certificates::new()?;
    let config = with_identity(&config.with(entry, "[]")?, &certificates, "egress-router1")?;
    let config = others.iter().try_fold(config, |config, other| config.with(other, ""))?;
    let (valid, log) = envoy::validate(&envoy::program()?, &config)?;
    assert!(!valid && log.contains("CidrRanges"), "{log}");
    Ok(())
}
