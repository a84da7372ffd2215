//! The report of `make verify`, which uses the kubelets' exec and logs: without a fault, and with each fault separately.

use crate::{
    cluster::{Cluster, on_cluster},
    module_delivery::restoring,
    outside,
    pod::process_of,
    shipped::{SETTINGS, expected_router},
};
use anyhow::{Context, Result, ensure};
use std::{fs, time::Duration, time::Instant};
use testbed::{Signal, kill};

/// A fault: the kubectl command that causes it, the command's input, and all messages that verify prints for each client.
struct Fault {
    kubectl: &'static [&'static str],
    input: &'static str,
    expected: &'static [&'static str],
}

const TABLE: &str = "/spec/configPatches/0/patch/value/typed_config/config/configuration/value";

/// Inserts the filter into the blackhole chain, where it does not belong.
const BLACKHOLE: &str = r#"
apiVersion: networking.istio.io/v1alpha3
kind: EnvoyFilter
metadata: { name: tried, namespace: default }
spec:
  priority: 20
  workloadSelector: { labels: { egress: sluice } }
  configPatches:
    - applyTo: NETWORK_FILTER
      match:
        context: SIDECAR_OUTBOUND
        listener: { filterChain: { name: virtualOutbound-blackhole, filter: { name: envoy.filters.network.tcp_proxy } } }
      patch:
        operation: INSERT_BEFORE
        value:
          name: sluice
          config_discovery:
            config_source: { ads: {}, initial_fetch_timeout: 0s, resource_api_version: V3 }
            type_urls: [type.googleapis.com/envoy.extensions.filters.network.wasm.v3.Wasm]
"#;

/// Adds a filter that no Envoy has, so that Envoy rejects the listener.
const REJECTED: &str = r#"
apiVersion: networking.istio.io/v1alpha3
kind: EnvoyFilter
metadata: { name: tried, namespace: default }
spec:
  priority: 30
  workloadSelector: { labels: { egress: sluice } }
  configPatches:
    - applyTo: NETWORK_FILTER
      match:
        context: SIDECAR_OUTBOUND
        listener: { filterChain: { name: virtualOutbound-catchall-tcp, filter: { name: envoy.filters.network.tcp_proxy } } }
      patch:
        operation: INSERT_BEFORE
        value: { name: tried, typed_config: { "@type": type.googleapis.com/google.protobuf.StringValue, value: tried } }
"#;

/// A pod with the label of clients and without a sidecar.
const UNMESHED: &str = r#"
apiVersion: v1
kind: Pod
metadata: { name: tried, namespace: default, labels: { egress: sluice, sidecar.istio.io/inject: "false" } }
spec:
  terminationGracePeriodSeconds: 0
  automountServiceAccountToken: false
  containers: [{ name: tried, image: docker.io/library/busybox, command: [sleep, infinity] }]
"#;

fn patch(path: &str, value: &str) -> String {
    format!(r#"[{{"op": "replace", "path": "{TABLE}{path}", "value": {value}}}]"#)
}

/// Returns the lines of verify that begin with WRONG and name this pod.
fn wrong_of<'a>(shown: &'a str, pod: &str) -> Vec<&'a str> {
    let begin = format!("WRONG: {pod}: ");
    shown.lines().filter_map(|line| line.strip_prefix(&begin)).collect()
}

/// Waits until verify prints exactly these messages for each client.
fn expect_reported(cluster: &Cluster, what: &str, expected: &[&str]) -> Result<()> {
    cluster.eventually(&format!("the report of verify after {what}"), |_| {
        let (right, shown) = cluster.verify(None)?;
        for client in &cluster.clients {
            let wrong = wrong_of(&shown, &client.name);
            let is_reported = wrong.len() == expected.len()
                && expected.iter().all(|what| wrong.iter().any(|line| line.contains(what)));
            ensure!(
                is_reported && right == expected.is_empty(),
                "{}: expected {expected:?}, got:\n{shown}",
                client.name
            );
        }
        Ok(())
    })
}

/// Causes each fault, expects verify to report it, and restores the manifests.
fn expect_faults(cluster: &Cluster, faults: &[Fault]) -> Result<()> {
    for fault in faults {
        let started = Instant::now();
        cluster.kubectl_with(fault.kubectl, fault.input)?;
        let outcome = expect_reported(cluster, &format!("kubectl {}", fault.kubectl.join(" ")), fault.expected);
        if !fault.input.is_empty() {
            cluster.kubectl_with(&["delete", "--filename", "-"], fault.input)?;
        }
        cluster.apply()?;
        println!("{:.1} s: {}", started.elapsed().as_secs_f32(), fault.kubectl.join(" "));
        outcome?;
    }
    expect_reported(cluster, "restoring the manifests", &[])
}

const APPLY: &[&str] = &["apply", "--filename", "-"];

/// The line that verify prints for each client if port-80.yaml is not applied.
const PORT_80: &str = "  not covered: plain HTTP to the outside on 0.0.0.0_80";

#[test]
fn verify_shows_the_router_of_each_client() -> Result<()> {
    on_cluster(|cluster| {
        for family in [0, 1] {
            let to = outside(family, 25);
            let (right, shown) = cluster.verify(Some(&to.to_string()))?;
            ensure!(right, "{shown}");
            for client in &cluster.clients {
                let source = client.source(to.ip());
                let identity = "spiffe://cluster.local/ns/default/sa/client";
                let row = [&source.to_string(), identity, expected_router(source), &to.to_string()];
                ensure!(shown.lines().any(|line| line.split_whitespace().eq(row)), "{row:?}:\n{shown}");
            }
            for listener in ["0.0.0.0_15010", "0.0.0.0_15014"] {
                let expected = format!("  not covered: plain HTTP to the outside on {listener}\n");
                ensure!(shown.contains(&expected), "{listener}:\n{shown}");
            }
            ensure!(!shown.lines().any(|line| line == PORT_80), "{shown}");
            println!("{shown}");
        }
        Ok(())
    })
}

#[test]
fn verify_names_each_fault_of_the_manifests() -> Result<()> {
    on_cluster(|cluster| {
        expect_faults(
            cluster,
            &[
                Fault {
                    kubectl: &["delete", "envoyfilter", "sluice-passthrough"],
                    input: "",
                    expected: &[
                        "the filter is not in the chain virtualOutbound-catchall-tcp of virtualOutbound: no patch of passthrough.yaml matches it",
                        "the filter is not in the chain PassthroughFilterChain of 0.0.0.0_80",
                        "the filter is not in the chain PassthroughFilterChain of 0.0.0.0_15010",
                        "the filter is not in the chain PassthroughFilterChain of 0.0.0.0_15014",
                    ],
                },
                Fault { kubectl: APPLY, input: BLACKHOLE, expected: &["the filter is in virtualOutbound-blackhole"] },
                Fault {
                    kubectl: &["delete", "destinationrule", "--namespace=egress-routers", "egress-router2"],
                    input: "",
                    expected: &[
                        "the cluster outbound|8080||egress-router2.egress-routers.svc.cluster.local sends no PROXY header",
                        "the cluster outbound|8081||egress-router2.egress-routers.svc.cluster.local sends no PROXY header",
                    ],
                },
            ],
        )
    })
}

#[test]
#[ignore = "slow: make test-mesh-full"]
fn verify_names_each_fault_of_the_table() -> Result<()> {
    on_cluster(|cluster| {
        let patched = |path: &str, value: &str, expected: &str| -> Result<()> {
            let patch = patch(path, value);
            cluster.kubectl(&["patch", "envoyfilter", "sluice", "--type=json", "--patch", &patch])?;
            let outcome = expect_reported(cluster, &format!("patching {path}"), &[expected]);
            cluster.apply()?;
            outcome
        };
        let outcome = patched(
            "/otherwise",
            r#""refuse""#,
            "Envoy rejected the filter of sluice.yaml: otherwise: \"refuse\", expected one of: continue deny",
        )
        .and_then(|()| {
            patched(
                "/routes/1/clusters/0",
                r#""outbound|8081||nowhere""#,
                "there is no cluster outbound|8081||nowhere: connections to it fail",
            )
        });
        outcome.and(expect_reported(cluster, "restoring the manifests", &[]))
    })
}

#[test]
fn verify_names_a_pod_without_a_sidecar() -> Result<()> {
    on_cluster(|cluster| {
        cluster.kubectl_with(APPLY, UNMESHED)?;
        let outcome = cluster.eventually("verify to report the pod without a sidecar", |_| {
            let (right, shown) = cluster.verify(None)?;
            let wrong: Vec<&str> = shown.lines().filter(|line| line.starts_with("WRONG: ")).collect();
            ensure!(
                !right && wrong == ["WRONG: tried: no container istio-proxy: without a sidecar there is no filter"],
                "{shown}"
            );
            Ok(())
        });
        cluster.kubectl_with(&["delete", "--filename", "-"], UNMESHED)?;
        outcome
    })
}

#[test]
fn verify_lists_listeners_that_are_not_covered() -> Result<()> {
    on_cluster(|cluster| {
        cluster.kubectl(&["delete", "envoyfilter", "sluice-port-80"])?;
        let outcome = cluster.eventually("verify to list port 80", |_| {
            let (right, shown) = cluster.verify(None)?;
            let count = shown.lines().filter(|line| *line == PORT_80).count();
            ensure!(right && count == cluster.clients.len(), "{shown}");
            Ok(())
        });
        cluster.apply()?;
        cluster.eventually("verify to omit port 80", |_| {
            let (_, shown) = cluster.verify(None)?;
            ensure!(!shown.lines().any(|line| line == PORT_80), "{shown}");
            Ok(())
        })?;
        outcome
    })
}

#[test]
#[ignore = "slow: make test-mesh-full"]
fn verify_names_a_connection_that_reached_no_router() -> Result<()> {
    on_cluster(|cluster| {
        let router = expected_router(cluster.clients[0].addresses[0]);
        let scale = |replicas: &str| {
            let deployment = format!("deployment/{router}");
            cluster.kubectl(&["scale", "--namespace=egress-routers", &deployment, &format!("--replicas={replicas}")])
        };
        // An earlier connection in a router's log must not hide the fault.
        let to = outside(0, 25).to_string();
        let (right, shown) = cluster.verify(Some(&to))?;
        ensure!(right, "{shown}");
        scale("0")?;
        let outcome = cluster.eventually("verify to report the missing log entry", |_| {
            let (right, shown) = cluster.verify(Some(&to))?;
            let expected = format!("its connection to {to} is not in the routers' logs");
            ensure!(!right && wrong_of(&shown, &cluster.clients[0].name) == [expected.as_str()], "{shown}");
            ensure!(wrong_of(&shown, &cluster.clients[1].name).is_empty(), "{shown}");
            Ok(())
        });
        scale("2")?;
        cluster.rolled_out("egress-routers", router)?;
        outcome
    })
}

#[test]
#[ignore = "slow: make test-mesh-full"]
fn verify_names_a_filter_that_does_not_select_the_pod() -> Result<()> {
    on_cluster(|cluster| {
        let expected = "no filter sluice: no sluice.yaml of the namespace default selects this pod's labels";
        restoring(cluster, |cluster| {
            cluster.kubectl(&["delete", "envoyfilter", "sluice"])?;
            cluster.replace_clients()?;
            expect_reported(cluster, "deleting sluice.yaml", &[expected])?;
            cluster.apply()?;
            expect_reported(cluster, "applying sluice.yaml", &[])?;
            let selector =
                r#"[{"op": "replace", "path": "/spec/workloadSelector/labels", "value": {"egress": "other"}}]"#;
            cluster.kubectl(&["patch", "envoyfilter", "sluice", "--type=json", "--patch", selector])?;
            cluster.replace_clients()?;
            expect_reported(cluster, "changing the selector", &[expected])
        })
    })
}

#[test]
#[ignore = "slow: make test-mesh-full"]
fn verify_names_a_registry_that_the_network_policy_does_not_admit() -> Result<()> {
    on_cluster(|cluster| {
        let (_, digest) = cluster.module.split_once('@').context("no digest in the reference")?;
        let expected = format!(
            "the module could not be fetched: oci://10.88.0.5:5000/sluice@{digest}: could not fetch Wasm OCI image"
        );
        let hint = "check `module` in settings.yaml, and that a rule of its directEgress admits the module's server and port; then restart the pod";
        restoring(cluster, |cluster| {
            // The shipped settings except for the module.
            fs::copy(testbed::root().join("istio").join(SETTINGS), cluster.manifests.join(SETTINGS))?;
            cluster.edit(SETTINGS, "  module: ", &cluster.module)?;
            cluster.apply()?;
            cluster.replace_clients()?;
            expect_reported(cluster, "removing the rule for the registry", &[&expected])?;
            expect_reported(cluster, "removing the rule for the registry", &[hint])?;
            // Sidecars that gave up do not retry until istiod sends them an update.
            cluster.fresh_manifests()?;
            cluster.apply()?;
            cluster.replace_clients()
        })
    })
}

#[test]
#[ignore = "slow: make test-mesh-full"]
fn verify_does_not_report_a_module_that_was_replaced() -> Result<()> {
    on_cluster(|cluster| {
        let reference = format!("oci://10.88.0.5:5000/sluice@sha256:{}", "1".repeat(64));
        let outcome = cluster.edit(SETTINGS, "  module: ", &reference).and_then(|()| cluster.apply()).and_then(|_| {
            expect_reported(
                cluster,
                "naming a module that does not exist",
                &[&format!("the module could not be fetched: {reference}: ")],
            )
        });
        cluster.fresh_manifests()?;
        cluster.apply()?;
        expect_reported(cluster, "restoring the manifests", &[])?;
        outcome
    })
}

#[test]
#[ignore = "slow: make test-mesh-full"]
fn verify_names_a_listener_that_envoy_rejects() -> Result<()> {
    on_cluster(|cluster| {
        restoring(cluster, |cluster| {
            let expected = &["Envoy rejected the listener virtualOutbound: "];
            let outcome = expect_faults(cluster, &[Fault { kubectl: APPLY, input: REJECTED, expected }]);
            cluster.replace_clients()?; // resets the counters of rejected listeners
            outcome
        })
    })
}

#[test]
#[ignore = "slow: make test-mesh-full"]
fn verify_times_out_on_a_hanging_sidecar_and_checks_the_others() -> Result<()> {
    on_cluster(|cluster| {
        let hung = &cluster.clients[0];
        let process = process_of(hung, "envoy")?;
        kill(process, Signal::SIGSTOP)?;
        let started = Instant::now();
        let outcome = cluster.verify(None);
        let elapsed = started.elapsed();
        kill(process, Signal::SIGCONT)?;
        let (right, shown) = outcome?;
        println!("{elapsed:?}:\n{shown}");
        ensure!(elapsed < Duration::from_secs(60), "verify took {elapsed:?}");
        let wrong = wrong_of(&shown, &hung.name);
        ensure!(!right && wrong.len() == 1 && wrong[0].starts_with("no answer within 30s: kubectl exec "), "{shown}");
        ensure!(wrong_of(&shown, &cluster.clients[1].name).is_empty(), "{shown}");
        cluster.rolled_out("default", "client")?;
        expect_reported(cluster, "resuming the sidecar", &[])
    })
}
