//! A second implementation of the configuration and the decision, as simple as their documentation, with serde_json, ipnet and the
//! standard library.

use crate::{cidr::by_ipnet, json::Json, server_name};
use ipnet::IpNet;
use sluice::config::{MAX_CLUSTER_REFERENCES, MAX_CLUSTERS, MAX_CLUSTERS_PER_ROUTE, MAX_ROUTES, MAX_SIZE};
use std::{
    collections::HashSet,
    fmt::{self, Write},
    net::{IpAddr, SocketAddr},
};

pub use sluice::policy::Action;

/// A configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Model {
    /// The routes.
    pub routes: Vec<Route>,
    /// The action if no route matches.
    pub otherwise: Action,
    /// The action if an address cannot be read or an override is refused.
    pub on_error: Action,
    /// Whether decisions are counted and logged, but not applied.
    pub observes: bool,
}

/// A route. A list that is `None` matches everything.
#[derive(Clone, Debug, PartialEq)]
pub struct Route {
    /// Prefixes of the client's address.
    pub source: Option<Vec<IpNet>>,
    /// Prefixes of the address that the client connected to.
    pub destination: Option<Vec<IpNet>>,
    /// Ports that the client connected to.
    pub destination_ports: Option<Vec<u16>>,
    /// Patterns of server names.
    pub sni: Option<Vec<String>>,
    /// The target of matching connections.
    pub target: Target,
}

/// The target of a route.
#[derive(Clone, Debug, PartialEq)]
pub enum Target {
    /// One of these clusters.
    Clusters(Vec<String>),
    /// An action without a cluster.
    Action(Action),
}

/// A decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict<'a> {
    /// The connection is routed to this cluster.
    Cluster(&'a str),
    /// The action of the matching route, or of `otherwise`.
    Action(Action),
    /// An address that the configuration requires is missing.
    Unreadable,
}

const STANDALONE: &str =
    r#"{"on_error":"continue","otherwise":"continue","routes":[{"clusters":["egress1","egress2"]}]}"#;
const ISTIO: &str = r#"{"otherwise":"deny","routes":[
    {"clusters":["outbound|8081||egress-router1.default.svc.cluster.local",
    "outbound|8081||egress-router2.default.svc.cluster.local"],"match":{"destination_ports":[80]}},
    {"clusters":["outbound|8080||egress-router1.default.svc.cluster.local",
    "outbound|8080||egress-router2.default.svc.cluster.local"]}]}"#;

fn preset(name: &str) -> Option<Model> {
    let text = match name {
        "standalone" => STANDALONE,
        "istio" => ISTIO,
        _ => return None,
    };
    Model::of(&serde_json::from_str(text).ok()?)
}

impl Model {
    /// Returns the model of a configuration in JSON or of a preset's name, or `None` if it must be rejected.
    #[must_use]
    pub fn of_text(document: &[u8]) -> Option<Self> {
        match document {
            b"" => preset("standalone"),
            b"standalone" | b"istio" => preset(std::str::from_utf8(document).ok()?),
            _ if document.len() > MAX_SIZE => None,
            _ => Self::of(&serde_json::from_slice(document).ok()?),
        }
    }

    /// Returns the model of an object, or `None` if it must be rejected.
    #[must_use]
    pub fn of(json: &Json) -> Option<Self> {
        let [routes, otherwise, on_error, mode, name] =
            fields(json, ["routes", "otherwise", "on_error", "mode", "preset"])?;
        if let Some(name) = name {
            let alone = [routes, otherwise, on_error, mode].iter().all(Option::is_none);
            return if alone { preset(text(name)?) } else { None };
        }
        let observes = match mode.map(text) {
            None | Some(Some("enforce")) => false,
            Some(Some("observe")) => true,
            _ => return None,
        };
        let routes = list(routes?, MAX_ROUTES)?.iter().map(Route::of).collect::<Option<Vec<_>>>()?;
        let clusters = || routes.iter().flat_map(|route| route.target.clusters());
        if clusters().count() > MAX_CLUSTER_REFERENCES || clusters().collect::<HashSet<_>>().len() > MAX_CLUSTERS {
            return None;
        }
        let on_error = on_error.map_or(Some(Action::Deny), action)?;
        Some(Self { routes, otherwise: action(otherwise?)?, on_error, observes })
    }

    /// Returns the names of all clusters, in the order of their first occurrence.
    #[must_use]
    pub fn clusters(&self) -> Vec<&str> {
        let mut known = HashSet::new();
        let mut clusters: Vec<&str> =
            self.routes.iter().flat_map(|route| route.target.clusters()).map(String::as_str).collect();
        clusters.retain(|name| known.insert(*name));
        clusters
    }

    /// Returns the decision about a connection.
    #[must_use]
    pub fn decide(&self, source: Option<SocketAddr>, destination: Option<SocketAddr>, name: &[u8]) -> Verdict<'_> {
        let Some(source) = source else { return Verdict::Unreadable };
        if self.reads_destination() && destination.is_none() {
            return Verdict::Unreadable;
        }
        match self.routes.iter().find(|route| route.matches(source, destination, name)).map(|route| &route.target) {
            Some(Target::Clusters(clusters)) => {
                let last = match source.ip() {
                    IpAddr::V4(ip) => ip.octets()[3],
                    IpAddr::V6(ip) => ip.octets()[15],
                };
                Verdict::Cluster(&clusters[usize::from(last) % clusters.len()])
            }
            Some(Target::Action(action)) => Verdict::Action(*action),
            None => Verdict::Action(self.otherwise),
        }
    }

    /// Returns whether any route matches on the destination.
    #[must_use]
    pub fn reads_destination(&self) -> bool {
        self.routes.iter().any(|route| route.destination.is_some() || route.destination_ports.is_some())
    }

    /// Returns whether any route matches on the server name.
    #[must_use]
    pub fn reads_server_name(&self) -> bool {
        self.routes.iter().any(|route| route.sni.is_some())
    }
}

impl Route {
    fn of(json: &Json) -> Option<Self> {
        let [criteria, clusters, fixed] = fields(json, ["match", "clusters", "action"])?;
        let nothing = Json::Object(Vec::new());
        let [source, destination, ports, sni] =
            fields(criteria.unwrap_or(&nothing), ["source", "destination", "destination_ports", "sni"])?;
        let target = match (clusters, fixed) {
            (Some(clusters), None) => Target::Clusters(entries(clusters, MAX_CLUSTERS_PER_ROUTE, |name| {
                Some(text(name)?.to_owned()).filter(|name| !name.is_empty())
            })?),
            (None, Some(fixed)) => Target::Action(action(fixed)?),
            _ => return None,
        };
        let prefix = |entry: &Json| by_ipnet(text(entry)?.as_bytes());
        let port = |entry: &Json| match entry {
            Json::Whole(port @ 1..=65_535) => u16::try_from(*port).ok(),
            _ => None,
        };
        let name = |entry: &Json| Some(text(entry)?.to_owned()).filter(|name| server_name::is_pattern(name.as_bytes()));
        Some(Self {
            source: optional(source, prefix)?,
            destination: optional(destination, prefix)?,
            destination_ports: optional(ports, port)?,
            sni: optional(sni, name)?,
            target,
        })
    }

    fn matches(&self, source: SocketAddr, destination: Option<SocketAddr>, name: &[u8]) -> bool {
        let within = |prefixes: &Option<Vec<IpNet>>, address: Option<SocketAddr>| {
            let Some(prefixes) = prefixes else { return true };
            address.is_some_and(|address| prefixes.iter().any(|net| net.contains(&address.ip().to_canonical())))
        };
        let ports = self.destination_ports.as_ref();
        within(&self.source, Some(source))
            && within(&self.destination, destination)
            && ports.is_none_or(|ports| destination.is_some_and(|address| ports.contains(&address.port())))
            && self
                .sni
                .as_ref()
                .is_none_or(|names| names.iter().any(|pattern| server_name::is_match(pattern.as_bytes(), name)))
    }
}

impl Target {
    fn clusters(&self) -> &[String] {
        match self {
            Self::Clusters(clusters) => clusters,
            Self::Action(_) => &[],
        }
    }
}

/// Returns the values of these fields of an object, or `None` if it has other fields or a field twice.
fn fields<'a, const N: usize>(json: &'a Json, names: [&str; N]) -> Option<[Option<&'a Json>; N]> {
    let Json::Object(given) = json else { return None };
    let mut found = [None; N];
    for (name, value) in given {
        let slot = &mut found[names.iter().position(|known| known == name)?];
        if slot.replace(value).is_some() {
            return None;
        }
    }
    Some(found)
}

fn list(json: &Json, max: usize) -> Option<&[Json]> {
    match json {
        Json::List(items) if !items.is_empty() && items.len() <= max => Some(items),
        _ => None,
    }
}

fn entries<T>(json: &Json, max: usize, entry: impl FnMut(&Json) -> Option<T>) -> Option<Vec<T>> {
    list(json, max)?.iter().map(entry).collect()
}

#[expect(
    clippy::option_option,
    reason = "the outer option is None for an invalid value, the inner one for an absent value"
)]
fn optional<T>(json: Option<&Json>, entry: impl FnMut(&Json) -> Option<T>) -> Option<Option<Vec<T>>> {
    json.map_or(Some(None), |json| entries(json, usize::MAX, entry).map(Some))
}

fn text(json: &Json) -> Option<&str> {
    match json {
        Json::Text(text) if text.len() <= 1_024 => Some(text),
        _ => None,
    }
}

fn action(json: &Json) -> Option<Action> {
    match text(json)? {
        "continue" => Some(Action::Continue),
        "deny" => Some(Action::Deny),
        _ => None,
    }
}

fn word(action: Action) -> &'static str {
    match action {
        Action::Continue => "continue",
        Action::Deny => "deny",
    }
}

/// Formats the model as JSON text.
impl fmt::Display for Model {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("{\"routes\":")?;
        write_list(out, &self.routes, |out, route| write!(out, "{route}"))?;
        write!(out, ",\"otherwise\":\"{}\",\"on_error\":\"{}\"", word(self.otherwise), word(self.on_error))?;
        out.write_str(if self.observes { ",\"mode\":\"observe\"}" } else { "}" })
    }
}

impl fmt::Display for Route {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("{\"match\":{")?;
        let mut comma = "";
        for (name, prefixes) in [("source", &self.source), ("destination", &self.destination)] {
            if let Some(prefixes) = prefixes {
                write!(out, "{comma}\"{name}\":")?;
                write_list(out, prefixes, |out, net| write!(out, "\"{net}\""))?;
                comma = ",";
            }
        }
        if let Some(ports) = &self.destination_ports {
            write!(out, "{comma}\"destination_ports\":")?;
            write_list(out, ports, |out, port| write!(out, "{port}"))?;
            comma = ",";
        }
        if let Some(names) = &self.sni {
            write!(out, "{comma}\"sni\":")?;
            write_list(out, names, |out, name| write!(out, "\"{name}\""))?;
        }
        match &self.target {
            Target::Clusters(clusters) => {
                out.write_str("},\"clusters\":")?;
                write_list(out, clusters, |out, name| out.write_str(&serde_json::to_string(name).unwrap()))?;
                out.write_char('}')
            }
            Target::Action(action) => write!(out, "}},\"action\":\"{}\"}}", word(*action)),
        }
    }
}

fn write_list<T>(
    out: &mut fmt::Formatter<'_>,
    items: &[T],
    write: impl Fn(&mut fmt::Formatter<'_>, &T) -> fmt::Result,
) -> fmt::Result {
    for (index, item) in items.iter().enumerate() {
        out.write_char(if index == 0 { '[' } else { ',' })?;
        write(out, item)?;
    }
    out.write_char(']')
}
