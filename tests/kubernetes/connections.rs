//! The routers that the clients' connections take.

use crate::{
    client_hello::client_hello,
    cluster::on_cluster,
    conversations,
    module_delivery::restoring,
    outside,
    pod::Pod,
    server,
    sidecar_admin::{admin, extension, stats},
};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::{
    fmt::Write as _,
    net::{IpAddr, SocketAddr},
};

#[test]
fn connections_take_the_router_of_their_source() -> Result<()> {
    on_cluster(|cluster| {
        let mut table = format!("{:<17}  {:<20}  {:<14}  destination seen\n", "source", "destination", "egress router");
        let mut connections = Vec::new();
        for client in &cluster.clients {
            for family in [0, 1] {
                for (port, says) in conversations()? {
                    let to = outside(family, port);
                    let seen = cluster.expect_routed(client, to, &says)?;
                    let egress = cluster.router(seen.from)?;
                    writeln!(table, "{:<17}  {to:<20}  {egress:<14}  {}", client.source(to.ip()).to_string(), seen.to)?;
                    connections.push((egress, client.source(to.ip()), to));
                }
            }
        }
        println!("\n{table}");
        // Envoy writes an entry some time after a connection has ended.
        cluster.eventually("the entries in the access logs", |_| {
            let mut logs = Vec::new();
            for router in cluster.routers()? {
                logs.push((router.app().to_owned(), router.entries(cluster, "envoy")?));
            }
            for (egress, source, destination) in &connections {
                let identity = "spiffe://cluster.local/ns/default/sa/client";
                let entry = |entry: &Value| {
                    address(&entry["source"]) == Some(*source)
                        && entry["destination"] == destination.to_string()
                        && entry["identity"] == identity
                        && entry["tenant"] == "clients"
                        && entry["upstream"].is_string()
                };
                let logged = logs.iter().any(|(router, entries)| router == egress && entries.iter().any(entry));
                ensure!(logged, "{egress}: no entry for {source} → {destination} from {identity} in {logs:?}");
            }
            // The sidecars' access logs.
            for client in &cluster.clients {
                let entries = client.entries(cluster, "istio-proxy")?;
                for (egress, source, destination) in
                    connections.iter().filter(|(_, source, _)| client.addresses.contains(source))
                {
                    let router = format!("spiffe://cluster.local/ns/egress-routers/sa/{egress}");
                    let entry = |entry: &Value| {
                        address(&entry["source"]) == Some(*source)
                            && entry["destination"] == destination.to_string()
                            && entry["decision"].as_str().is_some_and(|cluster| cluster.contains(egress))
                            && entry["identity"] == router.as_str()
                    };
                    ensure!(
                        entries.iter().any(entry),
                        "{}: no entry for {destination} through {router} in {entries:?}",
                        client.name
                    );
                }
            }
            Ok(())
        })?;
        Ok(())
    })
}

/// Returns the address of a socket address in the log.
fn address(socket: &Value) -> Option<IpAddr> {
    Some(socket.as_str()?.parse::<SocketAddr>().ok()?.ip())
}

#[test]
fn connections_within_the_mesh_are_not_routed() -> Result<()> {
    on_cluster(|cluster| {
        let backend = cluster.service_address("default", "backend")?;
        let direct = cluster.backend()?.addresses[0];
        for client in &cluster.clients {
            let here = client.addresses[0];
            let counted = || stats(client, |name| name.starts_with("wasmcustom.sluice.routed"));
            let before = counted()?;
            for (to, say) in [
                (SocketAddr::new(backend, 5432), b"hello".to_vec()),
                (SocketAddr::new(backend, 80), server::http("backend")),
                (SocketAddr::new(direct, 5432), b"hello".to_vec()),
            ] {
                let seen = server::ask(&client.host, to, &say).with_context(|| format!("{} → {to}", client.name))?;
                ensure!((seen.from, seen.to.port()) == (here, to.port()), "{} → {to}: {seen:?}", client.name);
            }
            let answer =
                cluster.kubectl_from(&client.host, &["--server=https://10.96.0.1", "get", "--raw=/version"])?;
            ensure!(answer.contains("gitVersion"), "unexpected answer of the API server: {answer:?}");
            let api = "outbound|443||kubernetes.default.svc.cluster.local::";
            let clusters = admin(client, "/clusters")?;
            let took = |line: &str| line.starts_with(api) && line.contains("::cx_total::") && !line.ends_with("::0");
            ensure!(clusters.lines().any(took), "no connection used the API server's own cluster:\n{clusters}");
            ensure!(
                counted()? == before,
                "sluice routed connections within the mesh: {before:?}, then {:?}",
                counted()?
            );
        }
        Ok(())
    })
}

#[test]
fn passthrough_connections_match_sni_if_sni_yaml_is_applied() -> Result<()> {
    on_cluster(|cluster| {
        restoring(cluster, |cluster| {
            let deny =
                "\n                    - match: { sni: [denied.example.com] }\n                      action: deny";
            // Below the route for destinations inside the mesh.
            cluster.edit("routing/sluice.yaml", "                      action: continue", deny)?;
            cluster.apply()?;
            let sni = testbed::root().join("istio/sni.yaml");
            let denied = client_hello("denied.example.com")?;
            let table = |client: &Pod| -> Result<()> {
                let filter = extension(client)?.to_string();
                ensure!(filter.contains("denied.example.com"), "{filter}");
                Ok(())
            };
            for client in &cluster.clients {
                cluster.eventually("the new table", |_| table(client))?;
                cluster.expect_routed(client, outside(0, 443), &denied)?; // routed, because no filter reads the server name yet
            }
            cluster.kubectl(&["apply", "--validate=strict", "-f", &sni.to_string_lossy()])?;
            let test = || -> Result<()> {
                cluster.eventually("the sidecars to read the server name", |_| {
                    cluster.expect_refused(outside(0, 443), &denied)
                })?;
                for client in &cluster.clients {
                    for (port, says) in conversations()? {
                        cluster.expect_routed(client, outside(0, port), &says)?;
                    }
                }
                Ok(())
            };
            let outcome = test();
            cluster.kubectl(&["delete", "-f", &sni.to_string_lossy()])?;
            outcome
        })
    })
}
