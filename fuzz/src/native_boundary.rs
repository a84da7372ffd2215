//! The entry points of the native module, called by a hostile Envoy: null pointers with any length, dangling pointers, any bytes as
//! addresses and names, any port, refused overrides and counters, and any counter ids.
//!
//! Model: `traffic::expected` with the addresses that the standard library parses. The result must be the same, and so must the
//! calls and their order. AddressSanitizer detects invalid accesses and leaks.
#![expect(unsafe_code, reason = "the boundary is a foreign interface")]

use crate::{
    input::Input,
    model::{Action, Model},
    scenario::{ip, model, server_name},
    traffic::{Call, Presented, as_text, check_line, counters, expected},
};
use std::{
    cell::RefCell,
    ffi::c_void,
    net::{IpAddr, SocketAddr},
    ptr::{NonNull, null, null_mut},
};

/// Links the library, which defines the symbols of the entry points.
use sluice as _;

#[repr(C)]
#[derive(Clone, Copy)]
struct Buffer {
    data: *const u8,
    length: usize,
}

impl Buffer {
    const NULL: Self = Self { data: null(), length: 0 };

    fn new(bytes: &[u8]) -> Self {
        Self { data: bytes.as_ptr(), length: bytes.len() }
    }
}

unsafe extern "C" {
    fn envoy_dynamic_module_on_network_filter_config_new(
        envoy: *mut c_void,
        name: Buffer,
        document: Buffer,
    ) -> *const c_void;
    fn envoy_dynamic_module_on_network_filter_config_destroy(loaded: *mut c_void);
    fn envoy_dynamic_module_on_network_filter_new(loaded: *const c_void, envoy: *mut c_void) -> *const c_void;
    fn envoy_dynamic_module_on_network_filter_new_connection(envoy: *mut c_void, filter: *const c_void) -> u32;
    fn envoy_dynamic_module_on_network_filter_destroy(filter: *const c_void);
}

/// The answers of the fake Envoy, and the calls that it received.
struct Envoy {
    remote: Option<(Buffer, u32)>,
    local: Option<(Buffer, u32)>,
    server_name: Option<Buffer>,
    accepts_override: bool,
    debug: bool,
    /// One bit for each of the first 64 counters, which is set if the counter is refused. The input sets the first 8.
    refused: u64,
    /// The id of the first counter. The following ids wrap around.
    first_id: usize,
    /// The names of all counters that the module tried to define.
    counters: Vec<String>,
    calls: Vec<Call>,
}

thread_local! {
    static ENVOY: RefCell<Envoy> = const {
        RefCell::new(Envoy {
            remote: None,
            local: None,
            server_name: None,
            accepts_override: true,
            debug: false,
            refused: 0,
            first_id: 0,
            counters: Vec::new(),
            calls: Vec::new(),
        })
    };
}

fn envoy<T>(change: impl FnOnce(&mut Envoy) -> T) -> T {
    ENVOY.with_borrow_mut(change)
}

fn bytes<'a>(buffer: Buffer) -> &'a [u8] {
    // SAFETY: the module passes readable buffers.
    unsafe { std::slice::from_raw_parts(buffer.data, buffer.length) }
}

fn text(buffer: Buffer) -> String {
    String::from_utf8(bytes(buffer).to_vec()).unwrap()
}

impl Envoy {
    fn is_refused(&self, index: usize) -> bool {
        index < 64 && self.refused >> index & 1 == 1
    }
}

#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_callback_log(level: u32, message: Buffer) {
    check_line(bytes(message));
    envoy(|envoy| envoy.calls.push(Call::Log(level)));
}

#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_callback_log_enabled(level: u32) -> bool {
    level > 1 || envoy(|envoy| envoy.debug)
}

#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_callback_network_filter_config_define_counter(
    _configuration: *mut c_void,
    name: Buffer,
    id: *mut usize,
) -> u32 {
    envoy(|envoy| {
        let index = envoy.counters.len();
        envoy.counters.push(text(name));
        // SAFETY: the module passes the address of a usize.
        unsafe { id.write(envoy.first_id.wrapping_add(index)) };
        envoy.is_refused(index).into()
    })
}

#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_callback_network_filter_increment_counter(
    _filter: *mut c_void,
    id: usize,
    by: u64,
) -> u32 {
    envoy(|envoy| {
        assert_eq!(by, 1);
        let name = envoy.counters[id.wrapping_sub(envoy.first_id)].clone();
        envoy.calls.push(Call::Count(name));
    });
    7
}

fn give(found: Option<(Buffer, u32)>, ip: *mut Buffer, port: *mut u32) -> bool {
    let (buffer, number) = found.unwrap_or((Buffer::NULL, 0));
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
    give(envoy(|envoy| envoy.remote), ip, port)
}

#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_callback_network_filter_get_local_address(
    _filter: *mut c_void,
    ip: *mut Buffer,
    port: *mut u32,
) -> bool {
    give(envoy(|envoy| envoy.local), ip, port)
}

#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_callback_network_filter_get_requested_server_name(
    _filter: *mut c_void,
    name: *mut Buffer,
) -> bool {
    let found = envoy(|envoy| envoy.server_name);
    // SAFETY: the module passes the address of a buffer.
    unsafe { name.write(found.unwrap_or(Buffer::NULL)) };
    found.is_some()
}

#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_callback_network_set_filter_state_typed(
    _filter: *mut c_void,
    key: Buffer,
    value: Buffer,
) -> bool {
    assert_eq!(bytes(key), b"envoy.tcp_proxy.cluster");
    envoy(|envoy| {
        envoy.calls.push(Call::Override(text(value)));
        envoy.accepts_override
    })
}

#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_callback_network_filter_close(_filter: *mut c_void, how: u32) {
    assert_eq!(how, 0);
    envoy(|envoy| envoy.calls.push(Call::Close));
}

/// The text of an address, the way it is passed, and the port.
type Passed = (Vec<u8>, Quirk, u32);

/// Returns an address as Envoy passes it, and as the standard library parses it.
fn address(input: &mut Input<'_>) -> (Option<Passed>, Option<SocketAddr>) {
    if input.one_in(16) {
        return (None, None);
    }
    let text = if input.one_in(4) { input.text().to_vec() } else { ip(input).to_string().into_bytes() };
    let port = match input.byte() {
        0 => u32::from_le_bytes(input.array()),
        _ => u16::from_le_bytes(input.array()).into(),
    };
    let quirk = Quirk::new(input);
    let readable = std::str::from_utf8(&text).ok().filter(|_| quirk == Quirk::None);
    let readable = readable.filter(|text| !text.contains('%')).and_then(|text| text.parse::<IpAddr>().ok());
    let known = readable.and_then(|ip| Some(SocketAddr::new(ip, u16::try_from(port).ok()?)));
    (Some((text, quirk, port)), known)
}

/// The way a buffer is passed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Quirk {
    /// As a pointer to the bytes and their length.
    None,
    /// As a null pointer and the length of the bytes.
    Null,
    /// As a dangling pointer and length 0.
    Dangling,
}

impl Quirk {
    fn new(input: &mut Input<'_>) -> Self {
        match input.byte() {
            0xfe => Self::Null,
            0xff => Self::Dangling,
            _ => Self::None,
        }
    }

    fn apply(self, bytes: &[u8]) -> Buffer {
        match self {
            Self::None => Buffer::new(bytes),
            Self::Null => Buffer { data: null(), length: bytes.len() },
            Self::Dangling => Buffer { data: NonNull::dangling().as_ptr(), length: 0 },
        }
    }
}

/// Loads a configuration and passes connections to it.
pub fn run(data: &[u8]) {
    let mut input = Input(data);
    let (document, quirk) = (document(&mut input), Quirk::new(&mut input));
    let expected_model = match quirk {
        Quirk::None => Model::of_text(&document),
        Quirk::Null => Model::of_text(b"").filter(|_| document.is_empty()),
        Quirk::Dangling => Model::of_text(b""),
    };
    envoy(|envoy| {
        (envoy.refused, envoy.first_id) = (input.byte().into(), usize::from_le_bytes(input.array()));
        envoy.counters.clear();
        envoy.calls.clear();
    });
    let name = Buffer::new(b"sluice");
    // SAFETY: the entry points are called as Envoy calls them, with readable buffers.
    let loaded = unsafe { envoy_dynamic_module_on_network_filter_config_new(null_mut(), name, quirk.apply(&document)) };
    assert_eq!(!loaded.is_null(), expected_model.is_some(), "{:?}", String::from_utf8_lossy(&document));
    let Some(model) = expected_model else { return };

    let mut defined = [counters(&model), vec!["sluice.panics".to_owned()]].concat();
    assert_eq!(envoy(|envoy| envoy.counters.clone()), defined);
    let mut index = 0;
    defined.retain(|_| (!envoy(|envoy| envoy.is_refused(index)), index += 1).0);
    for _ in 0..8 {
        connection(&mut input, loaded, &model, &defined);
        if input.is_empty() {
            break;
        }
    }
    // SAFETY: the configuration is destroyed once, after its connections.
    unsafe { envoy_dynamic_module_on_network_filter_config_destroy(loaded.cast_mut()) };
}

fn document(input: &mut Input<'_>) -> Vec<u8> {
    match input.byte() % 8 {
        0 => as_text(input.text()),
        1 => b"standalone".to_vec(),
        2 => b"istio".to_vec(),
        _ => model(input).to_string().into_bytes(),
    }
}

fn connection(input: &mut Input<'_>, loaded: *const c_void, model: &Model, defined: &[String]) {
    let (remote, source) = address(input);
    let (local, destination) = address(input);
    let name = (!input.one_in(4)).then(|| (server_name(input), Quirk::new(input)));
    let shown = Presented {
        source,
        destination,
        server_name: name.filter(|(_, quirk)| *quirk == Quirk::None).map_or(b"".as_slice(), |(name, _)| name),
        accepts_override: !input.one_in(8),
        debug: input.one_in(4),
    };
    envoy(|envoy| {
        let pass = |address: &Option<(Vec<u8>, Quirk, u32)>| {
            address.as_ref().map(|(text, quirk, port)| (quirk.apply(text), *port))
        };
        (envoy.remote, envoy.local) = (pass(&remote), pass(&local));
        envoy.server_name = name.map(|(name, quirk)| quirk.apply(name));
        (envoy.accepts_override, envoy.debug) = (shown.accepts_override, shown.debug);
        envoy.calls.clear();
    });
    // SAFETY: as in Envoy, while the configuration is loaded and the buffers are readable.
    let status = unsafe {
        let filter = envoy_dynamic_module_on_network_filter_new(loaded, null_mut());
        let status = envoy_dynamic_module_on_network_filter_new_connection(null_mut(), filter);
        envoy_dynamic_module_on_network_filter_destroy(filter);
        status
    };
    let (action, calls) = expected(model, defined, &shown);
    assert_eq!(status, u32::from(action == Action::Deny));
    assert_eq!(envoy(|envoy| std::mem::take(&mut envoy.calls)), calls, "{model}");
}
