//! The routing rule: a connection's addresses → what becomes of it. Pure: no host, no allocation.

use crate::{
    address::{Address, Endpoint},
    filter_state::Override,
    name::Pattern,
    prefix::Prefix,
};
use alloc::vec::Vec;

/// The routes in their order: the first that matches a connection decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// The routes.
    pub routes: Vec<Route>,
    /// What becomes of a connection that no route matches.
    pub otherwise: Action,
    /// What becomes of a connection that cannot be decided, or whose override the host refuses.
    pub on_error: Action,
    /// Every cluster that the routes name, once.
    pub clusters: Vec<Override>,
    /// Whether some route asks for the destination; otherwise there is no need to read it.
    pub needs_destination: bool,
    /// Whether some route asks for the server name; otherwise there is no need to read it.
    pub needs_name: bool,
}

/// Which connections take which way. Each criterion that is not empty has to be met, by one of its entries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Route {
    /// Prefixes of the source address.
    pub sources: Vec<Prefix>,
    /// Prefixes of the destination address.
    pub destinations: Vec<Prefix>,
    /// Destination ports.
    pub ports: Vec<u16>,
    /// Server names that the client asks for (SNI).
    pub names: Vec<Pattern>,
    /// Where it goes: to the one at the index that is the source's last octet modulo their number. Indices of the table's
    /// clusters.
    pub clusters: Vec<u16>,
    /// What becomes of it where the route has no clusters.
    pub action: Action,
}

/// What becomes of a connection that takes no cluster of ours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Action {
    /// It keeps tcp_proxy's own cluster.
    Continue,
    /// It is closed.
    #[default]
    Deny,
}

/// What is known of a connection when it arrives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Connection<'a> {
    /// The downstream peer; none where that is no IP address.
    pub source: Option<Endpoint>,
    /// The address that the peer connected to; behind an original_dst listener filter, the one before interception.
    pub destination: Option<Endpoint>,
    /// The server name of its TLS handshake; empty where there is none.
    pub name: &'a [u8],
}

/// What a route or a table can ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Criterion {
    /// `source`.
    Source,
    /// `destination`.
    Destination,
    /// `destination_ports`.
    DestinationPorts,
    /// `sni`.
    Sni,
}

/// What becomes of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It takes the cluster of this index of the table's.
    Cluster(usize),
    /// A route's or the table's action.
    Action(Action),
    /// It cannot be decided, as its source, or its destination that some route asks for, is no IP address.
    Unreadable(Criterion),
}

/// Without routes, and with what the fields mean that a configuration does not give.
impl Default for Table {
    fn default() -> Self {
        Self {
            routes: Vec::new(),
            otherwise: Action::Continue,
            on_error: Action::Deny,
            clusters: Vec::new(),
            needs_destination: false,
            needs_name: false,
        }
    }
}

impl Table {
    /// What becomes of the connection. What cannot be read decides before any route, so that no deny is missed.
    #[must_use]
    pub fn decide(&self, connection: &Connection<'_>) -> Decision {
        let Some(source) = connection.source else { return Decision::Unreadable(Criterion::Source) };
        if self.needs_destination && connection.destination.is_none() {
            return Decision::Unreadable(Criterion::Destination);
        }
        let Some(route) = self.routes.iter().find(|route| route.mismatch(connection).is_none()) else {
            return Decision::Action(self.otherwise);
        };
        let index = usize::from(source.address.last_octet()).checked_rem(route.clusters.len());
        match index.and_then(|index| route.clusters.get(index)) {
            Some(&cluster) => Decision::Cluster(cluster.into()),
            None => Decision::Action(route.action),
        }
    }
}

impl Route {
    /// The first criterion that the connection does not meet; none where the route matches.
    #[must_use]
    pub fn mismatch(&self, connection: &Connection<'_>) -> Option<Criterion> {
        let within = |prefixes: &[Prefix], endpoint: Option<Endpoint>| {
            let contain = |address: Address| prefixes.iter().any(|prefix| prefix.contains(address));
            prefixes.is_empty() || endpoint.is_some_and(|endpoint| contain(endpoint.address))
        };
        if !within(&self.sources, connection.source) {
            return Some(Criterion::Source);
        }
        if !within(&self.destinations, connection.destination) {
            return Some(Criterion::Destination);
        }
        if !self.ports.is_empty()
            && !connection.destination.is_some_and(|destination| self.ports.contains(&destination.port))
        {
            return Some(Criterion::DestinationPorts);
        }
        if !self.names.is_empty() && !self.names.iter().any(|name| name.matches(connection.name)) {
            return Some(Criterion::Sni);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{address, config};

    fn connection<'a>(source: &str, destination: &str, name: &'a str) -> Connection<'a> {
        let parse = |text: &str| address::parse(text.as_bytes());
        Connection { source: parse(source), destination: parse(destination), name: name.as_bytes() }
    }

    fn cluster<'a>(table: &'a Table, source: &str, destination: &str) -> &'a str {
        match table.decide(&connection(source, destination, "")) {
            Decision::Cluster(index) => &table.clusters[index].cluster,
            other => panic!("{source} → {destination}: {other:?}"),
        }
    }

    #[test]
    fn standalone_sends_even_to_egress1_and_odd_to_egress2() {
        let table = config::parse(b"standalone").unwrap();
        assert!(!table.needs_destination);
        for (source, expected) in [
            ("127.0.0.2:1", "egress1"),
            ("127.0.0.3:1", "egress2"),
            ("10.0.0.0:1", "egress1"),
            ("10.0.0.255:1", "egress2"),
            ("[::1]:1", "egress2"),
            ("[2001:db8::3]:443", "egress2"),
            ("[::ffff:192.168.1.100]:80", "egress1"),
        ] {
            assert_eq!(cluster(&table, source, ""), expected, "{source}");
        }
    }

    #[test]
    fn istio_takes_the_routers_port_8081_for_destination_port_80_only() {
        let table = config::parse(b"istio").unwrap();
        for (source, destination, expected) in [
            ("10.0.0.2:1", "198.51.100.7:443", "outbound|8080||egress-router1.default.svc.cluster.local"),
            ("10.0.0.3:1", "198.51.100.7:443", "outbound|8080||egress-router2.default.svc.cluster.local"),
            ("10.0.0.2:1", "198.51.100.7:80", "outbound|8081||egress-router1.default.svc.cluster.local"),
            ("10.0.0.3:1", "[2001:db8::7]:80", "outbound|8081||egress-router2.default.svc.cluster.local"),
            ("10.0.0.2:1", "198.51.100.7:8080", "outbound|8080||egress-router1.default.svc.cluster.local"),
            ("10.0.0.2:80", "198.51.100.7:81", "outbound|8080||egress-router1.default.svc.cluster.local"),
        ] {
            assert_eq!(cluster(&table, source, destination), expected, "{source} → {destination}");
        }
    }

    #[test]
    fn what_cannot_be_read_decides_before_any_route() {
        let text = br#"{"routes":[{"clusters":["a"]},{"match":{"destination_ports":[25]},"action":"deny"}]}"#;
        let table = config::parse(text).unwrap();
        let decide = |source, destination| table.decide(&connection(source, destination, ""));
        assert_eq!(decide("/run/app.sock", "198.51.100.7:1"), Decision::Unreadable(Criterion::Source));
        assert_eq!(decide("10.0.0.2:1", "/run/app.sock"), Decision::Unreadable(Criterion::Destination));
        assert_eq!(decide("10.0.0.2:1", "198.51.100.7:25"), Decision::Cluster(0));
        let standalone = config::parse(b"").unwrap();
        assert_eq!(standalone.decide(&connection("10.0.0.2:1", "/run/app.sock", "")), Decision::Cluster(0));
    }

    #[test]
    fn the_last_octet_modulo_their_number_is_the_clusters_index() {
        let table = config::parse(br#"{"routes":[{"clusters":["a","b","c"]}]}"#).unwrap();
        for (octet, expected) in [(0, "a"), (1, "b"), (2, "c"), (3, "a"), (254, "c"), (255, "a")] {
            assert_eq!(cluster(&table, &std::format!("10.0.0.{octet}:1"), ""), expected, "{octet}");
        }
    }
}
