//! Evictions, drained nodes and rolling restarts of routers, under load.

use crate::{
    client_hello::client_hello,
    cluster::{Cluster, on_cluster},
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

/// The names of each router's ready pods, and all addresses that its pods have had, as the API server reported them.
#[derive(Default)]
pub struct Watched {
    ready: BTreeMap<String, BTreeSet<String>>,
    addresses: BTreeMap<IpAddr, String>,
    /// The lowest number of ready pods of any router since both had two.
    pub fewest: Option<usize>,
}

impl Watched {
    fn update(&mut self, event: &Value) {
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

/// Watches the routers' pods during `work`.
pub fn watching<T>(cluster: &Cluster, work: impl FnOnce() -> Result<T>) -> Result<(Watched, T)> {
    let watch = ["get", "pods", "--namespace", ROUTERS_NAMESPACE, "--watch", "--output-watch-events", "--output=json"];
    let mut watcher = cluster.spawn_kubectl(&watch)?;
    let events = watcher.stdout.take().context("kubectl has no pipe")?;
    let (complete, begins) = mpsc::channel();
    thread::scope(|scope| {
        let watched = scope.spawn(move || {
            let mut watched = Watched::default();
            for event in serde_json::Deserializer::from_reader(events).into_iter::<Value>().flatten() {
                watched.update(&event);
                if watched.fewest.is_some() {
                    _ = complete.send(()); // the receiver waits for the first message only
                }
            }
            watched
        });
        _ = begins.recv_timeout(DEADLINE); // after a timeout, `fewest` stays `None`, which no test accepts
        let done = work();
        thread::sleep(Duration::from_secs(1)); // until the last events have arrived
        watcher.kill()?;
        watcher.wait()?;
        Ok((watched.join().expect("a thread panicked"), done?))
    })
}

/// A connection of the load: its source, its start and its result.
pub type Outcome = (IpAddr, Instant, Result<Seen>);

/// Connects continuously from these clients, in both address families, during `work`.
pub fn under_load<T>(clients: &[Pod], work: impl FnOnce() -> Result<T>) -> Result<(Vec<Outcome>, T)> {
    let (hello, ended) = (client_hello("a.example.com")?, AtomicBool::new(false));
    thread::scope(|scope| {
        let load: Vec<_> = clients
            .iter()
            .flat_map(|client| [0, 1].map(|family| (client, outside(family, 443))))
            .map(|(client, to)| {
                let (hello, ended) = (&hello, &ended);
                scope.spawn(move || {
                    let mut attempts = Vec::new();
                    while !ended.load(Ordering::Relaxed) {
                        attempts.push((client.source(to.ip()), Instant::now(), server::ask(&client.host, to, hello)));
                        thread::sleep(Duration::from_millis(20));
                    }
                    attempts
                })
            })
            .collect();
        thread::sleep(Duration::from_secs(1));
        let done = work();
        thread::sleep(Duration::from_secs(2));
        ended.store(true, Ordering::Relaxed);
        let attempts = load.into_iter().flat_map(|thread| thread.join().expect("a thread panicked")).collect();
        Ok((attempts, done?))
    })
}

/// Prints the results of the load. Expects that no connection was lost, that each went through the router of its source, and that
/// no client waited longer than `longest` for its next answer.
pub fn expect_no_loss(what: &str, attempts: &[Outcome], watched: &Watched, longest: Duration) -> Result<()> {
    let lost = count_lost(what, attempts, watched, longest)?;
    ensure!(lost == 0, "{what}: {lost} lost");
    Ok(())
}

/// Like [`expect_no_loss`], for a disruption that may lose connections. Returns the number of lost ones.
pub fn count_lost(what: &str, attempts: &[Outcome], watched: &Watched, longest: Duration) -> Result<usize> {
    let mut gaps: BTreeMap<IpAddr, (Instant, Duration)> = BTreeMap::new();
    let (mut lost, mut misrouted) = (BTreeMap::<String, usize>::new(), Vec::new());
    for (source, began, seen) in attempts {
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
    let (opened, missed) = (attempts.len(), lost.values().sum::<usize>());
    let gap = gaps.values().map(|(_, gap)| *gap).max().context("no connection was answered")?;
    println!(
        "{what}: {opened} opened, {} answered, {missed} lost {lost:?}, {} misrouted",
        opened - missed,
        misrouted.len()
    );
    println!("{what}: longest time without an answer {gap:.1?}; fewest ready pods of a router {:?}", watched.fewest);
    ensure!(misrouted.is_empty(), "{misrouted:?}, of {:?}", watched.addresses);
    ensure!(opened - missed > 100, "only {} connections answered: too little load", opened - missed);
    ensure!(gap < longest, "a client was without an answer for {gap:?}");
    Ok(missed)
}

/// Restarts the pods of both routers at the same time.
pub fn restart_routers(cluster: &Cluster) -> Result<()> {
    for router in ROUTERS {
        cluster.kubectl(&["rollout", "restart", "--namespace", ROUTERS_NAMESPACE, &format!("deployment/{router}")])?;
    }
    cluster.routers_rolled_out()
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
    // A terminating pod may still exist.
    cluster.eventually("the routers on the expected nodes", |cluster| {
        let nodes = nodes(cluster)?;
        ensure!(ROUTERS.iter().all(|router| nodes.get(*router).is_some_and(|nodes| *nodes == expected)), "{nodes:?}");
        Ok(())
    })
}

/// Requests the eviction of a pod. With `dry_run`, only checks whether it would be granted.
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
#[ignore = "slow: make test-mesh-full"]
fn the_eviction_that_would_leave_a_router_without_a_pod_is_refused() -> Result<()> {
    on_cluster(|cluster| {
        for router in ROUTERS {
            let pods = cluster.pods(ROUTERS_NAMESPACE, &format!("app={router}"))?;
            ensure!(pods.len() == 2, "{} pods of {router}", pods.len());
            let (watched, (refused, budget)) = watching(cluster, || {
                evict(cluster, &pods[0], false)?;
                let refused = evict(cluster, &pods[1], false);
                // kubectl does not print the name of the budget that refused.
                let budget = cluster.get(&["--namespace", ROUTERS_NAMESPACE, "poddisruptionbudget", router])?;
                cluster.rolled_out(ROUTERS_NAMESPACE, router)?;
                Ok((refused, budget))
            })?;
            let refused =
                format!("{:#}", refused.err().with_context(|| format!("both pods of {router} were evicted"))?);
            for expected in ["(TooManyRequests)", "would violate the pod's disruption budget"] {
                ensure!(refused.contains(expected), "expected {expected:?} in: {refused}");
            }
            ensure!(budget["status"]["disruptionsAllowed"] == 0, "{budget}");
            ensure!(watched.fewest == Some(1), "{:?}", watched.ready);
            // Once a new pod runs, the other one may be evicted.
            cluster.eventually("an eviction to be granted", |_| evict(cluster, &pods[1], true).map(drop))?;
        }
        Ok(())
    })
}

#[test]
#[ignore = "slow: make test-mesh-full"]
fn a_rolling_restart_loses_no_connection_and_spreads_the_routers() -> Result<()> {
    on_cluster(|cluster| {
        let clients = cluster.clients.clone();
        let (watched, (attempts, ())) = watching(cluster, || under_load(&clients, || restart_routers(cluster)))?;
        expect_no_loss("rolling restart", &attempts, &watched, DEADLINE)?;
        ensure!(watched.fewest >= Some(1), "{:?}", watched.ready);
        expect_nodes(cluster, ["node1", "node2"])
    })
}

#[test]
#[ignore = "slow: make test-mesh-full"]
fn draining_a_node_moves_the_routers_to_the_other_node() -> Result<()> {
    on_cluster(|cluster| {
        // istiod has one pod, and Istio's disruption budget prevents its eviction.
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
        cluster.kubectl(&["rollout", "restart", "deployment/client"])?; // spreads the clients over both nodes again
        cluster.roll_clients_out()?;
        outcome
    })
}

fn drain(cluster: &Cluster, clients: &[Pod], drained: &str, left: &str) -> Result<()> {
    ensure!(!clients.is_empty(), "no client on {left}");
    let started = Instant::now();
    let (watched, (attempts, ())) = watching(cluster, || {
        under_load(clients, || {
            cluster.kubectl(&["drain", drained, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=90s"])?;
            cluster.routers_rolled_out()
        })
    })?;
    println!("drain: {drained} was drained within {:.1?}", started.elapsed());
    expect_no_loss("drain", &attempts, &watched, DEADLINE)?;
    ensure!(watched.fewest == Some(1), "{:?}", watched.ready);
    expect_nodes(cluster, [left, left])?;
    for client in clients {
        cluster.expect_routed(client, outside(0, 443), &client_hello("a.example.com")?)?;
    }
    Ok(())
}
