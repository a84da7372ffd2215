//! Checks of the Envoy in a client's sidecar, through its admin interface and its log.

use super::{
    kubectl::{admin, admin_json, envoy_filter, list, log, namespace},
    routers::{Routers, identities},
};
use anyhow::Result;
use serde_json::Value;
use std::collections::BTreeSet;

/// The advice if a sidecar has no module.
const FETCH: &str = "check `module` in settings.yaml, and that a rule of its directEgress admits the module's server and port; then restart the pod";

/// The length of a timestamp in logs and dumps, to the millisecond.
const TIME: usize = "2026-01-01T00:00:00.000".len();

pub struct Sidecar {
    dump: Value,
    stats: String,
}

impl Sidecar {
    /// Reads the state of a pod's sidecar. Returns `None` if the pod has none.
    pub fn of(pod: &Value) -> Result<Option<Self>> {
        let containers = [list(&pod["spec"]["containers"]), list(&pod["spec"]["initContainers"])].concat();
        if !containers.iter().any(|container| container["name"] == "istio-proxy") {
            return Ok(None);
        }
        Ok(Some(Self {
            dump: admin_json(pod, "istio-proxy", "config_dump")?,
            stats: admin(pod, "istio-proxy", "stats")?,
        }))
    }

    fn section(&self, name: &str) -> Vec<Value> {
        list(&self.dump["configs"]).iter().flat_map(|config| list(&config[name])).collect()
    }

    fn listeners(&self) -> Vec<Value> {
        // A listener stays in the warming state until its filter has a configuration.
        let state = |one: Value| ["active_state", "warming_state"].iter().find_map(|state| one.get(*state).cloned());
        let listeners =
            self.section("dynamic_listeners").into_iter().filter_map(state).map(|state| state["listener"].clone());
        listeners.filter(|listener| listener["traffic_direction"] == "OUTBOUND").collect()
    }

    /// Returns what is wrong with the filter, its filter chains, its route table and the clusters in that table.
    pub fn wrong(&self, pod: &Value, routers: &Routers) -> Result<Vec<String>> {
        let mut wrong = Vec::new();
        let filters = self.section("ecds_filters");
        let filter = filters.iter().find(|filter| filter["ecds_filter"]["name"] == "sluice");
        // Envoy shows rejected and accepted configurations alike, so the log decides.
        let updated = filter.and_then(|filter| filter["last_updated"].as_str()).unwrap_or_default();
        let since = if updated.is_empty() { "--tail=-1".into() } else { format!("--since-time={updated}") };
        let log = log(pod, "istio-proxy", &since)?;
        let later = |line: &&str| line.get(..TIME) >= updated.get(..TIME);
        let last =
            |what: &str| log.lines().filter(later).filter_map(|line| Some(line.split_once(what)?.1.trim())).next_back();
        // Ignores modules that are no longer configured, and the RBAC filter that the agent sends in place of a module.
        let unfetched = last("cannot fetch Wasm module ");
        let wanted = if unfetched.is_some() { envoy_filter(namespace(pod)?)? } else { String::new() };
        let unfetched = unfetched.filter(|reason| wanted.contains(reason.split(": ").next().unwrap_or_default()));
        let rejected = last("TypedExtensionConfig rejected: ").filter(|reason| !reason.contains(".rbac."));
        if let Some(reason) = unfetched {
            wrong.push(format!("the module could not be fetched: {reason}: {FETCH}"));
        } else if let Some(reason) = rejected {
            let reason = last("sluice: plugin configuration: ").unwrap_or(reason);
            wrong.push(format!("Envoy rejected the filter of sluice.yaml: {reason}"));
        } else if let Some(filter) = filter {
            wrong.extend(self.routes(&filter["ecds_filter"]["typed_config"], routers));
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
                    wrong.push(format!(
                        "the filter is not in the chain {called} of {address}: no patch of passthrough.yaml matches it"
                    ));
                }
                if called == "virtualOutbound-blackhole" && there {
                    wrong.push(
                        "the filter is in virtualOutbound-blackhole and must not be: this chain stops connections of Envoy to itself"
                            .into(),
                    );
                }
            }
        }
        if !catch_all {
            wrong.push("no chain virtualOutbound-catchall-tcp: it may have another name in this Istio".into());
        }
        for listener in self.section("dynamic_listeners") {
            let name = listener["name"].as_str().unwrap_or_default();
            // Envoy repeats the error of the update in an entry without a name.
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

    /// Returns what is wrong with the clusters in the route table.
    fn routes(&self, filter: &Value, routers: &Routers) -> Vec<String> {
        let known = self.section("dynamic_active_clusters");
        // The configuration of the Wasm module, or of the native module.
        let configuration = filter.pointer("/config/configuration").unwrap_or(&filter["filter_config"]);
        let routes = list(&configuration["value"]["routes"]);
        let named: BTreeSet<String> = routes
            .iter()
            .flat_map(|route| list(&route["clusters"]))
            .filter_map(|cluster| Some(cluster.as_str()?.to_owned()))
            .collect();
        let find = |name: &str| {
            known.iter().map(|cluster| &cluster["cluster"]).find(|cluster| cluster["name"].as_str() == Some(name))
        };
        let mut wrong = Vec::new();
        // With failover, a cluster in the table is an aggregate of other clusters.
        let members = named.iter().filter_map(|name| find(name)?.pointer("/cluster_type/typed_config/clusters"));
        let members: BTreeSet<String> =
            members.flat_map(list).filter_map(|name| Some(name.as_str()?.to_owned())).collect();
        for name in named.union(&members) {
            match find(name) {
                None => wrong.push(format!("there is no cluster {name}: connections to it fail")),
                Some(cluster) if cluster.get("cluster_type").is_some() => {}
                Some(cluster) if !cluster.to_string().contains("upstream_proxy_protocol") => {
                    wrong.push(format!("the cluster {name} sends no PROXY header: its DestinationRule does not apply"));
                }
                Some(cluster) => wrong.extend(routers.identity_fault(name, &identities(cluster))),
            }
        }
        wrong
    }

    /// Returns the listeners on all addresses that have an HTTP chain, which takes HTTP connections before the passthrough chain.
    pub fn not_covered(&self) -> BTreeSet<String> {
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

    /// Returns sluice's counters.
    pub fn counters(&self) -> Vec<(&str, &str)> {
        let ours = self.stats.lines().filter_map(|line| line.strip_prefix("wasmcustom.")?.split_once(": "));
        ours.filter(|(name, _)| name.starts_with("sluice.")).collect()
    }
}
