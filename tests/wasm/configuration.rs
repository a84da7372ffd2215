//! Loading, rejecting and replacing a configuration.

use crate::{
    modules::{ROOT, STREAM, configured, modules, override_by, set_source},
    vm::{Call, ERROR, STATUSES},
};

#[test]
fn an_unknown_preset_is_rejected_by_name() {
    for (text, quoted) in [
        (&b"Standalone"[..], "\"Standalone\""),
        (b" istio", "\" istio\""),
        (b"istio\n", "\"istio\\x0a\""),
        (b"\0", "\"\\x00\""),
        (b"istio\xff", "\"istio\\xff\""),
        (&[b'x'; 70_000], "xxx\"... (70000 bytes)"),
    ] {
        for (module, mut vm) in modules() {
            assert!(!vm.configure(ROOT, text), "{module}: {quoted}");
            let errors = vm.host().logged(ERROR);
            assert_eq!(errors.len(), 1, "{module}: {quoted}");
            assert!(errors[0].starts_with("sluice: plugin configuration: \""), "{module}: {errors:?}");
            assert!(errors[0].contains(&format!("{quoted} is neither a preset")), "{module}: {errors:?}");
        }
    }
}

#[test]
fn an_empty_configuration_means_standalone_and_is_not_read() {
    for (module, mut vm) in modules() {
        assert!(vm.configure(ROOT, b""), "{module}");
        assert!(!vm.host().calls.contains(&Call::Configuration), "{module}");
        set_source(&mut vm, b"10.0.0.3:1");
        assert!(vm.connection(STREAM, ROOT));
        assert_eq!(vm.host().foreign(), [override_by("egress2")], "{module}");
    }
}

#[test]
fn a_configuration_that_cannot_be_read_completely_is_rejected() {
    const LINE: &str = "sluice: plugin configuration: the proxy did not return it";
    for status in STATUSES {
        for (module, mut vm) in modules() {
            vm.host().statuses.insert("proxy_get_buffer_bytes", status);
            assert!(!vm.configure(ROOT, b"istio"), "{module}: {status}");
            assert_eq!(vm.host().logged(ERROR), [LINE], "{module}: {status}");
        }
    }
    for (module, mut vm) in modules() {
        vm.host().configuration = b"istio".to_vec();
        vm.call("proxy_on_context_create", &[ROOT, 0]);
        assert_eq!(vm.call("proxy_on_configure", &[ROOT, 7]), 0, "{module}");
        assert_eq!(vm.host().logged(ERROR), [LINE], "{module}");
    }
}

#[test]
fn a_rejected_configuration_leaves_the_current_one_in_force() {
    for (module, mut vm) in configured(b"standalone") {
        vm.host().configuration = b"rejected".to_vec();
        assert_eq!(vm.call("proxy_on_configure", &[ROOT, 8]), 0, "{module}");
        set_source(&mut vm, b"10.0.0.3:1");
        assert!(vm.connection(STREAM, ROOT), "{module}");
        assert_eq!(vm.host().foreign(), [override_by("egress2")], "{module}");
    }
}

#[test]
fn an_accepted_configuration_replaces_the_current_one() {
    for (module, mut vm) in configured(b"standalone") {
        let config = br#"{"routes": [{"clusters": ["a"]}], "otherwise": "deny"}"#;
        vm.host().configuration = config.to_vec();
        assert_eq!(vm.call("proxy_on_configure", &[ROOT, u32::try_from(config.len()).unwrap()]), 1, "{module}");
        set_source(&mut vm, b"10.0.0.3:1");
        assert!(vm.connection(STREAM, ROOT), "{module}");
        assert_eq!(vm.host().foreign(), [override_by("a")], "{module}");
    }
}
