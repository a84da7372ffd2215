//! A pod, two egress routers and a destination in network namespaces.

use crate::{
    destination::{Received, serve},
    identity::Certificates,
};
use anyhow::{Context, Result, ensure};
use rustls::pki_types::CertificateDer;
use std::{
    fs,
    net::{IpAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};
use testbed::{Config, DEADLINE, Envoy, Host, Module, Network, envoy};

/// The addresses of the pod with the client and the sidecar. In each family, the first one is even and the second one is odd.
pub const POD: [&str; 4] = ["10.1.0.2/16", "10.1.0.3/16", "fd00:1::2/64", "fd00:1::3/64"];
pub const ROUTERS: [[&str; 2]; 2] = [["10.1.0.21/16", "fd00:1::21/64"], ["10.1.0.22/16", "fd00:1::22/64"]];
/// The second router of each egress, which tests start if they need it.
pub const STANDBY: [[&str; 2]; 2] = [["10.1.0.23/16", "fd00:1::23/64"], ["10.1.0.24/16", "fd00:1::24/64"]];
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
    pub certificates: Certificates,
    pub network: Network,
}

/// Returns the shipped configuration of the sidecar, with this module and the addresses of this topology.
pub fn sidecar(module: Module) -> Result<Config> {
    Config::file(&testbed::root().join("envoy-docker/sidecar.yaml"))?.with_module(&module.path()?)
}

/// Returns the shipped configuration of the egress routers, with the addresses of this topology.
pub fn router() -> Result<Config> {
    Config::file(&testbed::root().join("envoy-docker/egress-router.yaml"))?
        .with("172.30.80.10, prefix_len: 32", "10.1.0.0, prefix_len: 29")?
        .with("\"fd00:172:30:80::11\", prefix_len: 128", "\"fd00:1::\", prefix_len: 125")?
        .with_each("172.30.80.", "10.1.0.")?
        .with_each("fd00:172:30:80::", "fd00:1::")
}

/// Returns a configuration of a router or a sidecar with the folder of its certificates.
pub fn with_identity(config: &Config, certificates: &Certificates, name: &str) -> Result<Config> {
    config.with_each("/etc/sluice/", &format!("{}/", certificates.of(name).display()))
}

/// Returns a configuration of a sidecar with these shipped endpoints, such as `clients`.
pub fn with_endpoints(config: &Config, certificates: &Certificates, name: &str) -> Result<Config> {
    let folder = certificates.of("endpoints").join(name);
    fs::create_dir_all(&folder)?;
    for file in ["egress1.yaml", "egress2.yaml"] {
        let shipped = testbed::root().join("envoy-docker/endpoints").join(name).join(file);
        fs::write(folder.join(file), Config::file(&shipped)?.with_each("172.30.80.", "10.1.0.")?.text())?;
    }
    config.with_each("/etc/endpoints/", &format!("{}/", folder.display()))
}

/// Runs the shipped redirection script in a pod.
pub fn redirect(pod: &Host) -> Result<()> {
    let script = testbed::root().join("envoy-docker/redirect.sh");
    let arguments = format!("{} 10.1.0.20/29 fd00:1::20/125", script.to_str().context("the path is not UTF-8")?);
    pod.call("sh", &arguments)
}

impl Topology {
    /// Starts everything with the shipped configurations and this module.
    pub fn new(module: Module) -> Result<Self> {
        Self::start(&sidecar(module)?, &router()?)
    }

    /// Starts everything with these configurations of the sidecar and the routers, and the shipped endpoints of the clients.
    pub fn start(sidecar: &Config, router: &Config) -> Result<Self> {
        Self::start_with(sidecar, router, "clients")
    }

    /// Starts everything with these configurations of the sidecar and the routers, and shipped endpoints.
    pub fn start_with(sidecar: &Config, router: &Config, endpoints: &str) -> Result<Self> {
        let certificates = Certificates::new()?;
        let program = envoy::program()?;
        let network = Network::new()?;
        let pod = network.host(&POD)?;
        let routers = [network.host(&ROUTERS[0])?, network.host(&ROUTERS[1])?];
        let destination = network.host(&DESTINATION)?;
        let (received, trusted) = serve(&destination)?;
        redirect(&pod)?;
        let start = |number: usize| {
            let name = format!("egress-router{}", number + 1);
            Envoy::start_in(&routers[number], &program, &with_identity(router, &certificates, &name)?, &[])
        };
        let egress = [start(0)?, start(1)?];
        let sidecar = with_endpoints(&with_identity(sidecar, &certificates, "client")?, &certificates, endpoints)?;
        let sidecar = Envoy::start_in(&pod, &program, &sidecar, &[])?;
        for cluster in ["egress1", "egress2"] {
            sidecar.await_stat_that(&format!("cluster.{cluster}.membership_healthy"), |healthy| healthy > 0)?;
        }
        Ok(Self { pod, routers, destination, received, trusted, sidecar, egress, certificates, network })
    }

    /// Connects from the pod as an application does, with this source address.
    pub fn connect(&self, source: &str, port: u16) -> Result<TcpStream> {
        let source: IpAddr = source.parse()?;
        self.pod.run(|| testbed::connect(source, (destination_of(source), port).into()))
    }

    /// Waits until the destination has served a connection at this port. Returns the address of its peer and the bytes that the
    /// peer sent.
    pub fn await_received(&self, port: u16) -> Result<(IpAddr, Vec<u8>)> {
        let started = Instant::now();
        loop {
            let found = self.received.lock().expect("a server panicked").iter().position(|(at, ..)| *at == port);
            if let Some(index) = found {
                let (_, peer, sent) = self.received.lock().expect("a server panicked").swap_remove(index);
                return Ok((peer, sent));
            }
            ensure!(started.elapsed() < DEADLINE, "the destination received no connection at port {port}");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Stops a router, so that its ports refuse connections.
    pub fn take_down(&mut self, number: usize) -> Result<()> {
        let router = with_identity(&router()?, &self.certificates, "egress-router1")?;
        let nowhere = Envoy::start_in(&Host::alone()?, &envoy::program()?, &router, &[])?;
        drop(std::mem::replace(&mut self.egress[number], nowhere));
        Ok(())
    }

    /// Waits until no Envoy has an open connection.
    pub fn await_quiet(&self) -> Result<()> {
        self.sidecar.await_stat("listener.0.0.0.0_15001.downstream_cx_active", 0)?;
        for egress in &self.egress {
            egress.await_stat("listener.0.0.0.0_8080.downstream_cx_active", 0)?;
            egress.await_stat("cluster.clients.upstream_cx_active", 0)?;
        }
        Ok(())
    }
}

/// Returns the address of the destination in the address family of this source.
pub fn destination_of(source: IpAddr) -> IpAddr {
    let with_prefix = if source.is_ipv4() { DESTINATION[0] } else { DESTINATION[1] };
    let (address, _) = with_prefix.split_once('/').expect("no prefix length");
    address.parse().expect("an address")
}
