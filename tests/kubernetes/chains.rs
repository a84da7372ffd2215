//! The filter chains of the sidecars, and tests under changed manifests.

use crate::{
    cluster::{Cluster, on_cluster},
    conversations, outside,
    pod::{self, Pod, list, with_applied},
    sidecar_admin::admin,
};
use anyhow::{Result, ensure};
use serde_json::Value;
use std::{collections::BTreeMap, fmt::Write as _, fs, net::SocketAddr};

#[test]
fn the_filter_is_in_the_passthrough_chains_only() -> Result<()> {
    on_cluster(|cluster| {
        for client in &cluster.clients {
            let chains = chains(cluster, client)?;
            let golden = golden()?;
            ensure!(
                chains == golden,
                "{}: the chains differ from tests/data/kubernetes/chains:\n{chains}",
                client.name
            );
        }
        Ok(())
    })
}

/// Lists the outbound listeners of a client's sidecar with their filter chains and filters. The names of services replace their
/// addresses.
pub fn chains(cluster: &Cluster, client: &Pod) -> Result<String> {
    let mut names = BTreeMap::new();
    for service in list(&cluster.get(&["services", "--all-namespaces"])?, "/items") {
        let name = pod::text(&service, "/metadata/name")?;
        names.insert(pod::text(&service, "/spec/clusterIP")?.to_owned(), name.to_owned());
    }
    let dump: Value = serde_json::from_str(&admin(client, "/config_dump")?)?;
    let mut listeners = BTreeMap::new();
    for config in list(&dump, "/configs") {
        for listener in list(&config, "/dynamic_listeners") {
            ensure!(listener.get("error_state").is_none(), "Envoy rejected a listener: {listener}");
            let listener = &listener["active_state"]["listener"];
            if listener["traffic_direction"] != "OUTBOUND" {
                continue;
            }
            let name = pod::text(listener, "/name")?;
            let name = match name.rsplit_once('_').and_then(|(address, port)| Some((names.get(address)?, port))) {
                Some((service, port)) => format!("{service}_{port}"),
                None => name.to_owned(),
            };
            let mut lines = String::new();
            for chain in list(listener, "/filter_chains").iter().chain(listener.get("default_filter_chain")) {
                let matched = chain.get("filter_chain_match").map(Value::to_string).unwrap_or_default();
                let called = chain["name"].as_str().unwrap_or("-");
                let filters: Vec<String> = list(chain, "/filters")
                    .iter()
                    .map(|filter| {
                        let cluster = filter.pointer("/typed_config/cluster").and_then(Value::as_str);
                        let short = filter["name"].as_str().unwrap_or_default().rsplit('.').next().unwrap_or_default();
                        cluster.map_or(short.to_owned(), |cluster| format!("{short}({cluster})"))
                    })
                    .collect();
                writeln!(lines, "  {called} {matched}: {}", filters.join(" → "))?;
            }
            listeners.insert(name, lines.replace(" : ", ": ").replace(" {}: ", ": "));
        }
    }
    Ok(listeners.into_iter().map(|(name, lines)| format!("{name}\n{lines}")).collect())
}

/// Returns the chains that the shipped manifests must produce.
pub fn golden() -> Result<String> {
    Ok(fs::read_to_string(testbed::root().join("tests/data/kubernetes/chains"))?)
}

/// Runs `test` while a Sidecar resource with this specification exists.
fn with_sidecar(cluster: &Cluster, specification: &str, test: impl FnOnce() -> Result<()>) -> Result<()> {
    let sidecar = format!(
        "apiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: {{ name: tried, namespace: default }}\nspec: {specification}"
    );
    with_manifests(cluster, &sidecar, test)
}

/// Applies these manifests, runs `test`, deletes the manifests and waits until the chains are the shipped ones again.
pub fn with_manifests(cluster: &Cluster, manifests: &str, test: impl FnOnce() -> Result<()>) -> Result<()> {
    let outcome = with_applied(cluster, manifests, test);
    let golden = golden()?;
    for client in &cluster.clients {
        cluster.eventually("the shipped chains", |_| {
            let chains = chains(cluster, client)?;
            ensure!(chains == golden, "{chains}");
            Ok(())
        })?;
    }
    outcome
}

#[test]
fn sluice_still_routes_connections_in_the_mode_registry_only() -> Result<()> {
    on_cluster(|cluster| {
        with_sidecar(cluster, "{ outboundTrafficPolicy: { mode: REGISTRY_ONLY } }", || {
            for client in &cluster.clients {
                cluster.eventually("the mode REGISTRY_ONLY", |_| {
                    let chains = chains(cluster, client)?;
                    let black = "virtualOutbound-catchall-tcp: local_ratelimit → sluice → tcp_proxy(BlackHoleCluster)";
                    ensure!(chains.contains(black), "{chains}");
                    Ok(())
                })?;
                for (port, says) in conversations()? {
                    cluster.expect_routed(client, outside(0, port), &says)?;
                }
            }
            // Connections that sluice does not route go to the cluster of the chain, which refuses them.
            cluster.expect_refused(SocketAddr::new(cluster.backend()?.addresses[0], 5432), b"hello")
        })
    })
}

#[test]
fn connections_fail_and_verify_reports_it_if_a_sidecar_resource_hides_the_routers() -> Result<()> {
    on_cluster(|cluster| {
        with_sidecar(cluster, "{ egress: [{ hosts: [istio-system/*] }] }", || {
            cluster.eventually("verify to report the hidden routers", |_| {
                let (right, shown) = cluster.verify(None)?;
                let what = "there is no cluster outbound|8080||egress-router1.egress-routers.svc.cluster.local";
                let count = shown.lines().filter(|line| line.starts_with("WRONG: ") && line.contains(what)).count();
                ensure!(!right && count == cluster.clients.len(), "{shown}");
                Ok(())
            })?;
            for (port, says) in conversations()? {
                cluster.expect_refused(outside(0, port), &says)?;
            }
            Ok(())
        })
    })
}
