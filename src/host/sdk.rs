//! The module that a plain `cargo build` builds: the SDK's dispatcher, which keeps a context for each plugin and connection.

use super::wasm::ProxyWasm;
use crate::{
    filter::{Filter, on_new_connection},
    policy,
};
use alloc::{boxed::Box, rc::Rc};
use proxy_wasm::{
    traits::{Context, RootContext, StreamContext},
    types::{Action, ContextType},
};

proxy_wasm::main! {{
    proxy_wasm::set_root_context(|_| Box::new(Root { filter: None }));
}}

struct Root {
    filter: Option<Rc<Filter<ProxyWasm>>>,
}

impl Context for Root {}

impl RootContext for Root {
    fn on_configure(&mut self, size: usize) -> bool {
        // If the new configuration is rejected, the current one stays in force.
        let loaded = Filter::load(&ProxyWasm, size, || ProxyWasm.plugin_configuration(size));
        let accepted = loaded.is_some();
        if accepted {
            self.filter = loaded.map(Rc::from);
        }
        accepted
    }

    fn create_stream_context(&self, _: u32) -> Option<Box<dyn StreamContext>> {
        Some(Box::new(Stream { filter: self.filter.clone() }))
    }

    fn get_type(&self) -> Option<ContextType> {
        Some(ContextType::StreamContext)
    }
}

struct Stream {
    filter: Option<Rc<Filter<ProxyWasm>>>,
}

impl Context for Stream {}

impl StreamContext for Stream {
    fn on_new_connection(&mut self) -> Action {
        match on_new_connection(self.filter.as_deref(), &ProxyWasm) {
            policy::Action::Continue => Action::Continue,
            policy::Action::Deny => Action::Pause,
        }
    }
}
