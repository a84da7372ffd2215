//! `make verify`: looks at a cluster by kubectl and says where the clients' connections leave, and what is wrong.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::{collections::BTreeSet, env, thread, time::Duration};
use xshell::{Shell, cmd};

const ROUTERS: &str = "app in (egress-router1,egress-router2)";

/// The Envoy of a sidecar, as its admin interface tells of it.
struct Sidecar {
    dump: Value,
    stats: String,
}

/// Looks at all pods that SELECTOR names (if not given, `egress=sluice`); connects from each to `HOST:PORT`, if given.
/// Fails where something is wrong.
pub fn run(to: Option<&str>) -> Result<()> {
    let sh = Shell::new()?;
    let selector = env::var("SELECTOR").unwrap_or_else(|_| "egress=sluice".into());
    let clients = pods(&sh, &selector)?;
    ensure!(!clients.is_empty(), "no pod has the labels {selector}");
    let mut wrong = Vec::new();
    for pod in &clients {
        let name = name(pod)?;
        println!("{name}");
        if let Some(to) = to {
            connect(&sh, pod, to)?;
        }
        let Some(sidecar) = Sidecar::of(&sh, pod)? else {
            wrong.push(format!("{name}: no container istio-proxy: without a sidecar there is no filter"));
            continue;
        };
        wrong.extend(sidecar.wrong()?.into_iter().map(|what| format!("{name}: {what}")));
        for (counter, value) in sidecar.counters() {
            println!("  {counter}: {value}");
        }
        for listener in sidecar.not_covered() {
            println!("  not covered: plain HTTP to the outside on {listener}");
        }
    }
    if to.is_some() {
        thread::sleep(Duration::from_secs(3)); // the routers write their access logs every second
    }
    let rows = seen(&sh, &clients)?;
    println!("\n{:<39} {:<16} destination seen, in the last ten minutes", "source", "egress router");
    for (source, router, destination) in &rows {
        println!("{source:<39} {router:<16} {destination}");
    }
    for pod in &clients {
        let addresses = addresses(pod);
        if !rows.iter().any(|(source, ..)| addresses.contains(source)) {
            let hint = if to.is_some() { "" } else { "; TO=HOST:PORT makes one" };
            let what = format!("{}: no connection of it in the routers' logs{hint}", name(pod)?);
            if to.is_some() { wrong.push(what) } else { println!("{what}") }
        }
    }
    for what in &wrong {
        println!("WRONG: {what}");
    }
    ensure!(wrong.is_empty(), "{} things are wrong", wrong.len());
    Ok(())
}

fn pods(sh: &Shell, selector: &str) -> Result<Vec<Value>> {
    let pods = cmd!(sh, "kubectl get pods --all-namespaces --selector {selector} --output json").quiet().read()?;
    let pods: Value = serde_json::from_str(&pods)?;
    let running =
        |pod: &Value| pod["status"]["phase"] == "Running" && pod["metadata"].get("deletionTimestamp").is_none();
    Ok(list(&pods["items"]).into_iter().filter(running).collect())
}

fn list(value: &Value) -> Vec<Value> {
    value.as_array().cloned().unwrap_or_default()
}

fn name(pod: &Value) -> Result<&str> {
    pod["metadata"]["name"].as_str().context("a pod without a name")
}

fn addresses(pod: &Value) -> Vec<String> {
    list(&pod["status"]["podIPs"]).iter().filter_map(|ip| Some(ip["ip"].as_str()?.to_owned())).collect()
}

fn exec(sh: &Shell, pod: &Value, container: &str, command: &[&str]) -> Result<String> {
    let (name, namespace) = (name(pod)?, pod["metadata"]["namespace"].as_str().context("a namespace")?);
    let command = cmd!(sh, "kubectl exec --namespace {namespace} {name} --container {container} -- {command...}");
    Ok(command.quiet().read()?)
}

fn connect(sh: &Shell, pod: &Value, to: &str) -> Result<()> {
    let (host, port) = to.rsplit_once(':').context("TO is HOST:PORT")?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let containers = list(&pod["spec"]["containers"]);
    let names = containers.iter().filter_map(|container| container["name"].as_str());
    let container = names.into_iter().find(|name| *name != "istio-proxy").context("no container but the sidecar")?;
    // Keeps its own side open, as Envoy drops who closes that at once; nc's status tells little, so the routers' logs decide.
    let script = "sleep 2 | nc -w 3 \"$0\" \"$1\"";
    let heard = exec(sh, pod, container, &["sh", "-c", script, host, port]).map(|heard| heard.len());
    match heard {
        Ok(heard) => println!("  connected to {to} from the container {container}, heard {heard} bytes"),
        Err(_) => println!("  connected to {to} from the container {container}, heard nothing"),
    }
    Ok(())
}

/// Source, router and destination of the clients' connections, by the routers' access logs.
fn seen(sh: &Shell, clients: &[Value]) -> Result<BTreeSet<(String, String, String)>> {
    let sources: Vec<String> = clients.iter().flat_map(addresses).collect();
    let mut rows = BTreeSet::new();
    for router in pods(sh, ROUTERS)? {
        let (name, namespace) = (name(&router)?, router["metadata"]["namespace"].as_str().context("a namespace")?);
        let log =
            cmd!(sh, "kubectl logs --namespace {namespace} {name} --container envoy --since 10m").quiet().read()?;
        for line in log.lines() {
            let field = |name: &str| line.split(' ').find_map(|word| word.strip_prefix(name));
            let (Some(source), Some(destination)) = (field("source="), field("destination=")) else { continue };
            let source = source.rsplit_once(':').map_or(source, |(address, _)| address);
            let source = source.trim_start_matches('[').trim_end_matches(']').to_owned();
            if sources.contains(&source) && field("cluster=") == Some("destination") {
                let app = router["metadata"]["labels"]["app"].as_str().unwrap_or(name);
                rows.insert((source, app.to_owned(), destination.to_owned()));
            }
        }
    }
    Ok(rows)
}

impl Sidecar {
    fn of(sh: &Shell, pod: &Value) -> Result<Option<Self>> {
        let containers = [list(&pod["spec"]["containers"]), list(&pod["spec"]["initContainers"])].concat();
        if !containers.iter().any(|container| container["name"] == "istio-proxy") {
            return Ok(None);
        }
        let admin = |path: &str| exec(sh, pod, "istio-proxy", &["pilot-agent", "request", "GET", path]);
        Ok(Some(Self { dump: serde_json::from_str(&admin("config_dump")?)?, stats: admin("stats")? }))
    }

    fn section(&self, name: &str) -> Vec<Value> {
        list(&self.dump["configs"]).iter().flat_map(|config| list(&config[name])).collect()
    }

    fn listeners(&self) -> Vec<Value> {
        let listeners =
            self.section("dynamic_listeners").into_iter().map(|one| one["active_state"]["listener"].clone());
        listeners.filter(|listener| listener["traffic_direction"] == "OUTBOUND").collect()
    }

    fn wrong(&self) -> Result<Vec<String>> {
        let mut wrong = Vec::new();
        let filters = self.section("ecds_filters");
        match filters.iter().find(|filter| filter["ecds_filter"]["name"] == "sluice") {
            None => wrong
                .push("no filter sluice: sluice.yaml does not select this pod, or its module was never loaded".into()),
            Some(filter) => {
                if filter.get("error_state").is_some() {
                    let details = filter["error_state"]["details"].as_str().unwrap_or("no details");
                    wrong.push(format!("Envoy refused what it was last sent of the filter: {details}"));
                }
                wrong.extend(self.routes(&filter["ecds_filter"]["typed_config"]));
            }
        }
        let mut catch_all = false;
        for listener in self.listeners() {
            let address = listener["name"].as_str().unwrap_or_default();
            for chain in list(&listener["filter_chains"]).iter().chain(listener.get("default_filter_chain")) {
                let there = list(&chain["filters"]).iter().any(|filter| filter["name"] == "sluice");
                let called = chain["name"].as_str().unwrap_or_default();
                catch_all |= called == "virtualOutbound-catchall-tcp";
                let wanted = ["virtualOutbound-catchall-tcp", "PassthroughFilterChain"].contains(&called);
                if wanted && !there {
                    wrong.push(format!("the filter is not in {address} {called}: passthrough.yaml does not reach it"));
                }
                if called == "virtualOutbound-blackhole" && there {
                    wrong.push(
                        "the filter is in virtualOutbound-blackhole, which keeps Envoy from connecting to itself"
                            .into(),
                    );
                }
            }
        }
        if !catch_all {
            wrong.push("no chain virtualOutbound-catchall-tcp: Istio may call it otherwise in this version".into());
        }
        let refused = ["listener_manager.lds.update_rejected", "cluster_manager.cds.update_rejected"];
        for (name, count) in self.stats.lines().filter_map(|line| line.split_once(": ")) {
            if refused.contains(&name) && count != "0" {
                wrong.push(format!("{name}: {count}: Envoy refused what it was sent, see the log of istio-proxy"));
            }
        }
        Ok(wrong)
    }

    /// What is wrong with the clusters of the table.
    fn routes(&self, filter: &Value) -> Vec<String> {
        let known = self.section("dynamic_active_clusters");
        // The configuration of the Wasm module, or of the native one.
        let configuration = filter.pointer("/config/configuration").unwrap_or(&filter["filter_config"]);
        let routes = list(&configuration["value"]["routes"]);
        let named: BTreeSet<String> = routes
            .iter()
            .flat_map(|route| list(&route["clusters"]))
            .filter_map(|cluster| Some(cluster.as_str()?.to_owned()))
            .collect();
        let mut wrong = Vec::new();
        for name in named {
            match known.iter().find(|cluster| cluster["cluster"]["name"] == name) {
                None => wrong.push(format!("there is no cluster {name}: connections to it fail")),
                Some(cluster) if !cluster["cluster"].to_string().contains("upstream_proxy_protocol") => {
                    wrong.push(format!("the cluster {name} sends no PROXY header: its DestinationRule does not apply"));
                }
                Some(_) => {}
            }
        }
        wrong
    }

    /// Listeners of all addresses with an HTTP chain, which takes what is HTTP before the passthrough chain.
    fn not_covered(&self) -> BTreeSet<String> {
        let http = |listener: &Value| {
            let chains = list(&listener["filter_chains"]);
            let http = |filter: &Value| filter["name"] == "envoy.filters.network.http_connection_manager";
            chains.iter().any(|chain| list(&chain["filters"]).iter().any(http))
        };
        let names = self.listeners().into_iter().filter(http);
        let names = names.filter_map(|listener| Some(listener["name"].as_str()?.to_owned()));
        names
            .filter(|name| name.starts_with("0.0.0.0_") || name.starts_with("[::]_") || name.starts_with("::_"))
            .collect()
    }

    fn counters(&self) -> Vec<(&str, &str)> {
        let ours = self.stats.lines().filter_map(|line| line.strip_prefix("wasmcustom.")?.split_once(": "));
        ours.filter(|(name, _)| name.starts_with("sluice.")).collect()
    }
}
