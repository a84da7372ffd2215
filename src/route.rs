//! The routing rule: a connection's addresses → the cluster that it takes. Pure: no host, no allocation.

use crate::{address::last_octet, filter_state::Override};
use alloc::vec::Vec;
use core::net::SocketAddr;

/// The routes in their order: the first that matches a connection decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table(pub Vec<Route>);

/// Clusters, and which connections take them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The destination port that a connection must have, if any.
    pub destination_port: Option<u16>,
    /// The source address's last octet modulo their number is the index of the cluster taken.
    pub clusters: Vec<Override>,
}

/// The addresses of a connection, as far as they are IP addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    /// The downstream peer.
    pub source: Option<SocketAddr>,
    /// The address that the peer connected to; behind an original_dst listener filter, the one before interception.
    pub destination: Option<SocketAddr>,
}

/// What becomes of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision<'a> {
    /// It takes this cluster.
    Override(&'a Override),
    /// No route matched: it keeps tcp_proxy's own cluster.
    NoRoute,
    /// Its source is no IP address: it keeps tcp_proxy's own cluster.
    NoSource,
    /// A route asks for its destination, which is no IP address: it keeps tcp_proxy's own cluster.
    NoDestination,
}

impl Table {
    /// Whether some route asks for the destination; otherwise there is no need to read it.
    #[must_use]
    pub fn needs_destination(&self) -> bool {
        self.0.iter().any(|route| route.destination_port.is_some())
    }

    /// What becomes of the connection.
    #[must_use]
    pub fn decide(&self, connection: Connection) -> Decision<'_> {
        let Some(source) = connection.source else {
            return Decision::NoSource;
        };
        for route in &self.0 {
            if let Some(port) = route.destination_port {
                let Some(destination) = connection.destination else {
                    return Decision::NoDestination;
                };
                if destination.port() != port {
                    continue;
                }
            }
            return match usize::from(last_octet(source.ip())).checked_rem(route.clusters.len()) {
                Some(index) => route.clusters.get(index).map_or(Decision::NoRoute, Decision::Override),
                None => Decision::NoRoute,
            };
        }
        Decision::NoRoute
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{address, config};
    use std::vec;

    fn decide<'a>(table: &'a Table, source: &str, destination: &str) -> Decision<'a> {
        let parse = |text: &str| address::parse(text.as_bytes());
        table.decide(Connection { source: parse(source), destination: parse(destination) })
    }

    fn cluster<'a>(table: &'a Table, source: &str, destination: &str) -> &'a str {
        match decide(table, source, destination) {
            Decision::Override(to) => &to.cluster,
            other => panic!("{source} → {destination}: {other:?}"),
        }
    }

    #[test]
    fn standalone_sends_even_to_egress1_and_odd_to_egress2() {
        let table = config::parse(b"standalone").unwrap();
        assert!(!table.needs_destination());
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
        assert!(table.needs_destination());
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
    fn a_source_that_is_no_ip_address_decides_nothing() {
        for preset in [&b"standalone"[..], b"istio"] {
            let table = config::parse(preset).unwrap();
            assert_eq!(decide(&table, "/run/app.sock", "198.51.100.7:80"), Decision::NoSource);
        }
    }

    #[test]
    fn a_destination_matters_only_where_a_route_asks_for_it() {
        assert_eq!(cluster(&config::parse(b"").unwrap(), "10.0.0.2:1", "/run/app.sock"), "egress1");
        assert_eq!(decide(&config::parse(b"istio").unwrap(), "10.0.0.2:1", "/run/app.sock"), Decision::NoDestination);
    }

    #[test]
    fn without_a_route_or_a_cluster_nothing_is_decided() {
        assert_eq!(decide(&Table(vec![]), "10.0.0.2:1", ""), Decision::NoRoute);
        let empty = Route { destination_port: None, clusters: vec![] };
        assert_eq!(decide(&Table(vec![empty]), "10.0.0.2:1", ""), Decision::NoRoute);
    }
}
