//! Restarts and an outage of Istio's control plane under traffic, and pods that connect while they start.

use crate::{
    cluster::{Cluster, on_cluster},
    outside,
    pod::{Pod, list, manifest, specification, with_applied},
    policies::{CLIENT_POLICIES, without_policies},
    server,
    shipped::expected_router,
    sidecar_admin::admin,
    sidecars::{CLASSIC, CONNECT, WITH_SLUICE, addresses, routed},
};
use anyhow::{Result, ensure};
use std::{
    fmt::Write as _,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

/// Runs `work` while each client connects continuously, in both address families. Expects that no connection is lost or takes the
/// wrong router.
fn under_traffic(cluster: &Cluster, work: impl FnOnce() -> Result<()>) -> Result<()> {
    let routers = cluster.routers()?;
    let ended = AtomicBool::new(false);
    // Makes one connection. Fails if it is lost or takes the wrong router.
    let connect = |client: &Pod, family: usize| -> Result<()> {
        let to = outside(family, 25);
        let seen = server::ask(&client.host, to, b"")?;
        let router = routers.iter().find(|router| router.addresses.contains(&seen.from)).map_or("none", Pod::app);
        ensure!(router == expected_router(client.source(to.ip())), "{seen:?} came from {router}");
        Ok(())
    };
    let (done, outcomes) = thread::scope(|scope| {
        let askers: Vec<_> = cluster
            .clients
            .iter()
            .flat_map(|client| [(client, 0), (client, 1)])
            .map(|(client, family)| {
                let (ended, connect) = (&ended, &connect);
                scope.spawn(move || {
                    let mut outcomes = Vec::new();
                    while !ended.load(Ordering::Relaxed) {
                        outcomes.push(connect(client, family));
                        thread::sleep(Duration::from_millis(10));
                    }
                    outcomes
                })
            })
            .collect();
        let done = work();
        ended.store(true, Ordering::Relaxed);
        let outcomes: Vec<Result<()>> =
            askers.into_iter().flat_map(|asker| asker.join().expect("a thread panicked")).collect();
        (done, outcomes)
    });
    done?;
    let (count, failed) = (outcomes.len(), outcomes.into_iter().filter_map(Result::err).collect::<Vec<_>>());
    println!("{count} connections, {} lost or misrouted", failed.len());
    ensure!(
        failed.is_empty(),
        "{} of {count} connections were lost or misrouted, the first one: {:#}",
        failed.len(),
        failed[0]
    );
    ensure!(count > 100, "only {count} connections: too little traffic");
    Ok(())
}

/// A service whose only purpose is to show which sidecars receive updates from istiod.
const NEWS: &str = "apiVersion: v1\nkind: Service\nmetadata: { namespace: default, name: news }\nspec: { ports: [{ name: tcp, port: 7777 }] }\n";

/// Returns the number of clients' sidecars that know the service `news`.
fn informed(cluster: &Cluster) -> Result<usize> {
    let mut count = 0;
    for client in &cluster.clients {
        count += usize::from(admin(client, "/clusters")?.contains("outbound|7777||news.default."));
    }
    Ok(count)
}

/// Waits until this number of clients' sidecars know the service `news`.
fn expect_informed(cluster: &Cluster, expected: usize) -> Result<()> {
    cluster.eventually("updates from istiod in the sidecars", |cluster| {
        let informed = informed(cluster)?;
        ensure!(informed == expected, "{informed} sidecars know the service, expected {expected}");
        Ok(())
    })
}

/// Returns the names of istiod's pods.
fn istiods(cluster: &Cluster) -> Result<Vec<String>> {
    let pods = list(&cluster.get(&["--namespace=istio-system", "pods", "--selector=app=istiod"])?, "/items");
    Ok(pods.iter().map(|pod| pod["metadata"]["name"].to_string()).collect())
}

#[test]
fn no_connection_is_lost_while_istiod_restarts() -> Result<()> {
    on_cluster(|cluster| {
        let before = istiods(cluster)?;
        let outcome = under_traffic(cluster, || {
            cluster.kubectl(&["rollout", "restart", "--namespace=istio-system", "deployment/istiod"])?;
            cluster.rolled_out("istio-system", "istiod")?;
            cluster.eventually("a new pod of istiod", |cluster| {
                let now = istiods(cluster)?;
                ensure!(now.len() == 1 && !before.contains(&now[0]), "{before:?}, then {now:?}");
                Ok(())
            })?;
            with_applied(cluster, NEWS, || expect_informed(cluster, cluster.clients.len()))
        });
        expect_informed(cluster, 0)?;
        outcome
    })
}

#[test]
#[ignore = "slow: make test-mesh-full"]
fn no_connection_is_lost_while_istiod_is_down_for_a_minute() -> Result<()> {
    on_cluster(|cluster| {
        let scale = |replicas: &str| {
            cluster.kubectl(&["scale", "--namespace=istio-system", "deployment/istiod", "--replicas", replicas])
        };
        let outcome = under_traffic(cluster, || {
            scale("0")?;
            cluster.eventually("the end of istiod", |cluster| {
                ensure!(istiods(cluster)?.is_empty(), "a pod of istiod still exists");
                Ok(())
            })?;
            with_applied(cluster, NEWS, || {
                thread::sleep(Duration::from_secs(60));
                ensure!(informed(cluster)? == 0, "sidecars received an update without istiod");
                // A pod that is created without a sidecar would not be routed by sluice.
                let pod = manifest("default", "refused", WITH_SLUICE, "", "sleep infinity");
                let created = cluster.kubectl_with(&["apply", "-f", "-"], &pod);
                let by_webhook = |error: &anyhow::Error| format!("{error:#}").contains("sidecar-injector.istio.io");
                ensure!(created.as_ref().is_err_and(by_webhook), "a pod was created without istiod: {created:?}");
                scale("1")?;
                cluster.rolled_out("istio-system", "istiod")?;
                expect_informed(cluster, cluster.clients.len())
            })
        });
        scale("1")?; // again, because the closure may have failed before
        cluster.rolled_out("istio-system", "istiod")?;
        expect_informed(cluster, 0)?;
        outcome
    })
}

/// Creates pods one after the other, every second one with a classic sidecar. Each pod connects as soon as it starts and then
/// repeatedly, without waiting for its sidecar. Expects that the servers outside see connections through the right routers only.
fn expect_starting_pods_are_routed(count: usize) -> Result<()> {
    on_cluster(|cluster| {
        let command = format!(
            "i=0; while [ $i -lt 6 ]; do {CONNECT}; sleep 1; i=$((i+1)); done; touch /tmp/done; sleep infinity"
        );
        let mut manifests = String::new();
        for (name, annotations) in [("native", ""), ("classic", CLASSIC)] {
            write!(
                manifests,
                "---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {{ namespace: default, name: {name} }}\nspec:\n  \
                 replicas: 0\n  selector: {{ matchLabels: {{ kind: {name} }} }}\n  template:\n    metadata:\n      \
                 labels: {{ kind: {name}, {WITH_SLUICE} }}\n      annotations: {{ {annotations} }}\n    spec: {}\n",
                specification(&command).replace("restartPolicy: Never, ", "")
            )?;
        }
        // Without the policies, because they would stop connections that are not redirected.
        without_policies(cluster, "default", &CLIENT_POLICIES, || {
            let since = server::records().len();
            with_applied(cluster, &manifests, || {
                for number in 0..count {
                    let deployment = format!("deployment/{}", ["native", "classic"][number % 2]);
                    cluster.kubectl(&["scale", &deployment, &format!("--replicas={}", number / 2 + 1)])?;
                    thread::sleep(Duration::from_millis(500));
                }
                cluster.rolled_out("default", "native")?;
                cluster.rolled_out("default", "classic")?;
                let pods = cluster.pods("default", "app=tried")?;
                ensure!(pods.len() == count, "{} pods", pods.len());
                cluster.eventually("the connections of all pods", |cluster| {
                    pods.iter().try_for_each(|pod| pod.exec(cluster, "app", &["ls", "/tmp/done"]).map(drop))
                })?;
                let counts = routed(cluster, since)?;
                let opened = 12 * count;
                let routed: usize = counts.values().sum();
                println!("{count} pods: {routed} of {opened} connections routed, {} refused", opened - routed);
                for pod in &pods {
                    let count = counts.get(&addresses(pod)).copied().unwrap_or(0);
                    let native = pod.object["metadata"]["labels"]["kind"] == "native";
                    ensure!(count == 12 || !native, "{}: {count} of 12 connections", pod.name);
                    cluster.expect_routed(pod, outside(0, 25), b"")?;
                }
                Ok(())
            })
        })
    })
}

#[test]
#[ignore = "slow: make test-mesh-full"]
fn pods_that_connect_while_they_start_are_routed_or_refused() -> Result<()> {
    expect_starting_pods_are_routed(4)
}

#[test]
#[ignore = "slow: make test-mesh-full"]
fn twenty_pods_that_connect_while_they_start_are_routed_or_refused() -> Result<()> {
    expect_starting_pods_are_routed(20)
}
