//! The built modules in a WebAssembly engine: the shipped one on entry points of its own, the plain one on the SDK's
//! dispatcher. What holds for the filter is asked of both.

use crate::{
    host::{Call, DEBUG, ERROR, Host, INFO, STATUSES, Vm, WARN},
    plain, shipped,
};

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
    doors().map(|(door, mut vm)| {
        assert!(vm.configure(ROOT, configuration.as_bytes()), "{door}: {:?}", vm.host().calls);
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
            assert!(warnings[0].ends_with(" is no IP address, tcp_proxy's own cluster stays"), "{door}: {warnings:?}");
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
        let expected =
            "sluice: destination.address not given: host status 1 is no IP address, tcp_proxy's own cluster stays";
        assert_eq!(vm.host().logged(WARN), [expected], "{door}");
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
                    warnings[0].contains(&format!("source.address not given: host status {status} ")),
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
                    "sluice: source.address \"10.0.0.2:1\" keeps tcp_proxy's own cluster, cannot take egress1: host status {status}"
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
            let expected = ["sluice: source.address \"10.0.0.2:1\" takes egress1"];
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
        ("Standalone", "\"Standalone\""),
        (" istio", "\" istio\""),
        ("istio\n", "\"istio\\x0a\""),
        ("\0", "\"\\x00\""),
        (&"x".repeat(70_000), "xxx\"... (70000 bytes)"),
    ] {
        for (door, mut vm) in doors() {
            assert!(!vm.configure(ROOT, text.as_bytes()), "{door}: {named}");
            let errors = vm.host().logged(ERROR);
            assert_eq!(errors.len(), 1, "{door}: {named}");
            assert!(errors[0].starts_with("sluice: plugin configuration: \""), "{door}: {errors:?}");
            assert!(errors[0].contains(&format!("{named} is not a preset")), "{door}: {errors:?}");
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
                0 => "sluice: plugin configuration: 0 bytes of 5 read".to_owned(),
                _ => format!("sluice: plugin configuration: cannot be read: host status {status}"),
            };
            assert_eq!(vm.host().logged(ERROR), [expected], "{door}");
        }
    }
    for (door, mut vm) in doors() {
        vm.host().configuration = b"istio".to_vec();
        vm.call("proxy_on_context_create", &[ROOT, 0]);
        assert_eq!(vm.call("proxy_on_configure", &[ROOT, 7]), 0, "{door}");
        assert_eq!(vm.host().logged(ERROR), ["sluice: plugin configuration: 5 bytes of 7 read"], "{door}");
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
            assert_eq!(
                vm.host().logged(ERROR),
                ["sluice: connection without a configuration closed"],
                "{door}: {status}"
            );
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
fn a_root_context_that_nobody_created_is_not_configured() {
    let mut vm = Vm::new(&shipped());
    vm.host().configuration = b"istio".to_vec();
    assert_eq!(vm.call("proxy_on_configure", &[5, 5]), 0);
    vm.call("proxy_on_delete", &[5]);
}

#[test]
#[ignore = "make test builds the modules"]
fn memory_does_not_grow_with_connections_and_configurations() {
    for (door, mut vm) in configured("istio") {
        let mut size_after_some = 0;
        for round in 0..10_000_u32 {
            if round == 1_000 {
                size_after_some = vm.memory_size();
            }
            let last = round % 256;
            set_source(vm.host(), format!("[2001:db8::{last:x}]:443").as_bytes());
            vm.host().properties.insert("destination.address", b"198.51.100.7:443".to_vec());
            assert!(vm.connection(STREAM + round, ROOT));
            vm.take_calls();
        }
        for round in 0..1_000 {
            let root = 1_000_000 + round;
            assert!(vm.configure(root, b"istio"), "{door}: {round}");
            vm.call("proxy_on_delete", &[root]);
            vm.take_calls();
        }
        assert_eq!(vm.memory_size(), size_after_some, "{door}");
    }
}
