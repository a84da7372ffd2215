//! The native module's entry points with a fake Envoy, whose functions are defined here.

#![allow(clippy::arithmetic_side_effects, reason = "a test that overflows has failed")]

use super::*;
use std::{cell::RefCell, format, thread_local, vec};

/// The answers of the fake Envoy, and the calls that it received.
struct Envoy {
    /// The address of the client; `None` if it is not an IP address.
    remote: Option<(Buffer, u32)>,
    local: Option<(Buffer, u32)>,
    server_name: Option<Buffer>,
    accepts_override: bool,
    accepts_counters: bool,
    debug: bool,
    counters: Vec<(String, u64)>,
    calls: Vec<String>,
}

thread_local! {
    static ENVOY: RefCell<Envoy> = const {
        RefCell::new(Envoy {
            remote: None,
            local: None,
            server_name: None,
            accepts_override: true,
            accepts_counters: true,
            debug: false,
            counters: Vec::new(),
            calls: Vec::new(),
        })
    };
}

fn envoy<T>(change: impl FnOnce(&mut Envoy) -> T) -> T {
    ENVOY.with_borrow_mut(change)
}

fn record(call: String) {
    envoy(|envoy| envoy.calls.push(call));
}

fn text(buffer: Buffer) -> String {
    // SAFETY: the module passes readable buffers.
    String::from_utf8(unsafe { buffer.bytes() }.to_vec()).unwrap()
}

/// The address of a client or a destination, which lives as long as the test.
fn address(ip: &'static str, port: u32) -> Option<(Buffer, u32)> {
    Some((Buffer::new(ip.as_bytes()), port))
}

#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_callback_log(level: u32, message: Buffer) {
    record(format!("log {level} {}", text(message)));
}

#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_callback_log_enabled(level: u32) -> bool {
    level > Level::Debug as u32 || envoy(|envoy| envoy.debug)
}

#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_callback_network_filter_config_define_counter(
    _configuration: *mut c_void,
    name: Buffer,
    id: *mut usize,
) -> u32 {
    envoy(|envoy| {
        if !envoy.accepts_counters {
            return 3;
        }
        envoy.counters.push((text(name), 0));
        // SAFETY: the module passes the address of a usize.
        unsafe { id.write(envoy.counters.len() - 1) };
        METRIC_SUCCESS
    })
}

#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_callback_network_filter_increment_counter(
    _filter: *mut c_void,
    id: usize,
    by: u64,
) -> u32 {
    envoy(|envoy| envoy.counters[id].1 += by);
    METRIC_SUCCESS
}

fn return_address(found: Option<(Buffer, u32)>, ip: *mut Buffer, port: *mut u32) -> bool {
    let (buffer, number) = found.unwrap_or((Buffer::EMPTY, 0));
    // SAFETY: the module passes the addresses of a buffer and a u32.
    unsafe {
        ip.write(buffer);
        port.write(number);
    }
    found.is_some()
}

#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_callback_network_filter_get_remote_address(
    _filter: *mut c_void,
    ip: *mut Buffer,
    port: *mut u32,
) -> bool {
    return_address(envoy(|envoy| envoy.remote), ip, port)
}

#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_callback_network_filter_get_local_address(
    _filter: *mut c_void,
    ip: *mut Buffer,
    port: *mut u32,
) -> bool {
    return_address(envoy(|envoy| envoy.local), ip, port)
}

#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_callback_network_filter_get_requested_server_name(
    _filter: *mut c_void,
    name: *mut Buffer,
) -> bool {
    let found = envoy(|envoy| envoy.server_name);
    // SAFETY: the module passes the address of a buffer.
    unsafe { name.write(found.unwrap_or(Buffer::EMPTY)) };
    found.is_some()
}

#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_callback_network_set_filter_state_typed(
    _filter: *mut c_void,
    key: Buffer,
    value: Buffer,
) -> bool {
    record(format!("set {} {}", text(key), text(value)));
    envoy(|envoy| envoy.accepts_override)
}

#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_callback_network_filter_close(_filter: *mut c_void, how: u32) {
    record(format!("close {how}"));
}

/// A loaded configuration, which is destroyed at the end.
struct Module(*const c_void);

impl Module {
    fn load(document: Buffer) -> Self {
        envoy(|envoy| envoy.counters.clear());
        let name = Buffer::new(b"sluice");
        Self(envoy_dynamic_module_on_network_filter_config_new(core::ptr::null_mut(), name, document))
    }

    fn new(document: &str) -> Self {
        let module = Self::load(Buffer::new(document.as_bytes()));
        assert!(!module.0.is_null(), "{:?}", envoy(|envoy| envoy.calls.clone()));
        module
    }

    /// Runs a connection from its arrival to its end. Returns the module's status for the arrival, and the calls.
    fn connect(&self) -> (u32, Vec<String>) {
        envoy(|envoy| envoy.calls.clear());
        let none = core::ptr::null_mut();
        let filter = envoy_dynamic_module_on_network_filter_new(self.0, none);
        let status = envoy_dynamic_module_on_network_filter_new_connection(none, filter);
        assert_eq!(envoy_dynamic_module_on_network_filter_read(none, filter, 7, false), CONTINUE);
        assert_eq!(envoy_dynamic_module_on_network_filter_write(none, filter, 7, true), CONTINUE);
        envoy_dynamic_module_on_network_filter_event(none, filter, 0);
        envoy_dynamic_module_on_network_filter_destroy(filter);
        (status, envoy(|envoy| core::mem::take(&mut envoy.calls)))
    }

    fn counted(&self, name: &str) -> u64 {
        envoy(|envoy| envoy.counters.iter().find(|(counter, _)| counter == name).map_or(0, |(_, count)| *count))
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        envoy_dynamic_module_on_network_filter_config_destroy(self.0.cast_mut());
    }
}

const TABLE: &str = r#"{"routes": [
    {"match": {"destination_ports": [25]}, "action": "deny"},
    {"match": {"sni": ["a.example"]}, "clusters": ["named"]},
    {"clusters": ["even", "odd"]}], "otherwise": "deny"}"#;

#[test]
fn a_connection_is_routed_with_the_bare_name_of_the_cluster() {
    let module = Module::new(TABLE);
    for (remote, expected) in [
        (address("10.0.0.2", 1), "even"),
        (address("10.0.0.3", 65_535), "odd"),
        (address("2001:db8::2", 1), "even"),
        (address("::ffff:10.0.0.3", 1), "odd"),
    ] {
        envoy(|envoy| (envoy.remote, envoy.local) = (remote, address("2001:db8::7", 443)));
        let expected = vec![format!("set envoy.tcp_proxy.cluster {expected}")];
        assert_eq!(module.connect(), (CONTINUE, expected));
    }
    assert_eq!((module.counted("sluice.routed.even"), module.counted("sluice.routed.odd")), (2, 2));
}

#[test]
fn decisions_are_logged_at_debug_level() {
    let module = Module::new(TABLE);
    envoy(|envoy| {
        (envoy.remote, envoy.local) = (address("10.0.0.2", 1), address("192.0.2.7", 443));
        envoy.debug = true;
    });
    let (_, calls) = module.connect();
    assert_eq!(calls[1], r#"log 1 sluice: source.address "10.0.0.2:1" is routed to "even""#);
}

#[test]
fn a_server_name_is_read() {
    let module = Module::new(TABLE);
    envoy(|envoy| {
        (envoy.remote, envoy.local) = (address("10.0.0.2", 1), address("192.0.2.7", 443));
        envoy.server_name = Some(Buffer::new(b"A.example."));
    });
    assert_eq!(module.connect(), (CONTINUE, vec!["set envoy.tcp_proxy.cluster named".to_owned()]));
}

#[test]
fn a_denied_connection_is_marked_closed_and_stopped() {
    let module = Module::new(TABLE);
    envoy(|envoy| (envoy.remote, envoy.local) = (address("10.0.0.2", 1), address("192.0.2.7", 25)));
    let expected = ["set envoy.tcp_proxy.cluster sluice.denied", "close 0"].map(ToOwned::to_owned);
    assert_eq!(module.connect(), (STOP_ITERATION, expected.to_vec()));
    assert_eq!(module.counted("sluice.denied"), 1);
}

#[test]
fn a_refused_override_follows_on_error_and_is_logged() {
    let module = Module::new(TABLE);
    envoy(|envoy| {
        (envoy.remote, envoy.local) = (address("10.0.0.2", 1), address("192.0.2.7", 443));
        envoy.accepts_override = false;
    });
    let (status, calls) = module.connect();
    assert_eq!(status, STOP_ITERATION);
    let line =
        r#"log 3 sluice: source.address "10.0.0.2:1" cannot be routed to "even" (host status 2): connection closed"#;
    assert!(calls.contains(&line.to_owned()), "{calls:?}");
    assert_eq!((module.counted("sluice.host_errors"), module.counted("sluice.denied")), (1, 1));
}

#[test]
fn unusual_addresses_do_not_crash_and_are_denied() {
    let module = Module::new(TABLE);
    let dangling = Buffer { data: core::ptr::NonNull::dangling().as_ptr(), length: 0 };
    let null = Buffer { data: null(), length: usize::MAX };
    for remote in [
        None,
        Some((Buffer::EMPTY, 0)),
        Some((dangling, 1)),
        Some((null, 1)),
        Some((Buffer::new(b"\xff\xfe"), 1)),
        Some((Buffer::new(b"10.0.0.2"), 65_536)),
        Some((Buffer::new(b"10.0.0.2"), u32::MAX)),
        Some((Buffer::new(b"fe80::1%eth0"), 1)),
        Some((Buffer::new(&[b':'; 4_096]), 1)),
    ] {
        envoy(|envoy| (envoy.remote, envoy.local) = (remote, address("192.0.2.7", 443)));
        let (status, calls) = module.connect();
        assert_eq!((status, calls.len()), (STOP_ITERATION, 3), "{calls:?}");
    }
    assert_eq!(module.counted("sluice.unreadable"), 9);
    for name in [null, dangling, Buffer::new(b"\xff"), Buffer::new(&[b'.'; 4_096])] {
        envoy(|envoy| (envoy.remote, envoy.server_name) = (address("10.0.0.2", 1), Some(name)));
        assert_eq!(module.connect().0, CONTINUE);
    }
}

#[test]
fn a_rejected_configuration_is_null_and_logged() {
    for (document, expected) in [
        (Buffer::new(b"{}"), "routes is missing"),
        (Buffer::new(b"\xff"), r#""\xff" is neither a preset (standalone, istio) nor a JSON object"#),
        (Buffer { data: null(), length: 5 }, "the proxy did not return it"),
        (Buffer { data: null(), length: usize::MAX }, "longer than 262144 bytes"),
    ] {
        envoy(|envoy| envoy.calls.clear());
        assert!(Module::load(document).0.is_null());
        let line = format!("log 4 sluice: plugin configuration: {expected}");
        assert_eq!(envoy(|envoy| envoy.calls.clone()), [line]);
    }
}

#[test]
fn an_empty_configuration_means_standalone() {
    for document in [Buffer::EMPTY, Buffer::new(b"")] {
        let module = Module::load(document);
        envoy(|envoy| envoy.remote = address("10.0.0.3", 1));
        assert_eq!(module.connect(), (CONTINUE, vec!["set envoy.tcp_proxy.cluster egress2".to_owned()]));
    }
}

#[test]
fn without_counters_connections_are_routed() {
    envoy(|envoy| envoy.accepts_counters = false);
    let module = Module::new("standalone");
    let calls = envoy(|envoy| envoy.calls.clone());
    assert_eq!(calls[0], r#"log 3 sluice: cannot define the counter "sluice.routed.egress1" (host status 3)"#);
    envoy(|envoy| envoy.remote = address("10.0.0.2", 1));
    assert_eq!(module.connect(), (CONTINUE, vec!["set envoy.tcp_proxy.cluster egress1".to_owned()]));
}

#[test]
fn a_panic_closes_the_connection_and_is_counted() {
    let module = Module::new("standalone");
    let counter = envoy(|envoy| envoy.counters.iter().position(|(name, _)| name == "sluice.panics"));
    envoy(|envoy| envoy.calls.clear());
    let connection = NewConnection(core::ptr::null_mut());
    assert_eq!(guard(&connection, counter.as_ref(), || panic!("on purpose")), STOP_ITERATION);
    assert_eq!(envoy(|envoy| envoy.calls.clone()), ["log 4 sluice: panic: connection closed", "close 0"]);
    assert_eq!(module.counted("sluice.panics"), 1);
}

#[test]
fn a_connection_without_a_configuration_is_closed() {
    let none = core::ptr::null_mut();
    assert_eq!(envoy_dynamic_module_on_network_filter_new_connection(none, none), STOP_ITERATION);
    let expected = ["log 4 sluice: no configuration: connection closed", "close 0"];
    assert_eq!(envoy(|envoy| envoy.calls.clone()), expected);
}

/// Only valgrind, AddressSanitizer and Miri can see a leak.
#[test]
fn many_connections_and_configurations_leak_nothing() {
    const MANY: u32 = if cfg!(miri) { 10 } else { 100 };
    for round in 0..MANY {
        let module = Module::new(if round % 2 == 0 { TABLE } else { "istio" });
        envoy(|envoy| (envoy.remote, envoy.local) = (address("10.0.0.2", 1), address("192.0.2.7", 443)));
        for _ in 0..MANY {
            assert_eq!(module.connect().0, CONTINUE);
        }
    }
}

#[test]
fn the_abi_version_is_a_c_string() {
    // SAFETY: the module returns a constant that ends with a zero byte.
    let version = unsafe { CStr::from_ptr(envoy_dynamic_module_on_program_init()) };
    assert_eq!(version, ABI_VERSION);
}
