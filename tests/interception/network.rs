//! A single egress router, with clients that write PROXY headers themselves.

use crate::{
    destination::serve,
    identity::Certificates,
    tls,
    topology::{ROUTERS, with_identity},
};
use anyhow::{Context, Result, ensure};
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use std::{
    io::{ErrorKind, Read, Write},
    net::{IpAddr, SocketAddr, TcpStream},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};
use testbed::{Config, DEADLINE, Envoy, Host, Network, envoy};

/// Encodes a PROXY header of version 2 from its command and version, its family and protocol, and the rest.
pub fn header(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
    let length = u16::try_from(rest.len()).expect("short").to_be_bytes();
    [b"\r\n\r\n\0\r\nQUIT\n".as_slice(), &[command, family], &length, rest].concat()
}

/// Encodes the header that a sidecar sends for this destination.
pub fn header_for(destination: &str) -> Vec<u8> {
    let destination: SocketAddr = destination.parse().expect("a destination");
    let ports = [1234_u16.to_be_bytes(), destination.port().to_be_bytes()].concat();
    match destination.ip() {
        IpAddr::V4(ip) => header(0x21, 0x11, &[&[10, 1, 0, 2], ip.octets().as_slice(), &ports].concat()),
        IpAddr::V6(ip) => header(0x21, 0x21, &[&[0x20; 16], ip.octets().as_slice(), &ports].concat()),
    }
}

/// A router, a peer that may connect to it, and a stranger that may not.
pub struct RouterNetwork {
    pub router: Host,
    pub peer: Host,
    pub stranger: Host,
    pub egress: Envoy,
    pub certificates: Certificates,
    /// The TLS settings of the client, with its certificate.
    pub client: Arc<ClientConfig>,
}

/// The addresses of the host with the servers: public addresses, metadata services, and private addresses.
pub const SERVERS: [&str; 10] = [
    "198.51.100.7/32",
    "2001:db8::7/128",
    "169.254.169.254/32",
    "100.100.100.200/32",
    "168.63.129.16/32",
    "fd00:ec2::254/128",
    "fd20:ce::254/128",
    "10.20.0.1/32",
    "192.168.1.1/32",
    "fd12::1/128",
];

impl RouterNetwork {
    /// Starts the router with this configuration.
    pub fn new(router_config: &Config) -> Result<Self> {
        let certificates = Certificates::new()?;
        let config = with_identity(router_config, &certificates, "egress-router1")?;
        let network = Network::new()?;
        let [ipv4, ipv6] = ROUTERS[0];
        let router = network.host(&[ipv4, ipv6, "198.51.100.21/32"])?;
        let destination = network.host(&SERVERS)?;
        serve(&router)?;
        serve(&destination)?;
        Ok(Self {
            peer: network.host(&["10.1.0.2/16", "fd00:1::2/64"])?,
            stranger: network.host(&["10.1.0.100/16"])?,
            egress: Envoy::start_in(&router, &envoy::program()?, &config, &[])?,
            router,
            client: tls::client(Some(&certificates.identity("client")?))?,
            certificates,
        })
    }

    /// Connects to the router's port from this host and sends these bytes.
    pub fn send_to(&self, from: &Host, port: u16, bytes: &[u8]) -> Result<TcpStream> {
        let router = SocketAddr::from(([10, 1, 0, 21], port));
        let mut client = from.run(|| TcpStream::connect(router))?;
        client.set_read_timeout(Some(Duration::from_secs(8)))?;
        client.write_all(bytes)?;
        Ok(client)
    }

    /// Sends these bytes and begins TLS with the certificate of the client. Returns the bytes that the client receives, and the
    /// number of connections that the router has made so far.
    pub fn ask(&self, from: &Host, bytes: &[u8]) -> Result<(Vec<u8>, u64)> {
        let received = greeting(self.send_to(from, 8080, bytes)?, &self.client)?;
        Ok((received, self.connections()?))
    }

    /// Returns the number of connections that the router has made to destinations.
    pub fn connections(&self) -> Result<u64> {
        let stats = self.egress.get("/stats")?;
        let tenants = ["clients", "tenant-a", "tenant-b"];
        tenants.iter().map(|name| envoy::value(&stats, &format!("cluster.{name}.upstream_cx_total"))).sum()
    }
}

/// Begins TLS and returns the server's greeting, or nothing if the connection is closed.
pub fn greeting(socket: TcpStream, tls: &Arc<ClientConfig>) -> Result<Vec<u8>> {
    let mut client = StreamOwned::new(ClientConnection::new(Arc::clone(tls), "router".try_into()?)?, socket);
    let mut received = [0; 11];
    match client.read(&mut received) {
        Ok(read) => Ok(received[..read].to_vec()),
        Err(error) if [ErrorKind::WouldBlock, ErrorKind::TimedOut].contains(&error.kind()) => {
            Err(error).context("the router does not close the connection")
        }
        Err(_) => Ok(Vec::new()), // a reset, a TLS alert, or a close without an alert
    }
}

/// Waits until the access log has a line with these fields.
pub fn await_line(envoy: &Envoy, fields: &[(&str, &str)]) -> Result<String> {
    let fields: Vec<String> = fields.iter().map(|(name, value)| format!("\"{name}\":\"{value}\"")).collect();
    envoy.await_access(&fields.iter().map(String::as_str).collect::<Vec<_>>())
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
