//! What sluice does when it is configured and when a connection comes: read the addresses, let the table decide, write
//! the override. Decides nothing itself.

use crate::{
    address, config,
    filter_state::{FOREIGN_FUNCTION, Override},
    host::{self, Level, Status},
    line::Line,
    route::{Connection, Decision, Table},
};
use alloc::vec::Vec;
use core::net::SocketAddr;

/// What the proxy does with a connection after `on_new_connection`: the next filter.
pub const CONTINUE: u32 = 0;
/// What the proxy does with a connection after `on_new_connection`: nothing more.
pub const STOP: u32 = 1;

/// The table that the plugin configuration of this size asks for; none if it is refused, and then the log says why.
pub fn configure(size: usize) -> Option<Table> {
    match load(size) {
        Ok(table) => Some(table),
        Err(line) => {
            host::log(Level::Error, line);
            None
        }
    }
}

/// Routes the connection that the host is at, or closes it where there is no table to route it by.
pub fn on_new_connection(table: Option<&Table>) -> u32 {
    if let Some(table) = table {
        route(table);
        CONTINUE
    } else {
        host::log(Level::Error, Line::new("connection without a configuration closed"));
        host::close_downstream();
        STOP
    }
}

fn load(size: usize) -> Result<Table, Line> {
    let text = match size {
        0 => Vec::new(),
        _ => host::plugin_configuration(size)
            .map_err(|status| status.after(Line::new("plugin configuration: cannot be read")))?,
    };
    if text.len() != size {
        return Err(Line::new("plugin configuration: ")
            .number(text.len())
            .text(" bytes of ")
            .number(size)
            .text(" read"));
    }
    config::parse(&text).map_err(|error| error.line())
}

fn route(table: &Table) {
    let source = Property::read("source.address", b"source\0address");
    let destination = table.needs_destination().then(|| Property::read("destination.address", b"destination\0address"));
    let connection =
        Connection { source: source.address(), destination: destination.as_ref().and_then(Property::address) };
    match table.decide(connection) {
        Decision::Override(to) => take(to, &source),
        Decision::NoSource => source.warn(),
        Decision::NoDestination => destination.iter().for_each(Property::warn),
        Decision::NoRoute => {}
    }
}

fn take(to: &Override, source: &Property) {
    match host::call_foreign_function(FOREIGN_FUNCTION, &to.message) {
        Ok(()) => {
            if host::logs(Level::Debug) {
                host::log(Level::Debug, source.line().text(" takes ").text(&to.cluster));
            }
        }
        Err(status) => {
            let line = source.line().text(" keeps tcp_proxy's own cluster, cannot take ").text(&to.cluster);
            host::log(Level::Warn, status.after(line));
        }
    }
}

/// A property of the connection that should hold an address.
struct Property {
    name: &'static str,
    value: Result<Vec<u8>, Status>,
}

impl Property {
    fn read(name: &'static str, path: &[u8]) -> Self {
        Self { name, value: host::property(path) }
    }

    fn address(&self) -> Option<SocketAddr> {
        address::parse(self.value.as_ref().ok()?)
    }

    fn line(&self) -> Line {
        let line = Line::new(self.name).text(" ");
        match &self.value {
            Ok(value) => line.quoted(value),
            Err(status) => status.after(line.text("not given")),
        }
    }

    fn warn(&self) {
        host::log(Level::Warn, self.line().text(" is no IP address, tcp_proxy's own cluster stays"));
    }
}
