//! The metrics that the alerts and the dashboard read, as sidecars and routers export them.

use crate::{
    cluster::on_cluster,
    outside,
    pod::{Pod, manifest, with_applied},
    server,
    sidecars::WITH_SLUICE,
};
use anyhow::{Context, Result, ensure};
use std::{fs, net::SocketAddr};

/// Returns the annotation that docs/operations.md prescribes for the sidecars.
fn annotation() -> Result<String> {
    let page = fs::read_to_string(testbed::root().join("docs/operations.md"))?;
    let matcher = page.lines().map(str::trim).find(|line| line.starts_with("\"proxyStatsMatcher\""));
    let matcher = matcher.context("docs/operations.md: no proxyStatsMatcher")?;
    Ok(format!("proxy.istio.io/config: '{{ \"holdApplicationUntilProxyStarts\": true, {matcher} }}'"))
}

/// Checks that a pod exports, for each name, a series of exactly this name whose line contains the text.
fn expect(pod: &Pod, port: u16, series: &[(&str, &str)]) -> Result<()> {
    let address = SocketAddr::new(*pod.addresses.first().context("a pod without an address")?, port);
    let metrics = pod.host.run(|| crate::get(&format!("http://{address}/stats/prometheus")))?;
    for (name, labels) in series {
        let found = metrics.lines().any(|line| {
            line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']) && rest.contains(labels))
        });
        ensure!(found, "{}: no {name} with {labels} in:\n{metrics}", pod.name);
    }
    Ok(())
}

#[test]
fn sidecars_and_routers_export_the_metrics_of_the_alerts() -> Result<()> {
    on_cluster(|cluster| {
        let measured = manifest("default", "measured", WITH_SLUICE, &annotation()?, "sleep infinity");
        with_applied(cluster, &measured, || {
            let pod = cluster.ready_pods("default", "app=tried")?.pop().context("no pod")?;
            cluster.expect_routed(&pod, outside(0, 80), &server::http("a.example.com"))?;
            let router = ".egress-routers.svc.cluster.local\"";
            let series = [
                ("sluice_denied", ""),
                ("sluice_continued", ""),
                ("sluice_unreadable", ""),
                ("sluice_host_errors", ""),
                ("sluice_routed_outbound_8080__egress_router1_egress_routers_svc_cluster_local", ""),
                ("envoy_cluster_membership_healthy", router),
                ("envoy_cluster_upstream_cx_connect_fail", router),
                ("envoy_tcp_downstream_cx_no_route", ""),
                ("envoy_local_rate_limit_sluice_rate_limited", ""),
            ];
            expect(&pod, 15090, &series)
        })?;
        for router in cluster.routers()? {
            expect(&router, 8083, &[("envoy_listener_ssl_certificate_expiration_unix_time_seconds", "identity")])?;
        }
        Ok(())
    })
}
