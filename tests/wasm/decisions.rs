//! Decisions about connections: the host calls that carry them out, and the log lines.

use crate::{
    log_lines::{CLOSED, KEPT},
    modules::{ROOT, STREAM, configured, modules, override_by, set_destination, set_source},
    scenario_table::{Outcome, SCENARIOS},
    struct_message::as_struct,
    vm::{Call, DEBUG, ERROR, INFO, STATUSES, WARN},
};

fn source_property() -> Call {
    Call::Property("source.address".to_owned())
}

fn set_filter_state(cluster: &str) -> Call {
    Call::Foreign { name: "set_envoy_filter_state".to_owned(), arguments: override_by(cluster) }
}

const DENY_ALL: &[u8] = br#"{"routes": [{"action": "deny"}], "otherwise": "deny"}"#;

#[test]
fn every_scenario_has_its_outcome() {
    for scenario in SCENARIOS {
        let [text, message] = [scenario.config.as_bytes().to_vec(), as_struct(scenario.config)];
        for (module, mut vm) in configured(&text).into_iter().chain(configured(&message)) {
            for &(source, destination, server_name, expected) in scenario.connections {
                set_source(&mut vm, source.as_bytes());
                set_destination(&mut vm, destination.as_bytes());
                vm.host().properties.remove("connection.requested_server_name");
                if !server_name.is_empty() {
                    let server_name = server_name.as_bytes().to_vec();
                    vm.host().properties.insert("connection.requested_server_name", server_name);
                }
                let case = format!("{module}: {}: {source} → {destination} {server_name:?}", scenario.name);
                let continues = vm.connection(STREAM, ROOT);
                let expected_override = match expected {
                    Outcome::Cluster(cluster) => vec![override_by(cluster)],
                    Outcome::DefaultCluster => Vec::new(),
                    Outcome::Closed => vec![override_by("sluice.denied")],
                };
                assert_eq!(vm.host().foreign(), expected_override, "{case}");
                let is_closed = vm.host().calls.contains(&Call::CloseDownstream);
                let closes = expected == Outcome::Closed;
                assert_eq!((continues, is_closed, vm.host().logged(WARN).len()), (!closes, closes, 0), "{case}");
                vm.take_calls();
            }
        }
    }
}

#[test]
fn a_routed_connection_takes_three_calls() {
    for (module, mut vm) in configured(b"standalone") {
        set_source(&mut vm, b"10.0.0.3:1234");
        assert!(vm.connection(STREAM, ROOT), "{module}");
        let expected = [source_property(), set_filter_state("egress2"), Call::LogLevel];
        assert_eq!(vm.take_calls(), expected, "{module}");
    }
}

#[test]
fn a_denied_connection_is_marked_logged_and_closed_in_this_order() {
    let line = format!("sluice: source.address \"10.0.0.2:1\"{CLOSED}");
    for (module, mut vm) in configured(DENY_ALL) {
        set_source(&mut vm, b"10.0.0.2:1");
        for level in [INFO, DEBUG] {
            vm.host().log_level = level;
            let mut expected = vec![source_property(), set_filter_state("sluice.denied"), Call::LogLevel];
            if level == DEBUG {
                expected.extend([source_property(), Call::Log(DEBUG, line.clone())]);
            }
            expected.push(Call::CloseDownstream);
            assert!(!vm.connection(STREAM, ROOT), "{module}");
            assert_eq!(vm.take_calls(), expected, "{module}: log level {level}");
        }
    }
}

#[test]
fn an_error_that_denies_is_marked_logged_and_closed_in_this_order() {
    let line = format!("sluice: source.address \"/run/app.sock\" is not an IP address and port{CLOSED}");
    for (module, mut vm) in configured(DENY_ALL) {
        set_source(&mut vm, b"/run/app.sock");
        assert!(!vm.connection(STREAM, ROOT), "{module}");
        let expected = [
            source_property(),
            set_filter_state("sluice.denied"),
            source_property(),
            Call::Log(WARN, line.clone()),
            Call::CloseDownstream,
        ];
        assert_eq!(vm.take_calls(), expected, "{module}");
    }
}

#[test]
fn a_denied_connection_is_closed_whether_or_not_the_proxy_accepts_the_mark() {
    for (module, mut vm) in configured(DENY_ALL) {
        set_source(&mut vm, b"10.0.0.2:1");
        for status in STATUSES {
            vm.host().statuses.insert("proxy_call_foreign_function", status);
            assert!(!vm.connection(STREAM, ROOT), "{module}: {status}");
            assert!(vm.host().calls.contains(&Call::CloseDownstream), "{module}: {status}");
            assert_eq!(vm.host().logged(WARN), [""; 0], "{module}: {status}");
            vm.take_calls();
        }
        assert_eq!(vm.host().counted("sluice.denied"), STATUSES.len() as u64, "{module}");
        assert_eq!(vm.host().counted("sluice.host_errors"), 0, "{module}");
    }
}

#[test]
fn decisions_are_logged_at_debug_level_only() {
    let config = br#"{"routes": [
        {"match": {"source": ["10.0.0.2/32"]}, "clusters": ["egress1"]},
        {"match": {"source": ["10.0.0.3/32"]}, "action": "continue"}], "otherwise": "deny"}"#;
    for (module, mut vm) in configured(config) {
        for (source, decision) in
            [("10.0.0.2:1", " is routed to \"egress1\""), ("10.0.0.3:1", KEPT), ("10.0.0.4:1", CLOSED)]
        {
            set_source(&mut vm, source.as_bytes());
            let expected = [format!("sluice: source.address \"{source}\"{decision}")];
            for (level, lines) in [(0, 1), (DEBUG, 1), (INFO, 0), (WARN, 0), (ERROR, 0)] {
                vm.host().log_level = level;
                vm.connection(STREAM, ROOT);
                assert_eq!(vm.host().logged(DEBUG), expected[..lines], "{module}: log level {level}");
                let all = vm.take_calls().into_iter().filter(|call| matches!(call, Call::Log(..))).count();
                assert_eq!(all, lines, "{module}: log level {level}");
            }
        }
    }
}

#[test]
fn failing_log_calls_change_no_decision() {
    for (module, mut vm) in configured(b"standalone") {
        for (status, function) in STATUSES.into_iter().flat_map(|s| [(s, "proxy_log"), (s, "proxy_get_log_level")]) {
            vm.host().statuses.insert(function, status);
            set_source(&mut vm, b"10.0.0.3:1");
            assert!(vm.connection(STREAM, ROOT));
            set_source(&mut vm, b"/run/app.sock");
            assert!(vm.connection(STREAM, ROOT));
            assert_eq!(vm.host().foreign(), [override_by("egress2")], "{module}: {function} {status}");
            vm.take_calls();
            vm.host().statuses.clear();
        }
    }
}

#[test]
fn a_connection_without_a_configuration_is_closed() {
    for (module, mut vm) in modules() {
        set_source(&mut vm, b"10.0.0.2:1");
        assert!(!vm.configure(ROOT, b"rejected"), "{module}");
        for status in STATUSES {
            vm.take_calls();
            vm.host().statuses.insert("proxy_close_stream", status);
            assert!(!vm.connection(STREAM, ROOT), "{module}: {status}");
            assert!(vm.host().calls.contains(&Call::CloseDownstream), "{module}: {status}");
            assert_eq!(vm.host().foreign(), [b""; 0], "{module}: {status}");
            assert_eq!(vm.host().logged(ERROR), [format!("sluice: no configuration{CLOSED}")], "{module}: {status}");
        }
    }
}
