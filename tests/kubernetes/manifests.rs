//! Validation of the manifests, and their settings.

use crate::{
    cluster::on_cluster,
    shipped::SETTINGS,
    sidecar_admin::{admin, stats},
};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::fs;

#[test]
fn envoy_rejected_no_update() -> Result<()> {
    on_cluster(|cluster| {
        for client in &cluster.clients {
            let refused = stats(client, |name| name.ends_with("update_rejected"))?;
            for kind in ["listener_manager.lds.", "cluster_manager.cds."] {
                ensure!(refused.iter().any(|(name, _)| name.contains(kind)), "no {kind} in {refused:?}");
            }
            ensure!(refused.iter().all(|(_, count)| *count == 0), "{}: {refused:?}", client.name);
            let dump = admin(client, "/config_dump")?;
            ensure!(dump.contains("ecds_filters") && !dump.contains("\"error_state\""), "{}: {dump}", client.name);
        }
        Ok(())
    })
}

#[test]
fn every_manifest_passes_strict_validation_and_istioctl_analyze() -> Result<()> {
    on_cluster(|cluster| {
        let strictly = ["apply", "--dry-run=server", "--validate=strict", "-f"];
        let folder = testbed::root().join("istio");
        let mut alone = vec![folder.join("sni.yaml")];
        alone.extend(fs::read_dir(folder.join("declared-externals"))?.map(|entry| entry.unwrap().path()));
        for path in alone {
            cluster.kubectl(&[&strictly[..], &[&path.to_string_lossy()]].concat())?;
        }
        let analysed = cluster.istioctl(&["analyze", "--namespace=default", "--output=json"])?;
        let analysed: Value = serde_json::from_str(&analysed)?;
        let mut found: Vec<String> = analysed
            .as_array()
            .context("istioctl printed no list")?
            .iter()
            .map(|message| format!("{} {} {}", message["level"], message["code"], message["origin"]).replace('"', ""))
            .collect();
        found.sort();
        // IST0102: pods request injection by label. IST0133: istioctl warns about every patch of Envoy's configuration.
        let explained = [
            "Info IST0102 Namespace default",
            "Warning IST0133 EnvoyFilter default/sluice",
            "Warning IST0133 EnvoyFilter default/sluice-limits",
            "Warning IST0133 EnvoyFilter default/sluice-passthrough",
            "Warning IST0133 EnvoyFilter default/sluice-port-80",
        ];
        ensure!(found == explained, "{found:#?}");
        Ok(())
    })
}

#[test]
fn settings_are_the_only_place_for_the_namespace_the_label_and_the_addresses() -> Result<()> {
    on_cluster(|cluster| {
        cluster.edit(SETTINGS, "  namespace: ", "elsewhere")?;
        cluster.edit(SETTINGS, "  trustDomain: ", "mesh.example")?;
        cluster.edit(SETTINGS, "  metricsNamespace: ", "prometheus")?;
        cluster.edit(SETTINGS, "  routerNamespace: ", "routers")?;
        cluster.edit(SETTINGS, "  workload: ", "{ team: mine }")?;
        cluster.edit(SETTINGS, "    - 10.244.", "\n    - 10.9.0.0/16")?;
        let made = cluster.kubectl(&["kustomize", &cluster.manifests.to_string_lossy()])?;
        cluster.fresh_manifests()?;
        // ConfigMaps are excluded: the routers' configuration takes its values from routers.yaml, not from settings.yaml.
        let made: Vec<&str> = made.split("\n---\n").filter(|one| !one.contains("kind: ConfigMap")).collect();
        let count = |text: &str| made.iter().map(|one| one.matches(text).count()).sum::<usize>();
        for (text, times) in [
            ("namespace: elsewhere", 8),
            ("namespace: routers", 12),
            ("name: routers", 1),
            ("metadata.name: elsewhere", 2),
            ("metadata.name: prometheus", 2),
            ("monitoring", 0),
            (".routers.svc.cluster.local", 4),
            ("spiffe://mesh.example/ns/routers/sa/egress-router1", 1),
            ("spiffe://mesh.example/ns/routers/sa/egress-router2", 1),
            ("spiffe:", 2),
            ("value: mesh.example", 2),
            ("default", 0),
            ("egress-routers", 0),
            ("labels:\n      team: mine", 4),
            ("matchLabels:\n      team: mine", 2),
            ("matchLabels:\n          team: mine", 6),
            ("10.9.0.0/16", 1),
            ("10.244.0.0/16", 0),
        ] {
            ensure!(
                count(text) == times,
                "{text:?} occurs {} times, expected {times}:\n{}",
                count(text),
                made.join("\n---\n")
            );
        }
        Ok(())
    })
}
