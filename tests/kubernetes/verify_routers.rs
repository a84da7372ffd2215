//! The report of `make verify` about routers, with each fault separately.

use crate::{
    cluster::{Cluster, on_cluster},
    pod::{Pod, process_of},
    shipped::ROUTERS_NAMESPACE,
};
use anyhow::{Context, Result, ensure};
use std::{fs, thread, time::Duration};
use testbed::{Signal, kill};

/// Returns a pod that has the label of a router but is not one.
fn squatter(namespace: &str) -> String {
    format!(
        "
apiVersion: v1
kind: Pod
metadata: {{ name: squatter, namespace: {namespace}, labels: {{ app: egress-router1, sidecar.istio.io/inject: \"false\" }} }}
spec:
  terminationGracePeriodSeconds: 0
  automountServiceAccountToken: false
  containers: [{{ name: squatter, image: docker.io/library/busybox, command: [sleep, infinity] }}]
"
    )
}

/// Waits until the lines of verify that begin with WRONG contain these texts, in any order, and no others.
fn expect_wrong_lines(cluster: &Cluster, what: &str, expected: &[&str]) -> Result<()> {
    cluster.eventually(&format!("the report of verify after {what}"), |_| {
        let (right, shown) = cluster.verify(None)?;
        let wrong: Vec<&str> = shown.lines().filter(|line| line.starts_with("WRONG: ")).collect();
        let all_reported = expected.iter().all(|text| wrong.iter().any(|line| line.contains(text)));
        let all_expected = wrong.iter().all(|line| expected.iter().any(|text| line.contains(text)));
        ensure!(all_reported && all_expected && right == expected.is_empty(), "expected {expected:?}, got:\n{shown}");
        Ok(())
    })
}

#[test]
fn verify_names_a_pod_that_squats_on_the_label_of_a_router() -> Result<()> {
    on_cluster(|cluster| {
        for (namespace, expected) in [
            (
                "default",
                "default/squatter has the label of a router, app=egress-router1, but the routers' namespace is egress-routers",
            ),
            (ROUTERS_NAMESPACE, "squatter: "),
        ] {
            let squatter = squatter(namespace);
            cluster.kubectl_with(&["apply", "--filename", "-"], &squatter)?;
            let outcome = expect_wrong_lines(cluster, "adding a squatter", &[expected]);
            cluster.kubectl_with(&["delete", "--filename", "-"], &squatter)?;
            outcome?;
        }
        expect_wrong_lines(cluster, "restoring the manifests", &[])
    })
}

#[test]
fn verify_names_a_router_with_another_identity() -> Result<()> {
    on_cluster(|cluster| {
        let other = "spiffe://cluster.local/ns/other/sa/egress-router2";
        let patch = format!(
            r#"[{{"op": "replace", "path": "/spec/trafficPolicy/tls/subjectAltNames", "value": ["{other}"]}}]"#
        );
        let namespace = format!("--namespace={ROUTERS_NAMESPACE}");
        cluster.kubectl(&[
            "patch",
            "destinationrule",
            "egress-router2",
            &namespace,
            "--type=json",
            "--patch",
            &patch,
        ])?;
        let expected = format!(
            "egress-router2.egress-routers.svc.cluster.local expects the identity {other}, but the router presents spiffe://cluster.local/ns/egress-routers/sa/egress-router2"
        );
        let outcome = expect_wrong_lines(cluster, "changing the expected identity", &[&expected]);
        cluster.apply()?;
        outcome?;
        expect_wrong_lines(cluster, "restoring the manifests", &[])
    })
}

#[test]
fn verify_names_router_lists_that_differ_from_the_manifests() -> Result<()> {
    on_cluster(|cluster| {
        // The lists are edited but not applied.
        let path = cluster.manifests.join("settings/routers.yaml");
        let text = fs::read_to_string(&path)?;
        let edited =
            text.replace("address_prefix: 100.64.0.0, prefix_len: 10", "address_prefix: 100.64.0.0, prefix_len: 11");
        let edited = edited.replace("ns/tenant-a/sa/client", "ns/tenant-a/sa/other");
        let edited = edited.replace("routers: [egress-router2]", "routers: [egress-router1, egress-router2]");
        ensure!(edited != text, "{text}");
        fs::write(&path, edited)?;
        let outcome = expect_wrong_lines(
            cluster,
            "editing the lists",
            &[
                "its list \"clients: private\" lacks 100.64.0.0/11, which ",
                "its list \"clients: private\" has 100.64.0.0/10, which ",
                "its list \"tenant-a: private\" lacks 100.64.0.0/11",
                "its list \"tenant-a: private\" has 100.64.0.0/10",
                "its list \"tenant-b: private\" lacks 100.64.0.0/11",
                "its list \"tenant-b: private\" has 100.64.0.0/10",
                "its list \"tenant-b: routers\" lacks egress-router1",
                "its list \"tenant-a: identities of allowed\" lacks spiffe://cluster.local/ns/tenant-a/sa/other",
                "its list \"tenant-a: identities of allowed\" has spiffe://cluster.local/ns/tenant-a/sa/client",
                "its list \"tenant-a: identities of forbidden\" lacks spiffe://cluster.local/ns/tenant-a/sa/other",
                "its list \"tenant-a: identities of forbidden\" has spiffe://cluster.local/ns/tenant-a/sa/client",
            ],
        );
        fs::write(&path, text)?;
        outcome?;
        expect_wrong_lines(cluster, "restoring the manifests", &[])
    })
}

/// Changes the Deployment of router 2 by a JSON patch, runs `work` with its pods, and restores it.
fn with_deployment(cluster: &Cluster, patch: &str, work: impl FnOnce(&[Pod]) -> Result<()>) -> Result<()> {
    let namespace = format!("--namespace={ROUTERS_NAMESPACE}");
    cluster.kubectl(&["patch", "deployment", "egress-router2", &namespace, "--type=json", "--patch", patch])?;
    let outcome = cluster
        .rolled_out(ROUTERS_NAMESPACE, "egress-router2")
        .and_then(|()| cluster.pods(ROUTERS_NAMESPACE, "app=egress-router2"))
        .and_then(|pods| work(&pods));
    // kubectl apply would keep what the patch added.
    cluster.kubectl(&["rollout", "undo", "deployment/egress-router2", &namespace])?;
    cluster.apply()?;
    cluster.rolled_out(ROUTERS_NAMESPACE, "egress-router2")?;
    outcome
}

#[test]
#[ignore = "slow: make test-mesh-full"]
fn verify_names_a_router_without_draining() -> Result<()> {
    on_cluster(|cluster| {
        let patch = r#"[{"op": "remove", "path": "/spec/template/spec/containers/0/lifecycle"}]"#;
        with_deployment(cluster, patch, |pods| {
            ensure!(pods.len() == 2, "{} pods", pods.len());
            let expected = pods.iter().map(|pod| format!("{}: it does not drain", pod.name)).collect::<Vec<_>>();
            expect_wrong_lines(
                cluster,
                "removing the preStop hook",
                &expected.iter().map(String::as_str).collect::<Vec<_>>(),
            )
        })?;
        expect_wrong_lines(cluster, "restoring the manifests", &[])
    })
}

#[test]
#[ignore = "slow: make test-mesh-full"]
fn verify_names_an_expired_certificate() -> Result<()> {
    on_cluster(|cluster| {
        // The certificates are valid for 30 seconds and are not renewed.
        let patch = r#"[{"op": "add", "path": "/spec/template/spec/initContainers/0/env/-", "value": {"name": "SECRET_TTL", "value": "30s"}}]"#;
        with_deployment(cluster, patch, |pods| {
            for pod in pods {
                pause_agent(pod)?;
            }
            thread::sleep(Duration::from_secs(30));
            let expected =
                pods.iter().map(|pod| format!("{}: its certificate expired at ", pod.name)).collect::<Vec<_>>();
            expect_wrong_lines(
                cluster,
                "the expiry of the certificates",
                &expected.iter().map(String::as_str).collect::<Vec<_>>(),
            )
        })?;
        expect_wrong_lines(cluster, "restoring the manifests", &[])
    })
}

/// Suspends the agent of a router, which would renew the certificate, until its pod ends.
fn pause_agent(pod: &Pod) -> Result<()> {
    let agent = process_of(pod, "pilot-agent")?;
    kill(agent, Signal::SIGSTOP)
}

#[test]
fn verify_takes_the_namespace_of_the_routers_as_a_parameter() -> Result<()> {
    on_cluster(|cluster| {
        let (right, shown) = cluster.verify_with(&[("ROUTERS_NAMESPACE", "elsewhere")])?;
        ensure!(!right, "{shown}");
        let line = shown
            .lines()
            .find(|line| line.contains("no egress router runs"))
            .context("verify reports no missing router")?;
        ensure!(line.starts_with("WRONG: no pod of the namespace elsewhere has the labels"), "{line}");
        Ok(())
    })
}
