//! Several root contexts in one VM, and the order of the proxy's calls.

use crate::{
    modules::{ROOT, STREAM, configured, override_by, set_destination, set_source, shipped_module},
    vm::Call,
};

const OTHER: u32 = 7;
const ONE_CLUSTER: &[u8] = br#"{"routes": [{"clusters": ["a"]}], "otherwise": "deny"}"#;

#[test]
fn each_root_context_has_its_own_configuration() {
    for (module, mut vm) in configured(b"standalone") {
        assert!(vm.configure(OTHER, ONE_CLUSTER), "{module}");
        set_source(&mut vm, b"10.0.0.3:1");
        for (root, expected) in [(ROOT, "egress2"), (OTHER, "a"), (ROOT, "egress2"), (OTHER, "a")] {
            vm.take_calls();
            assert!(vm.connection(100 + root, root), "{module}");
            assert_eq!(vm.host().foreign(), [override_by(expected)], "{module}: root {root}");
        }
        vm.call("proxy_on_delete", &[OTHER]);
        vm.take_calls();
        assert!(vm.connection(STREAM, ROOT), "{module}");
        assert_eq!(vm.host().foreign(), [override_by("egress2")], "{module}");
    }
}

#[test]
fn overlapping_connections_use_the_configurations_of_their_root_contexts() {
    for (module, mut vm) in configured(b"standalone") {
        assert!(vm.configure(OTHER, b"istio"), "{module}");
        vm.take_calls();
        set_source(&mut vm, b"10.0.0.2:1");
        set_destination(&mut vm, b"198.51.100.7:443");
        for (stream, root) in [(20, ROOT), (21, OTHER), (22, ROOT)] {
            vm.call("proxy_on_context_create", &[stream, root]);
            assert_eq!(vm.call("proxy_on_new_connection", &[stream]), 0, "{module}");
        }
        for stream in [21, 20, 22] {
            vm.call("proxy_on_delete", &[stream]);
        }
        let router = "outbound|8080||egress-router1.default.svc.cluster.local";
        assert_eq!(vm.host().foreign(), ["egress1", router, "egress1"].map(override_by), "{module}");
    }
}

/// The SDK's dispatcher traps on these. The shipped module must not, and must not apply another root context's configuration.
#[test]
fn calls_in_an_order_that_no_proxy_uses_close_the_connection() {
    type Calls = &'static [(&'static str, &'static [u32])];
    let orders: [(&str, Calls); 6] = [
        ("no stream context", &[]),
        ("a stream context of an unknown root context", &[("proxy_on_context_create", &[STREAM, 99])]),
        (
            "another stream context in between",
            &[("proxy_on_context_create", &[STREAM, ROOT]), ("proxy_on_context_create", &[3, OTHER])],
        ),
        ("a second call", &[("proxy_on_context_create", &[STREAM, ROOT]), ("proxy_on_new_connection", &[STREAM])]),
        ("a deleted root context", &[("proxy_on_context_create", &[STREAM, ROOT]), ("proxy_on_delete", &[ROOT])]),
        ("a root context instead of a stream context", &[("proxy_on_context_create", &[STREAM, 0])]),
    ];
    for (order, calls) in orders {
        let mut vm = shipped_module();
        set_source(&mut vm, b"10.0.0.2:1");
        assert!(vm.configure(ROOT, b"standalone"));
        assert!(vm.configure(OTHER, b"istio"));
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
fn a_connection_during_another_callback_is_stopped_and_does_not_affect_it() {
    let mut vm = shipped_module();
    set_source(&mut vm, b"10.0.0.3:1");
    assert!(vm.configure(ROOT, b"standalone"));
    assert!(vm.configure(OTHER, b"istio"));
    vm.host().nested_stream = Some((99, OTHER));
    assert!(vm.connection(STREAM, ROOT));
    assert_eq!(vm.host().nested_action, Some(1));
    assert_eq!(vm.host().foreign(), [override_by("egress2")]);
    assert!(vm.connection(STREAM, ROOT));
}

#[test]
fn a_root_context_that_is_configured_without_being_created_serves_its_own_connections() {
    let mut vm = shipped_module();
    set_source(&mut vm, b"10.0.0.3:1");
    assert!(vm.configure(ROOT, ONE_CLUSTER));
    vm.host().configuration = b"standalone".to_vec();
    assert_eq!(vm.call("proxy_on_configure", &[5, 10]), 1);
    assert!(vm.connection(STREAM, 5));
    assert!(vm.connection(STREAM + 1, ROOT));
    vm.call("proxy_on_delete", &[5]);
    assert!(!vm.connection(STREAM + 2, 5));
    assert_eq!(vm.host().foreign(), ["egress2", "a"].map(override_by));
}
