//! Routers that are evicted, drained and restarted, under load.

use crate::{
    client_hello::client_hello,
    cluster::{Cluster, on_it},
    outside,
    pod::{DEADLINE, Pod, list},
    server::{self, Seen},
    shipped::{ROUTERS, ROUTERS_NAMESPACE, expected_router},
};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::{
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

/// The ready pods of each router, by name, and the addresses that its pods have had, as the API server reported them.
#[derive(Default)]
pub struct Watched {
    ready: BTreeMap<String, BTreeSet<String>>,
    addresses: BTreeMap<IpAddr, String>,
    /// The fewest ready pods of any router, once both had two.
    pub fewest: Option<usize>,
}

impl Watched {
    fn hear(&mut self, event: &Value) {
        let pod = &event["object"];
        let name = pod["metadata"]["name"].as_str().unwrap_or_default();
        let app = pod["metadata"]["labels"]["app"].as_str().unwrap_or_default();
        let ready = list(pod, "/status/conditions").iter().any(|one| one["type"] == "Ready" && one["status"] == "True");
        let serves = ready && pod["metadata"].get("deletionTimestamp").is_none() && event["type"] != "DELETED";
        let pods = self.ready.entry(app.to_owned()).or_default();
        if serves {
            pods.insert(name.to_owned());
        } else {
            pods.remove(name);
        }
        for address in list(pod, "/status/podIPs").iter().filter_map(|ip| ip["ip"].as_str()?.parse().ok()) {
            self.addresses.insert(address, app.to_owned());
        }
        let least = ROUTERS.iter().map(|router| self.ready.get(*router).map_or(0, BTreeSet::len)).min().unwrap_or(0);
        self.fewest =
            if self.fewest.is_some() || least == 2 { Some(self.fewest.unwrap_or(2).min(least)) } else { None };
    }
}

/// Watches the routers' pods while it does this.
pub fn watching<T>(cluster: &Cluster, work: impl FnOnce() -> Result<T>) -> Result<(Watched, T)> {
    let watch = ["get", "pods", "--namespace", ROUTERS_NAMESPACE, "--watch", "--output-watch-events", "--output=json"];
    let mut watcher = cluster.spawn_kubectl(&watch)?;
    let events = watcher.stdout.take().context("a pipe")?;
    let (complete, begins) = mpsc::channel();
    thread::scope(|scope| {
        let heard = scope.spawn(move || {
            let mut watched = Watched::default();
            for event in serde_json::Deserializer::from_reader(events).into_iter::<Value>().flatten() {
                watched.hear(&event);
                if watched.fewest.is_some() {
                    _ = complete.send(()); // heard once
                }
            }
            watched
        });
        _ = begins.recv_timeout(DEADLINE); // else nothing is the fewest, which no test expects
        let done = work();
        thread::sleep(Duration::from_secs(1)); // the last events
        watcher.kill()?;
        watcher.wait()?;
        Ok((heard.join().expect("no panic"), done?))
    })
}

/// A connection of the load: its source, when it began, and what became of it.
pub type Tried = (IpAddr, Instant, Result<Seen>);

/// Connects continuously from these clients, in both families, while it does this.
pub fn under_load<T>(clients: &[Pod], work: impl FnOnce() -> Result<T>) -> Result<(Vec<Tried>, T)> {
    let (hello, ended) = (client_hello("a.example.com")?, AtomicBool::new(false));
    thread::scope(|scope| {
        let load: Vec<_> = clients
            .iter()
            .flat_map(|client| [0, 1].map(|family| (client, outside(family, 443))))
            .map(|(client, to)| {
                let (hello, ended) = (&hello, &ended);
                scope.spawn(move || {
                    let mut tried = Vec::new();
                    while !ended.load(Ordering::Relaxed) {
                        tried.push((client.source(to.ip()), Instant::now(), server::ask(&client.host, to, hello)));
                        thread::sleep(Duration::from_millis(20));
                    }
                    tried
                })
            })
            .collect();
        thread::sleep(Duration::from_secs(1));
        let done = work();
        thread::sleep(Duration::from_secs(2));
        ended.store(true, Ordering::Relaxed);
        let tried = load.into_iter().flat_map(|thread| thread.join().expect("no panic")).collect();
        Ok((tried, done?))
    })
}

/// Prints what became of the load. Expects that no connection was lost, that nobody but the source's own router answered, and
/// that no client was without an answer for longer than this.
pub fn judge(what: &str, tried: &[Tried], watched: &Watched, longest: Duration) -> Result<()> {
    let lost = count_lost(what, tried, watched, longest)?;
    ensure!(lost == 0, "{what}: {lost} lost");
    Ok(())
}

/// The same for a disruption that may lose connections, whose number it returns.
pub fn count_lost(what: &str, tried: &[Tried], watched: &Watched, longest: Duration) -> Result<usize> {
    let mut gaps: BTreeMap<IpAddr, (Instant, Duration)> = BTreeMap::new();
    let (mut lost, mut misrouted) = (BTreeMap::<String, usize>::new(), Vec::new());
    for (source, began, seen) in tried {
        match seen {
            Ok(seen) => {
                let (last, gap) = gaps.entry(*source).or_insert((*began, Duration::ZERO));
                (*last, *gap) = (*began, (*gap).max(began.duration_since(*last)));
                if watched.addresses.get(&seen.from).map(String::as_str) != Some(expected_router(*source)) {
                    misrouted.push(format!("{source}: {seen:?}"));
                }
            }
            Err(error) => *lost.entry(format!("{error:#}")).or_default() += 1,
        }
    }
    let (opened, missed) = (tried.len(), lost.values().sum::<usize>());
    let gap = gaps.values().map(|(_, gap)| *gap).max().context("no connection was answered")?;
    println!(
        "{what}: {opened} opened, {} answered, {missed} lost {lost:?}, {} misrouted",
        opened - missed,
        misrouted.len()
    );
    println!("{what}: longest time without an answer {gap:.1?}; fewest ready pods of a router {:?}", watched.fewest);
    ensure!(misrouted.is_empty(), "{misrouted:?}, of {:?}", watched.addresses);
    ensure!(opened - missed > 100, "{} answered: no load to speak of", opened - missed);
    ensure!(gap < longest, "a client was without an answer for {gap:?}");
    Ok(missed)
}

/// Restarts the pods of both routers at the same time.
pub fn restart_routers(cluster: &Cluster) -> Result<()> {
    for router in ROUTERS {
        cluster.kubectl(&["rollout", "restart", "--namespace", ROUTERS_NAMESPACE, &format!("deployment/{router}")])?;
    }
    ROUTERS.iter().try_for_each(|router| cluster.rolled_out(ROUTERS_NAMESPACE, router))
}

/// The nodes of each router's pods.
fn nodes(cluster: &Cluster) -> Result<BTreeMap<String, Vec<String>>> {
    let mut nodes = BTreeMap::<String, Vec<String>>::new();
    for router in cluster.routers()? {
        nodes.entry(router.app().to_owned()).or_default().push(router.node.clone());
    }
    nodes.values_mut().for_each(|nodes| nodes.sort());
    Ok(nodes)
}

fn expect_nodes(cluster: &Cluster, expected: [&str; 2]) -> Result<()> {
    // A pod that ends may still be there.
    cluster.eventually("the routers' nodes", |cluster| {
        let nodes = nodes(cluster)?;
        ensure!(ROUTERS.iter().all(|router| nodes.get(*router).is_some_and(|nodes| *nodes == expected)), "{nodes:?}");
        Ok(())
    })
}

/// Asks for the eviction of a pod, or only whether it would be granted.
fn evict(cluster: &Cluster, pod: &Pod, dry_run: bool) -> Result<String> {
    let path = format!("/api/v1/namespaces/{}/pods/{}/eviction", pod.namespace, pod.name);
    let options = if dry_run { serde_json::json!({ "dryRun": ["All"] }) } else { serde_json::json!({}) };
    let eviction = serde_json::json!({
        "apiVersion": "policy/v1",
        "kind": "Eviction",
        "metadata": { "name": pod.name, "namespace": pod.namespace },
        "deleteOptions": options,
    });
    cluster.kubectl_with(&["create", "--raw", &path, "--filename", "-"], &eviction.to_string())
}

#[test]
fn the_eviction_that_would_leave_a_router_without_a_pod_is_refused() -> Result<()> {
    on_it(|cluster| {
        for router in ROUTERS {
            let pods = cluster.pods(ROUTERS_NAMESPACE, &format!("app={router}"))?;
            ensure!(pods.len() == 2, "{} pods of {router}", pods.len());
            let (watched, (refused, budget)) = watching(cluster, || {
                evict(cluster, &pods[0], false)?;
                let refused = evict(cluster, &pods[1], false);
                // kubectl does not print the budget's name, which the answer has.
                let budget = cluster.get(&["--namespace", ROUTERS_NAMESPACE, "poddisruptionbudget", router])?;
                cluster.rolled_out(ROUTERS_NAMESPACE, router)?;
                Ok((refused, budget))
            })?;
            let refused =
                format!("{:#}", refused.err().with_context(|| format!("both pods of {router} were evicted"))?);
            for told in ["(TooManyRequests)", "would violate the pod's disruption budget"] {
                ensure!(refused.contains(told), "{told:?}: {refused}");
            }
            ensure!(budget["status"]["disruptionsAllowed"] == 0, "{budget}");
            ensure!(watched.fewest == Some(1), "{:?}", watched.ready);
            // With a new pod, the other one may go.
            cluster.eventually("an eviction that is granted", |_| evict(cluster, &pods[1], true).map(drop))?;
        }
        Ok(())
    })
}

#[test]
#[ignore = "slow: make test-mesh-full"]
fn a_rolling_restart_loses_nothing_and_spreads_the_routers() -> Result<()> {
    on_it(|cluster| {
        let clients = cluster.clients.clone();
        let (watched, (tried, ())) = watching(cluster, || under_load(&clients, || restart_routers(cluster)))?;
        judge("rolling restart", &tried, &watched, DEADLINE)?;
        ensure!(watched.fewest >= Some(1), "{:?}", watched.ready);
        expect_nodes(cluster, ["node1", "node2"])
    })
}

#[test]
#[ignore = "slow: make test-mesh-full"]
fn a_drained_node_leaves_the_routers_on_the_other_one() -> Result<()> {
    on_it(|cluster| {
        // istiod has one pod, and Istio's own budget keeps it from being evicted.
        let istiod = cluster.pods("istio-system", "app=istiod")?.pop().context("no istiod")?.node;
        let (drained, left) = if istiod == "node1" { ("node2", "node1") } else { ("node1", "node2") };
        let backend = cluster.backend()?.name;
        let clients: Vec<Pod> = cluster.clients.iter().filter(|client| client.node == left).cloned().collect();
        let outcome = drain(cluster, &clients, drained, left);
        cluster.kubectl(&["uncordon", drained])?;
        cluster.rolled_out("default", "backend")?;
        cluster.rolled_out("kube-system", "coredns")?;
        if cluster.backend()?.name != backend {
            cluster.serve_backend()?;
        }
        restart_routers(cluster)?;
        expect_nodes(cluster, ["node1", "node2"])?;
        cluster.kubectl(&["rollout", "restart", "deployment/client"])?; // on both nodes again
        cluster.roll_clients_out()?;
        outcome
    })
}

fn drain(cluster: &Cluster, clients: &[Pod], drained: &str, left: &str) -> Result<()> {
    ensure!(!clients.is_empty(), "no client on {left}");
    let started = Instant::now();
    let (watched, (tried, ())) = watching(cluster, || {
        under_load(clients, || {
            cluster.kubectl(&["drain", drained, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=90s"])?;
            ROUTERS.iter().try_for_each(|router| cluster.rolled_out(ROUTERS_NAMESPACE, router))
        })
    })?;
    println!("drain: of {drained} within {:.1?}", started.elapsed());
    judge("drain", &tried, &watched, DEADLINE)?;
    ensure!(watched.fewest == Some(1), "{:?}", watched.ready);
    expect_nodes(cluster, [left, left])?;
    for client in clients {
        cluster.expect_routed(client, outside(0, 443), &client_hello("a.example.com")?)?;
    }
    Ok(())
}
