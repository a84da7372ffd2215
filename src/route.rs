//! The routing rule: a connection's addresses → what becomes of it. Pure: no host, and deciding allocates nothing.

use crate::{
    address::{Address, Endpoint},
    bytes::Bytes,
    cursor::Cursor,
    filter_state, name,
    prefix::Prefix,
};

/// The routes in their order: the first that matches a connection decides.
#[derive(Debug, PartialEq, Eq)]
pub struct Table {
    /// The routes, one after the other. A route is the entries of its criteria, in any order, each behind the criterion's
    /// bit, and then, behind a [`tag`], where it sends a connection.
    routes: Bytes,
    /// The clusters of all routes, side by side, as places in [`Self::clusters`].
    ways: Bytes,
    /// Every cluster that the routes name, once.
    clusters: Bytes,
    /// What becomes of a connection that no route matches.
    pub otherwise: Action,
    /// What becomes of a connection that cannot be decided, or whose override the host refuses.
    pub on_error: Action,
    /// The criteria that some route has, as the sum of their bits; what none asks for need not be read.
    pub needs: u8,
}

/// What ends a route; no [`Criterion`] has these bits.
mod tag {
    pub const CLUSTERS: u8 = 0x10;
    pub const CONTINUE: u8 = 0x20;
    pub const DENY: u8 = 0x21;
}

/// Where a route sends a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// To the one of these of the table's ways at the index that is the source's last octet modulo their number.
    Clusters {
        /// Where they begin.
        start: usize,
        /// Where the next ones begin.
        end: usize,
    },
    /// To no cluster of ours.
    Action(Action),
}

/// A cluster of a table's.
pub struct Cluster<'a> {
    /// Its name.
    pub name: &'a [u8],
    /// The message that overrides tcp_proxy's cluster with it, encoded once, at load.
    pub message: &'a [u8],
    /// The number that the filter has given it.
    pub counter: usize,
    /// The place of the next one.
    pub next: usize,
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

/// What a route or a table can ask for: one bit, of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Criterion {
    /// `source`.
    Source = 1,
    /// `destination`.
    Destination = 2,
    /// `destination_ports`.
    DestinationPorts = 4,
    /// `sni`.
    Sni = 8,
}

/// What becomes of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It takes the cluster at this place of the table's.
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
            routes: Bytes::default(),
            ways: Bytes::default(),
            clusters: Bytes::default(),
            otherwise: Action::Continue,
            on_error: Action::Deny,
            needs: 0,
        }
    }
}

impl Table {
    /// Adds to the route that is being written a prefix of the source or the destination address.
    pub fn add_prefix(&mut self, criterion: Criterion, prefix: &Prefix) {
        self.routes.push(criterion as u8);
        prefix.write(&mut self.routes);
    }

    /// Adds to the route that is being written a destination port.
    pub fn add_port(&mut self, port: u32) {
        self.routes.push(Criterion::DestinationPorts as u8);
        self.routes.push_word(port as usize);
    }

    /// Adds to the route that is being written a server name that the client asks for (SNI).
    pub fn add_name(&mut self, pattern: &[u8]) {
        self.routes.push(Criterion::Sni as u8);
        self.routes.push_word(pattern.len());
        self.routes.extend(pattern);
    }

    /// Where the next way will be.
    #[must_use]
    pub fn next_way(&self) -> usize {
        self.ways.len()
    }

    /// Adds a way, to the cluster at this place.
    pub fn add_way(&mut self, cluster: usize) {
        self.ways.push_word(cluster);
    }

    /// Ends the route that is being written: to the clusters of the ways from this one on.
    pub fn end_with_clusters(&mut self, start: usize) {
        self.routes.push(tag::CLUSTERS);
        self.routes.push_word(start);
        self.routes.push_word(self.ways.len());
    }

    /// Ends the route that is being written: to no cluster of ours.
    pub fn end_with_action(&mut self, action: Action) {
        self.routes.push(match action {
            Action::Continue => tag::CONTINUE,
            Action::Deny => tag::DENY,
        });
    }

    /// Adds a cluster, behind the last one; its place.
    pub fn add_cluster(&mut self, name: &[u8]) -> usize {
        let start = self.clusters.len();
        self.clusters.push_word(0);
        self.clusters.push_word(name.len());
        filter_state::encode(name, &mut self.clusters);
        start
    }

    /// Gives the cluster at this place a number.
    pub fn set_counter(&mut self, cluster: usize, counter: usize) {
        self.clusters.set_word(cluster, counter);
    }

    /// The cluster at this place: the first one is at 0, and from [`Self::end_of_clusters`] on there is an empty one, whose
    /// message the host refuses.
    #[must_use]
    #[inline(never)]
    pub fn cluster(&self, place: usize) -> Cluster<'_> {
        let mut rest = Cursor(self.clusters.get(place..).unwrap_or_default());
        let (counter, length) = (rest.word().unwrap_or(0), rest.word().unwrap_or(0));
        let message = rest.bytes(filter_state::size(length));
        let name = message.len().checked_sub(length).and_then(|start| message.get(start..)).unwrap_or_default();
        Cluster { name, message, counter, next: self.clusters.len().wrapping_sub(rest.0.len()) }
    }

    /// The place behind the last cluster.
    #[must_use]
    pub fn end_of_clusters(&self) -> usize {
        self.clusters.len()
    }

    /// Whether some route asks for the destination.
    #[must_use]
    pub fn needs_destination(&self) -> bool {
        self.needs & (Criterion::Destination as u8 | Criterion::DestinationPorts as u8) != 0
    }

    /// What becomes of the connection. What cannot be read decides before any route, so that no deny is missed.
    #[must_use]
    #[inline(never)]
    pub fn decide(&self, connection: &Connection<'_>) -> Decision {
        let Some(source) = connection.source else { return Decision::Unreadable(Criterion::Source) };
        if self.needs_destination() && connection.destination.is_none() {
            return Decision::Unreadable(Criterion::Destination);
        }
        let mut rest = self.routes();
        while let Some((way, unmet)) = route(&mut rest, connection) {
            if unmet == 0 {
                return match way {
                    Way::Clusters { start, end } => self.way(start, end, source.address),
                    Way::Action(action) => Decision::Action(action),
                };
            }
        }
        Decision::Action(self.otherwise)
    }

    fn way(&self, start: usize, end: usize, source: Address) -> Decision {
        let ways = self.ways.get(start..end).unwrap_or_default();
        let index = usize::from(source.last_octet()).checked_rem(ways.len() / 4).unwrap_or(0);
        let mut way = Cursor(ways.get(index.wrapping_mul(4)..).unwrap_or_default());
        Decision::Cluster(way.word().unwrap_or(usize::MAX))
    }

    /// What [`route`] reads.
    #[must_use]
    pub fn routes(&self) -> Cursor<'_> {
        Cursor(&self.routes)
    }
}

/// Where the next route of a table sends a connection, and the bits of those of its criteria that the connection does not
/// meet: of each criterion that has entries, one has to be met.
///
/// This is what every connection goes through. So it calls nothing but for a server name: V8 need not inline anything, and what
/// is left of the routes stays in registers.
#[inline(always)]
pub fn route(routes: &mut Cursor<'_>, connection: &Connection<'_>) -> Option<(Way, u8)> {
    let (mut given, mut met) = (0, 0);
    loop {
        let [tag] = *routes.chunk()?;
        let meets = match tag {
            tag::CLUSTERS => {
                return Some((Way::Clusters { start: routes.word()?, end: routes.word()? }, given & !met));
            }
            tag::CONTINUE => return Some((Way::Action(Action::Continue), given & !met)),
            tag::DENY => return Some((Way::Action(Action::Deny), given & !met)),
            SNI => {
                let length = routes.word()?;
                let (pattern, rest) = routes.0.split_at_checked(length)?;
                routes.0 = rest;
                name::matches(pattern, connection.name)
            }
            DESTINATION_PORTS => {
                let port = routes.word()?;
                connection.destination.is_some_and(|destination| destination.port as usize == port)
            }
            _ => {
                let prefix = Prefix::read(routes)?;
                let endpoint = if tag == SOURCE { &connection.source } else { &connection.destination };
                endpoint.as_ref().is_some_and(|endpoint| prefix.contains(endpoint.address))
            }
        };
        given |= tag;
        if meets {
            met |= tag;
        }
    }
}

const SOURCE: u8 = Criterion::Source as u8;
const DESTINATION_PORTS: u8 = Criterion::DestinationPorts as u8;
const SNI: u8 = Criterion::Sni as u8;

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
            Decision::Cluster(place) => core::str::from_utf8(table.cluster(place).name).unwrap(),
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
