//! Envoy's ABI for dynamic modules with network filters
//! (<https://github.com/envoyproxy/envoy/blob/0199da4a13cb999df12ad32db7d03942cfbf9abb/source/extensions/dynamic_modules/abi/abi.h>)
//! as a host, and the entry points of the native module.
//!
//! Envoy calls `config_new` once for each filter chain that contains the filter, on the main thread, and shares the configuration
//! among all workers. It does not change after that. The module keeps no state for a connection: its filter is the configuration.
//!
//! A panic must not unwind into Envoy. Each entry point that runs code of the filter catches it: a configuration is then
//! rejected, and a connection is closed and counted as `sluice.panics`.
#![expect(unsafe_code, reason = "Envoy's functions are foreign, and it passes memory by address")]

use super::{CLUSTER_OVERRIDE_KEY, Connection, Host, Level, Log, Status};
use crate::{
    filter::{Filter, on_new_connection},
    policy::Action,
    text::Text,
};
use core::{
    ffi::{CStr, c_char, c_void},
    ptr::null,
};
use std::{
    borrow::ToOwned,
    boxed::Box,
    panic::{AssertUnwindSafe, catch_unwind},
    string::String,
    vec::Vec,
};

/// The version of the ABI that this module is written for: that of Envoy 1.38 and 1.39. Envoy 1.40, which has v0.2.0, loads the
/// module and logs a warning.
const ABI_VERSION: &CStr = c"v0.1.0";

/// Pass the connection or the data to the next filter.
const CONTINUE: u32 = 0;
/// Do not pass it on.
const STOP_ITERATION: u32 = 1;
/// Close the connection after all data was sent.
const FLUSH_WRITE: u32 = 0;
/// The result of a successful call about metrics.
const METRIC_SUCCESS: u32 = 0;

/// Memory that Envoy or the module owns.
#[repr(C)]
#[derive(Clone, Copy)]
struct Buffer {
    data: *const u8,
    length: usize,
}

impl Buffer {
    const EMPTY: Self = Self { data: null(), length: 0 };

    fn new(bytes: &[u8]) -> Self {
        Self { data: bytes.as_ptr(), length: bytes.len() }
    }

    /// The bytes, or an empty slice if the address is null.
    ///
    /// # Safety
    ///
    /// Unless the address is null, `length` bytes there must be readable and unchanged during `'a`.
    unsafe fn bytes<'a>(self) -> &'a [u8] {
        if self.data.is_null() || self.length == 0 {
            return &[];
        }
        // SAFETY: guaranteed by the caller.
        unsafe { core::slice::from_raw_parts(self.data, self.length) }
    }
}

/// The state that the module keeps for each filter chain that contains the filter.
struct Loaded {
    filter: Box<Filter<Configuration>>,
    panics: Option<usize>,
}

/// Envoy, while it loads a configuration.
struct Configuration(*mut c_void);

impl Log for Configuration {
    fn log(&self, level: Level, line: &Text) {
        log(level, line);
    }
}

impl Host for Configuration {
    /// The name of the cluster.
    type Override = String;
    /// The id of a counter.
    type Counter = usize;

    fn prepare_override(&self, cluster: &str) -> String {
        cluster.to_owned()
    }

    fn define_counter(&self, name: &str) -> Result<usize, Status> {
        let mut id = 0;
        // SAFETY: Envoy passed the pointer and waits for this call, the name is readable, and Envoy writes a usize.
        let result = unsafe {
            envoy_dynamic_module_callback_network_filter_config_define_counter(
                self.0,
                Buffer::new(name.as_bytes()),
                &raw mut id,
            )
        };
        if result == METRIC_SUCCESS { Ok(id) } else { Err(Status(result)) }
    }
}

/// A new connection.
struct NewConnection(*mut c_void);

impl Log for NewConnection {
    fn log(&self, level: Level, line: &Text) {
        log(level, line);
    }
}

impl Connection for NewConnection {
    type Host = Configuration;
    type Bytes = Vec<u8>;

    fn source_address(&self) -> Result<Vec<u8>, Status> {
        self.address(envoy_dynamic_module_callback_network_filter_get_remote_address)
    }

    fn destination_address(&self) -> Result<Vec<u8>, Status> {
        self.address(envoy_dynamic_module_callback_network_filter_get_local_address)
    }

    fn server_name(&self) -> Result<Vec<u8>, Status> {
        let mut name = Buffer::EMPTY;
        // SAFETY: Envoy passed the pointer and waits for this call, and it writes a buffer.
        let found =
            unsafe { envoy_dynamic_module_callback_network_filter_get_requested_server_name(self.0, &raw mut name) };
        if !found {
            return Err(Status::NOT_FOUND);
        }
        // SAFETY: Envoy keeps the name as long as the connection.
        Ok(unsafe { name.bytes() }.to_vec())
    }

    fn set_override(&self, prepared: &String) -> Result<(), Status> {
        // SAFETY: Envoy passed the pointer and waits for this call, and key and value are readable.
        let accepted = unsafe {
            envoy_dynamic_module_callback_network_set_filter_state_typed(
                self.0,
                Buffer::new(CLUSTER_OVERRIDE_KEY.as_bytes()),
                Buffer::new(prepared.as_bytes()),
            )
        };
        if accepted { Ok(()) } else { Err(Status::BAD_ARGUMENT) }
    }

    fn increment(&self, counter: &usize) {
        // SAFETY: Envoy passed the pointer and waits for this call.
        unsafe { envoy_dynamic_module_callback_network_filter_increment_counter(self.0, *counter, 1) };
    }

    fn close(&self) {
        // SAFETY: Envoy passed the pointer and waits for this call.
        unsafe { envoy_dynamic_module_callback_network_filter_close(self.0, FLUSH_WRITE) };
    }

    fn log_enabled(&self, level: Level) -> bool {
        // SAFETY: the call touches no memory of the module.
        unsafe { envoy_dynamic_module_callback_log_enabled(level as u32) }
    }
}

type GetAddress = unsafe extern "C" fn(*mut c_void, *mut Buffer, *mut u32) -> bool;

impl NewConnection {
    /// Reads an address, which Envoy returns without port and brackets, and writes it in the form of Envoy's attributes.
    fn address(&self, get: GetAddress) -> Result<Vec<u8>, Status> {
        let (mut ip, mut port) = (Buffer::EMPTY, 0);
        // SAFETY: Envoy passed the pointer and waits for this call, and it writes a buffer and a u32.
        if !unsafe { get(self.0, &raw mut ip, &raw mut port) } {
            return Err(Status::NOT_FOUND);
        }
        // SAFETY: Envoy keeps the address as long as the connection.
        let ip = unsafe { ip.bytes() };
        let mut text = Vec::with_capacity(ip.len().saturating_add(8));
        let brackets: [&[u8]; 2] = if ip.contains(&b':') { [b"[", b"]:"] } else { [b"", b":"] };
        text.extend_from_slice(brackets[0]);
        text.extend_from_slice(ip);
        text.extend_from_slice(brackets[1]);
        text.extend_from_slice(Text::default().push_number(port as usize).as_bytes());
        Ok(text)
    }
}

fn log(level: Level, line: &Text) {
    // SAFETY: the line is readable for its length.
    unsafe { envoy_dynamic_module_callback_log(level as u32, Buffer::new(line.as_bytes())) };
}

/// Returns the version of the ABI.
#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_on_program_init() -> *const c_char {
    ABI_VERSION.as_ptr()
}

/// Loads a configuration. Returns null if it is rejected; the current one then stays in force.
#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_on_network_filter_config_new(
    envoy: *mut c_void,
    _filter_name: Buffer,
    document: Buffer,
) -> *const c_void {
    let load = || {
        let host = Configuration(envoy);
        // SAFETY: Envoy keeps the document during this call.
        let filter = Filter::load(&host, document.length, || Ok(unsafe { document.bytes() }))?;
        let panics = host.define_counter("sluice.panics").ok();
        Some(Box::new(Loaded { filter, panics }))
    };
    match catch_unwind(AssertUnwindSafe(load)) {
        Ok(Some(loaded)) => Box::into_raw(loaded).cast_const().cast(),
        Ok(None) => null(),
        Err(_) => {
            log(Level::Error, &Text::new("sluice: panic: configuration rejected"));
            null()
        }
    }
}

/// Frees a configuration. Envoy calls this after the last connection that uses it.
#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_on_network_filter_config_destroy(loaded: *mut c_void) {
    if !loaded.is_null() {
        // SAFETY: Envoy returns what `config_new` gave it, once. It may do so on a worker, which is sound because `Loaded` is
        // `Send`: it owns plain data.
        drop(unsafe { Box::from_raw(loaded.cast::<Loaded>()) });
    }
}

/// Returns the filter of a connection: the configuration itself.
#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_on_network_filter_new(loaded: *const c_void, _envoy: *mut c_void) -> *const c_void {
    loaded
}

/// Decides about a new connection.
#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_on_network_filter_new_connection(envoy: *mut c_void, loaded: *const c_void) -> u32 {
    let connection = NewConnection(envoy);
    // SAFETY: Envoy returns what `filter_new` gave it, and keeps the configuration as long as its connections. Workers share it,
    // which is sound because `Loaded` is `Sync`: it is plain data without interior mutability.
    let loaded = unsafe { loaded.cast::<Loaded>().as_ref() };
    let panics = loaded.and_then(|loaded| loaded.panics.as_ref());
    guard(&connection, panics, || on_new_connection(loaded.map(|loaded| &*loaded.filter), &connection))
}

/// Decides about a connection, and closes and counts it if that panics.
fn guard(connection: &NewConnection, panics: Option<&usize>, decide: impl FnOnce() -> Action) -> u32 {
    match catch_unwind(AssertUnwindSafe(decide)) {
        Ok(Action::Continue) => CONTINUE,
        Ok(Action::Deny) => STOP_ITERATION,
        Err(_) => {
            if let Some(counter) = panics {
                connection.increment(counter);
            }
            log(Level::Error, &Text::new("sluice: panic: connection closed"));
            connection.close();
            STOP_ITERATION
        }
    }
}

/// Passes data from the client on. Envoy requires this entry point and calls it for each piece of data.
#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_on_network_filter_read(
    _envoy: *mut c_void,
    _loaded: *const c_void,
    _length: usize,
    _is_last: bool,
) -> u32 {
    CONTINUE
}

/// Passes data to the client on. Envoy requires this entry point.
#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_on_network_filter_write(
    _envoy: *mut c_void,
    _loaded: *const c_void,
    _length: usize,
    _is_last: bool,
) -> u32 {
    CONTINUE
}

/// Ignores other events of a connection. Envoy requires this entry point.
#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_on_network_filter_event(_envoy: *mut c_void, _loaded: *const c_void, _event: u32) {}

/// Ends a connection. There is nothing to free. Envoy requires this entry point.
#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_on_network_filter_destroy(_loaded: *const c_void) {}

unsafe extern "C" {
    fn envoy_dynamic_module_callback_log(level: u32, message: Buffer);
    fn envoy_dynamic_module_callback_log_enabled(level: u32) -> bool;
    fn envoy_dynamic_module_callback_network_filter_config_define_counter(
        configuration: *mut c_void,
        name: Buffer,
        id: *mut usize,
    ) -> u32;
    fn envoy_dynamic_module_callback_network_filter_increment_counter(filter: *mut c_void, id: usize, by: u64) -> u32;
    fn envoy_dynamic_module_callback_network_filter_get_remote_address(
        filter: *mut c_void,
        ip: *mut Buffer,
        port: *mut u32,
    ) -> bool;
    fn envoy_dynamic_module_callback_network_filter_get_local_address(
        filter: *mut c_void,
        ip: *mut Buffer,
        port: *mut u32,
    ) -> bool;
    fn envoy_dynamic_module_callback_network_filter_get_requested_server_name(
        filter: *mut c_void,
        name: *mut Buffer,
    ) -> bool;
    fn envoy_dynamic_module_callback_network_set_filter_state_typed(
        filter: *mut c_void,
        key: Buffer,
        value: Buffer,
    ) -> bool;
    fn envoy_dynamic_module_callback_network_filter_close(filter: *mut c_void, how: u32);
}

#[cfg(test)]
mod tests;
