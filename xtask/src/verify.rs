//! `make verify`: looks at a cluster by kubectl and says where the clients' connections leave, and what is wrong.

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::{
    collections::BTreeSet,
    env,
    io::{self, Read, Write as _},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

const ROUTERS: &str = "app in (egress-router1,egress-router2)";

/// How long one kubectl may take, so that a node or a sidecar that hangs does not stop the others from being checked.
const LIMIT: Duration = Duration::from_secs(30);

/// How long the routers may take to log a connection: they write when it has ended, once a second.
const LOGGED: Duration = Duration::from_secs(10);

/// The advice if a sidecar has no module.
const FETCH: &str = "check `module` in settings.yaml, and that a rule of its directEgress admits the module's server and port; then restart the pod";

/// The length of a time in logs and dumps, to the millisecond.
const TIME: usize = "2026-01-01T00:00:00.000".len();

/// The Envoy of a sidecar, as its admin interface tells of it.
struct Sidecar {
    dump: Value,
    stats: String,
}

/// Checks all pods that SELECTOR names (if not given, `egress=sluice`); connects from each to `HOST:PORT`, if given.
/// Fails if something is wrong.
pub fn run(to: Option<&str>) -> Result<()> {
    let selector = env::var("SELECTOR").unwrap_or_else(|_| "egress=sluice".into());
    let clients = pods(&selector)?;
    ensure!(!clients.is_empty(), "no pod has the labels {selector}");
    let started = Instant::now();
    let mut wrong = Vec::new();
    for pod in &clients {
        let name = name(pod)?;
        println!("{name}");
        let found = check(pod, to).unwrap_or_else(|error| vec![format!("{error:#}")]);
        wrong.extend(found.into_iter().map(|what| format!("{name}: {what}")));
    }
    let routers: Vec<Value> = pods(ROUTERS)?.into_iter().filter(|pod| pod["status"]["phase"] == "Running").collect();
    if routers.is_empty() {
        wrong.push(format!("no pod has the labels {ROUTERS}: no egress router runs"));
    }
    if let Some(to) = to {
        let missing = missing(&clients, &routers, to, started)?;
        for pod in missing {
            wrong.push(format!("{}: its connection to {to} is not in the routers' logs", name(pod)?));
        }
    }
    let rows = seen(&routers, &clients, "10m")?;
    println!("\n{:<39} {:<16} destination seen, in the last ten minutes", "source", "egress router");
    for (source, router, destination) in &rows {
        println!("{source:<39} {router:<16} {destination}");
    }
    for pod in
        clients.iter().filter(|pod| to.is_none() && !rows.iter().any(|(source, ..)| addresses(pod).contains(source)))
    {
        println!("{}: no connection of it in the routers' logs; TO=HOST:PORT makes one", name(pod)?);
    }
    for what in &wrong {
        println!("WRONG: {what}");
    }
    ensure!(wrong.is_empty(), "{} things are wrong", wrong.len());
    Ok(())
}

/// Connects from a pod, prints what its sidecar counted and does not cover, and returns what is wrong with it.
fn check(pod: &Value, to: Option<&str>) -> Result<Vec<String>> {
    if let Some(to) = to {
        connect(pod, to)?;
    }
    let Some(sidecar) = Sidecar::of(pod)? else {
        return Ok(vec!["no container istio-proxy: without a sidecar there is no filter".into()]);
    };
    for (counter, value) in sidecar.counters() {
        println!("  {counter}: {value}");
    }
    for listener in sidecar.not_covered() {
        println!("  not covered: plain HTTP to the outside on {listener}");
    }
    sidecar.wrong(pod)
}

/// Returns what kubectl prints. Fails if it fails, or takes too long.
fn kubectl(arguments: &[&str]) -> Result<String> {
    let mut command = Command::new("kubectl");
    let process = command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut process = process.context("cannot start kubectl")?;
    let output = read(process.stdout.take().context("a pipe")?);
    let error = read(process.stderr.take().context("a pipe")?);
    let started = Instant::now();
    let status = loop {
        if let Some(status) = process.try_wait()? {
            break status;
        }
        if started.elapsed() > LIMIT {
            process.kill()?;
            process.wait()?;
            bail!("no answer within {LIMIT:?}: kubectl {}", arguments.join(" "));
        }
        thread::sleep(Duration::from_millis(10));
    };
    let (output, error) = (output.join().expect("no panic")?, error.join().expect("no panic")?);
    ensure!(status.success(), "kubectl {}: {status}: {}", arguments.join(" "), error.trim());
    Ok(output)
}

fn read(mut pipe: impl Read + Send + 'static) -> thread::JoinHandle<io::Result<String>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        pipe.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    })
}

fn pods(selector: &str) -> Result<Vec<Value>> {
    let pods = kubectl(&["get", "pods", "--all-namespaces", "--selector", selector, "--output", "json"])?;
    let pods: Value = serde_json::from_str(&pods)?;
    // Pending too: a sidecar that is not ready keeps its application from starting.
    let live = |pod: &Value| {
        let ended = ["Succeeded", "Failed"].iter().any(|phase| pod["status"]["phase"] == *phase);
        !ended && pod["metadata"].get("deletionTimestamp").is_none()
    };
    Ok(list(&pods["items"]).into_iter().filter(live).collect())
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

fn namespace(pod: &Value) -> Result<&str> {
    pod["metadata"]["namespace"].as_str().context("a pod without a namespace")
}

fn exec(pod: &Value, container: &str, command: &[&str]) -> Result<String> {
    let exec = ["exec", "--namespace", namespace(pod)?, name(pod)?, "--container", container, "--"];
    kubectl(&[&exec, command].concat())
}

/// The log of a container with the times of its lines.
fn log(pod: &Value, container: &str, since: &str) -> Result<String> {
    kubectl(&["logs", "--namespace", namespace(pod)?, name(pod)?, "--container", container, "--timestamps", since])
}

/// The EnvoyFilters `sluice` of a namespace; empty if there is none.
fn filters_of(namespace: &str) -> Result<String> {
    kubectl(&["get", "envoyfilters", "sluice", "--namespace", namespace, "--ignore-not-found", "--output", "json"])
}

fn connect(pod: &Value, to: &str) -> Result<()> {
    let (host, port) = to.rsplit_once(':').context("TO is HOST:PORT")?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let containers = list(&pod["spec"]["containers"]);
    let names = containers.iter().filter_map(|container| container["name"].as_str());
    let container = names.into_iter().find(|name| *name != "istio-proxy").context("no container but the sidecar")?;
    // Keeps its own side open, as Envoy drops who closes that at once; nc's status tells little, so the routers' logs decide.
    let script = "sleep 2 | nc -w 3 \"$0\" \"$1\"";
    match exec(pod, container, &["sh", "-c", script, host, port]) {
        Ok(heard) => println!("  tried {to} from the container {container}: heard {} bytes", heard.len()),
        Err(error) => println!("  tried {to} from the container {container}: {error:#}"),
    }
    io::stdout().flush()?;
    Ok(())
}

/// The clients whose connection since `started` no router has logged.
fn missing<'a>(clients: &'a [Value], routers: &[Value], to: &str, started: Instant) -> Result<Vec<&'a Value>> {
    let port = &to[to.rfind(':').context("TO is HOST:PORT")?..];
    let waiting = Instant::now();
    loop {
        let since = format!("{}s", started.elapsed().as_secs() + 1);
        let rows = seen(routers, clients, &since)?;
        let of = |pod: &Value| {
            let addresses = addresses(pod);
            rows.iter().any(|(source, _, destination)| addresses.contains(source) && destination.ends_with(port))
        };
        let missing: Vec<&Value> = clients.iter().filter(|pod| !of(pod)).collect();
        if missing.is_empty() || waiting.elapsed() > LOGGED {
            return Ok(missing);
        }
        thread::sleep(Duration::from_millis(500));
    }
}

/// Source, router and destination of the clients' connections, by the routers' access logs.
fn seen(routers: &[Value], clients: &[Value], since: &str) -> Result<BTreeSet<(String, String, String)>> {
    let sources: Vec<String> = clients.iter().flat_map(addresses).collect();
    let mut rows = BTreeSet::new();
    for router in routers {
        let app = router["metadata"]["labels"]["app"].as_str().context("a router without its label")?;
        for line in log(router, "envoy", &format!("--since={since}"))?.lines() {
            // The time by kubectl, then one JSON object. Envoy's own messages are not JSON.
            let Some(Ok(entry)) = line.split_once(' ').map(|(_, entry)| serde_json::from_str::<Value>(entry)) else {
                continue;
            };
            let (Some(source), Some(destination)) = (entry["source"].as_str(), entry["destination"].as_str()) else {
                continue;
            };
            let source = source.rsplit_once(':').map_or(source, |(address, _)| address);
            let source = source.trim_start_matches('[').trim_end_matches(']').to_owned();
            // Without an upstream it was refused.
            if sources.contains(&source) && entry["upstream"].is_string() {
                rows.insert((source, app.to_owned(), destination.to_owned()));
            }
        }
    }
    Ok(rows)
}

impl Sidecar {
    fn of(pod: &Value) -> Result<Option<Self>> {
        let containers = [list(&pod["spec"]["containers"]), list(&pod["spec"]["initContainers"])].concat();
        if !containers.iter().any(|container| container["name"] == "istio-proxy") {
            return Ok(None);
        }
        let admin = |path: &str| exec(pod, "istio-proxy", &["pilot-agent", "request", "GET", path]);
        let dump = admin("config_dump")?;
        // The agent's own log lines may come first.
        let start =
            if dump.starts_with('{') { 0 } else { dump.find("\n{").context("the configuration is not JSON")? };
        Ok(Some(Self { dump: serde_json::from_str(&dump[start..])?, stats: admin("stats")? }))
    }

    fn section(&self, name: &str) -> Vec<Value> {
        list(&self.dump["configs"]).iter().flat_map(|config| list(&config[name])).collect()
    }

    fn listeners(&self) -> Vec<Value> {
        // A listener waits, in warming, until its filter has a configuration.
        let state = |one: Value| ["active_state", "warming_state"].iter().find_map(|state| one.get(*state).cloned());
        let listeners =
            self.section("dynamic_listeners").into_iter().filter_map(state).map(|state| state["listener"].clone());
        listeners.filter(|listener| listener["traffic_direction"] == "OUTBOUND").collect()
    }

    fn wrong(&self, pod: &Value) -> Result<Vec<String>> {
        let mut wrong = Vec::new();
        let filters = self.section("ecds_filters");
        let filter = filters.iter().find(|filter| filter["ecds_filter"]["name"] == "sluice");
        // Envoy shows a configuration that it has rejected like one that it took, so the log decides.
        let updated = filter.and_then(|filter| filter["last_updated"].as_str()).unwrap_or_default();
        let since = if updated.is_empty() { "--tail=-1".into() } else { format!("--since-time={updated}") };
        let log = log(pod, "istio-proxy", &since)?;
        let later = |line: &&str| line.get(..TIME) >= updated.get(..TIME);
        let last =
            |what: &str| log.lines().filter(later).filter_map(|line| Some(line.split_once(what)?.1.trim())).next_back();
        // Neither a module that is not wanted any more, nor the refusal that the agent sends in its place.
        let unfetched = last("cannot fetch Wasm module ");
        let wanted = if unfetched.is_some() { filters_of(namespace(pod)?)? } else { String::new() };
        let unfetched = unfetched.filter(|reason| wanted.contains(reason.split(": ").next().unwrap_or_default()));
        let rejected = last("TypedExtensionConfig rejected: ").filter(|reason| !reason.contains(".rbac."));
        if let Some(reason) = unfetched {
            wrong.push(format!("the module could not be fetched: {reason}: {FETCH}"));
        } else if let Some(reason) = rejected {
            let reason = last("sluice: plugin configuration: ").unwrap_or(reason);
            wrong.push(format!("Envoy rejected the filter of sluice.yaml: {reason}"));
        } else if let Some(filter) = filter {
            wrong.extend(self.routes(&filter["ecds_filter"]["typed_config"]));
        } else if let Some(image) = last("fetching image ") {
            wrong.push(format!("the module has not arrived, it is being fetched: {image}: {FETCH}"));
        } else {
            let namespace = namespace(pod)?;
            wrong.push(format!(
                "no filter sluice: no sluice.yaml of the namespace {namespace} selects this pod's labels"
            ));
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
        for listener in self.section("dynamic_listeners") {
            let name = listener["name"].as_str().unwrap_or_default();
            // Envoy repeats the error of the update without a name.
            if let (Some(details), false) = (listener["error_state"]["details"].as_str(), name.is_empty()) {
                wrong.push(format!("Envoy rejected the listener {name}: {details}"));
            }
        }
        let rejected = "cluster_manager.cds.update_rejected: ";
        if let Some(count) =
            self.stats.lines().find_map(|line| line.strip_prefix(rejected)).filter(|count| *count != "0")
        {
            wrong.push(format!("{rejected}{count}: Envoy rejected clusters, see the log of istio-proxy"));
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
