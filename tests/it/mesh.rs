//! Istio: the shipped manifests on a real API server, translated by a real istiod, run by real sidecars and egress routers,
//! in network namespaces and without containers. What runs is in the submodules.

mod cluster;
mod control_plane;
mod keeper;
mod pod;
mod server;

use crate::client_hello;
use anyhow::{Context, Result, ensure};
use cluster::{Cluster, DECLARED, OUTSIDE, REGISTRY, admin, extension, module_file, on_it, source, stats};
use pod::{Pod, list};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};
use testbed::Host;

/// What this URL answers with 200.
fn get(url: &str) -> Result<String> {
    let answer = ureq::get(url).config().timeout_global(Some(Duration::from_secs(5))).build().call();
    Ok(answer?.body_mut().read_to_string()?)
}

fn outside(family: usize, port: u16) -> SocketAddr {
    SocketAddr::new(OUTSIDE[family].parse().unwrap(), port)
}

/// What a client says on the ports that the outside serves.
fn conversations() -> Result<[(u16, Vec<u8>); 3]> {
    Ok([(443, client_hello("a.example.com")?), (80, server::http("a.example.com")), (25, Vec::new())])
}

#[test]
#[ignore = "make test-mesh"]
fn connections_leave_by_the_router_of_their_source() -> Result<()> {
    on_it(|cluster| {
        let mut table = format!("{:<17}  {:<20}  {:<14}  destination seen\n", "source", "destination", "egress router");
        let mut told = Vec::new();
        for client in &cluster.clients {
            for family in [0, 1] {
                for (port, says) in conversations()? {
                    let to = outside(family, port);
                    let seen = cluster.expect_routed(client, to, &says)?;
                    let egress = cluster.router(seen.from);
                    writeln!(table, "{:<17}  {to:<20}  {egress:<14}  {}", source(client, to).to_string(), seen.to)?;
                    told.push((
                        egress.to_owned(),
                        format!("source={}", socket(source(client, to))),
                        format!("destination={to} "),
                    ));
                }
            }
        }
        println!("\n{table}");
        // Written when a connection has ended, and some time later.
        cluster.plane.eventually("the routers' access logs", |_| {
            for (egress, source, destination) in &told {
                let mut routers = cluster.routers.iter().filter(|router| router.name.starts_with(egress));
                let entry = |line: &str| line.contains(source) && line.contains(destination);
                ensure!(
                    routers.any(|router| router.log("envoy").lines().any(entry)),
                    "{egress}: no {source} {destination}"
                );
            }
            Ok(())
        })?;
        Ok(())
    })
}

/// How Envoy writes an address before the port.
fn socket(address: std::net::IpAddr) -> String {
    let text = SocketAddr::new(address, 1).to_string();
    text[..text.len() - 1].to_owned()
}

#[test]
#[ignore = "make test-mesh"]
fn the_filter_stands_in_the_passthrough_chains_and_no_others() -> Result<()> {
    on_it(|cluster| {
        for client in &cluster.clients {
            let chains = chains(cluster, client)?;
            let golden = golden()?;
            ensure!(chains == golden, "{}: the chains differ from tests/data/mesh/chains:\n{chains}", client.name);
        }
        Ok(())
    })
}

/// Outbound listeners, their chains and what each consists of, with the names of services for their addresses.
fn chains(cluster: &Cluster, client: &Pod) -> Result<String> {
    let mut names = BTreeMap::new();
    for service in list(&cluster.plane.get(&["services", "--all-namespaces"])?, "/items") {
        let name = pod::text(&service, "/metadata/name")?;
        names.insert(pod::text(&service, "/spec/clusterIP")?.to_owned(), name.to_owned());
    }
    let dump: Value = serde_json::from_str(&admin(client, "/config_dump")?)?;
    let mut listeners = BTreeMap::new();
    for config in list(&dump, "/configs") {
        for listener in list(&config, "/dynamic_listeners") {
            ensure!(listener.get("error_state").is_none(), "a listener was refused: {listener}");
            let listener = &listener["active_state"]["listener"];
            if listener["traffic_direction"] != "OUTBOUND" {
                continue;
            }
            let name = pod::text(listener, "/name")?;
            let name = match name.rsplit_once('_').and_then(|(address, port)| Some((names.get(address)?, port))) {
                Some((service, port)) => format!("{service}_{port}"),
                None => name.to_owned(),
            };
            let mut lines = String::new();
            for chain in list(listener, "/filter_chains").iter().chain(listener.get("default_filter_chain")) {
                let matched = chain.get("filter_chain_match").map(Value::to_string).unwrap_or_default();
                let called = chain["name"].as_str().unwrap_or("-");
                let filters: Vec<String> = list(chain, "/filters")
                    .iter()
                    .map(|filter| {
                        let cluster = filter.pointer("/typed_config/cluster").and_then(Value::as_str);
                        let short = filter["name"].as_str().unwrap_or_default().rsplit('.').next().unwrap_or_default();
                        cluster.map_or(short.to_owned(), |cluster| format!("{short}({cluster})"))
                    })
                    .collect();
                writeln!(lines, "  {called} {matched}: {}", filters.join(" → "))?;
            }
            listeners.insert(name, lines.replace(" : ", ": ").replace(" {}: ", ": "));
        }
    }
    Ok(listeners.into_iter().map(|(name, lines)| format!("{name}\n{lines}")).collect())
}

#[test]
#[ignore = "make test-mesh"]
fn what_stays_in_the_mesh_is_untouched() -> Result<()> {
    on_it(|cluster| {
        let backend = cluster::service_address(&cluster.plane, "backend")?;
        let direct = cluster.backend.addresses[0];
        for client in &cluster.clients {
            let here = client.addresses[0];
            let counted = || stats(client, |name| name.starts_with("wasmcustom.sluice.routed"));
            let before = counted()?;
            for (to, say) in [
                (SocketAddr::new(backend.parse()?, 5432), b"hello".to_vec()),
                (SocketAddr::new(backend.parse()?, 80), server::http("backend")),
                (SocketAddr::new(direct, 5432), b"hello".to_vec()),
            ] {
                let seen = server::ask(&client.host, to, &say).with_context(|| format!("{} → {to}", client.name))?;
                ensure!((seen.from, seen.to.port()) == (here, to.port()), "{} → {to}: {seen:?}", client.name);
            }
            let said =
                cluster.plane.kubectl_on(&client.host, &["--server=https://10.96.0.1", "get", "--raw=/version"])?;
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
#[ignore = "make test-mesh"]
fn envoy_refused_no_update() -> Result<()> {
    on_it(|cluster| {
        for client in &cluster.clients {
            let refused = stats(client, |name| name.ends_with("update_rejected"))?;
            for kind in ["listener_manager.lds.", "cluster_manager.cds."] {
                ensure!(refused.iter().any(|(name, _)| name.contains(kind)), "no {kind} in {refused:?}");
            }
            ensure!(refused.iter().all(|(_, count)| *count == 0), "{}: {refused:?}", client.name);
            let dump = admin(client, "/config_dump")?;
            ensure!(dump.contains("ecds_filters") && !dump.contains("\"error_state\""), "{}: {dump}", client.name);
        }
        Ok(())
    })
}

#[test]
#[ignore = "make test-mesh"]
fn every_manifest_is_admitted_strictly_and_analysed() -> Result<()> {
    on_it(|cluster| {
        let strictly = ["apply", "--dry-run=server", "--validate=strict", "-f"];
        let folder = testbed::root().join("istio");
        let mut alone = vec![folder.join("sni.yaml")];
        alone.extend(fs::read_dir(folder.join("declared-externals"))?.map(|entry| entry.unwrap().path()));
        for path in alone {
            cluster.plane.kubectl(&[&strictly[..], &[&path.to_string_lossy()]].concat())?;
        }
        let analysed = cluster.plane.istioctl(&["analyze", "--namespace=default", "--output=json"])?;
        let analysed: Value = serde_json::from_str(&analysed)?;
        let mut found: Vec<String> = analysed
            .as_array()
            .context("a list")?
            .iter()
            .map(|message| format!("{} {} {}", message["level"], message["code"], message["origin"]).replace('"', ""))
            .collect();
        found.sort();
        // IST0102: pods ask for injection by label. IST0133: whoever patches Envoy's configuration hears that.
        let explained = [
            "Info IST0102 Namespace default",
            "Warning IST0133 EnvoyFilter default/sluice",
            "Warning IST0133 EnvoyFilter default/sluice-passthrough",
            "Warning IST0133 EnvoyFilter default/sluice-port-80",
        ];
        ensure!(found == explained, "{found:#?}");
        Ok(())
    })
}

#[test]
#[ignore = "make test-mesh"]
fn settings_are_the_one_place_for_the_namespace_the_label_and_the_addresses() -> Result<()> {
    on_it(|cluster| {
        cluster.edit("settings.yaml", "  namespace: ", "elsewhere")?;
        cluster.edit("settings.yaml", "  workload: ", "{ team: mine }")?;
        cluster.edit("settings.yaml", "    - &pods4 ", "10.9.0.0/16")?;
        let made = cluster.plane.kubectl(&["kustomize", &cluster.manifests.to_string_lossy()])?;
        cluster.fresh_manifests()?;
        // Routers' configuration apart: it is text.
        let made: Vec<&str> = made.split("\n---\n").filter(|one| !one.contains("kind: ConfigMap")).collect();
        let count = |text: &str| made.iter().map(|one| one.matches(text).count()).sum::<usize>();
        for (text, times) in [
            ("namespace: elsewhere", made.len()),
            ("kubernetes.io/metadata.name: elsewhere", 2),
            (".elsewhere.svc.cluster.local", 4),
            ("default", 0),
            ("labels:\n      team: mine", 3),
            ("matchLabels:\n      team: mine", 1),
            ("10.9.0.0/16", 2),
            ("10.244.0.0/16", 0),
        ] {
            ensure!(count(text) == times, "{text:?} {} times, not {times}:\n{}", count(text), made.join("\n---\n"));
        }
        Ok(())
    })
}

#[test]
#[ignore = "make test-mesh"]
fn under_registry_only_sluice_still_decides() -> Result<()> {
    on_it(|cluster| {
        with_sidecar(cluster, "{ outboundTrafficPolicy: { mode: REGISTRY_ONLY } }", || {
            for client in &cluster.clients {
                cluster.plane.eventually("REGISTRY_ONLY", |_| {
                    let chains = chains(cluster, client)?;
                    let black = "virtualOutbound-catchall-tcp: sluice → tcp_proxy(BlackHoleCluster)";
                    ensure!(chains.contains(black), "{chains}");
                    Ok(())
                })?;
                for (port, says) in conversations()? {
                    cluster.expect_routed(client, outside(0, port), &says)?;
                }
            }
            // What sluice leaves alone goes where the chain says: nowhere.
            cluster.expect_refused(SocketAddr::new(cluster.backend.addresses[0], 5432), b"hello")
        })
    })
}

#[test]
#[ignore = "make test-mesh"]
fn a_sidecar_resource_that_hides_the_routers_fails_connections_and_verify_says_so() -> Result<()> {
    on_it(|cluster| {
        with_sidecar(cluster, "{ egress: [{ hosts: [istio-system/*] }] }", || {
            cluster.plane.eventually("that the routers are hidden", |_| {
                let (right, shown) = cluster.verify(&["verify"])?;
                let what = "there is no cluster outbound|8080||egress-router1.default.svc.cluster.local";
                let told = shown.lines().filter(|line| line.starts_with("WRONG: ") && line.contains(what)).count();
                ensure!(!right && told == cluster.clients.len(), "{shown}");
                Ok(())
            })?;
            for (port, says) in conversations()? {
                cluster.expect_refused(outside(0, port), &says)?;
            }
            Ok(())
        })
    })
}

/// Does this under a Sidecar resource of this specification.
fn with_sidecar(cluster: &Cluster, specification: &str, test: impl FnOnce() -> Result<()>) -> Result<()> {
    let sidecar = format!(
        "apiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: {{ name: tried, namespace: default }}\nspec: {specification}"
    );
    with_manifests(cluster, &sidecar, test)
}

/// Applies these manifests, does this, deletes them and waits until the chains are as they were.
fn with_manifests(cluster: &Cluster, manifests: &str, test: impl FnOnce() -> Result<()>) -> Result<()> {
    cluster.plane.kubectl_with(&["apply", "--validate=strict", "-f", "-"], manifests)?;
    let outcome = test();
    cluster.plane.kubectl_with(&["delete", "-f", "-"], manifests)?;
    let golden = golden()?;
    for client in &cluster.clients {
        cluster.plane.eventually("the chains as they were", |_| {
            let chains = chains(cluster, client)?;
            ensure!(chains == golden, "{chains}");
            Ok(())
        })?;
    }
    outcome
}

fn golden() -> Result<String> {
    Ok(fs::read_to_string(testbed::root().join("tests/data/mesh/chains"))?)
}

/// Puts everything back, whatever became of the test.
fn restoring(cluster: &mut Cluster, test: impl FnOnce(&mut Cluster) -> Result<()>) -> Result<()> {
    let files = |cluster: &Cluster| -> Result<Vec<String>> {
        let files =
            cluster.clients.iter().map(|client| Ok(module_file(&extension(client)?).unwrap_or("none").to_owned()));
        files.collect()
    };
    let before = files(cluster)?;
    let outcome = test(cluster);
    cluster.fresh_manifests()?;
    cluster.apply()?;
    for client in &mut cluster.clients {
        cluster.plane.await_ready(client)?;
    }
    cluster.roll_clients_out()?;
    cluster.plane.eventually("what was there before", |_| {
        let now = files(cluster)?;
        ensure!(now.iter().all(|file| before.contains(file)), "{now:?}, not {before:?}");
        Ok(())
    })?;
    outcome
}

#[test]
#[ignore = "make test-mesh"]
fn a_new_digest_is_swapped_in_and_no_connection_is_lost() -> Result<()> {
    on_it(|cluster| {
        restoring(cluster, |cluster| {
            let reference = cluster.push_another("another")?;
            let before = module_file(&extension(&cluster.clients[0])?).context("a module")?.to_owned();
            let mut long = echo(&cluster.clients[0].host)?;
            let swapped = AtomicBool::new(false);
            let to = outside(0, 443);
            let hello = client_hello("a.example.com")?;
            let cluster = &*cluster;
            let asked = thread::scope(|scope| -> Result<usize> {
                let askers: Vec<_> = cluster
                    .clients
                    .iter()
                    .map(|client| {
                        let (swapped, hello) = (&swapped, &hello);
                        let (host, routers) =
                            (&client.host, cluster.routers.iter().map(|router| &router.addresses).collect::<Vec<_>>());
                        scope.spawn(move || -> Result<usize> {
                            let mut asked = 0;
                            while !swapped.load(Ordering::Relaxed) {
                                let seen = server::ask(host, to, hello)?;
                                ensure!(routers.iter().any(|router| router.contains(&seen.from)), "{seen:?}");
                                asked += 1;
                            }
                            Ok(asked)
                        })
                    })
                    .collect();
                thread::sleep(Duration::from_secs(1));
                cluster.edit("settings.yaml", "  module: ", &reference)?;
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
            still_there(&mut long)
        })
    })
}

/// A connection that lasts.
fn echo(host: &Host) -> Result<TcpStream> {
    let to = outside(0, 7);
    let mut stream = host.run(|| TcpStream::connect(to))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    still_there(&mut stream)?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn still_there(stream: &mut TcpStream) -> Result<()> {
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
        cluster.plane.eventually("a reason in the log", |_| {
            for client in &cluster.clients {
                let log = client.log("istio-proxy");
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
        cluster.plane.eventually("listeners", |_| {
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
#[ignore = "make test-mesh"]
fn without_the_registry_nothing_new_gets_through() -> Result<()> {
    on_it(|cluster| {
        restoring(cluster, |cluster| {
            let reference = cluster.push_another("gone")?;
            cluster.plane.end("registry")?;
            let test = |cluster: &mut Cluster| -> Result<()> {
                cluster.edit("settings.yaml", "  module: ", &reference)?;
                expect_refused_module(cluster, "connection refused")
            };
            let outcome = test(cluster);
            cluster.restart_registry()?;
            outcome
        })
    })
}

#[test]
#[ignore = "make test-mesh"]
fn an_image_that_is_not_what_its_digest_says_is_refused() -> Result<()> {
    on_it(|cluster| {
        restoring(cluster, |cluster| {
            let reference = cluster.push_another("forged")?;
            let (_, hash) = reference.rsplit_once("sha256:").context("a digest")?;
            let blob = format!("registry/docker/registry/v2/blobs/sha256/{}/{hash}/data", &hash[..2]);
            let blob = cluster.plane.folder.join(blob);
            let mut manifest = fs::read(&blob)?;
            manifest.push(b'\n');
            fs::write(&blob, manifest)?;
            cluster.edit("settings.yaml", "  module: ", &reference)?;
            expect_refused_module(cluster, "manifest digest")
        })
    })
}

/// Edits the one line that says which way the module comes.
fn deliver_by(cluster: &Cluster, component: &str) -> Result<()> {
    cluster.edit("kustomization.yaml", "  - module/", component.trim_start_matches("module/"))
}

/// Serves this file to whoever asks for whatever.
fn web_server(host: &Host, file: Vec<u8>) -> Result<()> {
    let listener = host.run(|| TcpListener::bind(("0.0.0.0", 8000)))?;
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
#[ignore = "make test-mesh"]
fn the_module_comes_by_http_if_its_sha256_is_right() -> Result<()> {
    on_it(|cluster| {
        restoring(cluster, |cluster| {
            let module = testbed::root().join(testbed::DIST);
            web_server(&cluster.registry, fs::read(&module)?)?;
            let sum = std::process::Command::new("sha256sum").arg(&module).output()?;
            let sum = String::from_utf8(sum.stdout)?[..64].to_owned();
            let host = REGISTRY.split(':').next().context("a host")?;
            deliver_by(cluster, "module/http")?;
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
#[ignore = "make test-mesh"]
fn the_module_comes_by_config_map() -> Result<()> {
    on_it(|cluster| {
        restoring(cluster, |cluster| {
            deliver_by(cluster, "module/configmap")?;
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

/// Applies files of declared-externals with the module's reference, does this, and deletes them.
fn with_declared(cluster: &Cluster, files: &[&str], test: impl FnOnce() -> Result<()>) -> Result<()> {
    let mut manifests = String::new();
    for file in files {
        let text = fs::read_to_string(testbed::root().join("istio").join(file))?;
        let shipped = text.lines().find_map(|line| Some(line.split_once("url: ")?.1));
        let text = shipped.map_or(text.clone(), |shipped| text.replace(shipped, &cluster.module));
        write!(manifests, "---\n{text}")?;
    }
    with_manifests(cluster, &manifests, test)
}

const ENTRIES: [&str; 2] =
    ["declared-externals/serviceentry-by-name.yaml", "declared-externals/serviceentry-by-address.yaml"];

fn declared_externals(by: &str, filter: &str) -> Result<()> {
    on_it(|cluster| {
        with_declared(cluster, &[&ENTRIES[..], &[by]].concat(), || {
            let by_address: SocketAddr = format!("{DECLARED}:5432").parse()?;
            for client in &cluster.clients {
                cluster.plane.eventually("the filter in the chains of declared externals", |_| {
                    let chains = chains(cluster, client)?;
                    for name in ["declared.example.com", "database.example.com"] {
                        let filtered = |line: &str| {
                            line.contains(&format!("|{name})")) && line.contains(&format!(": {filter} → "))
                        };
                        ensure!(chains.lines().any(filtered), "{name}:\n{chains}");
                    }
                    Ok(())
                })?;
                let attempt = || -> Result<()> {
                    cluster.expect_routed(client, outside(0, 443), &client_hello("declared.example.com")?)?;
                    cluster.expect_routed(client, by_address, b"hello")?;
                    Ok(())
                };
                cluster.plane.eventually("routed connections", |_| attempt())?;
            }
            Ok(())
        })
    })
}

#[test]
#[ignore = "make test-mesh"]
fn declared_externals_are_routed_by_an_envoy_filter() -> Result<()> {
    declared_externals("declared-externals/envoyfilter.yaml", "sluice")
}

#[test]
#[ignore = "make test-mesh"]
fn declared_externals_are_routed_by_a_wasm_plugin() -> Result<()> {
    declared_externals("declared-externals/wasmplugin.yaml", "sluice~istio-translated-wasmplugin")
}

#[test]
#[ignore = "make test-mesh"]
fn declared_externals_are_routed_by_a_traffic_extension() -> Result<()> {
    declared_externals("declared-externals/trafficextension.yaml", "sluice")
}

#[test]
#[ignore = "make test-mesh"]
fn passthrough_connections_are_told_apart_by_sni_where_that_is_asked_for() -> Result<()> {
    on_it(|cluster| {
        restoring(cluster, |cluster| {
            let deny =
                "\n                    - match: { sni: [denied.example.com] }\n                      action: deny";
            // Below the route for what stays inside.
            cluster.edit("sluice.yaml", "                      action: continue", deny)?;
            cluster.apply()?;
            let sni = testbed::root().join("istio/sni.yaml");
            let denied = client_hello("denied.example.com")?;
            let table = |client: &Pod| -> Result<()> {
                let filter = extension(client)?.to_string();
                ensure!(filter.contains("denied.example.com"), "{filter}");
                Ok(())
            };
            for client in &cluster.clients {
                cluster.plane.eventually("the new table", |_| table(client))?;
                cluster.expect_routed(client, outside(0, 443), &denied)?; // nobody reads the name
            }
            cluster.plane.kubectl(&["apply", "--validate=strict", "-f", &sni.to_string_lossy()])?;
            let test = || -> Result<()> {
                cluster.plane.eventually("the name is read", |_| cluster.expect_refused(outside(0, 443), &denied))?;
                for client in &cluster.clients {
                    for (port, says) in conversations()? {
                        cluster.expect_routed(client, outside(0, port), &says)?;
                    }
                }
                Ok(())
            };
            let outcome = test();
            cluster.plane.kubectl(&["delete", "-f", &sni.to_string_lossy()])?;
            outcome
        })
    })
}

#[test]
#[ignore = "make test-mesh"]
fn verify_shows_where_connections_leave_and_what_is_wrong() -> Result<()> {
    on_it(|cluster| {
        let to = outside(0, 25);
        let (right, shown) = cluster.verify(&["verify", &to.to_string()])?;
        ensure!(right, "{shown}");
        for client in &cluster.clients {
            let egress = cluster::expected_router(client.addresses[0]);
            let row = |line: &str| {
                let words: Vec<&str> = line.split_whitespace().collect();
                words == [&client.addresses[0].to_string(), egress, &to.to_string()]
            };
            ensure!(shown.lines().any(row), "{} {egress} {to}:\n{shown}", client.addresses[0]);
        }
        for listener in ["0.0.0.0_15010", "0.0.0.0_15014"] {
            let told = format!("  not covered: plain HTTP to the outside on {listener}\n");
            ensure!(shown.contains(&told), "{listener}:\n{shown}");
        }
        println!("{shown}");
        cluster.plane.kubectl(&["delete", "envoyfilter", "sluice-passthrough"])?;
        cluster.plane.kubectl(&["delete", "destinationrule", "egress-router2"])?;
        let told = cluster.plane.eventually("what is wrong", |_| {
            let (right, shown) = cluster.verify(&["verify"])?;
            for what in [
                "the filter is not in virtualOutbound virtualOutbound-catchall-tcp",
                "the cluster outbound|8081||egress-router2.default.svc.cluster.local sends no PROXY header",
            ] {
                let told = shown.lines().filter(|line| line.starts_with("WRONG: ") && line.contains(what)).count();
                ensure!(!right && told == cluster.clients.len(), "{what:?}:\n{shown}");
            }
            Ok(())
        });
        cluster.apply()?;
        cluster.plane.eventually("that all is right again", |_| {
            let (right, shown) = cluster.verify(&["verify"])?;
            ensure!(right, "{shown}");
            Ok(())
        })?;
        told
    })
}
