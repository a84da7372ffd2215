//! The plugin configuration: its format, and how it becomes a [`Policy`].
//!
//! A configuration is either the bare name of a preset, without quotes and white space (`standalone` or `istio`; an empty
//! configuration means `standalone`), or an object. The object is JSON text or a `google.protobuf.Struct`:
//!
//! ```json
//! {
//!   "routes": [
//!     {
//!       "match": {
//!         "source": ["10.1.0.0/16", "fd00:1::/64"],
//!         "destination": ["198.51.100.0/24"],
//!         "destination_ports": [80, 8000],
//!         "sni": ["www.example.com", "*.example.org"]
//!       },
//!       "clusters": ["egress1", "egress2", "egress3"]
//!     },
//!     { "match": { "destination_ports": [25] }, "action": "deny" },
//!     { "match": { "destination": ["10.96.0.0/12"] }, "action": "continue" },
//!     { "clusters": ["egress1", "egress2"] }
//!   ],
//!   "otherwise": "deny",
//!   "on_error": "deny"
//! }
//! ```
//!
//! | field | meaning | default |
//! | ----- | ------- | ------- |
//! | `routes` | The list of routes. The first one whose criteria all match decides. | required |
//! | `routes[].match` | The criteria. Each is a list, and at least one of its entries must match. | matches everything |
//! | `….source`, `….destination` | CIDRs without host bits, of the client and of the address it connected to. | matches everything |
//! | `….destination_ports` | TCP ports, 1 to 65535. | matches everything |
//! | `….sni` | Server names: a host name, or `*.hostname` for one or more labels before it. A connection without a server name matches none; this is not an error. | matches everything |
//! | `routes[].clusters` | Cluster names. The last octet of the source modulo their number selects one. | either `clusters` or `action` is required |
//! | `routes[].action` | `continue` keeps the cluster of `tcp_proxy`; `deny` closes the connection. | either `clusters` or `action` is required |
//! | `otherwise` | The action if no route matches. | required |
//! | `on_error` | The action if the proxy returns no IP address and port for the source, or for the destination if any route has `destination` or `destination_ports`. Also the action if the proxy refuses the override. | `deny` |
//! | `mode` | `enforce`, or `observe`: decisions are counted and logged, but not applied, so that every connection keeps the cluster of `tcp_proxy`. Each load of such a configuration is logged as a warning. | `enforce` |
//! | `preset` | The name of a preset. Cannot be combined with other fields. | |
//!
//! No list may be empty. The Wasm module receives an empty Struct as an empty configuration, which means `standalone`; `{}` is
//! rejected. `schema/sluice.schema.json` describes the format as a JSON Schema.

use crate::{
    cidr::Cidr,
    config_error::ConfigError,
    document::{Reader, word_index},
    host::Status,
    policy::{Action, ClusterIndex, Policy},
    routes::Criterion,
    server_name::ServerNamePattern,
    text::{Text, owned},
};
use alloc::{boxed::Box, vec::Vec};

// The error messages repeat the numbers below.

/// The maximum size of a configuration, in bytes.
pub const MAX_SIZE: usize = 256 * 1_024;
/// The maximum number of routes.
pub const MAX_ROUTES: usize = 1_024;
/// The maximum number of clusters with different names.
pub const MAX_CLUSTERS: usize = 1_024;
/// The maximum number of clusters in one route. A last octet cannot select more.
pub const MAX_CLUSTERS_PER_ROUTE: usize = 256;
/// The maximum number of entries in all `clusters` lists together.
pub const MAX_CLUSTER_REFERENCES: usize = 16_384;

/// The names of the presets, at the indices of [`PRESETS`].
const PRESET_NAMES: &str = "standalone istio";

/// The presets, as the configurations that they stand for.
const PRESETS: [&str; 2] = [
    r#"{"routes":[{"clusters":["egress1","egress2"]}],"otherwise":"continue","on_error":"continue"}"#,
    // The services of the egress routers are in the namespace `default`. Their port 8081 is for connections to port 80.
    concat!(
        r#"{"routes":[{"match":{"destination_ports":[80]},"clusters":["#,
        r#""outbound|8081||egress-router1.default.svc.cluster.local","#,
        r#""outbound|8081||egress-router2.default.svc.cluster.local"]},"#,
        r#"{"clusters":["#,
        r#""outbound|8080||egress-router1.default.svc.cluster.local","#,
        r#""outbound|8080||egress-router2.default.svc.cluster.local"]}],"#,
        r#""otherwise":"deny"}"#
    ),
];

/// Parses a configuration that is already in memory, for tools and tests.
pub fn parse(document: &[u8]) -> Result<Box<Policy>, ConfigError> {
    load(document.len(), || Ok(document))
}

/// Parses a configuration of `size` bytes. `read` fetches it, and is not called if `size` is too large.
pub fn load<T: AsRef<[u8]>>(size: usize, read: impl FnOnce() -> Result<T, Status>) -> Result<Box<Policy>, ConfigError> {
    if size > MAX_SIZE {
        return Err(ConfigError::new(Text::new("longer than 262144 bytes"), 0));
    }
    let document = match read() {
        Ok(document) if document.as_ref().len() == size => document,
        _ => return Err(ConfigError::new(Text::new("the proxy did not return it"), 0)),
    };
    let document = document.as_ref();
    let name = if document.is_empty() { b"standalone" } else { document };
    parse_object(word_index(PRESET_NAMES, name).map_or(document, |preset| preset_text(preset)))
}

fn preset_text(preset: usize) -> &'static [u8] {
    PRESETS.get(preset).map_or(b"", |text| text.as_bytes())
}

#[inline(never)]
fn parse_object(document: &[u8]) -> Result<Box<Policy>, ConfigError> {
    let mut parser = Parser {
        reader: Reader::new(document),
        policy: Box::new(Policy::deny_all()),
        hashes: Vec::new(),
        route_clusters: Vec::new(),
        cluster_references: 0,
    };
    let preset = parser.read_policy();
    parser.reader.finish()?;
    match preset {
        Some(preset) => parse_object(preset_text(preset)),
        None => Ok(parser.policy),
    }
}

struct Parser<'a> {
    reader: Reader<'a>,
    /// The policy so far.
    policy: Box<Policy>,
    /// The hashes of the policy's cluster names (FNV-1a with offset basis 0), which keep the linear search for a name cheap.
    hashes: Vec<u32>,
    /// The indices of the current route's clusters, in the form of [`crate::routes`].
    route_clusters: Vec<u8>,
    /// The number of entries in all `clusters` lists so far.
    cluster_references: usize,
}

impl Parser<'_> {
    /// Reads the policy into `self.policy`. Returns the index of the preset if the document names one instead.
    #[inline(never)]
    fn read_policy(&mut self) -> Option<usize> {
        const FIELDS: &str = "routes otherwise on_error mode preset";
        const ROUTES: usize = 0;
        const OTHERWISE: usize = 1;
        const ON_ERROR: usize = 2;
        const MODE: usize = 3;

        if !self.reader.is_object() {
            self.reader.reject_rest(" is neither a preset (standalone, istio) nor a JSON object");
        }
        let mut preset = None;
        let mut object = self.reader.begin_object();
        while let Some(field) = self.reader.next_field(&mut object, FIELDS) {
            match field {
                ROUTES => self.read_routes(),
                OTHERWISE => self.policy.otherwise = self.read_action(),
                ON_ERROR => self.policy.on_error = self.read_action(),
                MODE => self.policy.observes = self.reader.one_of("enforce observe") != 0,
                _ => preset = Some(self.reader.one_of(PRESET_NAMES)),
            }
        }
        if preset.is_some() {
            if object.count() > 1 {
                self.reader.reject("preset cannot be combined with other fields");
            }
        } else if !object.has(ROUTES) {
            self.reader.reject("routes is missing");
        } else if !object.has(OTHERWISE) {
            self.reader.reject("otherwise is missing: continue or deny");
        }
        preset
    }

    fn read_routes(&mut self) {
        let mut list = self.reader.begin_list();
        while self.reader.next_item(&mut list) {
            if list.count() > MAX_ROUTES {
                self.reader.reject("more than 1024 routes");
            }
            self.read_route();
        }
    }

    fn read_route(&mut self) {
        const FIELDS: &str = "match clusters action";
        const MATCH: usize = 0;
        const CLUSTERS: usize = 1;
        const ACTION: usize = 2;

        let mut action = Action::Deny;
        self.route_clusters.clear();
        let mut object = self.reader.begin_object();
        while let Some(field) = self.reader.next_field(&mut object, FIELDS) {
            match field {
                MATCH => self.read_criteria(),
                CLUSTERS => self.read_clusters(),
                _ => action = self.read_action(),
            }
        }
        if object.has(CLUSTERS) == object.has(ACTION) {
            self.reader.reject("expected either clusters or action");
        }
        if object.has(ACTION) {
            self.policy.routes.end_with_action(action);
        } else {
            self.policy.routes.end_with_clusters(&self.route_clusters);
        }
    }

    fn read_criteria(&mut self) {
        const FIELDS: &str = "source destination destination_ports sni";
        const CRITERIA: [Criterion; 4] =
            [Criterion::Source, Criterion::Destination, Criterion::DestinationPorts, Criterion::Sni];

        let mut object = self.reader.begin_object();
        while let Some(field) = self.reader.next_field(&mut object, FIELDS) {
            let Some(&criterion) = CRITERIA.get(field) else { return };
            self.policy.routes.note_criterion(criterion);
            let mut list = self.reader.begin_list();
            while self.reader.next_item(&mut list) {
                match criterion {
                    Criterion::Source | Criterion::Destination => self.read_prefix(criterion),
                    Criterion::DestinationPorts => self.policy.routes.add_port(self.reader.port()),
                    Criterion::Sni => self.read_server_name(),
                }
            }
        }
    }

    fn read_prefix(&mut self, criterion: Criterion) {
        match Cidr::parse(self.reader.string().as_bytes()) {
            Some(cidr) => self.policy.routes.add_prefix(criterion, &cidr),
            None => self.reader.reject_string(" is not a CIDR without host bits, such as 10.0.0.0/8"),
        }
    }

    fn read_server_name(&mut self) {
        match ServerNamePattern::parse(self.reader.string().as_bytes()) {
            Some(pattern) => self.policy.routes.add_server_name(pattern),
            None => self.reader.reject_string(" is not a host name or *.hostname"),
        }
    }

    fn read_clusters(&mut self) {
        let mut list = self.reader.begin_list();
        while self.reader.next_item(&mut list) {
            if list.count() > MAX_CLUSTERS_PER_ROUTE {
                self.reader.reject("more than 256 clusters");
            }
            self.cluster_references = self.cluster_references.wrapping_add(1);
            if self.cluster_references > MAX_CLUSTER_REFERENCES {
                self.reader.reject("more than 16384 cluster references");
            }
            if self.reader.string().is_empty() {
                self.reader.reject("must not be empty");
            }
            let cluster = self.intern_cluster();
            self.route_clusters.extend_from_slice(&cluster.0.to_le_bytes());
        }
    }

    /// Returns the index of the cluster whose name was read last, and adds it to the policy if it is new.
    fn intern_cluster(&mut self) -> ClusterIndex {
        let name = self.reader.last_string();
        let hash = name.bytes().fold(0, |hash: u32, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
        let mut known = self.hashes.iter().zip(&self.policy.clusters);
        let index = match known.position(|(&of_known, known)| of_known == hash && known == name) {
            Some(index) => index,
            None => {
                let count = self.hashes.len();
                self.hashes.push(hash);
                self.policy.clusters.push(owned(name));
                if count >= MAX_CLUSTERS {
                    self.reader.reject("more than 1024 cluster names");
                }
                count
            }
        };
        #[expect(clippy::cast_possible_truncation, reason = "a configuration has fewer than 2^16 different clusters")]
        ClusterIndex(index as u16)
    }

    #[inline(never)]
    fn read_action(&mut self) -> Action {
        const CONTINUE: usize = 0;
        match self.reader.one_of("continue deny") {
            CONTINUE => Action::Continue,
            _ => Action::Deny,
        }
    }
}

#[cfg(test)]
mod tests;
