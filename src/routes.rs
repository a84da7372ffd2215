//! The routes of a policy, encoded in one list of bytes. Nested lists of structs need more code to grow and free them: with them,
//! the module was 263 bytes larger.
//!
//! ```text
//! routes     route*
//! route      condition* target
//! condition  SOURCE            network (16 bytes)  mask (16 bytes)
//!          | DESTINATION       network (16 bytes)  mask (16 bytes)
//!          | DESTINATION_PORTS port (2 bytes)
//!          | SNI               length in bytes (2 bytes)  pattern
//! target     CLUSTERS          length in bytes (2 bytes)  index (2 bytes)*
//!          | CONTINUE
//!          | DENY
//! ```
//!
//! Words in capitals are one byte, a [`tag`]. Numbers are little-endian. Conditions are in any order.

use crate::{
    address::Address,
    cidr::Cidr,
    cursor::Cursor,
    policy::{Action, ClusterIndex, ConnectionInfo},
    server_name::ServerNamePattern,
};
use alloc::vec::Vec;

/// The tags of conditions, which are also the bits of [`Criteria`], and those of targets.
mod tag {
    pub const SOURCE: u8 = 1;
    pub const DESTINATION: u8 = 2;
    pub const DESTINATION_PORTS: u8 = 4;
    pub const SNI: u8 = 8;
    pub const CLUSTERS: u8 = 16;
    pub const CONTINUE: u8 = 17;
    pub const DENY: u8 = 18;
}

/// A list in a route's `match`, whose entries are conditions. For each criterion of a route, at least one condition must hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Criterion {
    /// `source`.
    Source = tag::SOURCE as isize,
    /// `destination`.
    Destination = tag::DESTINATION as isize,
    /// `destination_ports`.
    DestinationPorts = tag::DESTINATION_PORTS as isize,
    /// `sni`.
    Sni = tag::SNI as isize,
}

/// A set of criteria.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Criteria(u8);

impl Criteria {
    /// Returns whether the set is empty.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Returns whether the set contains a criterion.
    #[must_use]
    pub fn contains(self, criterion: Criterion) -> bool {
        self.0 & criterion as u8 != 0
    }
}

/// The target of a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target<'a> {
    /// One of these clusters.
    Clusters(Clusters<'a>),
    /// An action, without a cluster of the policy.
    Action(Action),
}

/// The clusters of a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clusters<'a>(&'a [[u8; 2]]);

impl Clusters<'_> {
    /// Selects the cluster at the index (last octet of the source address) modulo (number of clusters). Returns `None` if
    /// there are none, which no accepted configuration allows.
    #[must_use]
    pub fn select(self, source: Address) -> Option<ClusterIndex> {
        let index = usize::from(source.last_octet()).checked_rem(self.0.len())?;
        self.0.get(index).map(|&index| ClusterIndex(u16::from_le_bytes(index)))
    }
}

/// The routes, in the order in which they are tried.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Routes {
    bytes: Vec<u8>,
    /// The criteria of all routes.
    criteria: Criteria,
}

impl Routes {
    /// The criteria that some route has.
    #[must_use]
    pub fn criteria(&self) -> Criteria {
        self.criteria
    }

    /// Compares each route with a connection.
    #[must_use]
    pub fn evaluate<'a>(&'a self, connection: &'a ConnectionInfo<'a>) -> Evaluation<'a> {
        Evaluation { cursor: Cursor::new(&self.bytes), connection }
    }

    /// Records that some route has this criterion. Without this call, the filter does not read the attribute, and routes with the
    /// criterion never match.
    pub(crate) fn note_criterion(&mut self, criterion: Criterion) {
        self.criteria.0 |= criterion as u8;
    }

    /// Adds a prefix of the source or destination address to the route that is being added.
    pub(crate) fn add_prefix(&mut self, criterion: Criterion, cidr: &Cidr) {
        self.bytes.push(criterion as u8);
        self.bytes.extend_from_slice(cidr.to_bytes().as_flattened());
    }

    /// Adds a destination port to the route that is being added.
    pub(crate) fn add_port(&mut self, port: u16) {
        self.bytes.push(tag::DESTINATION_PORTS);
        self.add_number(port);
    }

    /// Adds a server name to the route that is being added. It has at most 65,535 bytes.
    pub(crate) fn add_server_name(&mut self, pattern: ServerNamePattern<'_>) {
        self.bytes.push(tag::SNI);
        self.add_bytes(pattern.as_bytes());
    }

    /// Ends a route with an action.
    pub(crate) fn end_with_action(&mut self, action: Action) {
        self.bytes.push(match action {
            Action::Continue => tag::CONTINUE,
            Action::Deny => tag::DENY,
        });
    }

    /// Ends a route with clusters, which are given as indices of two bytes. There are at most 32,767.
    pub(crate) fn end_with_clusters(&mut self, indices: &[u8]) {
        self.bytes.push(tag::CLUSTERS);
        self.add_bytes(indices);
    }

    #[expect(clippy::cast_possible_truncation, reason = "the callers limit the length")]
    fn add_bytes(&mut self, bytes: &[u8]) {
        self.add_number(bytes.len() as u16);
        self.bytes.extend_from_slice(bytes);
    }

    fn add_number(&mut self, number: u16) {
        self.bytes.extend_from_slice(&number.to_le_bytes());
    }
}

/// Yields, for each route, the criteria that the connection does not meet, and the target. The policy takes the first route
/// without unmet criteria; tools show the others.
#[derive(Clone, Debug)]
pub struct Evaluation<'a> {
    cursor: Cursor<'a>,
    connection: &'a ConnectionInfo<'a>,
}

impl<'a> Iterator for Evaluation<'a> {
    type Item = (Criteria, Target<'a>);

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        let (mut given, mut met) = (0, 0);
        let target = loop {
            let tag = self.cursor.read_byte()?;
            let holds = match tag {
                tag::SOURCE | tag::DESTINATION => {
                    let cidr = Cidr::from_bytes([*self.cursor.array()?, *self.cursor.array()?]);
                    let endpoint =
                        if tag == tag::SOURCE { &self.connection.source } else { &self.connection.destination };
                    endpoint.as_ref().is_some_and(|endpoint| cidr.contains(endpoint.address))
                }
                tag::DESTINATION_PORTS => {
                    let port = u16::from_le_bytes(*self.cursor.array()?);
                    self.connection.destination.as_ref().is_some_and(|endpoint| endpoint.port == port)
                }
                tag::SNI => ServerNamePattern::from_bytes(self.read_bytes()?).matches(self.connection.server_name),
                tag::CLUSTERS => break Target::Clusters(Clusters(self.read_bytes()?.as_chunks().0)),
                tag::CONTINUE => break Target::Action(Action::Continue),
                _ => break Target::Action(Action::Deny),
            };
            given |= tag;
            if holds {
                met |= tag;
            }
        };
        Some((Criteria(given & !met), target))
    }
}

impl<'a> Evaluation<'a> {
    fn read_bytes(&mut self) -> Option<&'a [u8]> {
        let length = u16::from_le_bytes(*self.cursor.array()?);
        self.cursor.bytes(length.into())
    }
}
