//! Tenants with their own tables, and a namespace without sluice.

use crate::{
    client_hello::client_hello,
    cluster::{Cluster, OUTSIDE, REGISTRY, on_cluster},
    conversations,
    module_delivery::{deliver_by, web_server},
    outside,
    pod::Pod,
    server,
    shipped::{ROUTERS, expected_router},
    sidecar_admin::stats,
};
use anyhow::{Context, Result, bail, ensure};
use std::{fs, net::SocketAddr};
use testbed::Module;

/// A namespace of the mesh without sluice.
const UNTOUCHED: &str = r#"
apiVersion: v1
kind: Namespace
metadata: { name: untouched, labels: { istio-injection: enabled } }
---
apiVersion: apps/v1
kind: Deployment
metadata: { name: client, namespace: untouched }
spec:
  selector: { matchLabels: { app: client } }
  template:
    metadata: { labels: { app: client, egress: sluice } }
    spec:
      terminationGracePeriodSeconds: 1
      containers: [{ name: client, image: docker.io/library/busybox, command: [sleep, infinity] }]
"#;

const NAMESPACES: [&str; 3] = ["tenant-a", "tenant-b", "untouched"];

/// Applies the tenants and the namespace without sluice, checks their connections, and deletes them. `prepare` edits the manifests.
fn with_tenants(cluster: &mut Cluster, prepare: impl FnOnce(&Cluster) -> Result<()>) -> Result<()> {
    let outcome = prepare(cluster).and_then(|()| {
        let tenants = cluster.manifests.join("tenants");
        cluster.kubectl(&["apply", "--validate=strict", "--kustomize", &tenants.to_string_lossy()])?;
        cluster.kubectl_with(&["apply", "--validate=strict", "--filename", "-"], UNTOUCHED)?;
        expect_routes(cluster)
    });
    // Deletes only the namespaces, because the folder's manifests include the routers.
    cluster.kubectl(&[&["delete", "namespace", "--ignore-not-found"], &NAMESPACES[..]].concat())?;
    cluster.fresh_manifests()?;
    outcome
}

/// Returns the two clients of a namespace. Replaces one until at least one has an address that the table of `istio/` would route
/// to this router.
fn clients(cluster: &Cluster, namespace: &str, router: &str) -> Result<Vec<Pod>> {
    for _ in 0..8 {
        cluster.rolled_out(namespace, "client")?;
        let clients = cluster.pods(namespace, "app=client")?;
        // There may be a third pod, which is about to be deleted.
        if clients.len() == 2 && clients.iter().any(|client| expected_router(client.addresses[0]) == router) {
            return Ok(clients);
        }
        cluster.kubectl(&["delete", "pod", "--namespace", namespace, &clients[0].name])?;
    }
    bail!("no client of {namespace} got an address for {router}");
}

/// Expects a connection to go through this router and to reach its destination.
fn expect_router(cluster: &Cluster, client: &Pod, router: &str, to: SocketAddr, says: &[u8]) -> Result<()> {
    let seen = server::ask(&client.host, to, says).with_context(|| format!("{} → {to}", client.namespace))?;
    let left = cluster.router(seen.from)?;
    ensure!((left.as_str(), seen.to) == (router, to), "{} → {to}: {left} {seen:?}", client.namespace);
    println!("{:<10} {:<16} {to:<20} {router}", client.namespace, client.source(to.ip()));
    Ok(())
}

/// Returns the bytes that the application's container receives on port 25, where the server sends first.
fn from_container(cluster: &Cluster, client: &Pod) -> Result<String> {
    let script = format!("sleep 1 | nc -w 3 {} 25 || true", OUTSIDE[0]);
    client.exec(cluster, "client", &["sh", "-c", &script])
}

/// Waits until a sidecar has its filter chains. It is Ready before, and refuses connections until then.
fn await_filter_chains(cluster: &Cluster, client: &Pod) -> Result<()> {
    cluster.eventually("the filter chains of a tenant's sidecar", |_| {
        let conversations = conversations()?.into_iter().filter(|(port, _)| *port != 25);
        for (port, says) in conversations {
            server::ask(&client.host, outside(0, port), &says)?;
        }
        Ok(())
    })
}

fn expect_routes(cluster: &Cluster) -> Result<()> {
    let denied = |client: &Pod| -> Result<u64> {
        Ok(stats(client, |name| name == "wasmcustom.sluice.denied")?.pop().context("no counter")?.1)
    };
    // Each tenant has a client whose address has the parity of the other router.
    for client in clients(cluster, "tenant-a", ROUTERS[1])? {
        await_filter_chains(cluster, &client)?;
        let before = denied(&client)?;
        for family in [0, 1] {
            for (port, says) in conversations()?.into_iter().filter(|(port, _)| *port != 25) {
                expect_router(cluster, &client, ROUTERS[0], outside(family, port), &says)?;
            }
            let seen = server::ask(&client.host, outside(family, 25), b"");
            ensure!(seen.is_err(), "tenant-a reached port 25: {seen:?}");
        }
        let answer = from_container(cluster, &client)?;
        ensure!(answer.is_empty(), "tenant-a received on port 25: {answer}");
        ensure!(denied(&client)? == before + 3, "denied: {before}, then {}", denied(&client)?);
        cluster.eventually("the denied connections in the sidecar's log", |cluster| {
            let entries = client.entries(cluster, "istio-proxy")?;
            let denied = entries.iter().filter(|entry| entry["decision"] == "sluice.denied");
            ensure!(denied.count() >= 3, "{entries:?}");
            Ok(())
        })?;
    }
    for client in clients(cluster, "tenant-b", ROUTERS[0])? {
        await_filter_chains(cluster, &client)?;
        for family in [0, 1] {
            for (port, says) in conversations()? {
                expect_router(cluster, &client, ROUTERS[1], outside(family, port), &says)?;
            }
        }
        let answer = from_container(cluster, &client)?;
        ensure!(answer.ends_with(" to 198.51.100.7:25"), "tenant-b received on port 25: {answer:?}");
        ensure!(denied(&client)? == 0, "denied: {}", denied(&client)?);
    }
    cluster.rolled_out("untouched", "client")?;
    let client = cluster.pods("untouched", "app=client")?.pop().context("no client")?;
    for family in [0, 1] {
        for (port, says) in conversations()? {
            let to = outside(family, port);
            let seen = server::ask(&client.host, to, &says)?;
            ensure!((seen.from, seen.to) == (client.source(to.ip()), to), "untouched → {to}: {seen:?}");
            println!("{:<10} {:<16} {to:<20} itself", client.namespace, seen.from);
        }
    }
    ensure!(
        stats(&client, |name| name.contains("sluice."))?.is_empty(),
        "the namespace without sluice has counters of sluice"
    );
    // The clients of istio/ are still routed as before.
    for client in &cluster.clients {
        cluster.expect_routed(client, outside(0, 443), &client_hello("a.example.com")?)?;
    }
    Ok(())
}

#[test]
fn tenants_are_routed_by_their_own_tables_and_others_are_not() -> Result<()> {
    on_cluster(|cluster| with_tenants(cluster, |_| Ok(())))
}

#[test]
#[ignore = "slow: make test-mesh-full"]
fn tenants_get_the_module_by_http() -> Result<()> {
    on_cluster(|cluster| {
        with_tenants(cluster, |cluster| {
            let module = testbed::root().join(testbed::DIST);
            web_server(&cluster.outside, 8001, fs::read(&module)?)?;
            let sum = std::process::Command::new("sha256sum").arg(&module).output()?;
            let sum = String::from_utf8(sum.stdout)?[..64].to_owned();
            let server = REGISTRY.replace(":5000", ":8001");
            deliver_by(cluster, "http")?;
            cluster.admit(&server)?;
            let file = "module/http/kustomization.yaml";
            let uri = format!("{{ uri: http://{server}/sluice.wasm, timeout: 30s }}");
            cluster.edit(file, "          http_uri: ", &uri)?;
            cluster.edit(file, "          sha256: ", &format!("\"{sum}\""))
        })
    })
}

#[test]
#[ignore = "slow: make test-mesh-full"]
fn tenants_get_the_module_by_config_map() -> Result<()> {
    on_cluster(|cluster| {
        with_tenants(cluster, |cluster| {
            deliver_by(cluster, "configmap")?;
            fs::copy(testbed::root().join(testbed::DIST), cluster.manifests.join("module/configmap/sluice.wasm"))?;
            Ok(())
        })
    })
}

#[test]
#[ignore = "slow: make test-mesh-full"]
fn tenants_get_the_native_module() -> Result<()> {
    on_cluster(|cluster| {
        with_tenants(cluster, |cluster| {
            deliver_by(cluster, "native")?;
            fs::copy(Module::Native.path()?, cluster.manifests.join("module/native/libsluice.so"))?;
            Ok(())
        })
    })
}
