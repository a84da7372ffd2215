//! Compares a policy of the library with the model of the same configuration.

use crate::{
    address::endpoint,
    model::{Model, Verdict},
};
use sluice::{
    config,
    config_error::ConfigError,
    policy::{ConnectionInfo, Decision, Policy},
};
use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

/// The time limit of every call.
pub const LIMIT: Duration = Duration::from_millis(100);

/// Calls a function. Repeats the call up to four times if it takes too long, because another process may have used the CPU.
///
/// # Panics
///
/// Panics if every call takes too long.
pub fn within_limit<T>(call: impl Fn() -> T) -> T {
    for _ in 0..5 {
        let start = Instant::now();
        let result = call();
        if start.elapsed() < LIMIT {
            return result;
        }
    }
    panic!("the call takes longer than {LIMIT:?}")
}

/// Checks that the library accepts a configuration exactly if the model does, with the same policy.
pub fn check(parsed: &Result<Box<Policy>, ConfigError>, model: Option<&Model>) {
    match (parsed, model) {
        (Ok(policy), Some(model)) => check_policy(policy, model),
        (Err(error), None) => check_error(error),
        (Ok(_), None) => panic!("accepted, but the model rejects it"),
        (Err(error), Some(model)) => panic!("{error}, but the model accepts {model}"),
    }
}

fn check_policy(policy: &Policy, model: &Model) {
    assert_eq!((policy.otherwise, policy.on_error, policy.observes), (model.otherwise, model.on_error, model.observes));
    assert_eq!(policy.clusters, model.clusters());
    assert_eq!(policy.reads_destination(), model.reads_destination());
    assert_eq!(policy.reads_server_name(), model.reads_server_name());
    for (source, destination, name) in probes(model) {
        check_decision(policy, model, Some(source), Some(destination), name.as_bytes());
    }
}

/// Returns connections at the edges of the criteria of the first routes.
fn probes(model: &Model) -> Vec<(SocketAddr, SocketAddr, String)> {
    let other = || [IpAddr::from([192, 0, 2, 7]), IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 7])];
    let mut probes = Vec::new();
    for route in model.routes.iter().take(8) {
        let edges = |prefixes: &Option<Vec<ipnet::IpNet>>| match prefixes {
            Some(nets) => nets.iter().take(4).flat_map(|net| [net.network(), net.broadcast()]).collect(),
            None => other().to_vec(),
        };
        let (sources, destinations) = (edges(&route.source), edges(&route.destination));
        let ports = route.destination_ports.as_deref().unwrap_or(&[443]);
        let names = route.sni.as_deref().unwrap_or_default();
        for index in 0..sources.len().max(destinations.len()).max(ports.len().min(8)).max(names.len().min(8)) {
            let source = SocketAddr::new(sources[index % sources.len()], 1);
            let destination = destinations[index % destinations.len()];
            let name = names.get(index % names.len().max(1)).map_or(String::new(), |name| name.replace('*', "a.b"));
            for port in [ports[index % ports.len()], 7] {
                probes.push((source, SocketAddr::new(destination, port), name.clone()));
            }
        }
    }
    probes
}

/// Checks that the policy decides as the model does.
pub fn check_decision(
    policy: &Policy,
    model: &Model,
    source: Option<SocketAddr>,
    destination: Option<SocketAddr>,
    server_name: &[u8],
) {
    let info = ConnectionInfo { source: source.map(endpoint), destination: destination.map(endpoint), server_name };
    let found = match policy.decide(&info) {
        Decision::Cluster(index) => Verdict::Cluster(policy.cluster(index)),
        Decision::Action(action) => Verdict::Action(action),
        Decision::Unreadable(_) => Verdict::Unreadable,
    };
    let expected = model.decide(source, destination, server_name);
    assert_eq!(found, expected, "{source:?} to {destination:?}, server name {server_name:?}, with {model}");
}

/// Checks that an error is one line of printable ASCII, and that its path contains only field names and indices.
fn check_error(error: &ConfigError) {
    let line = error.to_line();
    assert!(line.as_bytes().iter().all(|byte| matches!(byte, b' '..=b'~')), "{line:?}");
    assert!(line.len() < 1_024 && !error.message().is_empty(), "{line:?}");
    let in_path = |letter: char| letter.is_ascii_alphanumeric() || "._[]".contains(letter);
    assert!(error.path().chars().all(in_path), "{line:?}");
}

/// Parses a configuration within [`LIMIT`].
pub fn parse(document: &[u8]) -> Result<Box<Policy>, ConfigError> {
    within_limit(|| config::parse(document))
}
