//! The plain cargo build's door: the SDK's dispatcher, which keeps a context for each plugin and each connection.

use crate::filter::{self, Plugin};
use alloc::{boxed::Box, rc::Rc};
use proxy_wasm::{
    traits::{Context, RootContext, StreamContext},
    types::{Action, ContextType},
};

proxy_wasm::main! {{
    proxy_wasm::set_root_context(|_| Box::new(Root::default()));
}}

#[derive(Default)]
struct Root {
    plugin: Option<Rc<Plugin>>,
}

impl Context for Root {}

impl RootContext for Root {
    fn on_configure(&mut self, size: usize) -> bool {
        // What is refused leaves the plugin that is there.
        let mut plugin = Plugin::default();
        let configured = plugin.configure(size);
        if configured {
            self.plugin = Some(Rc::new(plugin));
        }
        configured
    }

    fn create_stream_context(&self, _: u32) -> Option<Box<dyn StreamContext>> {
        Some(Box::new(Stream { plugin: self.plugin.clone() }))
    }

    fn get_type(&self) -> Option<ContextType> {
        Some(ContextType::StreamContext)
    }
}

struct Stream {
    plugin: Option<Rc<Plugin>>,
}

impl Context for Stream {}

impl StreamContext for Stream {
    fn on_new_connection(&mut self) -> Action {
        match filter::on_new_connection(self.plugin.as_deref()) {
            filter::CONTINUE => Action::Continue,
            _ => Action::Pause,
        }
    }
}
