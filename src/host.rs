//! What the filter asks of the proxy, and the memory that both take.
//!
//! The SDK has these calls too, but its versions panic on a status that they do not list; these give every status back.
//! Names and shapes are those of the proxy-wasm ABI 0.2.1
//! (<https://github.com/proxy-wasm/spec/tree/main/abi-versions/v0.2.1>).
#![expect(unsafe_code, reason = "the host's functions are foreign, and it hands over memory by address")]

use crate::{bytes::Bytes, line::Line};
use alloc::boxed::Box;
use core::{
    alloc::{GlobalAlloc, Layout},
    arch::wasm32::{memory_grow, memory_size},
    cell::Cell,
    ptr::{null_mut, slice_from_raw_parts_mut, with_exposed_provenance_mut},
};

/// Gives memory in blocks whose sizes are powers of two. Those that were freed are a list for each size, so that a
/// block is found and freed in the same few steps, however many there are.
struct Allocator {
    free: [Cell<*mut u8>; 32],
    /// Where the memory that was never given out begins.
    unused: Cell<*const u8>,
}

/// Size of a page of memory.
const PAGE: usize = 1 << 16;

#[global_allocator]
static ALLOCATOR: Allocator =
    Allocator { free: [const { Cell::new(null_mut()) }; 32], unused: Cell::new(&raw const __heap_base) };

unsafe extern "C" {
    /// Where the linker says that the module's stack and data end.
    static __heap_base: u8;
}

// SAFETY: a module of this target has one thread.
unsafe impl Sync for Allocator {}

// SAFETY: a block is given out once until it is freed, and is as large and as aligned as the layout asks for: the linker
// aligns `__heap_base` to 16, sizes are multiples of 16, and nothing of ours asks for a larger alignment.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let size = Self::block(layout);
        let Some(list) = self.free.get(size.trailing_zeros() as usize) else { return null_mut() };
        let first = list.get();
        if !first.is_null() {
            // SAFETY: a free block holds the address of the next one.
            list.set(unsafe { first.cast::<*mut u8>().read() });
            return first;
        }
        let start = self.unused.get();
        let Some(next) = start.addr().checked_add(size) else { return null_mut() };
        let missing = next.div_ceil(PAGE).saturating_sub(memory_size::<0>());
        if memory_grow::<0>(missing) == usize::MAX {
            return null_mut();
        }
        self.unused.set(start.with_addr(next));
        with_exposed_provenance_mut(start.addr())
    }

    #[inline(never)]
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if let Some(list) = self.free.get(Self::block(layout).trailing_zeros() as usize) {
            // SAFETY: the block is large enough for an address, and nobody's any more.
            unsafe { block.cast::<*mut u8>().write(list.get()) };
            list.set(block);
        }
    }
}

impl Allocator {
    /// The size of the block for this layout; 0 for what no memory is large enough for.
    fn block(layout: Layout) -> usize {
        layout.size().max(16).checked_next_power_of_two().unwrap_or(0)
    }
}

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

/// A status, as the host gave it.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub struct Status(u32);

impl Status {
    /// The call did what it was asked for.
    pub const OK: Self = Self(0);

    /// Appends the status to a line if it is another than `OK`.
    pub fn end(self, line: &mut Line) {
        if self != Self::OK {
            line.text(": host status ").number(self.0 as usize);
        }
    }
}

/// What the host knows, and with which status it gave it; empty where that is not `OK`.
pub struct Property {
    /// The bytes.
    pub value: Box<[u8]>,
    /// The call's status.
    pub status: Status,
}

#[link(wasm_import_module = "env")]
unsafe extern "C" {
    fn proxy_log(level: u32, message: *const u8, message_size: usize) -> Status;
    fn proxy_get_log_level(level: *mut u32) -> Status;
    fn proxy_get_property(path: *const u8, path_size: usize, value: *mut *mut u8, value_size: *mut usize) -> Status;
    fn proxy_get_buffer_bytes(
        buffer: u32,
        start: usize,
        max_size: usize,
        value: *mut *mut u8,
        value_size: *mut usize,
    ) -> Status;
    fn proxy_close_stream(stream: u32) -> Status;
    fn proxy_define_metric(kind: u32, name: *const u8, name_size: usize, id: *mut usize) -> Status;
    fn proxy_increment_metric(id: usize, by: i64) -> Status;
    fn proxy_call_foreign_function(
        name: *const u8,
        name_size: usize,
        arguments: *const u8,
        arguments_size: usize,
        results: *mut *mut u8,
        results_size: *mut usize,
    ) -> Status;
}

/// The property at a path, whose segments end in NUL bytes but for the last.
pub fn property(path: &[u8]) -> Property {
    let mut given = Given::default();
    // SAFETY: the path is readable for its length, and the host writes an address and a size.
    let status = unsafe { proxy_get_property(path.as_ptr(), path.len(), &raw mut given.data, &raw mut given.size) };
    Property { value: given.bytes(), status }
}

/// The plugin configuration, of the size that `on_configure` was told.
pub fn plugin_configuration(size: usize) -> Property {
    let mut given = Given::default();
    // SAFETY: the host writes an address and a size.
    let status =
        unsafe { proxy_get_buffer_bytes(PLUGIN_CONFIGURATION, 0, size, &raw mut given.data, &raw mut given.size) };
    Property { value: given.bytes(), status }
}

/// Calls a function that the proxy knows by name; what it returns is dropped.
pub fn call_foreign_function(name: &[u8], arguments: &[u8]) -> Status {
    let mut results = Given::default();
    // SAFETY: name and arguments are readable for their lengths, and the host writes an address and a size.
    let status = unsafe {
        proxy_call_foreign_function(
            name.as_ptr(),
            name.len(),
            arguments.as_ptr(),
            arguments.len(),
            &raw mut results.data,
            &raw mut results.size,
        )
    };
    drop(results.bytes());
    status
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

/// No id of a counter: a host would have to define four thousand million metrics before.
const NO_COUNTER: usize = usize::MAX;

/// The id of the counter of this kind and name in the proxy's statistics, which all of that name share. Where the host
/// refuses it the log says so, and the id counts nothing.
#[inline(never)]
pub fn define_counter(kind: &[u8], outcome: &[u8]) -> usize {
    let mut id = 0;
    let mut name = Bytes::default();
    name.extend(b"sluice.");
    name.extend(kind);
    name.extend(outcome);
    // SAFETY: the name is readable for its length, and the host writes four bytes to the address of a usize.
    let status = unsafe { proxy_define_metric(COUNTER, name.as_ptr(), name.len(), &raw mut id) };
    if status != Status::OK {
        let mut line = Line::new("counter ");
        status.end(line.quoted(&name).text(" refused"));
        log(Level::Warn, &line);
        id = NO_COUNTER;
    }
    id
}

/// Counts one. A host that refuses what it has defined leaves nothing to be done, so its status is dropped.
pub fn count(counter: usize) {
    if counter != NO_COUNTER {
        // SAFETY: the call touches none of our memory.
        unsafe { proxy_increment_metric(counter, 1) };
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
struct Given {
    data: *mut u8,
    size: usize,
}

impl Default for Given {
    fn default() -> Self {
        Self { data: null_mut(), size: 0 }
    }
}

impl Given {
    /// It, ours to free.
    #[inline(never)]
    fn bytes(self) -> Box<[u8]> {
        if self.data.is_null() || self.size == 0 {
            return Box::default();
        }
        // SAFETY: a host allocates what it hands over by the `malloc` export, ours or the SDK's, with the layout of
        // so many bytes, and leaves it to us.
        unsafe { Box::from_raw(slice_from_raw_parts_mut(self.data, self.size)) }
    }
}
