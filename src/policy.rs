//! The routing policy: the attributes of a connection → the decision about it. Pure: it calls no host, and a decision
//! allocates nothing.

use crate::{
    address::Endpoint,
    routes::{Criterion, Routes, Target},
};
use alloc::{string::String, vec::Vec};

/// An ordered list of routes. The first route that matches a connection decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// The routes, in the order in which they are tried. Every [`ClusterIndex`] in them is a position in `clusters`.
    pub routes: Routes,
    /// The names of all clusters that the routes mention, each once.
    pub clusters: Vec<String>,
    /// The action for a connection that no route matches.
    pub otherwise: Action,
    /// The action for a connection if an address cannot be read or the proxy refuses the override.
    pub on_error: Action,
    /// Whether decisions are counted and logged, but not applied.
    pub observes: bool,
}

/// The position of a cluster in [`Policy::clusters`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClusterIndex(pub u16);

impl ClusterIndex {
    /// The position as a number.
    #[must_use]
    pub fn position(self) -> usize {
        self.0.into()
    }
}

/// The action for a connection that is not routed to a cluster of the policy. The filter returns [`Self::Continue`] for routed
/// connections, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The connection keeps the cluster that `tcp_proxy` is configured with.
    Continue,
    /// The connection is closed.
    Deny,
}

/// The attributes of a new connection that the policy reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionInfo<'a> {
    /// The address of the downstream peer, or `None` if the proxy did not return an IP address and port.
    pub source: Option<Endpoint>,
    /// The address that the peer connected to, or `None` if it is not an IP address and port or was not read. Behind an
    /// `original_dst` listener filter, this is the original destination, before redirection.
    pub destination: Option<Endpoint>,
    /// The server name of the TLS handshake. Empty if there is none or it was not read.
    pub server_name: &'a [u8],
}

/// The decision about a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// The connection is routed to this cluster of the policy.
    Cluster(ClusterIndex),
    /// The action of the matching route, or `otherwise`.
    Action(Action),
    /// The policy cannot decide because it needs this address. [`Policy::on_error`] applies.
    Unreadable(Side),
}

/// One of the two ends of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The downstream peer.
    Source,
    /// The address that the peer connected to.
    Destination,
}

impl Policy {
    /// A policy without routes, which denies every connection.
    #[must_use]
    pub fn deny_all() -> Self {
        Self {
            routes: Routes::default(),
            clusters: Vec::new(),
            otherwise: Action::Deny,
            on_error: Action::Deny,
            observes: false,
        }
    }

    /// The name of a cluster.
    #[must_use]
    pub fn cluster(&self, index: ClusterIndex) -> &str {
        self.clusters.get(index.position()).map_or("", String::as_str)
    }

    /// Returns whether some route asks for the destination address or port.
    #[must_use]
    pub fn reads_destination(&self) -> bool {
        let criteria = self.routes.criteria();
        criteria.contains(Criterion::Destination) || criteria.contains(Criterion::DestinationPorts)
    }

    /// Returns whether some route asks for the server name.
    #[must_use]
    pub fn reads_server_name(&self) -> bool {
        self.routes.criteria().contains(Criterion::Sni)
    }

    /// Decides about a connection. The source is always needed, the destination if any route asks for it. If one is
    /// missing, the result is [`Decision::Unreadable`] whatever the routes say, so that no `deny` route is missed.
    #[must_use]
    #[inline(never)]
    pub fn decide(&self, connection: &ConnectionInfo<'_>) -> Decision {
        let Some(source) = &connection.source else { return Decision::Unreadable(Side::Source) };
        if self.reads_destination() && connection.destination.is_none() {
            return Decision::Unreadable(Side::Destination);
        }
        let target = self.routes.evaluate(connection).find(|(unmet, _)| unmet.is_empty()).map(|(_, target)| target);
        match target {
            Some(Target::Clusters(clusters)) => match clusters.select(source.address) {
                Some(cluster) => Decision::Cluster(cluster),
                None => Decision::Action(Action::Deny),
            },
            Some(Target::Action(action)) => Decision::Action(action),
            None => Decision::Action(self.otherwise),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{address::parse_endpoint, config};

    fn connection<'a>(source: &str, destination: &str, server_name: &'a str) -> ConnectionInfo<'a> {
        let [source, destination] = [source, destination].map(|text| parse_endpoint(text.as_bytes()));
        ConnectionInfo { source, destination, server_name: server_name.as_bytes() }
    }

    fn cluster<'a>(policy: &'a Policy, source: &str, destination: &str) -> &'a str {
        match policy.decide(&connection(source, destination, "")) {
            Decision::Cluster(index) => policy.cluster(index),
            other => panic!("{source} → {destination}: {other:?}"),
        }
    }

    #[test]
    fn standalone_routes_even_to_egress1_and_odd_to_egress2() {
        let policy = config::parse(b"standalone").unwrap();
        assert!(!policy.reads_destination() && !policy.reads_server_name());
        for (source, expected) in [
            ("127.0.0.2:1", "egress1"),
            ("127.0.0.3:1", "egress2"),
            ("10.0.0.0:1", "egress1"),
            ("10.0.0.255:1", "egress2"),
            ("[::1]:1", "egress2"),
            ("[2001:db8::3]:443", "egress2"),
            ("[::ffff:192.168.1.100]:80", "egress1"),
        ] {
            assert_eq!(cluster(&policy, source, ""), expected, "{source}");
        }
    }

    #[test]
    fn istio_uses_router_port_8081_for_destination_port_80_only() {
        let policy = config::parse(b"istio").unwrap();
        for (source, destination, expected) in [
            ("10.0.0.2:1", "198.51.100.7:443", "outbound|8080||egress-router1.default.svc.cluster.local"),
            ("10.0.0.3:1", "198.51.100.7:443", "outbound|8080||egress-router2.default.svc.cluster.local"),
            ("10.0.0.2:1", "198.51.100.7:80", "outbound|8081||egress-router1.default.svc.cluster.local"),
            ("10.0.0.3:1", "[2001:db8::7]:80", "outbound|8081||egress-router2.default.svc.cluster.local"),
            ("10.0.0.2:1", "198.51.100.7:8080", "outbound|8080||egress-router1.default.svc.cluster.local"),
            ("10.0.0.2:80", "198.51.100.7:81", "outbound|8080||egress-router1.default.svc.cluster.local"),
        ] {
            assert_eq!(cluster(&policy, source, destination), expected, "{source} → {destination}");
        }
    }

    #[test]
    fn an_unreadable_address_decides_before_any_route() {
        let text = br#"{"routes":[{"clusters":["a"]},{"match":{"destination_ports":[25]},"action":"deny"}],"otherwise":"deny"}"#;
        let policy = config::parse(text).unwrap();
        let decide = |source, destination| policy.decide(&connection(source, destination, ""));
        let first = Decision::Cluster(ClusterIndex(0));
        assert_eq!(decide("/run/app.sock", "198.51.100.7:1"), Decision::Unreadable(Side::Source));
        assert_eq!(decide("10.0.0.2:1", "/run/app.sock"), Decision::Unreadable(Side::Destination));
        assert_eq!(decide("10.0.0.2:1", "198.51.100.7:25"), first);
        let standalone = config::parse(b"").unwrap();
        assert_eq!(standalone.decide(&connection("10.0.0.2:1", "/run/app.sock", "")), first);
    }

    #[test]
    fn the_cluster_index_is_the_last_octet_modulo_the_number_of_clusters() {
        let policy = config::parse(br#"{"routes":[{"clusters":["a","b","c"]}],"otherwise":"deny"}"#).unwrap();
        for (octet, expected) in [(0, "a"), (1, "b"), (2, "c"), (3, "a"), (254, "c"), (255, "a")] {
            assert_eq!(cluster(&policy, &std::format!("10.0.0.{octet}:1"), ""), expected, "{octet}");
        }
    }

    #[test]
    fn a_trailing_dot_does_not_evade_a_server_name() {
        for pattern in ["denied.example.com", "denied.example.com.", "*.example.com", "*.example.com."] {
            let text = std::format!(
                r#"{{"routes":[{{"match":{{"sni":["{pattern}"]}},"action":"deny"}}],"otherwise":"continue"}}"#
            );
            let policy = config::parse(text.as_bytes()).unwrap();
            for (name, expected) in [
                ("denied.example.com", Action::Deny),
                ("DENIED.example.com.", Action::Deny),
                ("denied.example.com..", Action::Continue),
                (".", Action::Continue),
                ("", Action::Continue),
            ] {
                let decision = policy.decide(&connection("10.0.0.2:1", "", name));
                assert_eq!(decision, Decision::Action(expected), "{pattern}: {name}");
            }
        }
    }
}
