//! What sluice does when it is configured and when a connection comes: read the addresses, let the table decide, write
//! the override. Decides nothing itself.

use crate::{
    address::{self, Endpoint},
    config,
    filter_state::FOREIGN_FUNCTION,
    host::{self, Counter, Level, Status},
    line::Line,
    route::{Action, Connection, Criterion, Decision, Table},
};
use alloc::{string::String, vec::Vec};

/// What the proxy does with a connection after `on_new_connection`: the next filter.
pub const CONTINUE: u32 = 0;
/// What the proxy does with a connection after `on_new_connection`: nothing more.
pub const STOP: u32 = 1;

/// Path of the attribute that holds the SNI.
const SERVER_NAME: &[u8] = b"connection\0requested_server_name";

/// A configuration in force.
pub struct Plugin {
    table: Table,
    /// Of the table's clusters, one each.
    routed: Vec<Counter>,
    continued: Counter,
    denied: Counter,
    unreadable: Counter,
    host_errors: Counter,
}

impl Plugin {
    /// The plugin that the configuration of this size asks for; none if it is refused, and then the log says why.
    pub fn configure(size: usize) -> Option<Self> {
        match load(size) {
            Ok(table) => Some(Self {
                routed: table.clusters.iter().map(|to| Counter::define(&routed(&to.cluster))).collect(),
                continued: Counter::define("sluice.continued"),
                denied: Counter::define("sluice.denied"),
                unreadable: Counter::define("sluice.unreadable"),
                host_errors: Counter::define("sluice.host_errors"),
                table,
            }),
            Err(line) => {
                host::log(Level::Error, &line);
                None
            }
        }
    }

    fn route(&self) -> Action {
        let source = Property::read("source.address", b"source\0address");
        let destination =
            self.table.needs_destination.then(|| Property::read("destination.address", b"destination\0address"));
        // Without TLS, or without a listener filter that looks for it, there is no name, and no route with names matches.
        let name = if self.table.needs_name { host::property(SERVER_NAME).unwrap_or_default() } else { Vec::new() };
        let connection = Connection {
            source: source.address(),
            destination: destination.as_ref().and_then(Property::address),
            name: &name,
        };
        let action = match self.table.decide(&connection) {
            Decision::Cluster(index) => match self.take(index, &source) {
                Ok(()) => return Action::Continue,
                Err(line) => self.fail(&self.host_errors, line),
            },
            Decision::Unreadable(criterion) => {
                let property = if criterion == Criterion::Source { Some(&source) } else { destination.as_ref() };
                let property = property.unwrap_or(&source);
                let mut line = property.line();
                if property.value.is_ok() {
                    line.text(" is no IP address and port");
                }
                self.fail(&self.unreadable, line)
            }
            Decision::Action(action) => {
                if host::logs(Level::Debug) {
                    host::log(Level::Debug, source.line().text(outcome(action)));
                }
                action
            }
        };
        match action {
            Action::Continue => self.continued.increment(),
            Action::Deny => self.denied.increment(),
        }
        action
    }

    /// Overrides the cluster; what to warn of where the host refuses.
    fn take(&self, index: usize, source: &Property) -> Result<(), Line> {
        // An index that the table gave stands for a cluster; the message of none is one that the host refuses.
        let (cluster, message) =
            self.table.clusters.get(index).map_or(("", &[][..]), |to| (to.cluster.as_str(), to.message.as_slice()));
        if let Err(status) = host::call_foreign_function(FOREIGN_FUNCTION, message) {
            let mut line = source.line();
            status.end(line.text(" cannot take ").quoted(cluster.as_bytes()));
            return Err(line);
        }
        if let Some(counter) = self.routed.get(index) {
            counter.increment();
        }
        if host::logs(Level::Debug) {
            host::log(Level::Debug, source.line().text(" takes ").quoted(cluster.as_bytes()));
        }
        Ok(())
    }

    /// Counts and tells a failure; what the table says to do then.
    fn fail(&self, counter: &Counter, mut line: Line) -> Action {
        counter.increment();
        host::log(Level::Warn, line.text(outcome(self.table.on_error)));
        self.table.on_error
    }
}

fn routed(cluster: &str) -> String {
    let mut name = String::from("sluice.routed.");
    name.push_str(cluster);
    name
}

fn load(size: usize) -> Result<Table, Line> {
    if size == 0 {
        return config::parse(b"");
    }
    let mut line = Line::new("plugin configuration: ");
    match host::plugin_configuration(size) {
        Ok(text) if text.len() == size => return config::parse(&text),
        Ok(text) => {
            line.number(text.len()).text(" bytes of ").number(size).text(" read");
        }
        Err(status) => status.end(line.text("cannot be read")),
    }
    Err(line)
}

/// Routes or closes the connection that the host is at; where there is no plugin to say which, it is closed.
pub fn on_new_connection(plugin: Option<&Plugin>) -> u32 {
    let action = match plugin {
        Some(plugin) => plugin.route(),
        None => {
            host::log(Level::Error, &Line::new("connection without a configuration closed"));
            Action::Deny
        }
    };
    match action {
        Action::Continue => CONTINUE,
        Action::Deny => {
            host::close_downstream();
            STOP
        }
    }
}

fn outcome(action: Action) -> &'static str {
    match action {
        Action::Continue => ", tcp_proxy's own cluster stays",
        Action::Deny => ", connection closed",
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

    fn address(&self) -> Option<Endpoint> {
        address::parse(self.value.as_ref().ok()?)
    }

    fn line(&self) -> Line {
        let mut line = Line::new(self.name);
        match &self.value {
            Ok(value) => {
                line.text(" ").quoted(value);
            }
            Err(status) => status.end(line.text(" not given")),
        }
        line
    }
}
