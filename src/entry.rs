//! The shipped module's door: the entry points that Envoy calls, straight into the filter.
//!
//! A proxy creates a stream context and calls its `on_new_connection` at once, on one thread, and sluice keeps nothing
//! for a connection that is routed. So where the SDK has a map of boxed contexts, two numbers are enough; a connection
//! that comes in any other order of calls is denied, never routed by another plugin's table.
#![expect(unsafe_code, reason = "the exports bear the ABI's names, which rustc cannot keep apart from others")]

use crate::{
    filter::{self, Plugin},
    host::{self, SingleThread},
};
use alloc::boxed::Box;
use core::cell::Cell;

/// A root context of the host's that has a plugin configuration, and those that were configured before it.
struct Root {
    context: u32,
    plugin: Plugin,
    next: Option<Box<Root>>,
}

/// Those that are there; none while a connection is decided: one that a host would bring then is closed, and a configuration
/// that it would give then is lost. No proxy does either.
static ROOTS: SingleThread<Cell<Option<Box<Root>>>> = SingleThread(Cell::new(None));

/// The stream context that was created last, and its root context.
static STREAM: SingleThread<Cell<(u32, u32)>> = SingleThread(Cell::new((0, 0)));

/// The place of this root context, which is empty at the end where there is none.
#[inline(never)]
fn place(mut place: &mut Option<Box<Root>>, context: u32) -> &mut Option<Box<Root>> {
    while place.as_ref().is_some_and(|root| root.context != context)
        && let Some(root) = place
    {
        place = &mut root.next;
    }
    place
}

#[unsafe(no_mangle)]
extern "C" fn proxy_abi_version_0_2_1() {}

#[unsafe(no_mangle)]
extern "C" fn malloc(size: usize) -> *mut u8 {
    host::allocate(size)
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_context_create(context: u32, parent: u32) {
    STREAM.0.set((context, parent));
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_configure(context: u32, size: usize) -> bool {
    let mut root = Box::new(Root { context, plugin: Plugin::default(), next: None });
    let accepted = root.plugin.configure(size);
    // What is refused leaves the plugin that is there.
    if accepted {
        proxy_on_delete(context);
        root.next = ROOTS.0.take();
        ROOTS.0.set(Some(root));
    }
    accepted
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_new_connection(context: u32) -> u32 {
    let (stream, parent) = STREAM.0.take();
    let mut roots = ROOTS.0.take();
    let root = if stream == context { place(&mut roots, parent).as_deref() } else { None };
    let action = filter::on_new_connection(root.map(|root| &root.plugin));
    ROOTS.0.set(roots);
    action
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_delete(context: u32) {
    let mut roots = ROOTS.0.take();
    let place = place(&mut roots, context);
    *place = place.take().and_then(|root| root.next);
    ROOTS.0.set(roots);
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    core::arch::wasm32::unreachable()
}
