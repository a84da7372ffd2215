//! The shipped module's door: the entry points that Envoy calls, straight into the filter.
//!
//! A proxy creates a stream context and calls its `on_new_connection` at once, on one thread, and sluice keeps nothing
//! for a connection that is routed. So where the SDK has a map of boxed contexts, two numbers are enough; a connection
//! that comes in any other order of calls is denied, never routed by another plugin's table.
#![expect(unsafe_code, reason = "the exports bear the ABI's names, which rustc cannot keep apart from others")]

use crate::{
    filter,
    host::{self, SingleThread},
    route::Table,
};
use alloc::vec::Vec;
use core::cell::RefCell;

/// One plugin configuration: a root context of the host's.
struct Plugin {
    context: u32,
    table: Option<Table>,
}

struct Module {
    plugins: Vec<Plugin>,
    /// The stream context that was created last, and its plugin's root context.
    stream: (u32, u32),
}

static MODULE: SingleThread<RefCell<Module>> =
    SingleThread(RefCell::new(Module { plugins: Vec::new(), stream: (0, 0) }));

/// Runs with the module's state; not at all where the host calls in while one of its own functions runs.
fn with_module<T>(run: impl FnOnce(&mut Module) -> T) -> Option<T> {
    MODULE.0.try_borrow_mut().ok().map(|mut module| run(&mut module))
}

impl Module {
    fn plugin(&mut self, context: u32) -> Option<&mut Plugin> {
        self.plugins.iter_mut().find(|plugin| plugin.context == context)
    }
}

#[unsafe(no_mangle)]
extern "C" fn proxy_abi_version_0_2_1() {}

#[unsafe(no_mangle)]
extern "C" fn malloc(size: usize) -> *mut u8 {
    host::allocate(size)
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_context_create(context: u32, parent: u32) {
    with_module(|module| {
        if parent != 0 {
            module.stream = (context, parent);
        } else if module.plugin(context).is_none() {
            module.plugins.push(Plugin { context, table: None });
        }
    });
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_configure(context: u32, size: usize) -> bool {
    let table = filter::configure(size);
    let configured = table.is_some();
    with_module(|module| module.plugin(context).map(|plugin| plugin.table = table)).flatten().is_some() && configured
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_new_connection(context: u32) -> u32 {
    with_module(|module| {
        let (stream, parent) = core::mem::take(&mut module.stream);
        let plugin = if stream == context { module.plugin(parent) } else { None };
        filter::on_new_connection(plugin.and_then(|plugin| plugin.table.as_ref()))
    })
    .unwrap_or(filter::STOP)
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_delete(context: u32) {
    with_module(|module| module.plugins.retain(|plugin| plugin.context != context));
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    core::arch::wasm32::unreachable()
}
