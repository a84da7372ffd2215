//! Failover to the other router, which happens only with istio/failover.

use crate::{
    client_hello::client_hello,
    cluster::{Cluster, on_cluster},
    disruptions::under_load,
    module_delivery::restoring,
    outside, server,
    shipped::{ROUTERS, ROUTERS_NAMESPACE, expected_router},
};
use anyhow::{Context, Result, ensure};

/// Changes the number of a router's pods.
fn scale(cluster: &Cluster, router: &str, replicas: usize) -> Result<()> {
    let (deployment, replicas) = (format!("deployment/{router}"), format!("--replicas={replicas}"));
    cluster.kubectl(&["scale", "--namespace", ROUTERS_NAMESPACE, &deployment, &replicas])?;
    cluster.rolled_out(ROUTERS_NAMESPACE, router)
}

/// Waits until the client of router 1 connects through `router`, and the other client through its own.
fn await_router(cluster: &Cluster, router: &str) -> Result<()> {
    cluster.eventually(&format!("connections through {router}"), |cluster| {
        for client in &cluster.clients {
            let to = outside(0, 443);
            let seen = server::ask(&client.host, to, &client_hello("a.example.com")?)?;
            let own = expected_router(client.source(to.ip()));
            let (left, expected) = (cluster.router(seen.from)?, if own == ROUTERS[0] { router } else { own });
            ensure!(
                (left.as_str(), seen.to) == (expected, to),
                "{}: expected {expected}, got {left}: {seen:?}",
                client.name
            );
        }
        Ok(())
    })
}

#[test]
#[ignore = "slow: make test-mesh-full"]
fn without_its_router_a_client_is_refused_unless_failover_is_applied() -> Result<()> {
    on_cluster(|cluster| {
        let client = cluster.clients.iter().find(|client| expected_router(client.addresses[0]) == ROUTERS[0]);
        let client = client.context("no client of router 1")?.clone();
        let hello = client_hello("a.example.com")?;
        scale(cluster, ROUTERS[0], 0)?;
        let refused = cluster.eventually("connections to be refused", |_| {
            let seen = server::ask(&client.host, outside(0, 443), &hello);
            ensure!(seen.is_err(), "{seen:?}");
            Ok(())
        });
        scale(cluster, ROUTERS[0], 2)?;
        refused?;
        await_router(cluster, ROUTERS[0])?;

        let outcome = restoring(cluster, |cluster| {
            cluster.edit(
                "kustomization.yaml",
                "  - settings # before",
                " the module, which may move the routes\n  - failover",
            )?;
            cluster.apply_until("the failover table", |filter| filter.to_string().contains("failover|8080||"))?;
            await_router(cluster, ROUTERS[0])?;
            let clients = cluster.clients.clone();
            let (attempts, ()) = under_load(&clients, || {
                scale(cluster, ROUTERS[0], 0)?;
                await_router(cluster, ROUTERS[1])
            })?;
            let lost = attempts.iter().filter(|(.., seen)| seen.is_err()).count();
            println!("failover: {} opened, {lost} lost", attempts.len());
            ensure!(lost == 0, "{lost} lost");
            scale(cluster, ROUTERS[0], 2)?;
            await_router(cluster, ROUTERS[0])
        });
        scale(cluster, ROUTERS[0], 2)?;
        cluster.kubectl(&["delete", "--ignore-not-found", "envoyfilter", "sluice-failover"])?;
        outcome
    })
}
