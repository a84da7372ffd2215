//! The filter on a recording host: what it reads, counts, logs and closes, and in which order.

use super::*;
use crate::host::recording::{Call, Recording};
use std::{borrow::ToOwned, format, string::String, vec};

const ALL_TARGETS: &str = r#"{"routes": [
    {"match": {"source": ["10.9.0.0/16"]}, "action": "deny"},
    {"match": {"source": ["10.8.0.0/16"]}, "action": "continue"},
    {"clusters": ["a", "b"]}], "otherwise": "deny"}"#;

fn load(host: &Recording, configuration: &str) -> Option<Box<Filter<Recording>>> {
    Filter::load(host, configuration.len(), || Ok(configuration.as_bytes()))
}

fn recording(source: &str, destination: &str, server_name: &str) -> Recording {
    let text = |text: &str| if text.is_empty() { Err(Status::NOT_FOUND) } else { Ok(text.as_bytes().to_vec()) };
    Recording {
        source: text(source),
        destination: text(destination),
        server_name: text(server_name),
        ..Recording::default()
    }
}

fn count(counter: &str) -> Call {
    Call::Count(format!("sluice.{counter}"))
}

fn overriding(cluster: &str) -> Call {
    Call::Override(cluster.to_owned())
}

fn log(level: Level, line: &str) -> Call {
    Call::Log(level, format!("sluice: {line}"))
}

fn check(case: &str, configuration: &str, connection: &Recording, expected: Action, calls: &[Call]) {
    let filter = load(connection, configuration).unwrap();
    connection.take_calls();
    assert_eq!(on_new_connection(Some(&*filter), connection), expected, "{case}");
    assert_eq!(connection.take_calls(), calls, "{case}");
}

#[test]
fn each_decision_reads_counts_and_closes_in_this_order() {
    let by_port = r#"{"routes": [{"match": {"destination_ports": [25]}, "action": "deny"}], "otherwise": "continue"}"#;
    let by_name = r#"{"routes": [{"match": {"sni": ["a.example"]}, "clusters": ["a"]}], "otherwise": "continue"}"#;
    let debug = Call::LogEnabled(Level::Debug);
    for (case, configuration, connection, expected, calls) in [
        (
            "routed",
            ALL_TARGETS,
            recording("10.0.0.3:1", "", ""),
            Action::Continue,
            vec![Call::Source, overriding("b"), count("routed.b"), debug.clone()],
        ),
        (
            "denied by a route",
            ALL_TARGETS,
            recording("10.9.0.3:1", "", ""),
            Action::Deny,
            vec![Call::Source, count("denied"), overriding(DENIED), debug.clone(), Call::Close],
        ),
        (
            "continued by a route",
            ALL_TARGETS,
            recording("10.8.0.3:1", "", ""),
            Action::Continue,
            vec![Call::Source, count("continued"), debug.clone()],
        ),
        (
            "no route, with a destination",
            by_port,
            recording("10.0.0.3:1", "192.0.2.1:80", ""),
            Action::Continue,
            vec![Call::Source, Call::Destination, count("continued"), debug.clone()],
        ),
        (
            "routed by server name",
            by_name,
            recording("10.0.0.3:1", "", "A.example."),
            Action::Continue,
            vec![Call::Source, Call::ServerName, overriding("a"), count("routed.a"), debug.clone()],
        ),
        (
            "without a server name",
            by_name,
            recording("10.0.0.3:1", "", ""),
            Action::Continue,
            vec![Call::Source, Call::ServerName, count("continued"), debug],
        ),
    ] {
        check(case, configuration, &connection, expected, &calls);
    }
}

#[test]
fn decisions_are_logged_at_debug_level() {
    for (source, line, calls_after) in [
        ("10.0.0.2:1", "source.address \"10.0.0.2:1\" is routed to \"a\"", 0),
        ("10.8.0.2:1", "source.address \"10.8.0.2:1\": tcp_proxy's cluster is kept", 0),
        ("10.9.0.2:1", "source.address \"10.9.0.2:1\": connection closed", 1),
    ] {
        let connection = Recording { debug: true, ..recording(source, "", "") };
        let filter = load(&connection, ALL_TARGETS).unwrap();
        connection.take_calls();
        on_new_connection(Some(&*filter), &connection);
        let calls = connection.take_calls();
        let expected = [Call::LogEnabled(Level::Debug), Call::Source, log(Level::Debug, line)];
        let end = calls.len() - calls_after;
        assert_eq!(calls[end - 3..end], expected, "{source}");
    }
}

#[test]
fn errors_are_counted_and_logged_and_follow_on_error() {
    let table = |on_error: &str| {
        format!(
            r#"{{"routes": [{{"match": {{"destination_ports": [80]}}, "clusters": ["a"]}}], "otherwise": "deny", "on_error": "{on_error}"}}"#
        )
    };
    let unreadable_source = recording("/run/app.sock", "192.0.2.1:80", "");
    let no_source = recording("", "192.0.2.1:80", "");
    let unreadable_destination = recording("10.0.0.2:1", "/run/app.sock", "");
    let no_destination = recording("10.0.0.2:1", "", "");
    let refused = Recording { override_result: Err(Status(2)), ..recording("10.0.0.2:1", "192.0.2.1:80", "") };
    for (connection, read_again, attempt, counter, line) in [
        (
            unreadable_source,
            Call::Source,
            None,
            "unreadable",
            "source.address \"/run/app.sock\" is not an IP address and port",
        ),
        (no_source, Call::Source, None, "unreadable", "source.address is not available (host status 1)"),
        (
            unreadable_destination,
            Call::Destination,
            None,
            "unreadable",
            "destination.address \"/run/app.sock\" is not an IP address and port",
        ),
        (no_destination, Call::Destination, None, "unreadable", "destination.address is not available (host status 1)"),
        (
            refused,
            Call::Source,
            Some(overriding("a")),
            "host_errors",
            "source.address \"10.0.0.2:1\" cannot be routed to \"a\" (host status 2)",
        ),
    ] {
        let read = [Call::Source, Call::Destination].into_iter().chain(attempt).chain([count(counter)]);
        let read: Vec<Call> = read.collect();
        let warning = |end: &str| log(Level::Warn, &format!("{line}: {end}"));
        let kept = [count("continued"), read_again.clone(), warning("tcp_proxy's cluster is kept")];
        check(line, &table("continue"), &connection, Action::Continue, &[&read, &kept[..]].concat());
        let closed = [count("denied"), overriding(DENIED), read_again, warning("connection closed"), Call::Close];
        check(line, &table("deny"), &connection, Action::Deny, &[&read, &closed[..]].concat());
    }
}

#[test]
fn counters_are_defined_at_load_for_each_cluster_and_outcome() {
    let host = Recording::default();
    load(&host, ALL_TARGETS).unwrap();
    let names = ["routed.a", "routed.b", "continued", "denied", "unreadable", "host_errors"];
    assert_eq!(host.take_calls(), names.map(|name| Call::Define(format!("sluice.{name}"))));
}

#[test]
fn refused_counters_are_logged_and_change_no_decision() {
    let connection = Recording { counter_failure: Some(Status(2)), ..recording("10.9.0.2:1", "", "") };
    let filter = load(&connection, ALL_TARGETS).unwrap();
    let calls = connection.take_calls();
    assert_eq!(calls.len(), 12);
    let line = "cannot define the counter \"sluice.routed.a\" (host status 2)";
    assert_eq!(calls[1], log(Level::Warn, line));
    assert_eq!(on_new_connection(Some(&*filter), &connection), Action::Deny);
    let calls = connection.take_calls();
    assert_eq!(calls, [Call::Source, overriding(DENIED), Call::LogEnabled(Level::Debug), Call::Close]);
}

#[test]
fn a_rejected_configuration_is_logged_with_its_path() {
    let host = Recording::default();
    assert!(load(&host, r#"{"routes": [{"action": "drop"}], "otherwise": "deny"}"#).is_none());
    let line = "plugin configuration: routes[0].action: \"drop\", expected one of: continue deny";
    assert_eq!(host.take_calls(), [log(Level::Error, line)]);
}

#[test]
fn a_configuration_that_is_too_large_is_not_read() {
    let host = Recording::default();
    let read = || -> Result<Vec<u8>, Status> { panic!("the configuration was read") };
    assert!(Filter::load(&host, config::MAX_SIZE + 1, read).is_none());
    assert_eq!(host.take_calls(), [log(Level::Error, "plugin configuration: longer than 262144 bytes")]);
}

#[test]
fn a_configuration_that_the_proxy_does_not_return_whole_is_rejected() {
    let host = Recording::default();
    assert!(Filter::load(&host, 7, || Ok(b"istio")).is_none());
    assert!(Filter::load(&host, 7, || Err::<Vec<u8>, _>(Status(10))).is_none());
    let line = log(Level::Error, "plugin configuration: the proxy did not return it");
    assert_eq!(host.take_calls(), [line.clone(), line]);
}

#[test]
fn without_a_configuration_a_connection_is_closed() {
    let connection = recording("10.0.0.2:1", "", "");
    assert_eq!(on_new_connection(None, &connection), Action::Deny);
    let line = log(Level::Error, "no configuration: connection closed");
    assert_eq!(connection.take_calls(), [line, Call::Close]);
}

#[test]
fn presets_apply_on_error_to_an_unreadable_source() {
    for (preset, expected) in [("", Action::Continue), ("standalone", Action::Continue), ("istio", Action::Deny)] {
        let connection = recording("/run/app.sock", "192.0.2.1:80", "");
        let filter = load(&connection, preset).unwrap();
        assert_eq!(on_new_connection(Some(&*filter), &connection), expected, "{preset:?}");
    }
}

#[test]
fn long_addresses_are_cut_in_the_log() {
    let connection = recording(&"1".repeat(65_536), "", "");
    let filter = load(&connection, "standalone").unwrap();
    connection.take_calls();
    assert_eq!(on_new_connection(Some(&*filter), &connection), Action::Continue);
    let calls = connection.take_calls();
    let Some(Call::Log(Level::Warn, line)) = calls.last() else { panic!("{calls:?}") };
    assert!(line.contains(&(String::from("\"") + &"1".repeat(128) + "\"... (65536 bytes)")), "{line}");
}

#[test]
fn in_mode_observe_decisions_are_counted_and_logged_but_not_applied() {
    let routes = ALL_TARGETS.replace(r#""otherwise": "deny"}"#, r#""otherwise": "deny", "mode": "observe"}"#);
    let warning = log(Level::Warn, "mode is observe: decisions are not applied");
    for (source, counter, line) in [
        ("10.0.0.3:1", "routed.b", "source.address \"10.0.0.3:1\" is routed to \"b\" (not applied)"),
        ("10.8.0.3:1", "continued", "source.address \"10.8.0.3:1\": tcp_proxy's cluster is kept (not applied)"),
        ("10.9.0.3:1", "denied", "source.address \"10.9.0.3:1\": connection closed (not applied)"),
    ] {
        let connection = Recording { debug: true, ..recording(source, "", "") };
        let filter = load(&connection, &routes).unwrap();
        assert!(connection.take_calls().contains(&warning), "{source}");
        assert_eq!(on_new_connection(Some(&*filter), &connection), Action::Continue, "{source}");
        let debug = Call::LogEnabled(Level::Debug);
        let calls = [Call::Source, count(counter), debug, Call::Source, log(Level::Debug, line)];
        assert_eq!(connection.take_calls(), calls, "{source}");
    }
    let connection = recording("", "", "");
    let filter = load(&connection, &routes).unwrap();
    connection.take_calls();
    assert_eq!(on_new_connection(Some(&*filter), &connection), Action::Continue, "on_error is deny");
    let calls = connection.take_calls();
    assert!(calls.contains(&count("unreadable")) && calls.contains(&count("denied")), "{calls:?}");
    assert!(!calls.iter().any(|call| matches!(call, Call::Override(_) | Call::Close)), "{calls:?}");
}

#[test]
fn in_mode_enforce_nothing_is_logged_at_start() {
    let host = Recording::default();
    load(&host, ALL_TARGETS).unwrap();
    assert!(!host.take_calls().iter().any(|call| matches!(call, Call::Log(..))));
}
