//! An egress router alone, with clients that write PROXY headers themselves.

use crate::{destination::serve, topology::ROUTERS};
use anyhow::{Context, Result, ensure};
use std::{
    io::{ErrorKind, Read, Write},
    net::{IpAddr, SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};
use testbed::{Config, DEADLINE, Envoy, Host, Network, envoy};

/// Encodes a PROXY header of version 2 from its command and version, its family and protocol, and the rest.
pub fn header(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
    let length = u16::try_from(rest.len()).expect("short").to_be_bytes();
    [b"\r\n\r\n\0\r\nQUIT\n".as_slice(), &[command, family], &length, rest].concat()
}

/// Encodes the header of a sidecar for this destination.
pub fn header_for(destination: &str) -> Vec<u8> {
    let destination: SocketAddr = destination.parse().expect("a destination");
    let ports = [1234_u16.to_be_bytes(), destination.port().to_be_bytes()].concat();
    match destination.ip() {
        IpAddr::V4(ip) => header(0x21, 0x11, &[&[10, 1, 0, 2], ip.octets().as_slice(), &ports].concat()),
        IpAddr::V6(ip) => header(0x21, 0x21, &[&[0x20; 16], ip.octets().as_slice(), &ports].concat()),
    }
}

/// A router, and two hosts beside it: a peer that may connect and a stranger.
pub struct RouterNetwork {
    pub router: Host,
    pub peer: Host,
    pub stranger: Host,
    pub egress: Envoy,
}

/// The addresses of a host with servers that send first: a public one of each family, and metadata services.
pub const SERVERS: [&str; 7] = [
    "198.51.100.7/32",
    "2001:db8::7/128",
    "169.254.169.254/32",
    "100.100.100.200/32",
    "168.63.129.16/32",
    "fd00:ec2::254/128",
    "fd20:ce::254/128",
];

impl RouterNetwork {
    /// Starts the router with this configuration.
    pub fn new(router_config: &Config) -> Result<Self> {
        let network = Network::new()?;
        let [ipv4, ipv6] = ROUTERS[0];
        let router = network.host(&[ipv4, ipv6, "198.51.100.11/32"])?;
        let destination = network.host(&SERVERS)?;
        serve(&router)?;
        serve(&destination)?;
        Ok(Self {
            peer: network.host(&["10.1.0.2/16", "fd00:1::2/64"])?,
            stranger: network.host(&["10.1.0.100/16"])?,
            egress: Envoy::start_in(&router, &envoy::program()?, router_config, &[])?,
            router,
        })
    }

    /// Connects to the router from this host and sends these bytes.
    pub fn send(&self, from: &Host, bytes: &[u8]) -> Result<TcpStream> {
        let router = SocketAddr::from(([10, 1, 0, 11], 8080));
        let mut client = from.run(|| TcpStream::connect(router))?;
        client.set_read_timeout(Some(Duration::from_secs(4)))?;
        client.write_all(bytes)?;
        Ok(client)
    }

    /// Sends these bytes. Returns what the client receives, and how many connections the router has made so far.
    pub fn ask(&self, from: &Host, bytes: &[u8]) -> Result<(Vec<u8>, u64)> {
        let mut client = self.send(from, bytes)?;
        // The servers send first, so that a client that passes receives a greeting.
        let mut received = [0; 11];
        let received = match client.read(&mut received) {
            Ok(read) => received[..read].to_vec(),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => Vec::new(),
            Err(error) => return Err(error).context("the router does not close the connection"),
        };
        Ok((received, self.egress.stat("cluster.destination.upstream_cx_total")?))
    }
}

/// Waits until the access log has exactly this number of lines.
pub fn await_lines(envoy: &Envoy, expected: usize) -> Result<()> {
    let started = Instant::now();
    while envoy.access_log().lines().count() != expected {
        ensure!(started.elapsed() < DEADLINE, "not {expected} lines in the access log:\n{}", envoy.access_log());
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}
