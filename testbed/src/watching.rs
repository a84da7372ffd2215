//! An Envoy that reads its listeners from a file, so that they can be replaced while it runs.

use crate::{Config, Envoy, Host};
use anyhow::{Context, Result};
use std::{fs, ops::Deref, path::Path};
use tempfile::TempDir;

/// An Envoy with its listeners in a file that it watches.
pub struct Watching {
    /// The running Envoy.
    pub envoy: Envoy,
    /// The listeners, in which CONFIGURATION stands for the table.
    pub listeners: String,
    folder: TempDir,
}

impl Watching {
    /// Starts Envoy, in a host if one is given, with a configuration in which CONFIGURATION stands for the table.
    pub fn start(
        host: Option<&Host>,
        program: &Path,
        config: &Config,
        table: &str,
        arguments: &[&str],
    ) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let text = config.text();
        let start = text.find("  listeners:\n").context("no listeners")?;
        let end = text.find("\n  clusters:").context("no clusters")?;
        let listeners: Vec<&str> =
            text[start..end].lines().skip(1).map(|line| line.get(4..).unwrap_or_default()).collect();
        let listeners = listeners.join("\n").replacen(
            "- name:",
            "- \"@type\": type.googleapis.com/envoy.config.listener.v3.Listener\n  name:",
            1,
        );
        let dynamic = format!(
            "dynamic_resources: {{ lds_config: {{ path_config_source: {{ path: {} }} }} }}\n\nstatic_resources:\n",
            folder.path().join("listeners.yaml").display()
        );
        let config = config.with(&text[start..=end], "")?.with("static_resources:\n", &dynamic)?;
        write(folder.path(), &listeners, table)?;
        let arguments = [arguments, &["--service-node", "test", "--service-cluster", "test"]].concat();
        let envoy = match host {
            Some(host) => Envoy::start_in(host, program, &config, &arguments)?,
            None => Envoy::start_with(program, &config, &arguments)?,
        };
        let workers = arguments.iter().skip_while(|argument| **argument != "--concurrency").nth(1);
        let workers = workers.map_or(Ok(2), |workers| workers.parse())?;
        envoy.await_stat("listener_manager.listener_create_success", workers)?; // each worker counts it
        Ok(Self { envoy, listeners, folder })
    }

    /// Replaces the table.
    pub fn replace(&self, table: &str) -> Result<()> {
        write(self.folder.path(), &self.listeners, table)
    }
}

impl Deref for Watching {
    type Target = Envoy;

    fn deref(&self) -> &Envoy {
        &self.envoy
    }
}

fn write(folder: &Path, listeners: &str, table: &str) -> Result<()> {
    let temporary = folder.join("temporary.yaml");
    fs::write(&temporary, format!("resources:\n{}", listeners.replace("CONFIGURATION", table)))?;
    Ok(fs::rename(temporary, folder.join("listeners.yaml"))?)
}
