//! The counters of the built modules.

use crate::{
    modules::{ROOT, STREAM, configured, modules, override_by, set_source},
    vm::{STATUSES, WARN},
};

#[test]
fn every_connection_is_counted_by_outcome_and_error() {
    let config = br#"{"routes": [
        {"match": {"source": ["10.9.0.0/16"]}, "action": "deny"},
        {"match": {"source": ["10.8.0.0/16"]}, "action": "continue"},
        {"match": {"source": ["10.0.0.0/8"]}, "clusters": ["a", "b|c"]}], "otherwise": "continue"}"#;
    for (module, mut vm) in configured(config) {
        let defined = vm.host().counters.len();
        for source in ["10.0.0.2:1", "10.0.0.3:1", "10.0.0.4:1", "10.9.0.1:1", "10.8.0.1:1", "11.0.0.1:1", "/pipe"] {
            set_source(&mut vm, source.as_bytes());
            vm.connection(STREAM, ROOT);
        }
        vm.host().statuses.insert("proxy_call_foreign_function", 1);
        set_source(&mut vm, b"10.0.0.2:1");
        vm.connection(STREAM, ROOT);
        assert_eq!(vm.host().counters.len(), defined, "{module}: counters are defined when a configuration is loaded");
        for (name, expected) in [
            ("sluice.routed.a", 2),
            ("sluice.routed.b|c", 1),
            ("sluice.denied", 3),
            ("sluice.continued", 2),
            ("sluice.unreadable", 1),
            ("sluice.host_errors", 1),
        ] {
            assert_eq!(vm.host().counted(name), expected, "{module}: {name}");
        }
    }
}

#[test]
fn refused_counters_are_logged_when_a_configuration_is_loaded_and_change_no_decision() {
    for status in STATUSES.into_iter().filter(|&status| status != 0) {
        for (module, mut vm) in modules() {
            vm.host().statuses.insert("proxy_define_metric", status);
            assert!(vm.configure(ROOT, b"standalone"), "{module}: {status}");
            let warnings = vm.host().logged(WARN);
            let expected =
                format!("sluice: cannot define the counter \"sluice.routed.egress1\" (host status {status})");
            assert_eq!((warnings.len(), warnings[0]), (6, expected.as_str()), "{module}");
            set_source(&mut vm, b"10.0.0.2:1");
            assert!(vm.connection(STREAM, ROOT));
            assert_eq!(vm.host().foreign(), [override_by("egress1")], "{module}");
        }
        for (module, mut vm) in configured(b"standalone") {
            vm.host().statuses.insert("proxy_increment_metric", status);
            set_source(&mut vm, b"10.0.0.2:1");
            assert!(vm.connection(STREAM, ROOT));
            assert_eq!(vm.host().foreign(), [override_by("egress1")], "{module}");
        }
    }
}
