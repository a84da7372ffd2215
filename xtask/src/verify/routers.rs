//! Checks of the egress routers: which pods serve as routers, and their certificates, lists and draining.

use super::{
    kubectl::{admin, admin_json, kubectl, list, name, pods},
    say,
};
use anyhow::{Context, Result, ensure};
use jiff::Timestamp;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

const LABELS: &str = "app in (egress-router1,egress-router2)";

/// The routers' pods of a cluster.
pub struct Routers {
    namespace: String,
    /// The running pods in the routers' namespace.
    pub pods: Vec<Value>,
    /// The pods of other namespaces that have a router's label.
    squatters: Vec<Value>,
    /// The identities in the certificates that each router presents, by its `app` label. No entry if it could not be asked.
    presented: BTreeMap<String, BTreeSet<String>>,
    /// The faults of the certificates.
    certificates: Vec<String>,
}

/// The lists in an Envoy configuration that decide which clients and destinations are allowed: `listener: list` and its entries.
type Lists = BTreeMap<String, BTreeSet<String>>;

impl Routers {
    /// Finds the routers' pods and asks them for their certificates.
    pub fn of(namespace: &str) -> Result<Self> {
        let (pods, squatters): (Vec<Value>, Vec<Value>) =
            pods(LABELS)?.into_iter().partition(|pod| pod["metadata"]["namespace"] == namespace);
        let pods: Vec<Value> = pods.into_iter().filter(|pod| pod["status"]["phase"] == "Running").collect();
        let (mut presented, mut certificates) = (BTreeMap::<_, BTreeSet<_>>::new(), Vec::new());
        for pod in &pods {
            match Certificate::of(pod) {
                Ok(found) => {
                    for certificate in found {
                        certificates.extend(certificate.wrong(name(pod)?, Timestamp::now()));
                        presented.entry(app(pod)).or_default().extend(certificate.identities);
                    }
                }
                Err(error) => certificates.push(format!("{}: {error:#}", name(pod)?)),
            }
        }
        Ok(Self { namespace: namespace.to_owned(), pods, squatters, presented, certificates })
    }

    /// Returns what is wrong with the routers. Their lists should be the ones in this folder of manifests.
    pub fn wrong(&self, manifests: &str) -> Vec<String> {
        let mut wrong = self.certificates.clone();
        if self.pods.is_empty() {
            wrong.push(format!(
                "no pod of the namespace {} has the labels {LABELS}: no egress router runs",
                self.namespace
            ));
        }
        for pod in &self.squatters {
            wrong.push(format!(
                "{}/{} has the label of a router, app={}, but the routers' namespace is {}",
                pod["metadata"]["namespace"].as_str().unwrap_or_default(),
                pod["metadata"]["name"].as_str().unwrap_or_default(),
                app(pod),
                self.namespace
            ));
        }
        let expected = if self.pods.is_empty() { Ok(BTreeMap::new()) } else { expected_lists(manifests) };
        if let Err(error) = &expected {
            wrong.push(format!("cannot tell which lists the routers should have: {error:#}"));
        }
        for pod in &self.pods {
            let name = pod["metadata"]["name"].as_str().unwrap_or_default();
            wrong.extend(pod_wrong(pod).into_iter().map(|what| format!("{name}: {what}")));
            let Ok(expected) = &expected else { continue };
            match running_lists(pod) {
                Ok(running) => wrong.extend(
                    differences(expected.get(&app(pod)).unwrap_or(&Lists::new()), &running, manifests)
                        .into_iter()
                        .map(|what| format!("{name}: {what}")),
                ),
                Err(error) => wrong.push(format!("{name}: {error:#}")),
            }
        }
        wrong
    }

    /// Returns the fault in the identities that a sidecar expects of a cluster's router: it expects none, or the router presents
    /// none of them.
    pub fn identity_fault(&self, cluster: &str, expected: &BTreeSet<String>) -> Option<String> {
        // outbound|PORT||SERVICE.NAMESPACE.svc.DOMAIN; the service has the router's name
        let router = cluster.rsplit('|').next()?.split('.').next()?;
        let presented = self.presented.get(router)?;
        if expected.is_empty() {
            return Some(format!(
                "the cluster {cluster} accepts a router of any identity: its DestinationRule names none"
            ));
        }
        let list = |set: &BTreeSet<String>| set.iter().cloned().collect::<Vec<_>>().join(" ");
        (expected.is_disjoint(presented)).then(|| {
            format!(
                "the cluster {cluster} expects the identity {}, but the router presents {}: its connections fail",
                list(expected),
                list(presented)
            )
        })
    }
}

/// Returns a router's name, which is the value of its label `app`.
pub fn app(pod: &Value) -> String {
    pod["metadata"]["labels"]["app"].as_str().unwrap_or_default().to_owned()
}

/// Returns the faults of a router's pod specification.
fn pod_wrong(pod: &Value) -> Vec<String> {
    let mut wrong = Vec::new();
    let (spec, app) = (&pod["spec"], app(pod));
    let account = spec["serviceAccountName"].as_str().unwrap_or_default();
    if account != app {
        wrong.push(format!("it has the label app={app}, but the service account {account}: it is not a router, but takes a router's connections"));
    }
    let containers = list(&spec["containers"]);
    let envoy = containers.iter().find(|container| container["name"] == "envoy");
    let sleep = envoy.and_then(|envoy| envoy.pointer("/lifecycle/preStop/sleep/seconds")?.as_u64());
    let grace = spec["terminationGracePeriodSeconds"].as_u64().unwrap_or(30);
    match sleep {
        None => wrong
            .push("it does not drain: its container envoy has no preStop.sleep, so a restart cuts connections".into()),
        Some(sleep) if sleep >= grace => wrong.push(format!(
            "it is killed while it drains: preStop.sleep is {sleep} s and terminationGracePeriodSeconds {grace}"
        )),
        Some(_) => {}
    }
    wrong
}

/// Returns the name of the container that has pilot-agent, which fetches the certificates.
fn agent(pod: &Value) -> Result<String> {
    let containers = [list(&pod["spec"]["initContainers"]), list(&pod["spec"]["containers"])].concat();
    let has = |container: &&Value| list(&container["env"]).iter().any(|variable| variable["name"] == "OUTPUT_CERTS");
    let found = containers.iter().find(has).and_then(|container| container["name"].as_str());
    Ok(found.context("no container writes certificates (OUTPUT_CERTS): it cannot authenticate")?.to_owned())
}

/// A certificate that a router presents.
#[derive(PartialEq)]
struct Certificate {
    identities: BTreeSet<String>,
    expires: Timestamp,
}

impl Certificate {
    fn of(pod: &Value) -> Result<Vec<Self>> {
        let answer = admin_json(pod, &agent(pod)?, "certs")?;
        let chain = list(&answer["certificates"]).iter().flat_map(|one| list(&one["cert_chain"])).collect::<Vec<_>>();
        ensure!(!chain.is_empty(), "it has no certificate");
        // The intermediate certificates of a chain have no identity.
        let leaf = |one: &&Value| list(&one["subject_alt_names"]).iter().any(|name| name["uri"].is_string());
        let mut certificates = chain.iter().filter(leaf).map(Self::read).collect::<Result<Vec<_>>>()?;
        certificates.dedup(); // Envoy lists them for each filter chain
        Ok(certificates)
    }

    fn read(entry: &Value) -> Result<Self> {
        let names = list(&entry["subject_alt_names"]);
        let identities = names.iter().filter_map(|name| Some(name["uri"].as_str()?.to_owned())).collect();
        let expires = entry["expiration_time"].as_str().context("a certificate without expiration_time")?.parse()?;
        Ok(Self { identities, expires })
    }

    fn wrong(&self, pod: &str, now: Timestamp) -> Option<String> {
        (self.expires <= now)
            .then(|| format!("{pod}: its certificate expired at {}: all its connections fail", self.expires))
    }
}

/// Returns the lists of a router's running Envoy. Prints the counters of refused handshakes.
fn running_lists(pod: &Value) -> Result<Lists> {
    let agent = agent(pod)?;
    let stats = admin(pod, &agent, "stats?filter=ssl.(fail_verify|connection_error)")?;
    let refused: Vec<&str> =
        stats.lines().filter(|line| line.starts_with("listener.") && !line.ends_with(": 0")).collect();
    if !refused.is_empty() {
        say(&format!("{}: refused handshakes", name(pod)?));
        refused.iter().for_each(|line| say(&format!("  {line}")));
    }
    let dump = admin_json(pod, &agent, "config_dump")?;
    let sections = list(&dump["configs"]);
    let listeners = sections.iter().flat_map(|section| list(&section["static_listeners"]));
    let mut lists = Lists::new();
    for listener in listeners {
        gather(&listener["listener"], &mut lists);
    }
    sections.iter().for_each(|section| gather_routers(&section["bootstrap"]["node"], &mut lists));
    ensure!(!lists.is_empty(), "its Envoy has no lists: it admits everybody, or is not a router");
    Ok(lists)
}

/// Returns the lists of each router in a folder of manifests, by the router's name.
fn expected_lists(manifests: &str) -> Result<BTreeMap<String, Lists>> {
    lists_of_manifests(&kubectl(&["kustomize", manifests])?).with_context(|| manifests.to_owned())
}

fn lists_of_manifests(rendered: &str) -> Result<BTreeMap<String, Lists>> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(rendered).context("the rendered manifests")?;
    let mut expected = BTreeMap::new();
    for document in documents.iter().filter(|document| document["kind"] == "ConfigMap") {
        let Some(text) = document.pointer("/data/egress-router.yaml").and_then(Value::as_str) else { continue };
        let envoy: Value = serde_saphyr::from_str(text).context("egress-router.yaml")?;
        let mut lists = Lists::new();
        for listener in list(&envoy["static_resources"]["listeners"]) {
            gather(&listener, &mut lists);
        }
        gather_routers(&envoy["node"], &mut lists);
        let name = name(document)?;
        let router = name.rsplit_once('-').map_or(name, |(router, _hash)| router);
        expected.insert(router.to_owned(), lists);
    }
    ensure!(!expected.is_empty(), "no egress-router.yaml");
    Ok(expected)
}

/// Adds the routers that forward a tenant's connections, which `egress-router.yaml` reads from the node's metadata.
fn gather_routers(node: &Value, lists: &mut Lists) {
    for (tenant, settings) in node["metadata"].as_object().into_iter().flatten() {
        let routers = list(&settings["routers"]);
        if !routers.is_empty() {
            let names = routers.iter().filter_map(|router| Some(router.as_str()?.to_owned()));
            lists.insert(format!("{tenant}: routers"), names.collect());
        }
    }
}

/// Adds the lists of a listener: the CIDRs of each IP matcher, the ports, the filter chain for all other destinations, and the
/// identities of each filter chain.
fn gather(listener: &Value, lists: &mut Lists) {
    let listener_name = listener["name"].as_str().unwrap_or_default();
    let mut add = |name: &str, entries: BTreeSet<String>| {
        if !entries.is_empty() {
            lists.entry(format!("{listener_name}: {name}")).or_default().extend(entries);
        }
    };
    walk(&listener["filter_chain_matcher"], &mut |value| {
        let ranges = list(&value["typed_config"]["cidr_ranges"]);
        let range =
            |range: &Value| Some(format!("{}/{}", range["address_prefix"].as_str()?, range["prefix_len"].as_u64()?));
        add(value["name"].as_str().unwrap_or_default(), ranges.iter().filter_map(range).collect());
    });
    walk(&listener["filter_chain_matcher"], &mut |value| {
        let ports = value.pointer("/value_match/safe_regex/regex").and_then(Value::as_str);
        add("ports", ports.map(str::to_owned).into_iter().collect());
    });
    let others =
        listener.pointer("/filter_chain_matcher/on_no_match/action/typed_config/value").and_then(Value::as_str);
    add("others", others.map(str::to_owned).into_iter().collect());
    for chain in list(&listener["filter_chains"]) {
        add(&format!("identities of {}", chain["name"].as_str().unwrap_or_default()), identities(&chain));
    }
}

/// Returns the identities that a cluster or a filter chain accepts, as `KIND VALUE` unless exact.
pub fn identities(value: &Value) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    walk(value, &mut |value| {
        // Istio writes the older field, whose entries are the matchers themselves.
        let typed = list(&value["match_typed_subject_alt_names"]).into_iter().map(|name| name["matcher"].clone());
        for matcher in typed.chain(list(&value["match_subject_alt_names"])) {
            for (kind, value) in matcher.as_object().into_iter().flatten() {
                let Some(value) = value.as_str() else { continue };
                found.insert(if kind == "exact" { value.to_owned() } else { format!("{kind} {value}") });
            }
        }
    });
    found
}

/// Visits a value and all values in it.
fn walk(value: &Value, visit: &mut impl FnMut(&Value)) {
    visit(value);
    match value {
        Value::Array(elements) => elements.iter().for_each(|element| walk(element, visit)),
        Value::Object(members) => members.values().for_each(|member| walk(member, visit)),
        _ => {}
    }
}

/// Describes which lists differ, and in which entries.
fn differences(expected: &Lists, running: &Lists, manifests: &str) -> Vec<String> {
    let (empty, names) = (BTreeSet::new(), expected.keys().chain(running.keys()).collect::<BTreeSet<_>>());
    let mut wrong = Vec::new();
    for name in names {
        let (expected, running) = (expected.get(name).unwrap_or(&empty), running.get(name).unwrap_or(&empty));
        let join = |entries: Vec<&String>| entries.iter().map(|entry| entry.as_str()).collect::<Vec<_>>().join(" ");
        let (missing, surplus) =
            (join(expected.difference(running).collect()), join(running.difference(expected).collect()));
        if !missing.is_empty() {
            wrong.push(format!("its list \"{name}\" lacks {missing}, which {manifests} has"));
        }
        if !surplus.is_empty() {
            wrong.push(format!("its list \"{name}\" has {surplus}, which {manifests} does not have"));
        }
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn router(spec: &Value) -> Value {
        json!({ "metadata": { "name": "pod", "labels": { "app": "egress-router1" } }, "spec": spec })
    }

    #[test]
    fn pods_without_draining_or_with_another_account_are_named() {
        let envoy =
            |sleep: Value| json!([{ "name": "envoy", "lifecycle": { "preStop": { "sleep": { "seconds": sleep } } } }]);
        let cases = [
            (
                json!({ "serviceAccountName": "egress-router1", "terminationGracePeriodSeconds": 45, "containers": envoy(json!(30)) }),
                "",
            ),
            (
                json!({ "serviceAccountName": "egress-router1", "containers": envoy(json!(30)) }),
                "killed while it drains",
            ),
            (json!({ "serviceAccountName": "egress-router1", "containers": [{ "name": "envoy" }] }), "does not drain"),
            (
                json!({ "serviceAccountName": "default", "terminationGracePeriodSeconds": 45, "containers": envoy(json!(30)) }),
                "the service account default",
            ),
        ];
        for (spec, expected) in cases {
            let wrong = pod_wrong(&router(&spec));
            assert_eq!(wrong.len(), usize::from(!expected.is_empty()), "{wrong:?}");
            assert!(wrong.iter().all(|what| what.contains(expected)), "{wrong:?}");
        }
    }

    #[test]
    fn a_certificate_is_wrong_from_its_expiry_on() {
        let entry =
            json!({ "subject_alt_names": [{ "uri": "spiffe://a/b" }], "expiration_time": "2026-11-26T07:00:00Z" });
        let certificate = Certificate::read(&entry).unwrap();
        assert!(certificate.wrong("pod", "2026-11-26T06:59:59Z".parse().unwrap()).is_none());
        let message = certificate.wrong("pod", "2026-11-26T07:00:00Z".parse().unwrap()).unwrap();
        assert_eq!(message, "pod: its certificate expired at 2026-11-26T07:00:00Z: all its connections fail");
    }

    #[test]
    fn lists_that_differ_are_named_with_their_entries() {
        let listener = |cidr: &str, identity: &str| {
            json!({
                "name": "clients",
                "filter_chain_matcher": { "custom_match": { "name": "private", "typed_config": { "cidr_ranges": [
                    { "address_prefix": cidr, "prefix_len": 8 }, { "address_prefix": "192.168.0.0", "prefix_len": 16 }
                ] } } },
                "filter_chains": [{ "name": "allowed", "transport_socket": { "match_typed_subject_alt_names": [
                    { "san_type": "URI", "matcher": { "exact": identity } }
                ] } }],
            })
        };
        let lists = |listener: &Value| {
            let mut lists = Lists::new();
            gather(listener, &mut lists);
            lists
        };
        let expected = lists(&listener("10.0.0.0", "spiffe://a/b"));
        assert_eq!(differences(&expected, &expected, "istio"), [""; 0]);
        let running = lists(&listener("11.0.0.0", "spiffe://a/c"));
        assert_eq!(
            differences(&expected, &running, "istio"),
            [
                "its list \"clients: identities of allowed\" lacks spiffe://a/b, which istio has",
                "its list \"clients: identities of allowed\" has spiffe://a/c, which istio does not have",
                "its list \"clients: private\" lacks 10.0.0.0/8, which istio has",
                "its list \"clients: private\" has 11.0.0.0/8, which istio does not have",
            ]
        );
    }

    #[test]
    fn the_lists_of_the_shipped_manifests_are_read() {
        let file = |name: &str| std::fs::read_to_string(testbed::root().join("istio").join(name)).unwrap();
        let text = file("settings/routers.yaml") + &file("egress-routers/common/egress-router.yaml");
        let manifest = json!({ "kind": "ConfigMap", "metadata": { "name": "egress-router1-abc" }, "data": { "egress-router.yaml": text } });
        let lists = lists_of_manifests(&manifest.to_string()).unwrap();
        let lists = &lists["egress-router1"];
        for tenant in ["clients", "tenant-a", "tenant-b"] {
            for list in [
                "routers",
                "never",
                "private",
                "listed",
                "ports",
                "others",
                "identities of allowed",
                "identities of forbidden",
            ] {
                assert!(lists.contains_key(&format!("{tenant}: {list}")), "{tenant}: {list}: {lists:?}");
            }
        }
        assert!(lists["clients: private"].contains("10.0.0.0/8"));
        assert_eq!(lists["tenant-b: routers"], ["egress-router2".to_owned()].into());
        assert_eq!(lists["tenant-b: others"], ["forbidden".to_owned()].into());
    }

    #[test]
    fn identities_are_read_from_both_fields_of_envoy() {
        let typed =
            json!({ "match_typed_subject_alt_names": [{ "san_type": "URI", "matcher": { "exact": "spiffe://a/b" } }] });
        let older = json!({ "context": { "match_subject_alt_names": [{ "exact": "spiffe://a/b" }, { "prefix": "spiffe://c/" }] } });
        assert_eq!(identities(&typed), ["spiffe://a/b".to_owned()].into());
        assert_eq!(identities(&older), ["spiffe://a/b".to_owned(), "prefix spiffe://c/".to_owned()].into());
    }

    #[test]
    fn a_router_of_another_identity_is_named() {
        let routers = Routers {
            namespace: "egress-routers".into(),
            pods: Vec::new(),
            squatters: Vec::new(),
            presented: [("egress-router1".to_owned(), ["spiffe://t/ns/a/sa/egress-router1".to_owned()].into())].into(),
            certificates: Vec::new(),
        };
        let cluster = "outbound|8080||egress-router1.egress-routers.svc.cluster.local";
        let fault = |expected: &[&str]| {
            routers.identity_fault(cluster, &expected.iter().map(|one| (*one).to_owned()).collect())
        };
        assert_eq!(fault(&["spiffe://t/ns/a/sa/egress-router1"]), None);
        assert!(
            fault(&["spiffe://t/ns/b/sa/egress-router1"]).unwrap().contains("but the router presents spiffe://t/ns/a/")
        );
        assert!(fault(&[]).unwrap().contains("a router of any identity"));
        assert_eq!(routers.identity_fault("outbound|443||other.default.svc.cluster.local", &BTreeSet::new()), None);
    }
}
