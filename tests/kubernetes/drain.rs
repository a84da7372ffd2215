//! Routers that are terminated or killed, under load and with connections that stay open.

use crate::{
    cluster::{Cluster, on_cluster},
    disruptions::{count_lost, expect_no_loss, under_load, watching},
    module_delivery::{echo, exchange_ping},
    pod::{Pod, process_of},
    server,
    shipped::{ROUTERS, ROUTERS_NAMESPACE},
};
use anyhow::{Context, Result, ensure};
use std::{
    net::{IpAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};
use testbed::{Signal, kill};

/// The duration of the routers' preStop hook, minus a margin for a loaded machine.
const DRAIN: Duration = Duration::from_secs(25);
/// The time by which a deleted pod has ended: its preStop hook takes 30 s, and its grace period is 45 s.
const GONE: Duration = Duration::from_secs(45);
/// How long a client may wait for its next answer while a router ends.
const GAP: Duration = Duration::from_secs(5);

/// The file with the routers' lists, and a line in it.
const LISTS: &str = "settings/routers.yaml";
const PORTS: &str = "      ports: &clients_ports ";

/// A connection that stays open, and the address of the router's pod that carries it.
struct Held {
    stream: TcpStream,
    router: IpAddr,
}

/// Opens ten connections from each client, while nothing else connects.
fn hold(cluster: &Cluster) -> Result<Vec<Held>> {
    let mut held = Vec::new();
    for client in cluster.clients.iter().flat_map(|client| [client; 10]) {
        let before = server::records().len();
        let stream = echo(&client.host)?;
        let router = server::records()[before..].first().context("no connection arrived")?.seen.from;
        held.push(Held { stream, router });
    }
    Ok(held)
}

/// Uses the connections until this time. Returns the number of cut connections through these pods, and of other cut ones.
fn count_cut(held: &mut [Held], pods: &[Pod], until: Instant) -> (usize, usize) {
    let carried = |held: &Held| pods.iter().any(|pod| pod.addresses.contains(&held.router));
    loop {
        let cut: Vec<bool> = held
            .iter_mut()
            .map(|held| (exchange_ping(&mut held.stream).is_err(), carried(held)))
            .filter(|(cut, _)| *cut)
            .map(|(_, carried)| carried)
            .collect();
        if Instant::now() > until {
            let theirs = cut.iter().filter(|carried| **carried).count();
            return (theirs, cut.len() - theirs);
        }
        thread::sleep(Duration::from_millis(500));
    }
}

/// Returns one pod of each router.
fn one_of_each(cluster: &Cluster) -> Result<Vec<Pod>> {
    let pod = |router: &&str| {
        cluster.pods(ROUTERS_NAMESPACE, &format!("app={router}"))?.pop().context("no pod of the router")
    };
    ROUTERS.iter().map(pod).collect()
}

#[test]
#[ignore = "slow: make test-mesh-full"]
fn a_terminating_router_accepts_no_new_connections_and_keeps_established_ones_while_it_drains() -> Result<()> {
    on_cluster(|cluster| {
        let mut held = hold(cluster)?;
        let pods = one_of_each(cluster)?;
        let carried = held.iter().filter(|held| pods.iter().any(|pod| pod.addresses.contains(&held.router))).count();
        ensure!(carried > 0, "the pods carry no connection");
        let clients = cluster.clients.clone();
        let (watched, (attempts, ())) = watching(cluster, || {
            under_load(&clients, || {
                let started = Instant::now();
                for pod in &pods {
                    cluster.kubectl(&["delete", "pod", "--namespace", ROUTERS_NAMESPACE, "--wait=false", &pod.name])?;
                }
                let early = count_cut(&mut held, &pods, started + DRAIN);
                let late = count_cut(&mut held, &pods, started + GONE);
                println!(
                    "drain: {} held, {carried} through pods that end; cut until {DRAIN:?}: {early:?}, then {late:?}",
                    held.len()
                );
                ensure!(early == (0, 0), "connections cut within {DRAIN:?} (of these pods, of others): {early:?}");
                ensure!(
                    late == (carried, 0),
                    "connections cut at the end (of these pods, of others): {late:?}, of {carried}"
                );
                cluster.routers_rolled_out()
            })
        })?;
        expect_no_loss("drain", &attempts, &watched, GAP)
    })
}

#[test]
#[ignore = "slow: make test-mesh-full"]
fn a_changed_list_rolls_out_the_routers_without_losing_connections() -> Result<()> {
    on_cluster(|cluster| {
        let mut held = hold(cluster)?;
        let before: Vec<String> = cluster.routers()?.into_iter().map(|router| router.name).collect();
        let clients = cluster.clients.clone();
        let outcome = watching(cluster, || {
            under_load(&clients, || {
                let started = Instant::now();
                cluster.edit(LISTS, PORTS, "\"5432|5433\"")?;
                cluster.apply()?;
                let early = count_cut(&mut held, &[], started + DRAIN);
                ensure!(early == (0, 0), "connections cut within {DRAIN:?} (of these pods, of others): {early:?}");
                cluster.routers_rolled_out()
            })
        });
        let after: Vec<String> = cluster.routers()?.into_iter().map(|router| router.name).collect();
        cluster.fresh_manifests()?;
        cluster.apply()?;
        cluster.routers_rolled_out()?;
        let (watched, (attempts, ())) = outcome?;
        ensure!(!after.iter().any(|name| before.contains(name)), "{before:?}, then {after:?}");
        expect_no_loss("changed list", &attempts, &watched, GAP)
    })
}

#[test]
#[ignore = "slow: make test-mesh-full"]
fn a_killed_router_loses_its_established_connections_and_at_most_four_new_ones() -> Result<()> {
    on_cluster(|cluster| {
        let mut held = hold(cluster)?;
        let pods = one_of_each(cluster)?;
        let carried = held.iter().filter(|held| pods.iter().any(|pod| pod.addresses.contains(&held.router))).count();
        ensure!(carried > 0, "no connection goes through the pods to kill");
        let clients = cluster.clients.clone();
        let (watched, (attempts, lost)) = watching(cluster, || {
            under_load(&clients, || {
                for pod in &pods {
                    kill(process_of(pod, "envoy")?, Signal::SIGKILL)?;
                }
                thread::sleep(Duration::from_secs(10));
                Ok(count_cut(&mut held, &pods, Instant::now()))
            })
        })?;
        cluster.routers_rolled_out()?;
        println!("kill -9: {} held, {carried} through killed pods, cut: {lost:?}", held.len());
        ensure!(lost == (carried, 0), "connections cut (of these pods, of others): {lost:?}, of {carried}");
        // Only connections that were being opened may be lost: at most one from each of the four clients of the load.
        let missed = count_lost("kill -9", &attempts, &watched, GAP)?;
        ensure!(missed <= 4, "{missed} lost");
        Ok(())
    })
}
