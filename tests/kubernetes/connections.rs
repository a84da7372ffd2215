//! Where connections of the clients go.

use crate::{
    client_hello::client_hello,
    cluster::on_it,
    conversations,
    module_delivery::restoring,
    outside,
    pod::Pod,
    server,
    sidecar::{admin, extension, stats},
};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::{
    fmt::Write as _,
    net::{IpAddr, SocketAddr},
};

#[test]
fn connections_leave_by_the_router_of_their_source() -> Result<()> {
    on_it(|cluster| {
        let mut table = format!("{:<17}  {:<20}  {:<14}  destination seen\n", "source", "destination", "egress router");
        let mut told = Vec::new();
        for client in &cluster.clients {
            for family in [0, 1] {
                for (port, says) in conversations()? {
                    let to = outside(family, port);
                    let seen = cluster.expect_routed(client, to, &says)?;
                    let egress = cluster.router(seen.from)?;
                    writeln!(table, "{:<17}  {to:<20}  {egress:<14}  {}", client.source(to.ip()).to_string(), seen.to)?;
                    told.push((egress, client.source(to.ip()), to));
                }
            }
        }
        println!("\n{table}");
        // Written when a connection has ended, and some time later.
        cluster.eventually("the routers' access logs", |_| {
            let mut logs = Vec::new();
            for router in cluster.routers()? {
                logs.push((router.app().to_owned(), router.entries(cluster, "envoy")?));
            }
            for (egress, source, destination) in &told {
                let identity = "spiffe://cluster.local/ns/default/sa/client";
                let entry = |entry: &Value| {
                    address(&entry["source"]) == Some(*source)
                        && entry["destination"] == destination.to_string()
                        && entry["identity"] == identity
                        && entry["tenant"] == "clients"
                        && entry["upstream"].is_string()
                };
                let logged = logs.iter().any(|(router, entries)| router == egress && entries.iter().any(entry));
                ensure!(logged, "{egress}: no {source} {destination} of {identity} in {logs:?}");
            }
            // The sidecars' own.
            for client in &cluster.clients {
                let entries = client.entries(cluster, "istio-proxy")?;
                for (egress, source, destination) in
                    told.iter().filter(|(_, source, _)| client.addresses.contains(source))
                {
                    let router = format!("spiffe://cluster.local/ns/egress-routers/sa/{egress}");
                    let entry = |entry: &Value| {
                        address(&entry["source"]) == Some(*source)
                            && entry["destination"] == destination.to_string()
                            && entry["decision"].as_str().is_some_and(|cluster| cluster.contains(egress))
                            && entry["identity"] == router.as_str()
                    };
                    ensure!(entries.iter().any(entry), "{}: no {destination} to {router} in {entries:?}", client.name);
                }
            }
            Ok(())
        })?;
        Ok(())
    })
}

/// The address that Envoy wrote before a port.
fn address(socket: &Value) -> Option<IpAddr> {
    Some(socket.as_str()?.parse::<SocketAddr>().ok()?.ip())
}

#[test]
fn what_stays_in_the_mesh_is_untouched() -> Result<()> {
    on_it(|cluster| {
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
            let said = cluster.kubectl_from(&client.host, &["--server=https://10.96.0.1", "get", "--raw=/version"])?;
            ensure!(said.contains("gitVersion"), "the API server: {said:?}");
            let api = "outbound|443||kubernetes.default.svc.cluster.local::";
            let clusters = admin(client, "/clusters")?;
            let took = |line: &str| line.starts_with(api) && line.contains("::cx_total::") && !line.ends_with("::0");
            ensure!(clusters.lines().any(took), "the API server's own cluster was not taken:\n{clusters}");
            ensure!(counted()? == before, "sluice routed what is of the mesh: {before:?}, {:?}", counted()?);
        }
        Ok(())
    })
}

#[test]
fn passthrough_connections_are_told_apart_by_sni_where_that_is_asked_for() -> Result<()> {
    on_it(|cluster| {
        restoring(cluster, |cluster| {
            let deny =
                "\n                    - match: { sni: [denied.example.com] }\n                      action: deny";
            // Below the route for what stays inside.
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
                cluster.expect_routed(client, outside(0, 443), &denied)?; // nobody reads the name
            }
            cluster.kubectl(&["apply", "--validate=strict", "-f", &sni.to_string_lossy()])?;
            let test = || -> Result<()> {
                cluster.eventually("the name is read", |_| cluster.expect_refused(outside(0, 443), &denied))?;
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
