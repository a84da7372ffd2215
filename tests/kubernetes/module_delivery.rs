//! The ways to deliver the module to the sidecars.

use crate::{
    chains::{chains, golden},
    client_hello::client_hello,
    cluster::{Cluster, REGISTRY, on_cluster},
    conversations, outside, pod, server,
    shipped::SETTINGS,
    sidecar_admin::{admin, extension, module_file},
};
use anyhow::{Context, Result, ensure};
use std::{
    fs,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};
use testbed::{Host, Module};

/// Runs `test`, and then restores the shipped manifests and the clients whether it succeeded or not.
pub fn restoring(cluster: &mut Cluster, test: impl FnOnce(&mut Cluster) -> Result<()>) -> Result<()> {
    let names =
        |cluster: &Cluster| -> Vec<String> { cluster.clients.iter().map(|client| client.name.clone()).collect() };
    let before = names(cluster);
    let outcome = test(cluster);
    cluster.fresh_manifests()?;
    cluster.apply()?;
    if outcome.is_err() || names(cluster) != before {
        // Replaces sidecars that may have been without a module.
        cluster.kubectl(&["rollout", "restart", "deployment/client"])?;
    }
    cluster.roll_clients_out()?;
    cluster.eventually("the shipped module", |cluster| {
        let (_, digest) = cluster.module.rsplit_once(':').context("no digest in the reference")?;
        for client in &cluster.clients {
            let filter = extension(client)?;
            ensure!(module_file(&filter).is_some_and(|file| file.contains(digest)), "{}: {filter}", client.name);
        }
        Ok(())
    })?;
    outcome
}

#[test]
fn a_new_digest_replaces_the_module_without_losing_connections() -> Result<()> {
    on_cluster(|cluster| {
        restoring(cluster, |cluster| {
            let reference = cluster.push_another("another")?;
            let before = module_file(&extension(&cluster.clients[0])?).context("the filter has no module")?.to_owned();
            let mut long = echo(&cluster.clients[0].host)?;
            let swapped = AtomicBool::new(false);
            let to = outside(0, 443);
            let hello = client_hello("a.example.com")?;
            let cluster = &*cluster;
            let routers = cluster.routers()?;
            let asked = thread::scope(|scope| -> Result<usize> {
                let askers: Vec<_> = cluster
                    .clients
                    .iter()
                    .map(|client| {
                        let (swapped, hello, host, routers) = (&swapped, &hello, &client.host, &routers);
                        scope.spawn(move || -> Result<usize> {
                            let mut asked = 0;
                            while !swapped.load(Ordering::Relaxed) {
                                let seen = server::ask(host, to, hello)?;
                                ensure!(routers.iter().any(|router| router.addresses.contains(&seen.from)), "{seen:?}");
                                asked += 1;
                            }
                            Ok(asked)
                        })
                    })
                    .collect();
                thread::sleep(Duration::from_secs(1));
                cluster.edit(SETTINGS, "  module: ", &reference)?;
                let done = cluster
                    .apply_until("the new module", |filter| module_file(filter).is_some_and(|file| file != before));
                thread::sleep(Duration::from_secs(1));
                swapped.store(true, Ordering::Relaxed);
                let mut asked = 0;
                for asker in askers {
                    asked += asker.join().expect("a thread panicked")?;
                }
                done?;
                Ok(asked)
            })?;
            println!("{asked} connections while the module was swapped");
            ensure!(asked > 20, "only {asked} connections: too little traffic");
            exchange_ping(&mut long)
        })
    })
}

/// Opens a connection to the echo server, which stays open.
pub fn echo(host: &Host) -> Result<TcpStream> {
    let to = outside(0, 7);
    let mut stream = host.run(|| TcpStream::connect(to))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    exchange_ping(&mut stream)?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Sends four bytes on a connection and expects them back.
pub fn exchange_ping(stream: &mut TcpStream) -> Result<()> {
    let mut answer = [0; 4];
    stream.write_all(b"ping")?;
    stream.read_exact(&mut answer)?;
    ensure!(&answer == b"ping", "{answer:?}");
    Ok(())
}

/// Expects that the sidecars reject the module that the manifests name and log this reason. Running sidecars keep their module,
/// and new ones forward nothing.
fn expect_refused_module(cluster: &mut Cluster, reason: &str) -> Result<()> {
    let before = module_file(&extension(&cluster.clients[0])?).context("the filter has no module")?.to_owned();
    cluster.apply()?;
    let expect_logged = |cluster: &Cluster| {
        cluster.eventually("the reason in the sidecars' logs", |_| {
            for client in &cluster.clients {
                let log = client.log(cluster, "istio-proxy")?;
                let is_logged =
                    log.lines().any(|line| line.contains("cannot fetch Wasm module") && line.contains(reason));
                ensure!(is_logged, "{}: no {reason:?} in:\n{}", client.name, pod::tail(&log));
            }
            Ok(())
        })
    };
    expect_logged(cluster)?;
    for client in &cluster.clients {
        ensure!(module_file(&extension(client)?) == Some(&before), "{}", extension(client)?);
        for (port, says) in conversations()? {
            cluster.expect_routed(client, outside(0, port), &says)?;
        }
    }
    cluster.replace_clients()?;
    expect_logged(cluster)?;
    for client in &cluster.clients {
        cluster.eventually("the listeners of the sidecars", |_| {
            let listeners = admin(client, "/listeners")?;
            ensure!(listeners.contains("virtualOutbound"), "{listeners}");
            Ok(())
        })?;
    }
    for (port, says) in conversations()? {
        for family in [0, 1] {
            cluster.expect_refused(outside(family, port), &says)?;
        }
    }
    Ok(())
}

#[test]
#[ignore = "slow: make test-mesh-full"]
fn without_the_registry_new_sidecars_forward_nothing() -> Result<()> {
    on_cluster(|cluster| {
        restoring(cluster, |cluster| {
            let reference = cluster.push_another("gone")?;
            cluster.end_registry()?;
            let test = |cluster: &mut Cluster| -> Result<()> {
                cluster.edit(SETTINGS, "  module: ", &reference)?;
                expect_refused_module(cluster, "connection refused")
            };
            let outcome = test(cluster);
            cluster.start_registry()?;
            outcome
        })
    })
}

#[test]
#[ignore = "slow: make test-mesh-full"]
fn an_image_that_does_not_match_its_digest_is_rejected() -> Result<()> {
    on_cluster(|cluster| {
        restoring(cluster, |cluster| {
            let reference = cluster.push_another("forged")?;
            let (_, hash) = reference.rsplit_once("sha256:").context("no digest in the reference")?;
            let blob = format!("registry/docker/registry/v2/blobs/sha256/{}/{hash}/data", &hash[..2]);
            let blob = cluster.folder.join(blob);
            let mut manifest = fs::read(&blob)?;
            manifest.push(b'\n');
            fs::write(&blob, manifest)?;
            cluster.edit(SETTINGS, "  module: ", &reference)?;
            expect_refused_module(cluster, "manifest digest")
        })
    })
}

/// Selects the component of the manifests that delivers the module.
pub fn deliver_by(cluster: &Cluster, component: &str) -> Result<()> {
    cluster.edit("module/kustomization.yaml", "  - ", component)
}

/// Starts a web server that answers every request with this file.
pub fn web_server(host: &Host, port: u16, file: Vec<u8>) -> Result<()> {
    let listener = host.run(|| TcpListener::bind(("0.0.0.0", port)))?;
    thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            let head = format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", file.len());
            // A client that has disconnected does not get the file. Its test fails then.
            _ = client.read(&mut [0; 4_096]).and_then(|_| client.write_all(&[head.as_bytes(), &file].concat()));
        }
    });
    Ok(())
}

#[test]
#[ignore = "slow: make test-mesh-full"]
fn the_module_is_delivered_by_http_if_its_sha256_matches() -> Result<()> {
    on_cluster(|cluster| {
        restoring(cluster, |cluster| {
            let module = testbed::root().join(testbed::DIST);
            web_server(&cluster.outside, 8000, fs::read(&module)?)?;
            let sum = std::process::Command::new("sha256sum").arg(&module).output()?;
            let sum = String::from_utf8(sum.stdout)?[..64].to_owned();
            let host = REGISTRY.split(':').next().context("no host in the registry's address")?;
            deliver_by(cluster, "http")?;
            cluster.admit(REGISTRY.replace(":5000", ":8000").as_str())?;
            let file = "module/http/kustomization.yaml";
            cluster.edit(
                file,
                "          http_uri: ",
                &format!("{{ uri: http://{host}:8000/sluice.wasm, timeout: 30s }}"),
            )?;
            cluster.edit(file, "          sha256: ", &format!("\"{}\"", "1".repeat(64)))?;
            expect_refused_module(cluster, "checksum")?;
            cluster.edit(file, "          sha256: ", &format!("\"{sum}\""))?;
            cluster.apply_until("the module that is delivered by HTTP", |filter| {
                module_file(filter).is_some_and(|file| file.contains(&sum))
            })?;
            for client in &cluster.clients {
                cluster.expect_routed(client, outside(0, 443), &client_hello("a.example.com")?)?;
            }
            Ok(())
        })
    })
}

#[test]
#[ignore = "slow: make test-mesh-full"]
fn the_module_is_delivered_by_config_map() -> Result<()> {
    on_cluster(|cluster| {
        restoring(cluster, |cluster| {
            deliver_by(cluster, "configmap")?;
            fs::copy(testbed::root().join(testbed::DIST), cluster.manifests.join("module/configmap/sluice.wasm"))?;
            cluster.apply()?;
            cluster.roll_clients_out()?;
            for client in &cluster.clients {
                ensure!(module_file(&extension(client)?) == Some("/etc/sluice/sluice.wasm"), "{}", extension(client)?);
                for (port, says) in conversations()? {
                    cluster.expect_routed(client, outside(0, port), &says)?;
                }
            }
            Ok(())
        })
    })
}

#[test]
#[ignore = "slow: make test-mesh-full"]
fn the_native_module_is_delivered_by_config_map_and_an_invalid_one_forwards_nothing() -> Result<()> {
    on_cluster(|cluster| {
        restoring(cluster, |cluster| {
            let to = outside(0, 443);
            let hello = client_hello("a.example.com")?;
            deliver_by(cluster, "native")?;
            let module = cluster.manifests.join("module/native/libsluice.so");
            fs::copy(Module::Native.path()?, &module)?;
            cluster.apply()?;
            cluster.eventually("connections to be refused by sidecars without the volume", |_| {
                cluster.expect_refused(to, &hello)
            })?;
            cluster.roll_clients_out()?;
            for client in &cluster.clients {
                // A sidecar is ready before it has received the filter.
                cluster.eventually("the native filter", |_| {
                    let filter = extension(client)?;
                    ensure!(filter["dynamic_module_config"]["name"] == "sluice", "{filter}");
                    Ok(())
                })?;
                let chains = chains(cluster, client)?;
                ensure!(
                    chains == golden()?,
                    "{}: the chains differ from those of the Wasm module:\n{chains}",
                    client.name
                );
                for (port, says) in conversations()? {
                    for family in [0, 1] {
                        cluster.expect_routed(client, outside(family, port), &says)?;
                    }
                }
            }
            let (right, shown) = cluster.verify(Some(&outside(0, 25).to_string()))?;
            ensure!(right && shown.contains("  sluice.routed.outbound|8080||egress-router"), "{shown}");
            cluster.kubectl(&["delete", "destinationrule", "--namespace=egress-routers", "egress-router2"])?;
            cluster.eventually("verify to report the missing PROXY header", |_| {
                let (right, shown) = cluster.verify(None)?;
                ensure!(
                    !right && shown.contains("egress-router2.egress-routers.svc.cluster.local sends no PROXY"),
                    "{shown}"
                );
                Ok(())
            })?;

            fs::write(&module, [0xff; 16])?;
            cluster.apply()?;
            cluster.replace_clients()?;
            for client in &cluster.clients {
                cluster.eventually("the reason in the sidecars' logs", |_| {
                    let log = client.log(cluster, "istio-proxy")?;
                    ensure!(log.contains("Failed to load dynamic module: "), "{}", pod::tail(&log));
                    Ok(())
                })?;
            }
            for (port, says) in conversations()? {
                cluster.expect_refused(outside(0, port), &says)?;
            }
            Ok(())
        })
    })
}
