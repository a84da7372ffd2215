//! The shipped Envoy configurations, with the ports and paths of this machine.

use crate::root;
use anyhow::{Context, Result, ensure};
use std::{
    fs,
    net::{Ipv6Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
};

/// The environment variable by which Envoy finds dynamic modules.
pub const SEARCH_PATH: &str = "ENVOY_DYNAMIC_MODULES_SEARCH_PATH";

/// The type of Envoy's filter for native modules.
pub const DYNAMIC_MODULE: &str =
    "type.googleapis.com/envoy.extensions.filters.network.dynamic_modules.v3.DynamicModuleNetworkFilter";

/// The text of a configuration.
#[derive(Clone, Debug)]
pub struct Config {
    text: String,
    /// The folder in which Envoy looks for dynamic modules.
    module_folder: Option<PathBuf>,
}

impl Config {
    /// Reads the file of this name in `envoy-docker/`. The kernel chooses the ports of the admin interface and of the listener.
    /// On a machine without IPv6, the listener accepts IPv4 only.
    pub fn shipped(name: &str) -> Result<Self> {
        let path = root().join("envoy-docker").join(name);
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let config =
            Self::from(text).with("port_value: 9901", "port_value: 0")?.with("port_value: 10000", "port_value: 0")?;
        if has_ipv6() { Ok(config) } else { config.with("\"::\"", "0.0.0.0")?.with("ipv4_compat: true", "") }
    }

    /// Reads a file without changes.
    pub fn file(path: &Path) -> Result<Self> {
        fs::read_to_string(path).map(Self::from).with_context(|| format!("cannot read {}", path.display()))
    }

    /// Returns the configuration with the module at this path. A module whose name ends with `.so` is native.
    pub fn with_module(&self, module: &Path) -> Result<Self> {
        if module.extension().is_some_and(|extension| extension == "so") {
            let name = module.file_stem().and_then(|name| name.to_str()?.strip_prefix("lib"));
            let name = name.with_context(|| format!("{} is not named libNAME.so", module.display()))?;
            let folder = module.parent().context("the module's path has no folder")?;
            return Ok(Self { module_folder: Some(folder.to_owned()), ..self.native(name)? });
        }
        let module = module.to_str().context("the module's path is not UTF-8")?;
        self.with("/etc/envoy/sluice.wasm", module)
    }

    /// Returns the configuration with the native module of this name instead of the Wasm module, and the same plugin configuration.
    pub fn native(&self, name: &str) -> Result<Self> {
        let lines: Vec<&str> = self.text.lines().collect();
        let is_wasm = |line: &&str| line.contains("envoy.extensions.filters.network.wasm.v3.Wasm");
        let start = lines.iter().position(is_wasm).and_then(|line| line.checked_sub(1)).context("no Wasm filter")?;
        ensure!(lines.iter().filter(|line| is_wasm(line)).count() == 1, "the configuration has several Wasm filters");
        let filter = block(&lines[start..]);
        let configuration = filter.iter().position(|line| line.trim_start().starts_with("configuration:"));
        let configuration = block(&filter[configuration.context("the Wasm filter has no configuration")?..]);
        let indent = " ".repeat(indentation(filter[0]) + 2);
        let mut native = vec![
            filter[0].to_owned(),
            format!("{indent}\"@type\": {DYNAMIC_MODULE}"),
            // The comments are those of the shipped files, which a test compares with this text.
            format!("{indent}# Envoy looks for libsluice.so in the folder that {SEARCH_PATH} names."),
            format!("{indent}# metrics_namespace gives the counters the same names as with Wasm."),
            format!("{indent}dynamic_module_config: {{ name: {name}, metrics_namespace: wasmcustom }}"),
            format!("{indent}filter_name: sluice"),
        ];
        for line in configuration {
            let line = line.get(2..).context("the configuration of the Wasm filter is not indented")?;
            native.push(line.replacen(" configuration:", " filter_config:", 1));
        }
        self.with(&(filter.join("\n") + "\n"), &(native.join("\n") + "\n"))
    }

    /// Returns the configuration with the port of this address instead of the shipped backend port on 127.0.0.1.
    pub fn with_backend(&self, shipped: u16, address: SocketAddr) -> Result<Self> {
        self.with(&format!("port_value: {shipped}"), &format!("port_value: {}", address.port()))
    }

    /// Returns the configuration with a text replaced. Fails unless the text occurs exactly once.
    pub fn with(&self, from: &str, to: &str) -> Result<Self> {
        let times = self.text.matches(from).count();
        ensure!(times == 1, "the configuration contains {from:?} {times} times, not once");
        Ok(Self { text: self.text.replacen(from, to, 1), ..self.clone() })
    }

    /// Returns the configuration with all occurrences of a text replaced. Fails if there is none.
    pub fn with_each(&self, from: &str, to: &str) -> Result<Self> {
        ensure!(self.text.contains(from), "the configuration does not contain {from:?}");
        Ok(Self { text: self.text.replace(from, to), ..self.clone() })
    }

    /// Returns the text, as Envoy reads it.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Returns the environment variable that Envoy needs with this configuration, if any.
    pub fn environment(&self) -> Option<(&'static str, &Path)> {
        Some((SEARCH_PATH, self.module_folder.as_deref()?))
    }
}

impl From<String> for Config {
    fn from(text: String) -> Self {
        Self { text, module_folder: None }
    }
}

/// Returns the first line and the following lines that are indented more.
fn block<'a, 'b>(lines: &'a [&'b str]) -> &'a [&'b str] {
    let outside = |line: &&str| indentation(line) <= indentation(lines[0]);
    let length = lines.iter().skip(1).position(outside).map_or(lines.len(), |length| length + 1);
    &lines[..length]
}

fn indentation(line: &str) -> usize {
    line.len() - line.trim_start().len()
}

/// Returns whether sockets can listen on IPv6 addresses on this machine.
#[must_use]
pub fn has_ipv6() -> bool {
    TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok()
}

/// Returns a configuration with this number of routes. Each has a source prefix within 172.16.0.0/12, except the last one, which
/// matches every other source.
#[must_use]
pub fn table_of(routes: usize) -> String {
    let prefixes = (1..routes).map(|index| format!("172.{}.{}.0/24", 16 + index / 256, index % 256));
    let others: String =
        prefixes.map(|prefix| format!(r#"{{"clusters":["a","b"],"match":{{"source":["{prefix}"]}}}},"#)).collect();
    format!(r#"{{"routes":[{others}{{"clusters":["egress1","egress2"]}}],"otherwise":"deny"}}"#)
}

/// Returns a configuration whose `clusters` lists contain `entries` entries in total, which repeat `names` names. New names
/// occur in descending order, the slowest one for a parser that would sort them.
#[must_use]
pub fn table_of_clusters(names: usize, entries: usize) -> String {
    let entry = |index: usize| format!(r#""cluster-{:04}""#, names - 1 - index % names);
    let entries: Vec<String> = (0..entries).map(entry).collect();
    let routes: Vec<String> =
        entries.chunks(256).map(|entries| format!(r#"{{"clusters":[{}]}}"#, entries.join(","))).collect();
    format!(r#"{{"routes":[{}],"otherwise":"deny"}}"#, routes.join(","))
}

/// Returns a configuration at all limits: 1,024 routes, 1,024 different clusters, 16,384 entries in all `clusters` lists together,
/// and 256 KiB. The last route matches every other source, and selects `egress1` or `egress2`.
#[must_use]
pub fn table_at_limits() -> String {
    let list = |names: Vec<String>| format!(r#"{{"clusters":[{}]"#, names.join(","));
    let route = |index: usize| {
        let names = (0..16).map(|entry| format!(r#""clus-{:04}""#, (index * 16 + entry) % 1_022)).collect();
        let prefix = format!("172.{}.{}.0/24", 16 + index / 256, index % 256);
        format!(r#"{},"match":{{"source":["{prefix}"]}}}},"#, list(names))
    };
    let others: String = (0..1_023).map(route).collect();
    let last = list((0..16).map(|entry| format!(r#""egress{}""#, 1 + entry % 2)).collect());
    let mut table = format!(r#"{{"routes":[{others}{last}}}],"otherwise":"deny"}}"#);
    table += &" ".repeat((256 << 10) - table.len());
    table
}
