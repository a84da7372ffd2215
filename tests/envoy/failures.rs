//! Missing clusters and modules that trap.

use crate::{
    proxy::{LOCALHOST, answer, standalone, start},
    trapping_module::trapping_module,
};
use anyhow::Result;
use std::{
    io::{Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};
use testbed::{Config, Envoy, Module, connect, envoy, for_each_module};

for_each_module!(a_missing_cluster_fails_only_its_own_connections);

fn a_missing_cluster_fails_only_its_own_connections(module: Module) -> Result<()> {
    let envoy = start(&standalone(module)?.with("- name: egress2", "- name: misnamed")?)?;
    assert_eq!(answer(&envoy, "127.0.0.3")?, "");
    envoy.await_stat("tcp.sluice.downstream_cx_no_route", 1)?;
    assert_eq!(answer(&envoy, "127.0.0.2")?, "egress1");
    assert_eq!(envoy.stat("cluster.unrouted.upstream_cx_none_healthy")?, 0);
    Ok(())
}

/// The default cluster has a backend here, so that the test notices a connection that gets through.
#[test]
fn a_trapping_wasm_module_passes_no_connection_and_is_reloaded() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let module = trapping_module(folder.path())?;
    let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let config = Config::shipped("standalone.yaml")?
        .with_module(&module)?
        .with_backend(9001, server.local_addr()?)?
        .with("cluster: unrouted", "cluster: egress1")?;
    thread::spawn(move || {
        let _open: Vec<TcpStream> = server.incoming().flatten().collect(); // until the process ends
    });
    let envoy = Envoy::start_with(&envoy::program()?, &config, &["--concurrency", "1"])?;
    let address = envoy.listener("sluice", &LOCALHOST)?;
    let upstream = "cluster.egress1.upstream_cx_total";
    let mut established = [connect(LOCALHOST, address)?, connect(LOCALHOST, address)?];
    envoy.await_stat(upstream, 2)?;
    assert_eq!(
        connect(LOCALHOST, address)?.read(&mut [0])?,
        0,
        "the connection on which the module traps must be closed"
    );
    for client in &mut established {
        client.write_all(b"?")?;
        // Envoy resets a connection with unread bytes.
        assert!(!matches!(client.read(&mut [0]), Ok(1..)), "established connections must be closed too");
    }
    assert_eq!(envoy.stat(upstream)?, 2);
    let started = Instant::now();
    while envoy.stat(upstream)? == 2 {
        connect(LOCALHOST, address)?;
        assert!(started.elapsed() < testbed::DEADLINE, "{}", envoy.end_of_log());
        thread::sleep(Duration::from_millis(100));
    }
    let reloads = envoy.get("/stats?filter=vm_reload_success")?;
    assert!(reloads.lines().any(|line| line.ends_with(": 1")), "{reloads}");
    Ok(())
}
