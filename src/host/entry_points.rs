//! The entry points of the shipped Wasm module: the functions that Envoy calls, without the SDK's dispatcher.
//!
//! A proxy creates a stream context and calls its `on_new_connection` at once, on one thread, and sluice keeps no state for a
//! connection. So the ids of the last stream context and of its root context replace the SDK's map of boxed contexts. If a proxy
//! calls in any other order, the connection is denied and never routed by another plugin's policy.
#![expect(unsafe_code, reason = "exports need the ABI's names, and hosts pass memory by address")]

use super::wasm::ProxyWasm;
use crate::{
    filter::{Filter, on_new_connection},
    policy::Action,
};
use alloc::{
    alloc::{Layout, alloc},
    boxed::Box,
};
use core::{cell::Cell, ptr::null_mut};

/// A configured root context, in a linked list that is short enough to search.
struct Root {
    context: u32,
    filter: Box<Filter<ProxyWasm>>,
    next: Option<Box<Root>>,
}

/// All configured root contexts. Empty while `proxy_on_new_connection` or `proxy_on_delete` runs. If a proxy called another
/// callback meanwhile, a new connection would be closed and a new configuration lost. Envoy does not: it closes a connection only
/// after the callback has returned.
static ROOTS: SingleThread<Cell<Option<Box<Root>>>> = SingleThread(Cell::new(None));

/// The context that was created last, and its parent: the root context of a stream context, 0 for a root context.
static STREAM: SingleThread<Cell<(u32, u32)>> = SingleThread(Cell::new((0, 0)));

/// State that all entry points share.
struct SingleThread<T>(T);

// SAFETY: without atomics a module has one thread.
unsafe impl<T> Sync for SingleThread<T> {}

/// Returns the link to the root context with this id, or the empty link at the end of the list. (The loop tests `link` twice
/// because the borrow checker rejects returning it from a plain `while let`.)
#[inline(never)]
fn find(mut link: &mut Option<Box<Root>>, context: u32) -> &mut Option<Box<Root>> {
    while link.as_ref().is_some_and(|root| root.context != context)
        && let Some(root) = link
    {
        link = &mut root.next;
    }
    link
}

#[cfg_attr(target_arch = "wasm32", unsafe(no_mangle))]
extern "C" fn proxy_abi_version_0_2_1() {}

/// Allocates memory for data that the host passes to the module. Returns null if there is not enough, or if
/// `size` is 0.
#[cfg_attr(target_arch = "wasm32", unsafe(no_mangle))]
extern "C" fn malloc(size: usize) -> *mut u8 {
    match Layout::array::<u8>(size) {
        // SAFETY: the size is not zero.
        Ok(layout) if size > 0 => unsafe { alloc(layout) },
        _ => null_mut(),
    }
}

#[cfg_attr(target_arch = "wasm32", unsafe(no_mangle))]
extern "C" fn proxy_on_context_create(context: u32, parent: u32) {
    STREAM.0.set((context, parent));
}

#[cfg_attr(target_arch = "wasm32", unsafe(no_mangle))]
extern "C" fn proxy_on_configure(context: u32, size: usize) -> bool {
    // If the new configuration is rejected, the current one stays in force.
    let Some(filter) = Filter::load(&ProxyWasm, size, || ProxyWasm.plugin_configuration(size)) else { return false };
    proxy_on_delete(context); // removes the context's previous configuration, if any
    ROOTS.0.set(Some(Box::new(Root { context, filter, next: ROOTS.0.take() })));
    true
}

/// Returns an action of the ABI: 0 passes the connection to the next filter, 1 stops it.
#[cfg_attr(target_arch = "wasm32", unsafe(no_mangle))]
extern "C" fn proxy_on_new_connection(context: u32) -> u32 {
    let (stream, parent) = STREAM.0.take();
    let mut roots = ROOTS.0.take();
    let root = if stream == context { find(&mut roots, parent).as_deref() } else { None };
    let action = on_new_connection(root.map(|root| &*root.filter), &ProxyWasm);
    ROOTS.0.set(roots);
    match action {
        Action::Continue => 0,
        Action::Deny => 1,
    }
}

#[cfg_attr(target_arch = "wasm32", unsafe(no_mangle))]
extern "C" fn proxy_on_delete(context: u32) {
    let mut roots = ROOTS.0.take();
    let link = find(&mut roots, context);
    *link = link.take().and_then(|root| root.next);
    ROOTS.0.set(roots);
}

#[cfg(target_arch = "wasm32")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    core::arch::wasm32::unreachable()
}

#[cfg(test)]
mod tests;
