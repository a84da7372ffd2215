//! External services that are declared in the mesh.

use crate::{
    chains::{chains, with_manifests},
    client_hello::client_hello,
    cluster::{Cluster, DECLARED, on_cluster},
    outside,
};
use anyhow::{Result, ensure};
use std::{fmt::Write as _, fs, net::SocketAddr};

/// Applies files of declared-externals with the module's reference, runs `test`, and deletes them.
fn with_declared(cluster: &Cluster, files: &[&str], test: impl FnOnce() -> Result<()>) -> Result<()> {
    let mut manifests = String::new();
    for file in files {
        let text = fs::read_to_string(testbed::root().join("istio").join(file))?;
        let shipped = text.lines().find_map(|line| Some(line.split_once("url: ")?.1));
        let text = shipped.map_or(text.clone(), |shipped| text.replace(shipped, &cluster.module));
        write!(manifests, "---\n{text}")?;
    }
    with_manifests(cluster, &manifests, test)
}

const ENTRIES: [&str; 2] =
    ["declared-externals/serviceentry-by-name.yaml", "declared-externals/serviceentry-by-address.yaml"];

fn declared_externals(by: &str, filter: &str) -> Result<()> {
    on_cluster(|cluster| {
        with_declared(cluster, &[&ENTRIES[..], &[by]].concat(), || {
            let by_address: SocketAddr = format!("{DECLARED}:5432").parse()?;
            for client in &cluster.clients {
                cluster.eventually("the filter in the chains of declared externals", |_| {
                    let chains = chains(cluster, client)?;
                    for name in ["declared.example.com", "database.example.com"] {
                        let filtered = |line: &str| {
                            line.contains(&format!("|{name})")) && line.contains(&format!(": {filter} → "))
                        };
                        ensure!(chains.lines().any(filtered), "{name}:\n{chains}");
                    }
                    Ok(())
                })?;
                let attempt = || -> Result<()> {
                    cluster.expect_routed(client, outside(0, 443), &client_hello("declared.example.com")?)?;
                    cluster.expect_routed(client, by_address, b"hello")?;
                    Ok(())
                };
                cluster.eventually("routed connections", |_| attempt())?;
            }
            Ok(())
        })
    })
}

#[test]
fn declared_externals_are_routed_by_an_envoy_filter() -> Result<()> {
    declared_externals("declared-externals/envoyfilter.yaml", "sluice")
}

#[test]
fn declared_externals_are_routed_by_a_wasm_plugin() -> Result<()> {
    declared_externals("declared-externals/wasmplugin.yaml", "sluice~istio-translated-wasmplugin")
}

#[test]
fn declared_externals_are_routed_by_a_traffic_extension() -> Result<()> {
    declared_externals("declared-externals/trafficextension.yaml", "sluice")
}
