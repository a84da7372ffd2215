//! A connection as a host presents it to the filter, and the calls that the filter must make. Both boundary targets use this
//! module.

use crate::model::{Action, Model, Verdict};
use std::net::SocketAddr;

/// A call of the filter that has an effect or that a user can see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    /// The cluster was overridden with this one.
    Override(String),
    /// The counter of this name was incremented.
    Count(String),
    /// A line of this level was logged.
    Log(u32),
    /// The connection was closed.
    Close,
}

/// A connection as the host presents it.
pub struct Presented<'a> {
    /// The source, if it is readable.
    pub source: Option<SocketAddr>,
    /// The destination, if it is readable.
    pub destination: Option<SocketAddr>,
    /// The server name, or an empty slice.
    pub server_name: &'a [u8],
    /// Whether the host accepts an override.
    pub accepts_override: bool,
    /// Whether debug lines are logged.
    pub debug: bool,
}

const DEBUG: u32 = 1;
const WARN: u32 = 3;

/// Returns the action and the calls of a filter with this configuration. `counters` are the counters that the host has defined.
#[must_use]
pub fn expected(model: &Model, counters: &[String], shown: &Presented<'_>) -> (Action, Vec<Call>) {
    let mut calls = Vec::new();
    let count = |calls: &mut Vec<Call>, name: String| {
        if counters.contains(&name) {
            calls.push(Call::Count(name));
        }
    };
    let mut is_error = false;
    let decided = match model.decide(shown.source, shown.destination, shown.server_name) {
        Verdict::Action(action) => Some(action),
        Verdict::Unreadable => {
            is_error = true;
            count(&mut calls, "sluice.unreadable".to_owned());
            Some(model.on_error)
        }
        Verdict::Cluster(cluster) => {
            if !model.observes {
                calls.push(Call::Override(cluster.to_owned()));
            }
            if model.observes || shown.accepts_override {
                count(&mut calls, format!("sluice.routed.{cluster}"));
                None
            } else {
                is_error = true;
                count(&mut calls, "sluice.host_errors".to_owned());
                Some(model.on_error)
            }
        }
    };
    match decided {
        None => {}
        Some(Action::Continue) => count(&mut calls, "sluice.continued".to_owned()),
        Some(Action::Deny) => {
            count(&mut calls, "sluice.denied".to_owned());
            if !model.observes {
                calls.push(Call::Override("sluice.denied".to_owned()));
            }
        }
    }
    if is_error || shown.debug {
        calls.push(Call::Log(if is_error { WARN } else { DEBUG }));
    }
    let action = decided.filter(|_| !model.observes).unwrap_or(Action::Continue);
    if action == Action::Deny {
        calls.push(Call::Close);
    }
    (action, calls)
}

/// Returns the names of the counters that a filter defines, in their order.
#[must_use]
pub fn counters(model: &Model) -> Vec<String> {
    let routed = model.clusters().into_iter().map(|cluster| format!("sluice.routed.{cluster}"));
    let outcomes = ["continued", "denied", "unreadable", "host_errors"].map(|name| format!("sluice.{name}"));
    routed.chain(outcomes).collect()
}

/// Checks that a log line is short and consists of printable ASCII.
pub fn check_line(line: &[u8]) {
    let printable = line.iter().all(|byte| matches!(byte, b' '..=b'~'));
    assert!(printable && line.len() < 2_048, "{:?}", String::from_utf8_lossy(line));
}

/// Changes bytes so that the library does not treat them as a Struct, which the target `config_struct` covers.
#[must_use]
pub fn as_text(bytes: &[u8]) -> Vec<u8> {
    let mut document = bytes.to_vec();
    if let Some(first) = document.first_mut().filter(|first| **first == b'\n') {
        *first = b' ';
    }
    document
}
