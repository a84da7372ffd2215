//! The routing rule: a connection's addresses → what becomes of it. Pure: no host, no allocation.

use crate::{
    address::{Address, Endpoint},
    name,
    prefix::Prefix,
};
use alloc::vec::Vec;
use core::slice::Iter;

/// The routes in their order: the first that matches a connection decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// The entries of all routes, one after the other.
    pub entries: Vec<Entry>,
    /// The clusters of all routes, side by side, as indices of [`Self::clusters`].
    pub ways: Vec<usize>,
    /// The server names of all routes and the messages of all clusters, side by side.
    pub texts: Vec<u8>,
    /// What becomes of a connection that no route matches.
    pub otherwise: Action,
    /// What becomes of a connection that cannot be decided, or whose override the host refuses.
    pub on_error: Action,
    /// Every cluster that the routes name, once.
    pub clusters: Vec<Cluster>,
    /// The criteria that some route has, as the sum of their [`Criterion::bit`]s; what none asks for need not be read.
    pub needs: u32,
}

/// An entry of a route: those of its criteria, in any order, then where it sends a connection. Of each criterion that has
/// entries, one has to be met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A prefix of the source address, of the destination address or, in full length, of the destination port.
    Prefix(Criterion, Prefix),
    /// A server name that the client asks for (SNI), at this place of the table's texts.
    Name(Range),
    /// To the one of these of the table's ways at the index that is the source's last octet modulo their number.
    Clusters(Range),
    /// To no cluster of ours.
    Action(Action),
}

/// A part of one of the table's lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// Where it begins.
    pub start: usize,
    /// Where the next one begins.
    pub end: usize,
}

/// A cluster, as a part of the table's texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cluster {
    /// The message that overrides tcp_proxy's cluster, encoded once, at load.
    pub message: Range,
    /// Its name, with which the message ends.
    pub name: Range,
}

/// What becomes of a connection that takes no cluster of ours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Action {
    /// It keeps tcp_proxy's own cluster.
    #[default]
    Continue,
    /// It is closed.
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

impl Connection<'_> {
    /// An address, or the destination port as a number like them.
    fn number(&self, criterion: Criterion) -> Option<Address> {
        let endpoint = if criterion == Criterion::Source { &self.source } else { &self.destination }.as_ref()?;
        Some(if criterion == Criterion::DestinationPorts {
            Address { high: 0, low: endpoint.port.into() }
        } else {
            endpoint.address
        })
    }
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

impl Criterion {
    /// One bit, of its own.
    #[must_use]
    pub fn bit(self) -> u32 {
        1_u32.wrapping_shl(self as u32)
    }
}

/// Without routes, and with what the fields mean that a configuration does not give.
impl Default for Table {
    fn default() -> Self {
        Self {
            entries: Vec::new(),
            ways: Vec::new(),
            texts: Vec::new(),
            otherwise: Action::Continue,
            on_error: Action::Deny,
            clusters: Vec::new(),
            needs: 0,
        }
    }
}

impl Table {
    /// Whether some route asks for the destination.
    #[must_use]
    pub fn needs_destination(&self) -> bool {
        self.needs & (Criterion::Destination.bit() | Criterion::DestinationPorts.bit()) != 0
    }

    /// What becomes of the connection. What cannot be read decides before any route, so that no deny is missed.
    #[must_use]
    #[inline(never)]
    pub fn decide(&self, connection: &Connection<'_>) -> Decision {
        let Some(source) = connection.source else { return Decision::Unreadable(Criterion::Source) };
        if self.needs_destination() && connection.destination.is_none() {
            return Decision::Unreadable(Criterion::Destination);
        }
        let mut entries = self.entries.iter();
        let mut action = self.otherwise;
        while let Some((last, unmet)) = self.route(&mut entries, connection) {
            if unmet == 0 {
                match *last {
                    Entry::Clusters(ways) => return self.cluster(ways, source.address),
                    Entry::Action(of_route) => action = of_route,
                    _ => {}
                }
                break;
            }
        }
        Decision::Action(action)
    }

    /// The name of the cluster of this index.
    #[must_use]
    pub fn name(&self, cluster: usize) -> &[u8] {
        self.clusters.get(cluster).map_or(&[], |cluster| self.text(cluster.name))
    }

    /// The message that overrides tcp_proxy's cluster with that of this index; empty, which the host refuses, where there
    /// is none.
    #[must_use]
    pub fn message(&self, cluster: usize) -> &[u8] {
        self.clusters.get(cluster).map_or(&[], |cluster| self.text(cluster.message))
    }

    #[inline(never)]
    fn text(&self, place: Range) -> &[u8] {
        self.texts.get(place.start..place.end).unwrap_or_default()
    }

    fn cluster(&self, ways: Range, source: Address) -> Decision {
        let ways = self.ways.get(ways.start..ways.end).unwrap_or_default();
        let index = usize::from(source.last_octet()).checked_rem(ways.len());
        Decision::Cluster(index.and_then(|index| ways.get(index)).map_or(usize::MAX, |&way| way))
    }

    /// The last entry of the next route, and the bits of those of its criteria that the connection does not meet.
    pub fn route<'a>(&self, entries: &mut Iter<'a, Entry>, connection: &Connection<'_>) -> Option<(&'a Entry, u32)> {
        let (mut given, mut met) = (0, 0);
        loop {
            let entry = entries.next()?;
            let (criterion, meets) = match entry {
                Entry::Prefix(criterion, prefix) => {
                    (*criterion, connection.number(*criterion).is_some_and(|number| prefix.contains(number)))
                }
                Entry::Name(place) => (Criterion::Sni, name::matches(self.text(*place), connection.name)),
                Entry::Clusters(_) | Entry::Action(_) => return Some((entry, given & !met)),
            };
            given |= criterion.bit();
            if meets {
                met |= criterion.bit();
            }
        }
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
            Decision::Cluster(index) => core::str::from_utf8(table.name(index)).unwrap(),
            other => panic!("{source} → {destination}: {other:?}"),
        }
    }

    #[test]
    fn standalone_sends_even_to_egress1_and_odd_to_egress2() {
        let table = config::parse(b"standalone").unwrap();
        assert_eq!(table.needs, 0);
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
