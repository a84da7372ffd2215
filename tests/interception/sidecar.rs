//! Connections that the sidecar does not route.

use crate::{
    client_hello::client_hello,
    destination::{GREETING, TLS, read_until_closed},
    network::await_line,
    topology::{SOURCES, Topology, router, sidecar},
};
use anyhow::Result;
use std::{
    io::{Read, Write},
    net::TcpStream,
};
use testbed::{Module, for_each_module};

for_each_module! {
    connections_to_the_sidecars_own_port_do_not_loop,
    connections_that_no_route_matches_are_not_forwarded,
    a_route_by_server_name_matches_tls_clients,
}

fn connections_to_the_sidecars_own_port_do_not_loop(module: Module) -> Result<()> {
    let topology = Topology::new(module)?;
    let mut closed = 0;
    for address in ["10.1.0.2:15001", "[fd00:1::2]:15001"] {
        for host in [&topology.pod, &topology.destination] {
            assert_eq!(read_until_closed(host.run(|| TcpStream::connect(address))?)?, b"", "{address}");
            closed += 1;
            topology.sidecar.await_stat("cluster.unrouted.upstream_cx_none_healthy", closed)?;
        }
    }
    // A connection to the same port of another host is redirected to the sidecar. It must not start a loop.
    for elsewhere in ["198.51.100.7:15001", "[2001:db8::7]:15001"] {
        assert_eq!(read_until_closed(topology.pod.run(|| TcpStream::connect(elsewhere))?)?, b"", "{elsewhere}");
        closed += 1;
        topology.sidecar.await_stat("cluster.unrouted.upstream_cx_none_healthy", closed)?;
    }
    for egress in ["egress1", "egress2"] {
        assert_eq!(topology.sidecar.stat(&format!("cluster.{egress}.upstream_cx_total"))?, 0);
    }
    Ok(())
}

fn connections_that_no_route_matches_are_not_forwarded(module: Module) -> Result<()> {
    let table =
        r#"value: '{"routes": [{"match": {"destination_ports": [80]}, "action": "deny"}], "otherwise": "continue"}'"#;
    let topology = Topology::start(&sidecar(module)?.with("value: standalone", table)?, &router()?)?;
    for (number, (source, _)) in SOURCES.into_iter().enumerate() {
        assert_eq!(read_until_closed(topology.connect(source, GREETING)?)?, b"", "{source}");
        topology.sidecar.await_stat("cluster.unrouted.upstream_cx_none_healthy", number as u64 + 1)?;
    }
    assert!(topology.received.lock().expect("a server panicked").is_empty());
    Ok(())
}

fn a_route_by_server_name_matches_tls_clients(module: Module) -> Result<()> {
    let table = r#"value: '{"routes": [
      {"match": {"sni": ["*.example.com"]}, "action": "deny"},
      {"clusters": ["egress1", "egress2"]}], "otherwise": "deny"}'"#;
    let topology = Topology::start(&sidecar(module)?.with("value: standalone", table)?, &router()?)?;
    for name in ["www.example.com", "www.example.com.", "www.example.org"] {
        let mut client = topology.connect("10.1.0.2", TLS)?;
        client.write_all(&client_hello(name)?)?;
        let answered = matches!(client.read(&mut [0]), Ok(1));
        assert_eq!(answered, name == "www.example.org", "{name}");
    }
    topology.sidecar.await_stat("wasmcustom.sluice.denied", 2)?;
    await_line(&topology.sidecar, &[("sni", "www.example.com"), ("decision", "sluice.denied")])?;
    await_line(&topology.sidecar, &[("sni", "www.example.org"), ("decision", "egress1")])?;
    assert_eq!(topology.egress[0].stat("cluster.clients.upstream_cx_total")?, 1);
    Ok(())
}
