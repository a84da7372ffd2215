//! The built modules in a WebAssembly engine: the shipped one on entry points of its own, the plain one on the SDK's
//! dispatcher. What holds for the filter is asked of both.

use crate::{
    host::{Call, DEBUG, ERROR, Host, INFO, STATUSES, Vm, WARN},
    plain,
    scenario::{Outcome, SCENARIOS, as_struct},
    shipped,
};
use testbed::config::table_of;

const ROOT: u32 = 1;
const STREAM: u32 = 2;

/// What `SetEnvoyFilterStateArguments` for a cluster looks like on the wire.
fn message(cluster: &str) -> Vec<u8> {
    let length = u8::try_from(cluster.len()).unwrap();
    [b"\x0a\x17envoy.tcp_proxy.cluster\x12", &[length][..], cluster.as_bytes()].concat()
}

fn doors() -> [(&'static str, Vm); 2] {
    [("shipped", Vm::new(&shipped())), ("plain", Vm::new(&plain()))]
}

/// Each door with one plugin of this configuration.
fn configured(configuration: &str) -> [(&'static str, Vm); 2] {
    configured_by(configuration.as_bytes())
}

fn configured_by(configuration: &[u8]) -> [(&'static str, Vm); 2] {
    doors().map(|(door, mut vm)| {
        assert!(vm.configure(ROOT, configuration), "{door}: {:?}", vm.host().calls);
        assert_eq!(vm.host().logged(ERROR), [""; 0], "{door}");
        vm.take_calls();
        (door, vm)
    })
}

fn set_source(host: &mut Host, source: &[u8]) {
    host.properties.insert("source.address", source.to_vec());
}

#[test]
#[ignore = "make test builds the modules"]
fn the_last_octet_of_the_source_chooses_the_cluster() {
    for (door, mut vm) in configured("standalone") {
        for (source, expected) in [
            ("10.0.0.2:1234", "egress1"),
            ("10.0.0.3:1234", "egress2"),
            ("127.0.0.254:65535", "egress1"),
            ("[2001:db8::3]:443", "egress2"),
            ("[2001:db8::ff02]:443", "egress1"),
            ("[::1]:1", "egress2"),
            ("[::ffff:192.168.1.100]:80", "egress1"),
        ] {
            set_source(vm.host(), source.as_bytes());
            assert!(vm.connection(STREAM, ROOT), "{door}: {source}");
            let name = "set_envoy_filter_state".to_owned();
            assert_eq!(
                vm.take_calls(),
                [
                    Call::Property("source.address".to_owned()),
                    Call::Foreign { name, arguments: message(expected) },
                    Call::LogLevel
                ],
                "{door}: {source}"
            );
        }
    }
}

#[test]
#[ignore = "make test builds the modules"]
fn istio_takes_port_8081_of_the_routers_for_destination_port_80() {
    for (door, mut vm) in configured("istio") {
        for (source, destination, expected) in [
            ("10.0.0.2:1", "198.51.100.7:443", "outbound|8080||egress-router1.default.svc.cluster.local"),
            ("10.0.0.3:1", "198.51.100.7:25", "outbound|8080||egress-router2.default.svc.cluster.local"),
            ("10.0.0.2:1", "[2001:db8::7]:80", "outbound|8081||egress-router1.default.svc.cluster.local"),
            ("10.0.0.3:1", "198.51.100.7:80", "outbound|8081||egress-router2.default.svc.cluster.local"),
        ] {
            set_source(vm.host(), source.as_bytes());
            vm.host().properties.insert("destination.address", destination.as_bytes().to_vec());
            assert!(vm.connection(STREAM, ROOT));
            assert_eq!(vm.host().foreign(), [message(expected)], "{door}: {source} → {destination}");
            vm.take_calls();
        }
    }
}

#[test]
#[ignore = "make test builds the modules"]
fn what_is_no_ip_address_keeps_the_cluster_and_warns_once() {
    let long = [b'1'; 65_536];
    for (door, mut vm) in configured("standalone") {
        for source in
            [&b""[..], b"/run/app.sock", b"envoy://internal/", b"[fe80::1%eth0]:1", b"10.0.0.2", b"\xff\xfe:1", &long]
        {
            set_source(vm.host(), source);
            assert!(vm.connection(STREAM, ROOT), "{door}: {source:?}");
            assert_eq!(vm.host().foreign(), [b""; 0], "{door}: {source:?}");
            let warnings = vm.host().logged(WARN);
            assert_eq!(warnings.len(), 1, "{door}: {source:?}");
            assert!(warnings[0].starts_with("sluice: source.address \""), "{door}: {warnings:?}");
            let end = " is no IP address and port, tcp_proxy's cluster stays";
            assert!(warnings[0].ends_with(end), "{door}: {warnings:?}");
            assert!(warnings[0].len() < 700, "{door}: {warnings:?}");
            vm.take_calls();
        }
    }
}

#[test]
#[ignore = "make test builds the modules"]
fn a_destination_that_istio_needs_and_does_not_get_keeps_the_cluster() {
    for (door, mut vm) in configured("istio") {
        set_source(vm.host(), b"10.0.0.2:1");
        assert!(vm.connection(STREAM, ROOT));
        assert_eq!(vm.host().foreign(), [b""; 0], "{door}");
        for status in STATUSES.into_iter().filter(|&status| status != 0) {
            vm.take_calls();
            vm.host().statuses.insert("destination.address", status);
            assert!(vm.connection(STREAM, ROOT));
            assert_eq!(vm.host().foreign(), [b""; 0], "{door}");
            let expected =
                format!("sluice: destination.address not given: host status {status}, tcp_proxy's cluster stays");
            assert_eq!(vm.host().logged(WARN), [expected], "{door}");
        }
        vm.host().statuses.clear();
        for destination in [&b""[..], b"/run/app.sock", b"\xff:1", &[b'1'; 65_536]] {
            vm.take_calls();
            vm.host().properties.insert("destination.address", destination.to_vec());
            assert!(vm.connection(STREAM, ROOT));
            let host = vm.host();
            assert_eq!((host.foreign().len(), host.logged(WARN).len()), (0, 1), "{door}: {destination:?}");
        }
    }
}

#[test]
#[ignore = "make test builds the modules"]
fn any_status_for_the_source_keeps_the_cluster_and_is_told() {
    for (door, mut vm) in configured("standalone") {
        set_source(vm.host(), b"10.0.0.2:1");
        for status in STATUSES {
            vm.host().statuses.insert("proxy_get_property", status);
            assert!(vm.connection(STREAM, ROOT), "{door}: {status}");
            assert_eq!(vm.host().foreign(), [b""; 0], "{door}: {status}");
            let warnings = vm.host().logged(WARN);
            assert_eq!(warnings.len(), 1, "{door}: {status}");
            if status != 0 {
                assert!(
                    warnings[0].contains(&format!("source.address not given: host status {status}, ")),
                    "{warnings:?}"
                );
            }
            vm.take_calls();
        }
    }
}

#[test]
#[ignore = "make test builds the modules"]
fn any_failure_to_override_is_told_with_its_status() {
    for (door, mut vm) in configured("standalone") {
        set_source(vm.host(), b"10.0.0.2:1");
        for status in STATUSES {
            vm.host().statuses.insert("proxy_call_foreign_function", status);
            assert!(vm.connection(STREAM, ROOT), "{door}: {status}");
            assert_eq!(vm.host().foreign(), [message("egress1")], "{door}: {status}");
            let warnings = vm.host().logged(WARN);
            if status == 0 {
                assert_eq!(warnings, [""; 0], "{door}");
            } else {
                let expected = format!(
                    "sluice: source.address \"10.0.0.2:1\" cannot take \"egress1\": host status {status}, tcp_proxy's cluster stays"
                );
                assert_eq!(warnings, [expected], "{door}");
            }
            vm.take_calls();
        }
    }
}

#[test]
#[ignore = "make test builds the modules"]
fn a_log_that_fails_changes_no_decision() {
    for (door, mut vm) in configured("standalone") {
        for (status, function) in STATUSES.into_iter().flat_map(|s| [(s, "proxy_log"), (s, "proxy_get_log_level")]) {
            vm.host().statuses.insert(function, status);
            set_source(vm.host(), b"10.0.0.3:1");
            assert!(vm.connection(STREAM, ROOT));
            set_source(vm.host(), b"/run/app.sock");
            assert!(vm.connection(STREAM, ROOT));
            assert_eq!(vm.host().foreign(), [message("egress2")], "{door}: {function} {status}");
            vm.take_calls();
            vm.host().statuses.clear();
        }
    }
}

#[test]
#[ignore = "make test builds the modules"]
fn success_is_logged_at_debug_only() {
    for (door, mut vm) in configured("standalone") {
        set_source(vm.host(), b"10.0.0.2:1");
        for (level, lines) in [(0, 1), (DEBUG, 1), (INFO, 0), (WARN, 0), (ERROR, 0)] {
            vm.host().log_level = level;
            assert!(vm.connection(STREAM, ROOT));
            let expected = ["sluice: source.address \"10.0.0.2:1\" takes \"egress1\""];
            assert_eq!(vm.host().logged(DEBUG), expected[..lines], "{door}: log level {level}");
            let all = vm.take_calls().into_iter().filter(|call| matches!(call, Call::Log(..))).count();
            assert_eq!(all, lines, "{door}: log level {level}");
        }
    }
}

#[test]
#[ignore = "make test builds the modules"]
fn a_text_that_is_no_preset_is_refused_by_name() {
    for (text, named) in [
        (&b"Standalone"[..], "\"Standalone\""),
        (b" istio", "\" istio\""),
        (b"istio\n", "\"istio\\x0a\""),
        (b"\0", "\"\\x00\""),
        (b"istio\xff", "\"istio\\xff\""),
        (&[b'x'; 70_000], "xxx\"... (70000 bytes)"),
    ] {
        for (door, mut vm) in doors() {
            assert!(!vm.configure(ROOT, text), "{door}: {named}");
            let errors = vm.host().logged(ERROR);
            assert_eq!(errors.len(), 1, "{door}: {named}");
            assert!(errors[0].starts_with("sluice: plugin configuration: \""), "{door}: {errors:?}");
            assert!(errors[0].contains(&format!("{named} is neither a preset")), "{door}: {errors:?}");
        }
    }
}

#[test]
#[ignore = "make test builds the modules"]
fn an_absent_configuration_means_standalone() {
    for (door, mut vm) in configured("") {
        assert!(vm.host().calls.is_empty(), "{door}: nothing is to be read");
        set_source(vm.host(), b"10.0.0.3:1");
        assert!(vm.connection(STREAM, ROOT));
        assert_eq!(vm.host().foreign(), [message("egress2")], "{door}");
    }
}

#[test]
#[ignore = "make test builds the modules"]
fn a_configuration_that_cannot_be_read_whole_is_refused() {
    for status in STATUSES {
        for (door, mut vm) in doors() {
            vm.host().statuses.insert("proxy_get_buffer_bytes", status);
            assert!(!vm.configure(ROOT, b"istio"), "{door}: {status}");
            let expected = match status {
                0 => "sluice: plugin configuration: 0 of 5 bytes read".to_owned(),
                _ => format!("sluice: plugin configuration: 0 of 5 bytes read: host status {status}"),
            };
            assert_eq!(vm.host().logged(ERROR), [expected], "{door}");
        }
    }
    for (door, mut vm) in doors() {
        vm.host().configuration = b"istio".to_vec();
        vm.call("proxy_on_context_create", &[ROOT, 0]);
        assert_eq!(vm.call("proxy_on_configure", &[ROOT, 7]), 0, "{door}");
        assert_eq!(vm.host().logged(ERROR), ["sluice: plugin configuration: 5 of 7 bytes read"], "{door}");
    }
}

#[test]
#[ignore = "make test builds the modules"]
fn plugins_that_share_a_vm_keep_their_tables_apart() {
    for (door, mut vm) in configured("standalone") {
        assert!(vm.configure(7, b"istio"), "{door}");
        vm.host().properties.insert("destination.address", b"198.51.100.7:443".to_vec());
        set_source(vm.host(), b"10.0.0.3:1");
        for (root, expected) in
            [(ROOT, "egress2"), (7, "outbound|8080||egress-router2.default.svc.cluster.local"), (ROOT, "egress2")]
        {
            vm.take_calls();
            assert!(vm.connection(100 + root, root), "{door}");
            assert_eq!(vm.host().foreign(), [message(expected)], "{door}: root {root}");
        }
        vm.call("proxy_on_delete", &[7]);
        vm.take_calls();
        assert!(vm.connection(STREAM, ROOT), "{door}");
        assert_eq!(vm.host().foreign(), [message("egress2")], "{door}");
    }
}

#[test]
#[ignore = "make test builds the modules"]
fn connections_that_overlap_keep_their_tables_apart() {
    for (door, mut vm) in configured("standalone") {
        assert!(vm.configure(7, b"istio"), "{door}");
        vm.take_calls();
        vm.host().properties.insert("destination.address", b"198.51.100.7:443".to_vec());
        set_source(vm.host(), b"10.0.0.2:1");
        for (stream, root) in [(20, ROOT), (21, 7), (22, ROOT)] {
            vm.call("proxy_on_context_create", &[stream, root]);
            assert_eq!(vm.call("proxy_on_new_connection", &[stream]), 0, "{door}");
        }
        for stream in [21, 20, 22] {
            vm.call("proxy_on_delete", &[stream]);
        }
        let router = message("outbound|8080||egress-router1.default.svc.cluster.local");
        assert_eq!(vm.host().foreign(), [message("egress1"), router, message("egress1")], "{door}");
    }
}

#[test]
#[ignore = "make test builds the modules"]
fn a_connection_without_a_configuration_is_closed() {
    for (door, mut vm) in doors() {
        set_source(vm.host(), b"10.0.0.2:1");
        assert!(!vm.configure(ROOT, b"refused"), "{door}");
        for status in STATUSES {
            vm.take_calls();
            vm.host().statuses.insert("proxy_close_stream", status);
            assert!(!vm.connection(STREAM, ROOT), "{door}: {status}");
            assert!(vm.host().calls.contains(&Call::CloseDownstream), "{door}: {status}");
            assert_eq!(vm.host().foreign(), [b""; 0], "{door}: {status}");
            assert_eq!(vm.host().logged(ERROR), ["sluice: unconfigured connection closed"], "{door}: {status}");
        }
    }
}

/// The SDK's dispatcher traps on these; the shipped module must not, and must not route by another plugin's table.
#[test]
#[ignore = "make test builds the modules"]
fn an_order_of_calls_that_no_proxy_has_closes_the_connection() {
    type Calls = &'static [(&'static str, &'static [u32])];
    let orders: [(&str, Calls); 6] = [
        ("no context", &[]),
        ("a context without a plugin", &[("proxy_on_context_create", &[STREAM, 99])]),
        (
            "another stream in between",
            &[("proxy_on_context_create", &[STREAM, ROOT]), ("proxy_on_context_create", &[3, 7])],
        ),
        ("a second time", &[("proxy_on_context_create", &[STREAM, ROOT]), ("proxy_on_new_connection", &[STREAM])]),
        ("a root that is gone", &[("proxy_on_context_create", &[STREAM, ROOT]), ("proxy_on_delete", &[ROOT])]),
        ("a root that is no stream", &[("proxy_on_context_create", &[STREAM, 0])]),
    ];
    for (order, calls) in orders {
        let mut vm = Vm::new(&shipped());
        set_source(vm.host(), b"10.0.0.2:1");
        assert!(vm.configure(ROOT, b"standalone"));
        assert!(vm.configure(7, b"istio"));
        for (export, arguments) in calls {
            vm.call(export, arguments);
        }
        vm.take_calls();
        assert_eq!(vm.call("proxy_on_new_connection", &[STREAM]), 1, "{order}");
        assert_eq!(vm.host().foreign(), [b""; 0], "{order}");
        assert!(vm.host().calls.contains(&Call::CloseDownstream), "{order}");
    }
}

#[test]
#[ignore = "make test builds the modules"]
fn a_connection_that_comes_while_another_is_read_is_stopped_and_leaves_that_alone() {
    let mut vm = Vm::new(&shipped());
    set_source(vm.host(), b"10.0.0.3:1");
    assert!(vm.configure(ROOT, b"standalone"));
    assert!(vm.configure(7, b"istio"));
    vm.host().intruder = Some((99, 7));
    assert!(vm.connection(STREAM, ROOT));
    assert_eq!(vm.host().intruder_action, Some(1));
    assert_eq!(vm.host().foreign(), [message("egress2")]);
    assert!(vm.connection(STREAM, ROOT));
}

#[test]
#[ignore = "make test builds the modules"]
fn a_root_context_that_nobody_created_has_its_own_connections_only() {
    let mut vm = Vm::new(&shipped());
    set_source(vm.host(), b"10.0.0.3:1");
    assert!(vm.configure(ROOT, br#"{"routes": [{"clusters": ["a"]}]}"#));
    vm.host().configuration = b"standalone".to_vec();
    assert_eq!(vm.call("proxy_on_configure", &[5, 10]), 1);
    assert!(vm.connection(STREAM, 5));
    assert!(vm.connection(STREAM + 1, ROOT));
    vm.call("proxy_on_delete", &[5]);
    assert!(!vm.connection(STREAM + 2, 5));
    assert_eq!(vm.host().foreign(), [message("egress2"), message("a")]);
}

/// As a proxy replaces: the new plugin comes while the old one is there, and connections go on.
#[test]
#[ignore = "make test builds the modules"]
fn memory_does_not_grow_with_connections_and_configurations() {
    let tables = ["istio".to_owned(), table_of(200), table_of(3)].map(String::into_bytes);
    for (door, mut vm) in configured("istio") {
        vm.host().properties.insert("destination.address", b"198.51.100.7:443".to_vec());
        let mut size = 0;
        for replacement in 0..1_000_u32 {
            if replacement == 10 {
                size = vm.memory_size();
            }
            let (old, new) = (ROOT + 2 * replacement, ROOT + 2 * replacement + 2);
            assert!(vm.configure(new, &tables[replacement as usize % tables.len()]), "{door}: {replacement}");
            assert!(!vm.configure(ROOT + 1_000_001, br#"{"routes": [{"clusters": ["a"]}, {"action": "drop"}]}"#));
            vm.call("proxy_on_delete", &[ROOT + 1_000_001]);
            for connection in 0..10 {
                set_source(vm.host(), format!("[2001:db8::{:x}]:443", replacement * 10 + connection).as_bytes());
                assert!(vm.connection(2_000_000 + connection, if connection < 5 { old } else { new }), "{door}");
            }
            vm.call("proxy_on_delete", &[old]);
            vm.take_calls();
            vm.host().counters.truncate(2_000);
        }
        assert_eq!(vm.memory_size(), size, "{door}");
    }
}

#[test]
#[ignore = "make test builds the modules"]
fn configurations_at_the_limits_are_read_and_beyond_them_refused() {
    let padded = |size: usize| {
        let mut text = table_of(1_024).into_bytes();
        text.resize(size, b' ');
        text
    };
    let name = "\u{1}".repeat(300_000);
    let large = as_struct(&serde_json::json!({"routes": [{"clusters": [name]}]}).to_string());
    let name = "\u{1}".repeat(200_000);
    let long = as_struct(&serde_json::json!({"routes": [{"clusters": [name]}]}).to_string());
    let mut deep = serde_json::json!(["a"]);
    for _ in 0..100 {
        deep = serde_json::json!([deep]);
    }
    let deep = as_struct(&serde_json::json!({"routes": deep}).to_string());
    let brackets = [br#"{"routes":[{"match":"#, &[b'['; 200_000][..]].concat();
    for (config, refusal) in [
        (padded(262_144), None),
        (as_struct(&table_of(1_024)), None),
        (padded(262_145), Some("longer than 262144 bytes")),
        (table_of(1_025).into_bytes(), Some("routes[1024]: more than 1024 routes")),
        (large, Some("longer than 262144 bytes")),
        (long, Some("routes[0].clusters[0]: longer than 1024 bytes")),
        (deep, Some("routes[0]: not an object")),
        (brackets, Some("routes[0].match: not an object")),
        (b"{\"routes\":[{\"clusters\":[\"\xff\"]}]}".to_vec(), Some("routes[0].clusters[0]: not UTF-8")),
    ] {
        for (door, mut vm) in doors() {
            assert_eq!(
                vm.configure(ROOT, &config),
                refusal.is_none(),
                "{door}: {refusal:?} {:?}",
                vm.host().logged(ERROR)
            );
            if let Some(refusal) = refusal {
                let errors = vm.host().logged(ERROR);
                assert!(errors.len() == 1 && errors[0].ends_with(refusal), "{door}: {errors:?}");
                continue;
            }
            set_source(vm.host(), b"10.0.0.3:1");
            assert!(vm.connection(STREAM, ROOT), "{door}");
            assert_eq!(vm.host().foreign(), [message("egress2")], "{door}");
        }
    }
}

#[test]
#[ignore = "make test builds the modules"]
fn a_refused_configuration_leaves_the_one_that_is_there() {
    for (door, mut vm) in configured("standalone") {
        vm.host().configuration = b"refused".to_vec();
        assert_eq!(vm.call("proxy_on_configure", &[ROOT, 7]), 0, "{door}");
        set_source(vm.host(), b"10.0.0.3:1");
        assert!(vm.connection(STREAM, ROOT), "{door}");
        assert_eq!(vm.host().foreign(), [message("egress2")], "{door}");
    }
}

#[test]
#[ignore = "make test builds the modules"]
fn every_scenario_holds_in_the_engine() {
    for scenario in SCENARIOS {
        let [text, bytes] =
            [scenario.config.as_bytes().to_vec(), as_struct(scenario.config)].map(|it| configured_by(&it));
        for (door, mut vm) in text.into_iter().chain(bytes) {
            for &(source, destination, name, expected) in scenario.connections {
                set_source(vm.host(), source.as_bytes());
                vm.host().properties.insert("destination.address", destination.as_bytes().to_vec());
                vm.host().properties.remove("connection.requested_server_name");
                if !name.is_empty() {
                    vm.host().properties.insert("connection.requested_server_name", name.as_bytes().to_vec());
                }
                let case = format!("{door}: {}: {source} → {destination} {name:?}", scenario.name);
                let goes_on = vm.connection(STREAM, ROOT);
                let closed = vm.host().calls.contains(&Call::CloseDownstream);
                let host = vm.host();
                let (foreign, warned) = (host.foreign(), host.logged(WARN).len());
                match expected {
                    Outcome::Cluster(cluster) => assert_eq!(foreign, [message(cluster)], "{case}"),
                    Outcome::Own | Outcome::Closed => assert_eq!(foreign, [b""; 0], "{case}"),
                }
                assert_eq!(
                    (goes_on, closed, warned),
                    (expected != Outcome::Closed, expected == Outcome::Closed, 0),
                    "{case}"
                );
                vm.take_calls();
            }
        }
    }
}

#[test]
#[ignore = "make test builds the modules"]
fn an_error_denies_unless_the_table_says_continue() {
    for (on_error, continues) in
        [("", false), (r#", "on_error": "deny""#, false), (r#", "on_error": "continue""#, true)]
    {
        let config = format!(
            r#"{{"routes": [{{"clusters": ["a"]}}, {{"match": {{"destination_ports": [25]}}, "action": "deny"}}]{on_error}}}"#
        );
        for (door, mut vm) in configured(&config) {
            let failures: [(&[u8], &[u8], Option<u32>); 3] = [
                (b"/run/app.sock", b"198.51.100.7:80", None),
                (b"10.0.0.2:1", b"/run/app.sock", None),
                (b"10.0.0.2:1", b"198.51.100.7:80", Some(2)),
            ];
            for (source, destination, refused) in failures {
                set_source(vm.host(), source);
                vm.host().properties.insert("destination.address", destination.to_vec());
                vm.host().statuses.clear();
                vm.host().statuses.extend(refused.map(|status| ("proxy_call_foreign_function", status)));
                assert_eq!(vm.connection(STREAM, ROOT), continues, "{door}: {config}");
                assert_eq!(vm.host().calls.contains(&Call::CloseDownstream), !continues, "{door}: {config}");
                let end = if continues { ", tcp_proxy's cluster stays" } else { ", connection closed" };
                let warnings = vm.host().logged(WARN);
                assert!(warnings.len() == 1 && warnings[0].ends_with(end), "{door}: {warnings:?}");
                vm.take_calls();
            }
        }
    }
}

#[test]
#[ignore = "make test builds the modules"]
fn every_connection_is_counted_by_its_outcome_and_by_its_failure() {
    let config = r#"{"routes": [
        {"match": {"source": ["10.9.0.0/16"]}, "action": "deny"},
        {"match": {"source": ["10.8.0.0/16"]}, "action": "continue"},
        {"match": {"source": ["10.0.0.0/8"]}, "clusters": ["a", "b|c"]}]}"#;
    for (door, mut vm) in configured(config) {
        let defined = vm.host().counters.len();
        for source in ["10.0.0.2:1", "10.0.0.3:1", "10.0.0.4:1", "10.9.0.1:1", "10.8.0.1:1", "11.0.0.1:1", "/pipe"] {
            set_source(vm.host(), source.as_bytes());
            vm.connection(STREAM, ROOT);
        }
        vm.host().statuses.insert("proxy_call_foreign_function", 1);
        set_source(vm.host(), b"10.0.0.2:1");
        vm.connection(STREAM, ROOT);
        assert_eq!(vm.host().counters.len(), defined, "{door}: counters are defined at load only");
        for (name, expected) in [
            ("sluice.routed.a", 2),
            ("sluice.routed.b|c", 1),
            ("sluice.denied", 3),
            ("sluice.continued", 2),
            ("sluice.unreadable", 1),
            ("sluice.host_errors", 1),
        ] {
            assert_eq!(vm.host().counted(name), expected, "{door}: {name}");
        }
    }
}

#[test]
#[ignore = "make test builds the modules"]
fn counters_that_the_host_refuses_are_told_at_load_and_change_no_decision() {
    for status in STATUSES.into_iter().filter(|&status| status != 0) {
        for (door, mut vm) in doors() {
            vm.host().statuses.insert("proxy_define_metric", status);
            assert!(vm.configure(ROOT, b"standalone"), "{door}: {status}");
            let warnings = vm.host().logged(WARN);
            let expected = format!("sluice: counter \"sluice.routed.egress1\" refused: host status {status}");
            assert_eq!((warnings.len(), warnings[0]), (6, expected.as_str()), "{door}");
            set_source(vm.host(), b"10.0.0.2:1");
            assert!(vm.connection(STREAM, ROOT));
            assert_eq!(vm.host().foreign(), [message("egress1")], "{door}");
        }
        for (door, mut vm) in configured("standalone") {
            vm.host().statuses.insert("proxy_increment_metric", status);
            set_source(vm.host(), b"10.0.0.2:1");
            assert!(vm.connection(STREAM, ROOT));
            assert_eq!(vm.host().foreign(), [message("egress1")], "{door}");
        }
    }
}

/// Of what a host asks for, the module gives what it has, and null where that is not enough.
#[test]
#[ignore = "make test builds the module"]
fn memory_that_is_not_there_is_null() {
    let mut vm = Vm::new(&shipped());
    for size in [u32::MAX, 0x8000_0000, 0x7fff_ffff, 16 << 20, 0] {
        assert_eq!(vm.call("malloc", &[size]), 0, "{size}");
    }
    let mut given = 0;
    while vm.call("malloc", &[1 << 20]) != 0 {
        given += 1;
    }
    assert_eq!(given, 15, "of 16 MiB");
    assert!(vm.configure(ROOT, b"standalone"), "small memory is left");
}
