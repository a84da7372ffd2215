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
use alloc::{boxed::Box, vec::Vec};
use core::cell::{RefCell, RefMut};

/// A root context of the host's, which has one plugin configuration; one that is gone has the number 0, which is none.
struct Root {
    context: u32,
    plugin: Option<Box<Plugin>>,
}

struct Module {
    roots: Vec<Root>,
    /// The stream context that was created last, and its root context.
    stream: (u32, u32),
}

static MODULE: SingleThread<RefCell<Module>> = SingleThread(RefCell::new(Module { roots: Vec::new(), stream: (0, 0) }));

/// The module's state; none where the host calls in while one of its own functions runs.
fn module() -> Option<RefMut<'static, Module>> {
    MODULE.0.try_borrow_mut().ok()
}

impl Module {
    fn root(&mut self, context: u32) -> Option<&mut Root> {
        self.roots.iter_mut().find(|root| root.context == context)
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
    let Some(mut module) = module() else { return };
    if parent != 0 {
        module.stream = (context, parent);
    } else if module.root(context).is_none() {
        match module.root(0) {
            Some(gone) => gone.context = context,
            None => module.roots.push(Root { context, plugin: None }),
        }
    }
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_configure(context: u32, size: usize) -> bool {
    let Some(mut module) = module() else { return false };
    let Some(root) = module.root(context) else { return false };
    // What is refused leaves the plugin that is there.
    let Some(plugin) = Plugin::configure(size) else { return false };
    root.plugin = Some(plugin);
    true
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_new_connection(context: u32) -> u32 {
    let Some(mut module) = module() else { return filter::STOP };
    let (stream, parent) = core::mem::take(&mut module.stream);
    let root = if stream == context { module.root(parent) } else { None };
    filter::on_new_connection(root.and_then(|root| root.plugin.as_deref()))
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_delete(context: u32) {
    let Some(mut module) = module() else { return };
    if let Some(root) = module.root(context) {
        *root = Root { context: 0, plugin: None };
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    core::arch::wasm32::unreachable()
}
