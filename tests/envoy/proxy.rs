//! Starts Envoys with backends, and connects to them.

use crate::client_hello::client_hello;
use anyhow::{Context, Result};
use std::{
    io::{ErrorKind, Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    path::Path,
};
use testbed::{Backend, Config, Envoy, Module, connect, envoy, who_answers};

pub const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// Returns the shipped configuration with this module and two backends.
pub fn standalone(module: Module) -> Result<Config> {
    Config::shipped("standalone.yaml")?
        .with_module(&module.path()?)?
        .with_backend(9001, Backend::start("egress1")?.address())?
        .with_backend(9002, Backend::start("egress2")?.address())
}

/// Returns the shipped configuration with this plugin configuration, which must not contain single quotes.
pub fn standalone_with(module: Module, configuration: &str) -> Result<Config> {
    standalone(module)?.with("value: standalone", &format!("value: '{configuration}'"))
}

/// Returns the scenarios' configuration of Envoy with this plugin configuration and module.
pub fn scenario_envoy(module: &Path, configuration: &str) -> Result<Config> {
    let mut config = Config::file(&testbed::root().join("tests/data/scenario.yaml"))?.with_module(module)?;
    for (port, name) in [(9000, "default"), (9001, "egress1"), (9002, "egress2"), (9003, "egress3")] {
        config = config.with_backend(port, Backend::start(name)?.address())?;
    }
    config.with("CONFIGURATION", configuration)
}

/// Starts Envoy with this configuration.
pub fn start(config: &Config) -> Result<Envoy> {
    Envoy::start(&envoy::program()?, config)
}

/// Starts Envoy, expects it to fail and returns the error with the log.
pub fn start_error(config: &Config) -> Result<String> {
    let error = start(config).err().context("Envoy started")?.to_string();
    assert!(error.starts_with("Envoy did not start: exit status"), "{error}");
    Ok(error)
}

/// Returns the component of Envoy's log that the module writes to.
pub fn log_component(module: Module) -> &'static str {
    match module {
        Module::Wasm => "wasm",
        Module::Native => "dynamic_modules",
    }
}

/// Returns the lines that the module wrote to Envoy's log.
pub fn module_lines(envoy: &Envoy) -> Vec<String> {
    envoy.log().lines().filter(|line| line.contains(" sluice: ")).map(str::to_owned).collect()
}

/// Connects from this source and returns the answer of the backend.
pub fn answer(envoy: &Envoy, source: &str) -> Result<String> {
    let source = source.parse()?;
    who_answers(source, envoy.listener("sluice", &source)?)
}

/// Connects to a listener and sends these bytes.
pub fn send(envoy: &Envoy, listener: &str, bytes: &[u8]) -> Result<TcpStream> {
    let mut client = connect(LOCALHOST, envoy.listener(listener, &LOCALHOST)?)?;
    client.write_all(bytes)?;
    Ok(client)
}

/// Returns the answer of the backend. It is empty if Envoy closes the connection.
pub fn read_answer(mut client: TcpStream) -> Result<String> {
    let mut answer = String::new();
    match client.read_to_string(&mut answer) {
        // Envoy resets a connection with unread bytes.
        Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(answer),
        read => Ok(read.map(|_| answer)?),
    }
}

/// Sends these bytes and returns the answer of the backend.
pub fn answer_to(envoy: &Envoy, bytes: &[u8]) -> Result<String> {
    read_answer(send(envoy, "sluice", bytes)?)
}

/// Returns the first bytes of a client with this source address that connected to `destination` and asks for this server name:
/// a PROXY header of version 1, and a ClientHello unless the name is empty.
pub fn first_bytes(source: &str, destination: &str, server_name: &str) -> Result<Vec<u8>> {
    let (source, destination): (SocketAddr, SocketAddr) = (source.parse()?, destination.parse()?);
    let family = if source.is_ipv4() { "TCP4" } else { "TCP6" };
    let (from, to) = (source.ip(), destination.ip());
    let mut bytes = format!("PROXY {family} {from} {to} {} {}\r\n", source.port(), destination.port()).into_bytes();
    if server_name.is_empty() {
        bytes.extend_from_slice(b"no TLS");
    } else {
        bytes.extend(client_hello(server_name)?);
    }
    Ok(bytes)
}
