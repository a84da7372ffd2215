//! Envoy configurations, as the repository ships them but for what differs on every machine.

use crate::root;
use anyhow::{Context, Result, ensure};
use std::{
    fs,
    net::{Ipv6Addr, SocketAddr, TcpListener},
    path::Path,
};

/// The text of a configuration.
#[derive(Clone, Debug)]
pub struct Config(String);

impl Config {
    /// The file of this name in `envoy-docker/`, with the ports of the admin interface and of the listener left to the
    /// kernel. Where the machine has no IPv6, its listener takes IPv4 only.
    pub fn shipped(name: &str) -> Result<Self> {
        let path = root().join("envoy-docker").join(name);
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let config =
            Self(text).with("port_value: 9901", "port_value: 0")?.with("port_value: 10000", "port_value: 0")?;
        if has_ipv6() { Ok(config) } else { config.with("\"::\"", "0.0.0.0")?.with("ipv4_compat: true", "") }
    }

    /// The file as it stands.
    pub fn file(path: &Path) -> Result<Self> {
        fs::read_to_string(path).map(Self).with_context(|| format!("cannot read {}", path.display()))
    }

    /// The configuration with the module of this path.
    pub fn with_module(&self, module: &Path) -> Result<Self> {
        let module = module.to_str().context("the module's path is not UTF-8")?;
        self.with("/etc/envoy/sluice.wasm", module)
    }

    /// The configuration with this backend's address in place of the shipped one's port on 127.0.0.1.
    pub fn with_backend(&self, shipped: u16, address: SocketAddr) -> Result<Self> {
        self.with(&format!("port_value: {shipped}"), &format!("port_value: {}", address.port()))
    }

    /// The configuration with one text, which must stand in it exactly once, replaced by another.
    pub fn with(&self, from: &str, to: &str) -> Result<Self> {
        let times = self.0.matches(from).count();
        ensure!(times == 1, "the configuration holds {from:?} {times} times, not once");
        Ok(Self(self.0.replacen(from, to, 1)))
    }

    /// The configuration with a text, wherever it stands, replaced by another; it must stand there.
    pub fn with_each(&self, from: &str, to: &str) -> Result<Self> {
        ensure!(self.0.contains(from), "the configuration does not hold {from:?}");
        Ok(Self(self.0.replace(from, to)))
    }

    /// The text, as Envoy reads it.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.0
    }
}

/// Whether sockets can listen on IPv6 addresses here.
#[must_use]
pub fn has_ipv6() -> bool {
    TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok()
}

/// A configuration with this number of routes. Each has a source prefix within 172.16.0.0/12, except the last one, which
/// matches every other source.
#[must_use]
pub fn table_of(routes: usize) -> String {
    let prefixes = (1..routes).map(|index| format!("172.{}.{}.0/24", 16 + index / 256, index % 256));
    let others: String =
        prefixes.map(|prefix| format!(r#"{{"clusters":["a","b"],"match":{{"source":["{prefix}"]}}}},"#)).collect();
    format!(r#"{{"routes":[{others}{{"clusters":["egress1","egress2"]}}],"otherwise":"deny"}}"#)
}

/// A configuration whose `clusters` lists have this number of entries together, which repeat this number of names. New names
/// come in descending order, the slowest one for a parser that sorts them.
#[must_use]
pub fn table_of_clusters(names: usize, entries: usize) -> String {
    let entry = |index: usize| format!(r#""cluster-{:04}""#, names - 1 - index % names);
    let entries: Vec<String> = (0..entries).map(entry).collect();
    let routes: Vec<String> =
        entries.chunks(256).map(|entries| format!(r#"{{"clusters":[{}]}}"#, entries.join(","))).collect();
    format!(r#"{{"routes":[{}],"otherwise":"deny"}}"#, routes.join(","))
}
