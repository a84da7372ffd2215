//! The plain cargo build's door: the SDK's dispatcher, which keeps a context for each plugin and each connection.

use crate::{filter, route::Table};
use alloc::{boxed::Box, rc::Rc};
use proxy_wasm::{
    traits::{Context, RootContext, StreamContext},
    types::{Action, ContextType},
};

proxy_wasm::main! {{
    proxy_wasm::set_root_context(|_| Box::new(Plugin::default()));
}}

#[derive(Default)]
struct Plugin {
    table: Option<Rc<Table>>,
}

impl Context for Plugin {}

impl RootContext for Plugin {
    fn on_configure(&mut self, size: usize) -> bool {
        self.table = filter::configure(size).map(Rc::new);
        self.table.is_some()
    }

    fn create_stream_context(&self, _: u32) -> Option<Box<dyn StreamContext>> {
        Some(Box::new(Stream { table: self.table.clone() }))
    }

    fn get_type(&self) -> Option<ContextType> {
        Some(ContextType::StreamContext)
    }
}

struct Stream {
    table: Option<Rc<Table>>,
}

impl Context for Stream {}

impl StreamContext for Stream {
    fn on_new_connection(&mut self) -> Action {
        match filter::on_new_connection(self.table.as_deref()) {
            filter::CONTINUE => Action::Continue,
            _ => Action::Pause,
        }
    }
}
