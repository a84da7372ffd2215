//! The log and the access log.

use crate::{
    log_lines::{CLOSED, KEPT},
    proxy::{answer, log_component, module_lines, standalone, standalone_with, start},
};
use anyhow::Result;
use std::{io::Read, os::unix::net::UnixStream};
use testbed::{Config, Envoy, Module, envoy, for_each_module};

for_each_module! {
    a_decision_is_logged_at_debug_level,
    the_access_log_shows_the_decision,
    the_access_log_shows_that_a_connection_was_denied,
    a_client_without_ip_address_keeps_the_default_cluster_in_standalone,
    a_client_without_ip_address_is_denied_by_a_table,
}

fn a_decision_is_logged_at_debug_level(module: Module) -> Result<()> {
    let level = format!("{}:debug", log_component(module));
    let envoy = Envoy::start_with(&envoy::program()?, &standalone(module)?, &["--component-log-level", &level])?;
    assert_eq!(answer(&envoy, "127.0.0.2")?, "egress1");
    let line = only_module_line(&envoy);
    assert!(line.contains("[debug]") && line.contains("source.address \"127.0.0.2:"), "{line}");
    assert!(line.ends_with(" is routed to \"egress1\""), "{line}");
    Ok(())
}

fn the_access_log_shows_the_decision(module: Module) -> Result<()> {
    let envoy = start(&standalone(module)?)?;
    assert_eq!(answer(&envoy, "127.0.0.2")?, "egress1");
    assert_eq!(answer(&envoy, "127.0.0.3")?, "egress2");
    envoy.await_access(&["source=127.0.0.2:", " decision=egress1 cluster=egress1 "])?;
    envoy.await_access(&["source=127.0.0.3:", " decision=egress2 cluster=egress2 "])?;
    Ok(())
}

fn the_access_log_shows_that_a_connection_was_denied(module: Module) -> Result<()> {
    let table = r#"{"routes": [{"match": {"source": ["127.0.0.3/32"]}, "action": "deny"},
      {"match": {"source": ["127.0.0.4/32"]}, "action": "continue"}, {"clusters": ["egress1"]}], "otherwise": "deny"}"#;
    let envoy = start(&standalone_with(module, table)?)?;
    for (source, expected) in [("127.0.0.2", "egress1"), ("127.0.0.3", ""), ("127.0.0.4", "")] {
        assert_eq!(answer(&envoy, source)?, expected, "{source}");
    }
    envoy.await_access(&["source=127.0.0.2:", " decision=egress1 cluster=egress1 "])?;
    envoy.await_access(&["source=127.0.0.3:", " decision=sluice.denied cluster=- "])?;
    envoy.await_access(&["source=127.0.0.4:", " decision=- cluster=unrouted "])?;
    assert_eq!(envoy.stat("wasmcustom.sluice.denied")?, 1);
    assert_eq!(
        envoy.stat("cluster.unrouted.upstream_cx_none_healthy")?,
        1,
        "only the connection from 127.0.0.4 keeps the default cluster"
    );
    Ok(())
}

/// Connects to an Envoy with this configuration through a Unix domain socket. Returns Envoy and the bytes that the client reads.
fn connect_by_pipe(config: &Config) -> Result<(Envoy, String)> {
    let folder = tempfile::tempdir()?;
    let socket = folder.path().join("socket");
    let address =
        config.text().lines().find(|line| line.starts_with("      address:")).expect("the listener's address");
    let envoy = start(&config.with(address, &format!("      address: {{ pipe: {{ path: {} }} }}", socket.display()))?)?;
    let mut answer = String::new();
    UnixStream::connect(&socket)?.read_to_string(&mut answer)?;
    Ok((envoy, answer))
}

/// Returns the only line that the module wrote to the log.
fn only_module_line(envoy: &Envoy) -> String {
    let lines = module_lines(envoy);
    assert_eq!(lines.len(), 1, "{lines:?}\n{}", envoy.end_of_log());
    lines[0].clone()
}

/// Returns the text that a module logs for a source that is not an IP address. The ABI of dynamic modules returns IP addresses
/// only.
fn unreadable_source(module: Module) -> &'static str {
    match module {
        Module::Wasm => "is not an IP address and port",
        Module::Native => "source.address is not available (host status 1)",
    }
}

fn a_client_without_ip_address_keeps_the_default_cluster_in_standalone(module: Module) -> Result<()> {
    let (envoy, answer) = connect_by_pipe(&standalone(module)?)?;
    assert_eq!(answer, "", "the default cluster has no endpoint");
    envoy.await_stat("cluster.unrouted.upstream_cx_none_healthy", 1)?;
    assert_eq!(envoy.stat("cluster.egress1.upstream_cx_total")? + envoy.stat("cluster.egress2.upstream_cx_total")?, 0);
    assert_eq!((envoy.stat("wasmcustom.sluice.unreadable")?, envoy.stat("wasmcustom.sluice.continued")?), (1, 1));
    let (line, unreadable) = (only_module_line(&envoy), unreadable_source(module));
    assert!(line.contains("[warning]") && line.ends_with(&format!("{unreadable}{KEPT}")), "{line}");
    Ok(())
}

fn a_client_without_ip_address_is_denied_by_a_table(module: Module) -> Result<()> {
    let table = r#"{"routes": [{"clusters": ["egress1"]}], "otherwise": "continue"}"#;
    let (envoy, answer) = connect_by_pipe(&standalone_with(module, table)?)?;
    assert_eq!(answer, "");
    envoy.await_stat("wasmcustom.sluice.denied", 1)?;
    assert_eq!(envoy.stat("wasmcustom.sluice.unreadable")?, 1);
    assert_eq!(
        envoy.stat("cluster.unrouted.upstream_cx_none_healthy")?,
        0,
        "a denied connection must not reach the default cluster"
    );
    let (line, unreadable) = (only_module_line(&envoy), unreadable_source(module));
    assert!(line.contains("[warning]") && line.ends_with(&format!("{unreadable}{CLOSED}")), "{line}");
    envoy.await_access(&[" decision=sluice.denied cluster=- "])?;
    Ok(())
}
