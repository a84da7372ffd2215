//! Addresses that cannot be read and overrides that the proxy refuses.

use crate::{
    log_lines::{CLOSED, KEPT},
    modules::{ROOT, STREAM, configured, override_by, set_destination, set_source},
    vm::{Call, STATUSES, WARN},
};

const NOT_AN_ADDRESS: &str = " is not an IP address and port";

#[test]
fn a_source_without_ip_address_keeps_the_default_cluster_in_standalone() {
    let long = [b'1'; 65_536];
    for (module, mut vm) in configured(b"standalone") {
        for source in
            [&b""[..], b"/run/app.sock", b"envoy://internal/", b"[fe80::1%eth0]:1", b"10.0.0.2", b"\xff\xfe:1", &long]
        {
            set_source(&mut vm, source);
            assert!(vm.connection(STREAM, ROOT), "{module}: {source:?}");
            assert_eq!(vm.host().foreign(), [b""; 0], "{module}: {source:?}");
            let warnings = vm.host().logged(WARN);
            assert_eq!(warnings.len(), 1, "{module}: {source:?}");
            assert!(warnings[0].starts_with("sluice: source.address \""), "{module}: {warnings:?}");
            assert!(warnings[0].ends_with(&format!("{NOT_AN_ADDRESS}{KEPT}")), "{module}: {warnings:?}");
            assert!(warnings[0].len() < 700, "{module}: {warnings:?}");
            vm.take_calls();
        }
    }
}

#[test]
fn a_destination_without_ip_address_is_not_read_by_standalone() {
    for (module, mut vm) in configured(b"standalone") {
        set_source(&mut vm, b"10.0.0.2:1");
        set_destination(&mut vm, b"/run/app.sock");
        assert!(vm.connection(STREAM, ROOT), "{module}");
        assert_eq!(vm.host().foreign(), [override_by("egress1")], "{module}");
        assert!(!vm.host().calls.contains(&Call::Property("destination.address".to_owned())), "{module}");
    }
}

#[test]
fn a_destination_without_ip_address_is_denied_by_the_preset_istio() {
    for (module, mut vm) in configured(b"istio") {
        set_source(&mut vm, b"10.0.0.2:1");
        for status in STATUSES.into_iter().filter(|&status| status != 0) {
            vm.host().statuses.insert("destination.address", status);
            assert!(!vm.connection(STREAM, ROOT), "{module}: {status}");
            assert!(vm.host().calls.contains(&Call::CloseDownstream), "{module}: {status}");
            assert_eq!(vm.host().foreign(), [override_by("sluice.denied")], "{module}: {status}");
            let expected = format!("sluice: destination.address is not available (host status {status}){CLOSED}");
            assert_eq!(vm.host().logged(WARN), [expected], "{module}");
            vm.take_calls();
        }
        vm.host().statuses.clear();
        for destination in [&b""[..], b"/run/app.sock", b"\xff:1", &[b'1'; 65_536]] {
            set_destination(&mut vm, destination);
            assert!(!vm.connection(STREAM, ROOT), "{module}: {destination:?}");
            let warnings = vm.host().logged(WARN);
            assert!(warnings.len() == 1, "{module}: {warnings:?}");
            assert!(warnings[0].starts_with("sluice: destination.address \""), "{module}: {warnings:?}");
            assert!(warnings[0].ends_with(&format!("{NOT_AN_ADDRESS}{CLOSED}")), "{module}: {warnings:?}");
            vm.take_calls();
        }
    }
}

#[test]
fn a_source_that_is_not_available_is_logged_with_its_status() {
    for (module, mut vm) in configured(b"standalone") {
        set_source(&mut vm, b"10.0.0.2:1");
        for status in STATUSES {
            vm.host().statuses.insert("proxy_get_property", status);
            assert!(vm.connection(STREAM, ROOT), "{module}: {status}");
            assert_eq!(vm.host().foreign(), [b""; 0], "{module}: {status}");
            let reason = match status {
                0 => format!(" \"\"{NOT_AN_ADDRESS}"), // success without a value
                _ => format!(" is not available (host status {status})"),
            };
            assert_eq!(vm.host().logged(WARN), [format!("sluice: source.address{reason}{KEPT}")], "{module}");
            vm.take_calls();
        }
    }
}

#[test]
fn a_refused_override_is_logged_with_its_status() {
    for (module, mut vm) in configured(b"standalone") {
        set_source(&mut vm, b"10.0.0.2:1");
        for status in STATUSES {
            vm.host().statuses.insert("proxy_call_foreign_function", status);
            assert!(vm.connection(STREAM, ROOT), "{module}: {status}");
            assert_eq!(vm.host().foreign(), [override_by("egress1")], "{module}: {status}");
            let line = format!(
                "sluice: source.address \"10.0.0.2:1\" cannot be routed to \"egress1\" (host status {status}){KEPT}"
            );
            let expected = if status == 0 { &[][..] } else { &[line] };
            assert_eq!(vm.host().logged(WARN), expected, "{module}");
            vm.take_calls();
        }
    }
}

#[test]
fn an_error_denies_unless_on_error_says_continue() {
    for (on_error, continues) in
        [("", false), (r#", "on_error": "deny""#, false), (r#", "on_error": "continue""#, true)]
    {
        let config = format!(
            r#"{{"routes": [{{"clusters": ["a"]}}, {{"match": {{"destination_ports": [25]}}, "action": "deny"}}], "otherwise": "continue"{on_error}}}"#
        );
        for (module, mut vm) in configured(config.as_bytes()) {
            let failures: [(&[u8], &[u8], Option<u32>); 3] = [
                (b"/run/app.sock", b"198.51.100.7:80", None),
                (b"10.0.0.2:1", b"/run/app.sock", None),
                (b"10.0.0.2:1", b"198.51.100.7:80", Some(2)),
            ];
            for (source, destination, refused) in failures {
                set_source(&mut vm, source);
                set_destination(&mut vm, destination);
                vm.host().statuses.clear();
                vm.host().statuses.extend(refused.map(|status| ("proxy_call_foreign_function", status)));
                assert_eq!(vm.connection(STREAM, ROOT), continues, "{module}: {config}");
                assert_eq!(vm.host().calls.contains(&Call::CloseDownstream), !continues, "{module}: {config}");
                let end = if continues { KEPT } else { CLOSED };
                let warnings = vm.host().logged(WARN);
                assert!(warnings.len() == 1 && warnings[0].ends_with(end), "{module}: {warnings:?}");
                vm.take_calls();
            }
        }
    }
}
