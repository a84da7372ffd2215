//! The successive tables, and their decision for each source.

use std::net::Ipv4Addr;

/// The roles of a table's clusters. Each of the [`SETS`] sets has one cluster per role.
pub const ROLES: [&str; 7] = ["fast0", "fast1", "fast2", "restarts", "silent", "resets", "slow"];
pub const RESTARTS: usize = 3;
pub const SILENT: usize = 4;
pub const RESETS: usize = 5;
pub const SLOW: usize = 6;

/// The number of disjoint sets of clusters. Successive tables use successive sets.
pub const SETS: usize = 4;

/// The index of the cluster of `tcp_proxy`.
pub const DEFAULT: usize = SETS * ROLES.len();
pub const CLUSTERS: usize = DEFAULT + 1;

/// Returns the index of the cluster that the table of this generation names for a role.
pub fn cluster(generation: u32, role: usize) -> usize {
    generation as usize % SETS * ROLES.len() + role
}

/// Returns the name of a cluster.
pub fn name(cluster: usize) -> String {
    match cluster {
        DEFAULT => "default".to_owned(),
        _ => format!("{}-{}", ["a", "b", "c", "d"][cluster / ROLES.len()], ROLES[cluster % ROLES.len()]),
    }
}

/// The decision of every table for a source, apart from the set of clusters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Role(usize),
    Default,
    Denied,
}

/// Returns the decision for a source. Its second octet selects the route, and its last octet a fast cluster.
pub fn verdict(source: Ipv4Addr) -> Verdict {
    match source.octets() {
        [_, 1, _, last] => Verdict::Role(last as usize % 3),
        [_, 2, ..] => Verdict::Role(RESTARTS),
        [_, 3, ..] => Verdict::Role(SILENT),
        [_, 4, ..] => Verdict::Role(RESETS),
        [_, 5, ..] => Verdict::Role(SLOW),
        [_, 7, ..] => Verdict::Default,
        _ => Verdict::Denied,
    }
}

/// Returns the table of a generation. Every third one has 200 more routes.
pub fn table(generation: u32) -> String {
    let name = |role| name(cluster(generation, role));
    let filler: String = (0..generation % 3 / 2 * 200)
        .map(|index| format!(r#"{{"match": {{"source": ["172.16.{index}.0/24"]}}, "action": "deny"}}, "#))
        .collect();
    let route = |octet: usize, clusters: &str| {
        format!(r#"{{"match": {{"source": ["127.{octet}.0.0/16"]}}, "clusters": [{clusters}]}}, "#)
    };
    let fast = route(1, &format!(r#""{}", "{}", "{}""#, name(0), name(1), name(2)));
    let others: String =
        (RESTARTS..=SLOW).map(|role| route(role - RESTARTS + 2, &format!(r#""{}""#, name(role)))).collect();
    format!(
        r#"{{"routes": [{filler}{{"match": {{"source": ["127.6.0.0/16"]}}, "action": "deny"}}, {fast}{others}{{"match": {{"source": ["127.7.0.0/16"]}}, "action": "continue"}}], "otherwise": "deny"}}"#
    )
}

/// Returns the clusters of a generation for `tcp_proxy` alone, which distributes connections among them by weight.
pub fn weighted(generation: u32) -> String {
    let mut weights = [310, 310, 310, 8, 4, 5, 3].into_iter().enumerate();
    let first =
        weights.next().map(|(role, weight)| with_text(&name(cluster(generation, role)), weight, &table(generation)));
    let others =
        weights.map(|(role, weight)| format!("{{name: {}, weight: {weight}}}", name(cluster(generation, role))));
    format!("[{}]", first.into_iter().chain(others).collect::<Vec<_>>().join(", "))
}

/// Returns clusters for `tcp_proxy` alone that contain this text, and that Envoy rejects because the only weight is 0.
pub fn zero_weight(text: &str) -> String {
    format!("[{}]", with_text(&name(DEFAULT), 0, text))
}

/// Returns a cluster with this weight. The text is in its metadata, in a message of the type in which a module gets its table.
fn with_text(name: &str, weight: u32, text: &str) -> String {
    format!(
        "{{name: {name}, weight: {weight}, metadata_match: {{typed_filter_metadata: {{table: \
         {{\"@type\": type.googleapis.com/google.protobuf.StringValue, value: '{text}'}}}}}}}}"
    )
}

/// Returns an invalid table.
pub fn invalid(index: usize) -> String {
    const TABLES: [&str; 8] = [
        r#"{"routes": [{"clusters": []}], "otherwise": "deny"}"#,
        r#"{"routes": [{"clusters": ["a-fast0"]}]}"#,
        r#"{"routes": [{"match": {"source": ["127.1.0.1/16"]}, "clusters": ["a-fast0"]}], "otherwise": "deny"}"#,
        r#"{"routes": [{"match": {"sources": ["127.1.0.0/16"]}, "clusters": ["a-fast0"]}], "otherwise": "deny"}"#,
        r#"{"routes": [{"match": {"destination_ports": [65536]}, "action": "deny"}], "otherwise": "deny"}"#,
        r#"{"routes": [{"clusters": ["a-fast0"], "action": "deny"}], "otherwise": "deny"}"#,
        r#"{"routes": [{"clusters": ["a-fast0"]}], "otherwise": "drop"}"#,
        "stand-alone",
    ];
    TABLES[index % TABLES.len()].to_owned()
}

/// Returns a text that is designed to break the parser.
pub fn hostile(index: usize) -> String {
    let route = r#"{"clusters": ["a-fast0"]}"#;
    match index % 8 {
        0 => format!(r#"{{"routes": {}"#, "[".repeat(200_000)),
        1 => format!(r#"{{"routes": {}1{}}}"#, r#"[{"match": "#.repeat(20_000), "}]".repeat(20_000)),
        2 => format!(r#"{{"routes": [{}], "otherwise": "deny"}}"#, vec![route; 1_025].join(", ")),
        3 => format!(r#"{{"routes": [{route}], "otherwise": "deny"}}{}"#, " ".repeat(256 << 10)),
        4 => format!(r#"{{"routes": [{{"clusters": ["{}"]}}], "otherwise": "deny"}}"#, "x".repeat(100_000)),
        5 => r#"{"routes": [{"clusters": ["\ud800\u0000"]}], "otherwise": "deny"}"#.to_owned(),
        6 => format!(r#"{{"routes": [{{"match": {{"destination_ports": [1e{}]}}}}]}}"#, "9".repeat(100_000)),
        _ => format!(r#"{{{}"routes": [{route}], "otherwise": "deny"}}"#, r#""routes": [], "#.repeat(10_000)),
    }
}
