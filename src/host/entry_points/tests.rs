//! The entry points of the shipped Wasm module and its calls of the ABI, compiled for this machine, with the fake proxy below.
//! `tests/wasm` runs the module itself.

#![allow(clippy::arithmetic_side_effects, reason = "a test that overflows has failed")]

use super::*;
use crate::host::{Level, Log};
use std::{
    borrow::ToOwned,
    cell::RefCell,
    format,
    string::String,
    sync::{Mutex, MutexGuard, PoisonError},
    thread_local, vec,
    vec::Vec,
};

/// The result of a call to the fake proxy: a status, and memory or a null pointer with this length.
#[derive(Clone)]
enum Answer {
    Memory(u32, Vec<u8>),
    Null(u32, usize),
}

struct Proxy {
    configuration: Answer,
    source: Answer,
    destination: Answer,
    server_name: Answer,
    /// The result of the foreign function.
    result: Answer,
    /// A status, and the lowest level that is shown.
    level: (u32, u32),
    /// The status that `proxy_define_metric` returns.
    defined: u32,
    counters: Vec<(String, u64)>,
    calls: Vec<String>,
}

thread_local! {
    static PROXY: RefCell<Proxy> = const {
        RefCell::new(Proxy {
            configuration: Answer::Null(1, 0),
            source: Answer::Null(1, 0),
            destination: Answer::Null(1, 0),
            server_name: Answer::Null(1, 0),
            result: Answer::Null(0, 0),
            level: (0, 2),
            defined: 0,
            counters: Vec::new(),
            calls: Vec::new(),
        })
    };
}

fn proxy<T>(change: impl FnOnce(&mut Proxy) -> T) -> T {
    PROXY.with_borrow_mut(change)
}

fn text(data: *const u8, length: usize) -> String {
    // SAFETY: the module passes readable memory.
    String::from_utf8(unsafe { core::slice::from_raw_parts(data, length) }.to_vec()).unwrap()
}

/// Returns memory to the module as a proxy does: in a block of its own `malloc`.
fn give(answer: &Answer, data: *mut *mut u8, length: *mut usize) -> u32 {
    let (status, block, size) = match answer {
        Answer::Null(status, size) => (*status, null_mut(), *size),
        Answer::Memory(status, bytes) => {
            let block = malloc(bytes.len());
            // SAFETY: `malloc` returned a block of this size, or null if the size is 0.
            unsafe { block.copy_from(bytes.as_ptr(), bytes.len()) };
            (*status, block, bytes.len())
        }
    };
    // SAFETY: the module passes the addresses of a pointer and a size.
    unsafe {
        data.write(block);
        length.write(size);
    }
    status
}

#[unsafe(no_mangle)]
extern "C" fn proxy_log(level: u32, message: *const u8, length: usize) -> u32 {
    proxy(|proxy| proxy.calls.push(format!("log {level} {}", text(message, length))));
    0
}

#[unsafe(no_mangle)]
extern "C" fn proxy_get_log_level(level: *mut u32) -> u32 {
    let (status, lowest) = proxy(|proxy| proxy.level);
    // SAFETY: the module passes the address of a u32.
    unsafe { level.write(lowest) };
    status
}

#[unsafe(no_mangle)]
extern "C" fn proxy_get_property(path: *const u8, size: usize, data: *mut *mut u8, length: *mut usize) -> u32 {
    let answer = proxy(|proxy| match &*text(path, size) {
        "source\0address" => proxy.source.clone(),
        "destination\0address" => proxy.destination.clone(),
        "connection\0requested_server_name" => proxy.server_name.clone(),
        other => panic!("{other}"),
    });
    give(&answer, data, length)
}

#[unsafe(no_mangle)]
extern "C" fn proxy_get_buffer_bytes(
    buffer: u32,
    start: usize,
    _size: usize,
    data: *mut *mut u8,
    length: *mut usize,
) -> u32 {
    assert_eq!((buffer, start), (7, 0));
    give(&proxy(|proxy| proxy.configuration.clone()), data, length)
}

#[unsafe(no_mangle)]
extern "C" fn proxy_close_stream(stream: u32) -> u32 {
    proxy(|proxy| proxy.calls.push(format!("close {stream}")));
    9
}

#[unsafe(no_mangle)]
extern "C" fn proxy_define_metric(kind: u32, name: *const u8, length: usize, id: *mut u32) -> u32 {
    assert_eq!(kind, 0);
    proxy(|proxy| {
        // SAFETY: the module passes the address of a u32.
        unsafe { id.write(proxy.counters.len() as u32) };
        proxy.counters.push((text(name, length), 0));
        proxy.defined
    })
}

#[unsafe(no_mangle)]
extern "C" fn proxy_increment_metric(id: u32, by: i64) -> u32 {
    proxy(|proxy| proxy.counters[id as usize].1 += by.cast_unsigned());
    0
}

#[unsafe(no_mangle)]
extern "C" fn proxy_call_foreign_function(
    name: *const u8,
    name_length: usize,
    arguments: *const u8,
    arguments_length: usize,
    data: *mut *mut u8,
    length: *mut usize,
) -> u32 {
    let call = format!("{} {:?}", text(name, name_length), text(arguments, arguments_length));
    proxy(|proxy| proxy.calls.push(call));
    give(&proxy(|proxy| proxy.result.clone()), data, length)
}

/// Locks the module's state, which belongs to one thread, and removes what the last test left.
fn module() -> MutexGuard<'static, ()> {
    static ONE_THREAD: Mutex<()> = Mutex::new(());
    let guard = ONE_THREAD.lock().unwrap_or_else(PoisonError::into_inner);
    drop(ROOTS.0.take());
    STREAM.0.set((0, 0));
    guard
}

fn answer(text: &str) -> Answer {
    Answer::Memory(0, text.as_bytes().to_vec())
}

fn configure(context: u32, configuration: &str) -> bool {
    proxy(|proxy| proxy.configuration = answer(configuration));
    proxy_on_context_create(context, 0);
    proxy_on_configure(context, configuration.len())
}

/// Runs a connection. Returns the action, and the calls that log, override or close.
fn connect(stream: u32, root: u32) -> (u32, Vec<String>) {
    proxy(|proxy| proxy.calls.clear());
    proxy_on_context_create(stream, root);
    let action = proxy_on_new_connection(stream);
    proxy_on_delete(stream);
    (action, proxy(|proxy| core::mem::take(&mut proxy.calls)))
}

fn override_by(cluster: &str) -> String {
    let length = char::from(u8::try_from(cluster.len()).unwrap());
    let message = format!("\n\u{17}envoy.tcp_proxy.cluster\u{12}{length}{cluster}");
    format!("set_envoy_filter_state {message:?}")
}

fn counted(name: &str) -> u64 {
    proxy(|proxy| proxy.counters.iter().filter(|(known, _)| known == name).map(|(_, count)| count).sum())
}

const TABLE: &str = r#"{"routes":[{"match":{"sni":["a.example"],"destination_ports":[443]},"clusters":["named"]},
    {"match":{"destination_ports":[25]},"action":"deny"},{"clusters":["even","odd"]}],"otherwise":"deny"}"#;

#[test]
fn connections_follow_the_configuration_of_their_root_context() {
    let _guard = module();
    assert!(configure(1, TABLE));
    assert!(configure(7, "standalone"));
    proxy(|proxy| {
        (proxy.source, proxy.destination) = (answer("10.0.0.3:1"), answer("192.0.2.7:443"));
        proxy.server_name = answer("A.example.");
    });
    assert_eq!(connect(2, 1), (0, vec![override_by("named")]));
    assert_eq!(connect(3, 7), (0, vec![override_by("egress2")]));
    proxy(|proxy| proxy.server_name = Answer::Null(1, 0));
    assert_eq!(connect(4, 1), (0, vec![override_by("odd")]));
    proxy(|proxy| proxy.destination = answer("192.0.2.7:25"));
    assert_eq!(connect(5, 1), (1, vec![override_by("sluice.denied"), "close 2".to_owned()]));
    proxy(|proxy| proxy.destination = answer("192.0.2.7:443"));
    assert_eq!(connect(6, 1).0, 0);
    proxy_on_delete(1);
    assert_eq!(connect(6, 1).0, 1);
    assert_eq!(connect(6, 7).0, 0);
}

#[test]
fn a_replaced_configuration_is_freed_and_a_rejected_one_changes_nothing() {
    let _guard = module();
    proxy(|proxy| proxy.source = answer("10.0.0.2:1"));
    for round in 0..20 {
        assert!(configure(1, if round % 2 == 0 { "standalone" } else { r#"{"preset":"standalone"}"# }));
        assert!(!configure(1, r#"{"preset":"other"}"#));
        assert_eq!(connect(2, 1), (0, vec![override_by("egress1")]));
    }
    let roots = ROOTS.0.take();
    assert!(roots.as_ref().is_some_and(|root| root.next.is_none()), "a replaced configuration was not freed");
    ROOTS.0.set(roots);
    proxy(|proxy| proxy.configuration = answer("stand"));
    assert!(!proxy_on_configure(1, 10), "shorter than announced");
    proxy(|proxy| proxy.configuration = Answer::Null(0, 10));
    assert!(!proxy_on_configure(1, 10), "a null pointer");
    proxy(|proxy| proxy.configuration = Answer::Memory(2, b"standalone".to_vec()));
    assert!(!proxy_on_configure(1, 10), "a status and memory");
    assert!(proxy_on_configure(1, 0), "size 0, which means an empty configuration");
    assert!(!proxy_on_configure(1, 262_145));
    let last = proxy(|proxy| proxy.calls.last().cloned());
    assert_eq!(last.unwrap(), "log 4 sluice: plugin configuration: longer than 262144 bytes");
}

#[test]
fn returned_memory_is_owned_for_every_status() {
    let _guard = module();
    assert!(configure(1, "standalone"));
    for status in [0, 1, 2, 10, 4_711] {
        for result in [Answer::Memory(status, b"result".to_vec()), Answer::Null(status, 6), Answer::Null(status, 0)] {
            proxy(|proxy| (proxy.result, proxy.source) = (result, answer("10.0.0.2:1")));
            let (action, calls) = connect(2, 1);
            assert_eq!((action, calls.len()), (0, if status == 0 { 1 } else { 2 }), "{calls:?}");
            let source = Answer::Memory(status, b"10.0.0.2:1".to_vec());
            proxy(|proxy| proxy.source = source);
            assert_eq!(connect(2, 1).1[0] == override_by("egress1"), status == 0, "{status}");
        }
    }
    assert_eq!(counted("sluice.host_errors"), 12);
    assert_eq!(counted("sluice.unreadable"), 12);
}

#[test]
fn a_stream_context_serves_one_connection_of_its_own() {
    let _guard = module();
    assert!(configure(1, "standalone"));
    proxy(|proxy| proxy.source = answer("10.0.0.2:1"));
    proxy_on_context_create(2, 1);
    assert_eq!(proxy_on_new_connection(3), 1);
    assert_eq!(proxy_on_new_connection(2), 1, "the first call used the context up");
    proxy_on_context_create(2, 1);
    assert_eq!(proxy_on_new_connection(2), 0);
    assert_eq!(proxy_on_new_connection(2), 1);
    proxy_on_context_create(2, 99);
    assert_eq!(proxy_on_new_connection(2), 1);
}

#[test]
fn debug_lines_are_logged_only_at_log_level_debug_or_lower() {
    let _guard = module();
    assert!(configure(1, "standalone"));
    proxy(|proxy| proxy.source = answer("10.0.0.2:1"));
    for (level, lines) in [((0, 0), 1), ((0, 1), 1), ((0, 2), 0), ((0, 5), 0), ((1, 0), 0), ((1, 1), 0)] {
        proxy(|proxy| proxy.level = level);
        assert_eq!(connect(2, 1).1.len(), 1 + lines, "{level:?}");
    }
    ProxyWasm.log(Level::Warn, &crate::text::Text::new("a line"));
    assert_eq!(proxy(|proxy| proxy.calls.pop()).unwrap(), "log 3 a line");
}

#[test]
fn without_counters_connections_are_routed() {
    let _guard = module();
    proxy(|proxy| (proxy.defined, proxy.source) = (7, answer("10.0.0.2:1")));
    assert!(configure(1, "standalone"));
    assert_eq!(connect(2, 1), (0, vec![override_by("egress1")]));
    assert_eq!(counted("sluice.routed.egress1"), 0);
    proxy(|proxy| proxy.defined = 0);
    assert!(configure(1, "standalone"));
    assert_eq!(connect(2, 1), (0, vec![override_by("egress1")]));
    assert_eq!(counted("sluice.routed.egress1"), 1);
}

#[test]
fn malloc_returns_null_for_zero_and_impossible_sizes() {
    assert!(malloc(0).is_null());
    assert!(malloc(usize::MAX).is_null());
    proxy_abi_version_0_2_1();
}
