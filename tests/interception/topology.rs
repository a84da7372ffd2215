//! A pod, two egress routers and a destination in network namespaces.

use crate::destination::{Received, serve};
use anyhow::{Context, Result, ensure};
use rustls::pki_types::CertificateDer;
use std::{
    net::{IpAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};
use testbed::{Config, DEADLINE, Envoy, Host, Module, Network, envoy};

/// The addresses of the pod with the client and the sidecar. The first one of each family is even, the second one is odd.
pub const POD: [&str; 4] = ["10.1.0.2/16", "10.1.0.3/16", "fd00:1::2/64", "fd00:1::3/64"];
pub const ROUTERS: [[&str; 2]; 2] = [["10.1.0.11/16", "fd00:1::11/64"], ["10.1.0.12/16", "fd00:1::12/64"]];
pub const DESTINATION: [&str; 2] = ["198.51.100.7/32", "2001:db8::7/128"];

/// The sources of the pod, each with the index of its egress router.
pub const SOURCES: [(&str, usize); 4] = [("10.1.0.2", 0), ("10.1.0.3", 1), ("fd00:1::2", 0), ("fd00:1::3", 1)];

/// The hosts and their Envoys.
pub struct Topology {
    pub pod: Host,
    pub routers: [Host; 2],
    pub destination: Host,
    pub received: Received,
    pub trusted: CertificateDer<'static>,
    pub sidecar: Envoy,
    pub egress: [Envoy; 2],
}

/// Returns the shipped configuration of the sidecar, with this module and the addresses of this topology.
pub fn sidecar(module: Module) -> Result<Config> {
    Config::file(&testbed::root().join("envoy-docker/sidecar.yaml"))?
        .with_module(&module.path()?)?
        .with_each("address: egress-router1,", "address: 10.1.0.11,")?
        .with_each("address: egress-router2,", "address: 10.1.0.12,")
}

/// Returns the shipped configuration of the egress routers, with the addresses of this topology.
pub fn router() -> Result<Config> {
    Config::file(&testbed::root().join("envoy-docker/egress-router.yaml"))?
        .with("172.30.80.10, prefix_len: 32", "10.1.0.0, prefix_len: 29")?
        .with("\"fd00:172:30:80::11\", prefix_len: 128", "\"fd00:1::\", prefix_len: 125")?
        .with("172.30.80.0, prefix_len: 24", "10.1.0.0, prefix_len: 16")?
        .with("\"fd00:172:30:80::\", prefix_len: 64", "\"fd00:1::\", prefix_len: 64")?
        .with("198.51.100.21, prefix_len: 32", "198.51.100.11, prefix_len: 32")
}

impl Topology {
    /// Starts everything with the shipped configurations and this module.
    pub fn new(module: Module) -> Result<Self> {
        Self::start(&sidecar(module)?, &router()?)
    }

    /// Starts everything with these configurations of the sidecar and the routers.
    pub fn start(sidecar: &Config, router: &Config) -> Result<Self> {
        let program = envoy::program()?;
        let network = Network::new()?;
        let pod = network.host(&POD)?;
        let routers = [network.host(&ROUTERS[0])?, network.host(&ROUTERS[1])?];
        let destination = network.host(&DESTINATION)?;
        let (received, trusted) = serve(&destination)?;
        pod.call("sh", testbed::root().join("envoy-docker/redirect.sh").to_str().context("UTF-8")?)?;
        let egress = [
            Envoy::start_in(&routers[0], &program, router, &[])?,
            Envoy::start_in(&routers[1], &program, router, &[])?,
        ];
        let sidecar = Envoy::start_in(&pod, &program, sidecar, &[])?;
        Ok(Self { pod, routers, destination, received, trusted, sidecar, egress })
    }

    /// Connects from an ordinary program of the pod, with this source address.
    pub fn connect(&self, source: &str, port: u16) -> Result<TcpStream> {
        let source: IpAddr = source.parse()?;
        self.pod.run(|| testbed::connect(source, (destination_of(source), port).into()))
    }

    /// Waits until the destination has served a connection at this port. Returns the address of its peer and what it sent.
    pub fn await_received(&self, port: u16) -> Result<(IpAddr, Vec<u8>)> {
        let started = Instant::now();
        loop {
            let found = self.received.lock().expect("no server panics").iter().position(|(at, ..)| *at == port);
            if let Some(index) = found {
                let (_, peer, sent) = self.received.lock().expect("no server panics").swap_remove(index);
                return Ok((peer, sent));
            }
            ensure!(started.elapsed() < DEADLINE, "the destination received no connection at port {port}");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Stops this router, so that its port refuses connections.
    pub fn take_down(&mut self, number: usize) -> Result<()> {
        let nowhere = Envoy::start_in(&Host::alone()?, &envoy::program()?, &router()?, &[])?;
        drop(std::mem::replace(&mut self.egress[number], nowhere));
        Ok(())
    }

    /// Waits until no Envoy has an open connection.
    pub fn await_quiet(&self) -> Result<()> {
        self.sidecar.await_stat("listener.0.0.0.0_15001.downstream_cx_active", 0)?;
        for egress in &self.egress {
            egress.await_stat("listener.0.0.0.0_8080.downstream_cx_active", 0)?;
            egress.await_stat("cluster.destination.upstream_cx_active", 0)?;
        }
        Ok(())
    }
}

/// Returns the address of the destination in the family of this source.
pub fn destination_of(source: IpAddr) -> IpAddr {
    let with_prefix = if source.is_ipv4() { DESTINATION[0] } else { DESTINATION[1] };
    let (address, _) = with_prefix.split_once('/').expect("a prefix");
    address.parse().expect("an address")
}
