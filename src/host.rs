//! What the filter asks of the proxy, and all unsafe code of the crate but the names of the exports.
//!
//! The SDK has these calls too, but its versions panic on a status that they do not list; these give every status back.
//! Names and shapes are those of the proxy-wasm ABI 0.2.1
//! (<https://github.com/proxy-wasm/spec/tree/main/abi-versions/v0.2.1>).
#![expect(unsafe_code, reason = "the host's functions are foreign, and it hands over memory by address")]

use crate::line::Line;
use alloc::vec::Vec;
#[cfg(not(feature = "sdk"))]
use core::alloc::Layout;
use core::ptr::null_mut;
use lol_alloc::{AssumeSingleThreaded, FreeListAllocator};

/// Reuses freed memory, in little code. The list that it searches stays short: what lives long is made at load.
#[global_allocator]
// SAFETY: a module of this target has one thread.
static ALLOCATOR: AssumeSingleThreaded<FreeListAllocator> =
    unsafe { AssumeSingleThreaded::new(FreeListAllocator::new()) };

/// Severity of a line in the proxy's log.
#[derive(Clone, Copy)]
pub enum Level {
    /// Shown to who looks for the reason of a decision.
    Debug = 1,
    /// A connection was not routed as configured.
    Warn = 3,
    /// A configuration was refused, or a connection closed.
    Error = 4,
}

/// The buffer that holds the plugin configuration.
const PLUGIN_CONFIGURATION: u32 = 7;

/// The kind of metric that only grows.
const COUNTER: u32 = 0;

/// The stream between the client and the proxy.
const DOWNSTREAM: u32 = 2;

/// A status other than `OK`, as the host gave it.
#[derive(Clone, Copy)]
pub struct Status(u32);

impl Status {
    const OK: u32 = 0;

    /// Appends the status to a line.
    pub fn end(self, line: &mut Line) {
        line.text(": host status ").number(self.0 as usize);
    }

    fn check(status: u32) -> Result<(), Self> {
        if status == Self::OK { Ok(()) } else { Err(Self(status)) }
    }
}

#[link(wasm_import_module = "env")]
unsafe extern "C" {
    fn proxy_log(level: u32, message: *const u8, message_size: usize) -> u32;
    fn proxy_get_log_level(level: *mut u32) -> u32;
    fn proxy_get_property(path: *const u8, path_size: usize, value: *mut *mut u8, value_size: *mut usize) -> u32;
    fn proxy_get_buffer_bytes(
        buffer: u32,
        start: usize,
        max_size: usize,
        value: *mut *mut u8,
        value_size: *mut usize,
    ) -> u32;
    fn proxy_close_stream(stream: u32) -> u32;
    fn proxy_define_metric(kind: u32, name: *const u8, name_size: usize, id: *mut u32) -> u32;
    fn proxy_increment_metric(id: u32, by: i64) -> u32;
    fn proxy_call_foreign_function(
        name: *const u8,
        name_size: usize,
        arguments: *const u8,
        arguments_size: usize,
        results: *mut *mut u8,
        results_size: *mut usize,
    ) -> u32;
}

/// The property at a path, whose segments end in NUL bytes but for the last.
pub fn property(path: &[u8]) -> Result<Vec<u8>, Status> {
    // SAFETY: the path is readable for its length.
    given(|value, size| unsafe { proxy_get_property(path.as_ptr(), path.len(), value, size) })
}

/// The plugin configuration, of the size that `on_configure` was told.
pub fn plugin_configuration(size: usize) -> Result<Vec<u8>, Status> {
    // SAFETY: the call reads none of our memory.
    given(|value, length| unsafe { proxy_get_buffer_bytes(PLUGIN_CONFIGURATION, 0, size, value, length) })
}

/// Calls a function that the proxy knows by name; what it returns is dropped.
pub fn call_foreign_function(name: &[u8], arguments: &[u8]) -> Result<(), Status> {
    // SAFETY: name and arguments are readable for their lengths.
    given(|results, size| unsafe {
        proxy_call_foreign_function(name.as_ptr(), name.len(), arguments.as_ptr(), arguments.len(), results, size)
    })
    .map(drop)
}

/// Writes a line to the proxy's log. A log that cannot be written is nowhere to be reported, so its status is dropped.
pub fn log(level: Level, line: &Line) {
    let line = line.bytes();
    // SAFETY: the line is readable for its length.
    unsafe { proxy_log(level as u32, line.as_ptr(), line.len()) };
}

/// Whether lines of this level reach the log, to spare putting them together; no where the host does not say.
pub fn logs(level: Level) -> bool {
    let mut lowest = u32::MAX;
    // SAFETY: the host writes four bytes to the address of a u32.
    let status = unsafe { proxy_get_log_level(&raw mut lowest) };
    status == Status::OK && lowest <= level as u32
}

/// A counter in the proxy's statistics.
pub struct Counter(Option<u32>);

impl Counter {
    /// The counter of this name, which all of that name share; it counts nothing where the host refuses it, and then
    /// the log says so.
    pub fn define(name: &str) -> Self {
        let mut id = 0;
        // SAFETY: the name is readable for its length, and the host writes four bytes to the address of a u32.
        let status = unsafe { proxy_define_metric(COUNTER, name.as_ptr(), name.len(), &raw mut id) };
        match Status::check(status) {
            Ok(()) => Self(Some(id)),
            Err(status) => {
                let mut line = Line::new("counter ");
                line.quoted(name.as_bytes()).text(" refused");
                status.end(&mut line);
                log(Level::Warn, &line);
                Self(None)
            }
        }
    }

    /// Counts one. A host that refuses what it has defined leaves nothing to be done, so its status is dropped.
    pub fn increment(&self) {
        if let Some(id) = self.0 {
            // SAFETY: the call touches none of our memory.
            unsafe { proxy_increment_metric(id, 1) };
        }
    }
}

/// Closes the connection to the client. A host that cannot is told to go no further by what the callback returns.
pub fn close_downstream() {
    // SAFETY: the call touches none of our memory.
    unsafe { proxy_close_stream(DOWNSTREAM) };
}

/// Memory for the host to hand something over in; null where there is not so much.
#[cfg(not(feature = "sdk"))]
pub fn allocate(size: usize) -> *mut u8 {
    match Layout::array::<u8>(size) {
        // SAFETY: the layout has a size.
        Ok(layout) if size > 0 => unsafe { alloc::alloc::alloc(layout) },
        _ => null_mut(),
    }
}

/// State that the module's functions share.
#[cfg(not(feature = "sdk"))]
pub struct SingleThread<T>(pub T);

// SAFETY: a module of this target has one thread.
#[cfg(not(feature = "sdk"))]
unsafe impl<T> Sync for SingleThread<T> {}

/// What the host hands over in a call that takes where to write its address and size.
fn given(call: impl FnOnce(*mut *mut u8, *mut usize) -> u32) -> Result<Vec<u8>, Status> {
    let (mut data, mut size) = (null_mut(), 0);
    let status = call(&raw mut data, &raw mut size);
    let given = if data.is_null() || size == 0 {
        Vec::new()
    } else {
        // SAFETY: a host allocates what it hands over by the `malloc` export, ours or the SDK's, with the layout of so
        // many bytes, and leaves it to us.
        unsafe { Vec::from_raw_parts(data, size, size) }
    };
    Status::check(status).map(|()| given)
}
