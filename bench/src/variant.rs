//! The compared variants: no filter, Envoy's own filter, the floor, and modules.

use anyhow::{Context, Result, bail};
use serde_json::json;
use std::{
    env, fs,
    path::{Path, PathBuf},
};
use testbed::{Config, root};

/// Even and odd octets with Envoy's own set_filter_state filter and a CEL expression.
const CEL: &str = r#"- name: envoy.filters.network.set_filter_state
              typed_config:
                "@type": type.googleapis.com/envoy.extensions.filters.network.set_filter_state.v3.Config
                on_new_connection:
                  - object_key: envoy.tcp_proxy.cluster
                    format_string:
                      text_format_source:
                        inline_string: "%CEL(source.address.matches('[02468]:[0-9]+$') ? 'egress1' : 'egress2')%""#;

/// A Wasm module with a configuration. [`Config::with_module`] puts the module into it, or makes it a native one.
const MODULE: &str = r#"- name: module
              typed_config:
                "@type": type.googleapis.com/envoy.extensions.filters.network.wasm.v3.Wasm
                config:
                  name: bench
                  configuration: CONFIGURATION
                  vm_config: { runtime: envoy.wasm.runtime.v8, code: { local: { filename: /etc/envoy/sluice.wasm } } }"#;

/// A filter before `tcp_proxy`.
pub struct Variant {
    /// The name in the report.
    pub name: String,
    /// The module, if the variant has one.
    pub module: Option<PathBuf>,
    /// Whether the variant sends odd last octets to the second backend. Unknown for a peer.
    pub splits: Option<bool>,
    filter: String,
}

impl Variant {
    /// No filter, with which all others are compared.
    pub fn none() -> Self {
        Self { name: "no filter".into(), module: None, splits: Some(false), filter: String::new() }
    }

    /// Envoy's own set_filter_state filter with a CEL expression.
    pub fn cel() -> Self {
        let name = "Envoy's set_filter_state, CEL".into();
        Self { name, module: None, splits: Some(true), filter: CEL.into() }
    }

    /// The hand-written module, assembled into this folder.
    pub fn floor(folder: &Path) -> Result<Self> {
        let path = folder.join("floor.wasm");
        fs::write(&path, wat::parse_file(root().join("bench/floor.wat"))?)?;
        Self::module("floor: parity only, by hand".into(), &path, "")
    }

    /// A Wasm or native module with this configuration.
    pub fn module(name: String, path: &Path, configuration: &str) -> Result<Self> {
        let module = path.canonicalize().with_context(|| format!("no module at {}", path.display()))?;
        let configuration =
            json!({ "@type": "type.googleapis.com/google.protobuf.StringValue", "value": configuration });
        let filter = MODULE.replace("CONFIGURATION", &configuration.to_string());
        Ok(Self { name, module: Some(module), splits: Some(true), filter })
    }

    /// The modules in the environment: each variable whose name begins with PEER contains `path` or `path:configuration`.
    pub fn peers() -> Result<Vec<Self>> {
        let mut peers: Vec<(String, String)> = env::vars().filter(|(name, _)| name.starts_with("PEER")).collect();
        peers.sort();
        let peer = |(variable, text): (String, String)| {
            let (path, configuration) = text.split_once(':').unwrap_or((&text, ""));
            let Some(name) = Path::new(path).file_stem() else { bail!("{variable}: {path:?} is not a module's path") };
            let variant = Self::module(format!("peer {}", name.display()), Path::new(path), configuration)?;
            Ok(Self { splits: None, ..variant })
        };
        peers.into_iter().map(peer).collect()
    }

    /// The configuration of Envoy, in which the ports of the backends are not set yet.
    pub fn config(&self) -> Result<Config> {
        let config = Config::file(&root().join("bench/envoy.yaml"))?.with("# FILTER", &self.filter)?;
        match &self.module {
            Some(module) => config.with_module(module),
            None => Ok(config),
        }
    }
}
