//! Configurations at and beyond the limits, and the work and memory that they take.

use crate::{
    modules::{ROOT, STREAM, configured, modules, override_by, set_destination, set_source, shipped_module},
    struct_message::as_struct,
    vm::{Call, ERROR},
};
use serde_json::{Value, json};
use testbed::config::{table_of, table_of_clusters};

const MAX_SIZE: usize = 262_144;

fn padded(size: usize) -> Vec<u8> {
    let mut text = table_of(1_024).into_bytes();
    text.resize(size, b' ');
    text
}

#[test]
fn configurations_at_the_limits_are_accepted() {
    for (config, source, expected) in [
        (padded(MAX_SIZE), "10.0.0.3:1", "egress2"),
        (as_struct(&table_of(1_024)), "10.0.0.3:1", "egress2"),
        (table_of_clusters(1_024, 16_384).into_bytes(), "10.0.0.3:1", "cluster-1020"),
        (as_struct(&table_of_clusters(256, 8_192)), "10.0.0.3:1", "cluster-0252"),
    ] {
        assert!(config.len() <= MAX_SIZE, "{}", config.len());
        for (module, mut vm) in modules() {
            assert!(vm.configure(ROOT, &config), "{module}: {:?}", vm.host().logged(ERROR));
            set_source(&mut vm, source.as_bytes());
            assert!(vm.connection(STREAM, ROOT), "{module}");
            assert_eq!(vm.host().foreign(), [override_by(expected)], "{module}");
        }
    }
}

#[test]
fn configurations_beyond_the_limits_are_rejected() {
    let routes = |routes: Value| as_struct(&json!({"routes": routes}).to_string());
    let nested = (0..100).fold(json!("a"), |inner, _| json!([inner]));
    let brackets = [br#"{"routes":[{"match":"#, &[b'['; 200_000][..]].concat();
    for (config, error) in [
        (table_of(1_025).into_bytes(), "routes[1024]: more than 1024 routes"),
        (table_of_clusters(1_025, 1_025).into_bytes(), "routes[4].clusters[0]: more than 1024 cluster names"),
        (table_of_clusters(1_024, 16_385).into_bytes(), "routes[64].clusters[0]: more than 16384 cluster references"),
        (routes(json!([{"clusters": ["\u{1}".repeat(200_000)]}])), "routes[0].clusters[0]: longer than 1024 bytes"),
        (routes(nested), "routes[0]: expected an object"),
        (brackets, "routes[0].match: expected an object"),
    ] {
        for (module, mut vm) in modules() {
            assert!(!vm.configure(ROOT, &config), "{module}: {error}");
            assert_eq!(vm.host().logged(ERROR), [format!("sluice: plugin configuration: {error}")], "{module}");
        }
    }
}

#[test]
fn a_configuration_that_is_too_large_is_rejected_without_copying_it() {
    for size in [MAX_SIZE + 1, 100 << 20] {
        for (module, mut vm) in modules() {
            let before = vm.memory_size();
            assert!(!vm.configure(ROOT, &padded(size)), "{module}: {size}");
            assert_eq!(vm.host().logged(ERROR), ["sluice: plugin configuration: longer than 262144 bytes"], "{module}");
            assert!(!vm.host().calls.contains(&Call::Configuration), "{module}: {size}");
            assert!(vm.memory_size() - before <= 1 << 16, "{module}: {size}"); // for the SDK's contexts
        }
    }
}

#[test]
fn the_work_to_load_a_configuration_is_linear() {
    let fuel = |config: &str| {
        let mut vm = shipped_module();
        assert!(vm.configure(ROOT, config.as_bytes()), "{:?}", vm.host().logged(ERROR));
        vm.executed()
    };
    let [half, full] = [8_192, 16_384].map(|entries| fuel(&table_of_clusters(1_024, entries)));
    assert!(full * 100 <= half * 210, "{full} for twice the entries of {half}");
    let [half, full] = [512, 1_024].map(|routes| fuel(&table_of(routes)));
    assert!(full * 100 <= half * 210, "{full} for twice the routes of {half}");
}

/// As in a proxy, the new root context is configured before the old one is deleted, and both have connections.
#[test]
fn memory_does_not_grow_with_connections_and_configurations() {
    let tables = ["istio".to_owned(), table_of(200), table_of(3)].map(String::into_bytes);
    let rejected = br#"{"routes": [{"clusters": ["a"]}, {"action": "drop"}]}"#;
    for (module, mut vm) in configured(b"istio") {
        set_destination(&mut vm, b"198.51.100.7:443");
        let mut size = 0;
        for replacement in 0..1_000_u32 {
            if replacement == 10 {
                size = vm.memory_size();
            }
            let (old, new) = (ROOT + 2 * replacement, ROOT + 2 * replacement + 2);
            assert!(vm.configure(new, &tables[replacement as usize % tables.len()]), "{module}: {replacement}");
            assert!(!vm.configure(ROOT + 1_000_001, rejected));
            vm.call("proxy_on_delete", &[ROOT + 1_000_001]);
            for connection in 0..10 {
                let source = format!("[2001:db8::{:x}]:443", replacement * 10 + connection);
                set_source(&mut vm, source.as_bytes());
                assert!(vm.connection(2_000_000 + connection, if connection < 5 { old } else { new }), "{module}");
            }
            vm.call("proxy_on_delete", &[old]);
            vm.take_calls();
            vm.host().counters.truncate(2_000);
        }
        assert_eq!(vm.memory_size(), size, "{module}");
    }
}

#[test]
fn an_allocation_that_exceeds_the_memory_returns_null() {
    let mut vm = shipped_module();
    for size in [u32::MAX, 0x8000_0000, 0x7fff_ffff, 16 << 20, 0] {
        assert_eq!(vm.call("malloc", &[size]), 0, "{size}");
    }
    let mut allocated = 0;
    while vm.call("malloc", &[1 << 20]) != 0 {
        allocated += 1;
    }
    assert_eq!(allocated, 15, "the number of MiB that can be allocated of 16");
    assert!(vm.configure(ROOT, b"standalone"), "a preset must load with less than 1 MiB of free memory");
}
