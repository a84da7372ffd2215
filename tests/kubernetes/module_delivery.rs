//! The ways by which the module reaches the sidecars.

use crate::{
    chains::{chains, golden},
    client_hello::client_hello,
    cluster::{Cluster, REGISTRY, on_cluster},
    conversations, outside, pod, server,
    shipped::SETTINGS,
    sidecar::{admin, extension, module_file},
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

/// Runs a test and then restores the shipped manifests and the clients, whether it succeeded or not.
pub fn restoring(cluster: &mut Cluster, test: impl FnOnce(&mut Cluster) -> Result<()>) -> Result<()> {
    let names =
        |cluster: &Cluster| -> Vec<String> { cluster.clients.iter().map(|client| client.name.clone()).collect() };
    let before = names(cluster);
    let outcome = test(cluster);
    cluster.fresh_manifests()?;
    cluster.apply()?;
    if outcome.is_err() || names(cluster) != before {
        // A sidecar that has been without a module would be another than the ones before.
        cluster.kubectl(&["rollout", "restart", "deployment/client"])?;
    }
    cluster.roll_clients_out()?;
    cluster.eventually("the shipped module", |cluster| {
        let (_, digest) = cluster.module.rsplit_once(':').context("a digest")?;
        for client in &cluster.clients {
            let filter = extension(client)?;
            ensure!(module_file(&filter).is_some_and(|file| file.contains(digest)), "{}: {filter}", client.name);
        }
        Ok(())
    })?;
    outcome
}

#[test]
fn a_new_digest_is_swapped_in_and_no_connection_is_lost() -> Result<()> {
    on_cluster(|cluster| {
        restoring(cluster, |cluster| {
            let reference = cluster.push_another("another")?;
            let before = module_file(&extension(&cluster.clients[0])?).context("a module")?.to_owned();
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
                    asked += asker.join().unwrap()?;
                }
                done?;
                Ok(asked)
            })?;
            println!("{asked} connections while the module was swapped");
            ensure!(asked > 20, "only {asked} connections: no traffic to speak of");
            exchange_ping(&mut long)
        })
    })
}

/// A connection that lasts.
pub fn echo(host: &Host) -> Result<TcpStream> {
    let to = outside(0, 7);
    let mut stream = host.run(|| TcpStream::connect(to))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    exchange_ping(&mut stream)?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

pub fn exchange_ping(stream: &mut TcpStream) -> Result<()> {
    let mut heard = [0; 4];
    stream.write_all(b"ping")?;
    stream.read_exact(&mut heard)?;
    ensure!(&heard == b"ping", "{heard:?}");
    Ok(())
}

/// Expects that the module that the manifests name is not taken, and that the log says why: sidecars that run keep what
/// they have, new ones let nothing out.
fn expect_refused_module(cluster: &mut Cluster, reason: &str) -> Result<()> {
    let before = module_file(&extension(&cluster.clients[0])?).context("a module")?.to_owned();
    cluster.apply()?;
    let told = |cluster: &Cluster| {
        cluster.eventually("a reason in the log", |_| {
            for client in &cluster.clients {
                let log = client.log(cluster, "istio-proxy")?;
                let told = log.lines().any(|line| line.contains("cannot fetch Wasm module") && line.contains(reason));
                ensure!(told, "{}: no {reason:?} in:\n{}", client.name, pod::tail(&log));
            }
            Ok(())
        })
    };
    told(cluster)?;
    for client in &cluster.clients {
        ensure!(module_file(&extension(client)?) == Some(&before), "{}", extension(client)?);
        for (port, says) in conversations()? {
            cluster.expect_routed(client, outside(0, port), &says)?;
        }
    }
    cluster.replace_clients()?;
    told(cluster)?;
    for client in &cluster.clients {
        cluster.eventually("listeners", |_| {
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
fn without_the_registry_nothing_new_gets_through() -> Result<()> {
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
fn an_image_that_is_not_what_its_digest_says_is_refused() -> Result<()> {
    on_cluster(|cluster| {
        restoring(cluster, |cluster| {
            let reference = cluster.push_another("forged")?;
            let (_, hash) = reference.rsplit_once("sha256:").context("a digest")?;
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

/// Edits the one line that says which way the module comes.
pub fn deliver_by(cluster: &Cluster, component: &str) -> Result<()> {
    cluster.edit("module/kustomization.yaml", "  - ", component)
}

/// Serves this file to whoever asks for whatever.
pub fn web_server(host: &Host, port: u16, file: Vec<u8>) -> Result<()> {
    let listener = host.run(|| TcpListener::bind(("0.0.0.0", port)))?;
    thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            let head = format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", file.len());
            // A client that has gone misses its file and says so.
            _ = client.read(&mut [0; 4_096]).and_then(|_| client.write_all(&[head.as_bytes(), &file].concat()));
        }
    });
    Ok(())
}

#[test]
#[ignore = "slow: make test-mesh-full"]
fn the_module_comes_by_http_if_its_sha256_is_right() -> Result<()> {
    on_cluster(|cluster| {
        restoring(cluster, |cluster| {
            let module = testbed::root().join(testbed::DIST);
            web_server(&cluster.outside, 8000, fs::read(&module)?)?;
            let sum = std::process::Command::new("sha256sum").arg(&module).output()?;
            let sum = String::from_utf8(sum.stdout)?[..64].to_owned();
            let host = REGISTRY.split(':').next().context("a host")?;
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
            cluster.apply_until("the module by http", |filter| {
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
fn the_module_comes_by_config_map() -> Result<()> {
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
fn the_native_module_comes_by_config_map_and_without_it_nothing_gets_through() -> Result<()> {
    on_cluster(|cluster| {
        restoring(cluster, |cluster| {
            let to = outside(0, 443);
            let hello = client_hello("a.example.com")?;
            deliver_by(cluster, "native")?;
            let module = cluster.manifests.join("module/native/libsluice.so");
            fs::copy(Module::Native.path()?, &module)?;
            cluster.apply()?;
            cluster.eventually("clients without the volume are closed", |_| cluster.expect_refused(to, &hello))?;
            cluster.roll_clients_out()?;
            for client in &cluster.clients {
                // A sidecar is ready before it has received the filter.
                cluster.eventually("the native filter", |_| {
                    let filter = extension(client)?;
                    ensure!(filter["dynamic_module_config"]["name"] == "sluice", "{filter}");
                    Ok(())
                })?;
                let chains = chains(cluster, client)?;
                ensure!(chains == golden()?, "{}: not the chains of the Wasm module:\n{chains}", client.name);
                for (port, says) in conversations()? {
                    for family in [0, 1] {
                        cluster.expect_routed(client, outside(family, port), &says)?;
                    }
                }
            }
            let (right, shown) = cluster.verify(Some(&outside(0, 25).to_string()))?;
            ensure!(right && shown.contains("  sluice.routed.outbound|8080||egress-router"), "{shown}");
            cluster.kubectl(&["delete", "destinationrule", "--namespace=egress-routers", "egress-router2"])?;
            cluster.eventually("verify reads the table", |_| {
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
                cluster.eventually("a reason in the log", |_| {
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
