//! The certificates of sidecars and routers: verification and renewal.

use crate::{
    client_hello::client_hello,
    cluster::{Cluster, on_cluster},
    disruptions::{expect_no_loss, under_load, watching},
    module_delivery::restoring,
    outside,
    pod::{Pod, list},
    server,
    shipped::{ROUTERS, ROUTERS_NAMESPACE, expected_router},
    sidecar_admin::{admin, stats},
};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    thread,
    time::{Duration, Instant},
};

/// The lifetime of a certificate in the test. It is renewed after half of this time.
const LIFE: &str = "40s";
/// The duration of the test, which is enough for four renewals.
const LONG: Duration = Duration::from_secs(90);

/// Returns the serial numbers of a proxy's own certificates, without those of authorities.
fn serials(pod: &Pod) -> Result<Vec<String>> {
    let certificates: Value = serde_json::from_str(&admin(pod, "/certs")?)?;
    let chains = list(&certificates, "/certificates").into_iter().flat_map(|one| list(&one, "/cert_chain"));
    let own = chains.filter(|one| list(one, "/subject_alt_names").iter().any(|name| name.get("uri").is_some()));
    Ok(own.filter_map(|one| Some(one["serial_number"].as_str()?.to_owned())).collect())
}

/// A resumed session could outlive the certificate that it was established with.
#[test]
fn tls_sessions_are_not_resumed() -> Result<()> {
    on_cluster(|cluster| {
        for client in &cluster.clients {
            for _ in 0..5 {
                cluster.expect_routed(client, outside(0, 443), &client_hello("a.example.com")?)?;
            }
        }
        let (mut handshakes, mut resumed) = (0, 0);
        for router in cluster.routers()? {
            let sum = |name: &str| -> Result<u64> {
                let counted = stats(&router, |one| one.starts_with("listener.") && one.ends_with(name))?;
                ensure!(!counted.is_empty(), "{}: no counter {name}", router.name);
                Ok(counted.into_iter().map(|(_, count)| count).sum())
            };
            handshakes += sum(".ssl.handshake")?;
            resumed += sum(".ssl.session_reused")?;
        }
        println!("{handshakes} handshakes, {resumed} of them with resumed sessions");
        ensure!(handshakes >= 10 && resumed == 0, "{handshakes} handshakes, {resumed} resumed");
        Ok(())
    })
}

#[test]
fn a_router_with_another_identity_receives_no_payload() -> Result<()> {
    on_cluster(|cluster| {
        let client = cluster.clients.iter().find(|client| expected_router(client.addresses[0]) == ROUTERS[0]);
        let client = client.context("no client of router 1")?;
        let (to, secret) = (outside(0, 443), b"a secret".as_slice());
        cluster.expect_routed(client, to, secret)?;
        let aborted = |cluster: &Cluster| -> Result<Vec<Value>> {
            let routers = cluster.pods(ROUTERS_NAMESPACE, &format!("app={}", ROUTERS[0]))?;
            let logs = routers.iter().map(|router| router.entries(cluster, "envoy")).collect::<Result<Vec<_>>>()?;
            Ok(logs.into_iter().flatten().filter(|entry| entry["reason"].is_string()).collect())
        };
        let earlier = aborted(cluster)?;
        // The sidecar now expects another identity, so it treats the router as an impostor.
        let patch = r#"[{"op": "replace", "path": "/spec/trafficPolicy/tls/subjectAltNames/0", "value": "spiffe://cluster.local/ns/egress-routers/sa/other"}]"#;
        let rule =
            ["patch", "destinationrule", "--namespace", ROUTERS_NAMESPACE, ROUTERS[0], "--type=json", "--patch", patch];
        cluster.kubectl(&rule)?;
        let test = || -> Result<()> {
            // The main thread's view of a cluster changes a moment before that of the workers.
            cluster.eventually("the changed identity in the sidecar", |_| {
                let clusters = admin(client, "/config_dump?resource=dynamic_active_clusters")?;
                ensure!(clusters.contains("/sa/other"), "{clusters}");
                ensure!(server::ask(&client.host, to, secret).is_err(), "the router was still trusted");
                Ok(())
            })?;
            let before = server::records().len();
            for _ in 0..3 {
                let seen = server::ask(&client.host, to, secret);
                ensure!(seen.is_err(), "{seen:?}");
            }
            let arrived = server::records()[before..].iter().filter(|record| record.received == secret).count();
            ensure!(arrived == 0, "{arrived} connections reached the destination with their payload");
            cluster.eventually("the reason in the sidecar's log", |cluster| {
                let entries = client.entries(cluster, "istio-proxy")?;
                let refused = |entry: &&Value| {
                    entry["reason"].as_str().is_some_and(|reason| reason.contains("CERTIFICATE_VERIFY_FAILED"))
                };
                let refused = entries.iter().filter(refused).count();
                ensure!(refused >= 3, "expected 3 refused connections, found {refused} in {entries:?}");
                Ok(())
            })?;
            // The routers log handshakes that the sidecar aborted, without a byte of payload.
            cluster.eventually("the aborted handshakes in the routers' logs", |cluster| {
                let aborted: Vec<_> = aborted(cluster)?.into_iter().filter(|entry| !earlier.contains(entry)).collect();
                for entry in &aborted {
                    ensure!(entry["received"] == 0 && entry["upstream"].is_null(), "{entry}");
                }
                ensure!(aborted.len() >= 3, "expected 3 aborted handshakes, found {aborted:?}");
                Ok(())
            })
        };
        let outcome = test();
        cluster.apply()?;
        cluster.eventually("the router to be trusted again", |cluster| {
            cluster.expect_routed(client, to, secret).map(drop)
        })?;
        outcome
    })
}

/// Collects the serial numbers of proxies' certificates for [`LONG`].
fn watch_certificates(cluster: &Cluster, proxies: &[Pod]) -> Result<BTreeMap<String, BTreeSet<String>>> {
    let (started, mut seen) = (Instant::now(), BTreeMap::<String, BTreeSet<String>>::new());
    while started.elapsed() < LONG {
        for proxy in proxies {
            seen.entry(format!("{}/{}", proxy.namespace, proxy.name)).or_default().extend(serials(proxy)?);
        }
        thread::sleep(Duration::from_secs(2));
    }
    ensure!(cluster.routers()?.len() == 4, "a router was replaced");
    Ok(seen)
}

#[test]
#[ignore = "slow: make test-mesh-full"]
fn renewing_certificates_under_load_loses_no_connection() -> Result<()> {
    on_cluster(|cluster| {
        let outcome = restoring(cluster, |cluster| {
            let lives = format!("\n            - {{ name: SECRET_TTL, value: {LIFE} }}");
            cluster.edit(
                "egress-routers/common/deployment.yaml",
                "            - { name: OUTPUT_CERTS, value: /certs }",
                &lives,
            )?;
            let lives = format!(
                r#"'{{"holdApplicationUntilProxyStarts": true, "proxyMetadata": {{"SECRET_TTL": "{LIFE}"}}}}'"#
            );
            cluster.edit("client/client.yaml", "        proxy.istio.io/config: ", &lives)?;
            cluster.apply()?;
            cluster.routers_rolled_out()?;
            cluster.roll_clients_out()?;
            let clients = cluster.clients.clone();
            let proxies = [cluster.routers()?, clients.clone()].concat();
            let (watched, (attempts, seen)) =
                watching(cluster, || under_load(&clients, || watch_certificates(cluster, &proxies)))?;
            for (proxy, serials) in &seen {
                println!("{proxy}: {} certificates of {LIFE} within {LONG:?}", serials.len());
                ensure!(serials.len() >= 4, "{proxy}: {serials:?}");
            }
            expect_no_loss("renewal", &attempts, &watched, Duration::from_secs(3))
        });
        cluster.routers_rolled_out()?;
        outcome
    })
}
