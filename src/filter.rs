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
use alloc::vec::Vec;

/// What the proxy does with a connection after `on_new_connection`: the next filter.
pub const CONTINUE: u32 = 0;
/// What the proxy does with a connection after `on_new_connection`: nothing more.
pub const STOP: u32 = 1;

/// The counters of a plugin beside those of its clusters.
const OUTCOMES: [&str; 4] = ["continued", "denied", "unreadable", "host_errors"];
const CONTINUED: usize = 0;
const DENIED: usize = 1;
const UNREADABLE: usize = 2;
const HOST_ERRORS: usize = 3;

/// A configuration in force.
pub struct Plugin {
    table: Table,
    /// Of the table's clusters, one each, then of the outcomes.
    counters: Vec<Counter>,
}

impl Plugin {
    /// The plugin that the configuration of this size asks for; none if it is refused, and then the log says why.
    #[inline(never)]
    pub fn configure(size: usize) -> Option<Self> {
        match load(size) {
            Ok(table) => {
                let mut counters = Vec::new();
                for to in &table.clusters {
                    counters.push(Counter::define("routed.", &to.cluster));
                }
                for outcome in &OUTCOMES {
                    counters.push(Counter::define("", outcome));
                }
                Some(Self { table, counters })
            }
            Err(line) => {
                host::log(Level::Error, &line);
                None
            }
        }
    }

    #[inline(never)]
    fn route(&self) -> Action {
        let source = Property::read(true, "source.address", b"source\0address");
        let needed = self.table.needs_destination();
        let destination = Property::read(needed, "destination.address", b"destination\0address");
        // Without TLS, or without a listener filter that looks for it, there is no name, and no route with names matches.
        let needed = self.table.needs & Criterion::Sni.bit() != 0;
        let name = Property::read(needed, "", b"connection\0requested_server_name");
        let decision = self.table.decide(&Connection {
            source: source.address(),
            destination: destination.address(),
            name: name.value.as_deref().unwrap_or_default(),
        });
        let mut taken = Ok(());
        let (failure, own) = match decision {
            Decision::Cluster(index) => {
                taken = self.take(index);
                if taken.is_ok() { (None, None) } else { (Some(HOST_ERRORS), Some(self.table.on_error)) }
            }
            Decision::Unreadable(_) => (Some(UNREADABLE), Some(self.table.on_error)),
            Decision::Action(action) => (None, Some(action)),
        };
        if let Some(failure) = failure {
            self.count(self.table.clusters.len().wrapping_add(failure));
        }
        if let Some(action) = own {
            let outcome = if action == Action::Continue { CONTINUED } else { DENIED };
            self.count(self.table.clusters.len().wrapping_add(outcome));
        }
        let level = if failure.is_some() { Level::Warn } else { Level::Debug };
        if failure.is_some() || host::logs(level) {
            let of_destination = decision == Decision::Unreadable(Criterion::Destination);
            let property = if of_destination { &destination } else { &source };
            let mut line = property.line();
            if let Decision::Cluster(index) = decision {
                line.text(if failure.is_none() { " takes " } else { " cannot take " });
                line.quoted(self.table.clusters.get(index).map_or(b"", |to| to.cluster.as_bytes()));
            }
            if let Err(status) = taken {
                status.end(&mut line);
            }
            if failure == Some(UNREADABLE) && property.value.is_ok() {
                line.text(" is no IP address and port");
            }
            line.text(match own {
                None => "",
                Some(Action::Continue) => ", tcp_proxy's own cluster stays",
                Some(Action::Deny) => ", connection closed",
            });
            host::log(level, &line);
        }
        own.unwrap_or(Action::Continue)
    }

    /// Overrides the cluster with that of this index of the table's.
    fn take(&self, index: usize) -> Result<(), Status> {
        // An index that the table gave stands for a cluster; the message of none is one that the host refuses.
        let message = self.table.clusters.get(index).map_or(&[][..], |to| to.message.as_slice());
        host::call_foreign_function(FOREIGN_FUNCTION, message)?;
        self.count(index);
        Ok(())
    }

    fn count(&self, index: usize) {
        if let Some(counter) = self.counters.get(index) {
            counter.increment();
        }
    }
}

fn load(size: usize) -> Result<Table, Line> {
    let mut line = Line::new("plugin configuration: ");
    // Nothing is there to be read where the size is 0.
    let text = if size == 0 { Ok(Vec::new()) } else { host::plugin_configuration(size) };
    match text {
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

/// A property of the connection.
struct Property {
    name: &'static str,
    value: Result<Vec<u8>, Status>,
}

impl Property {
    /// Reads it if it is needed; else it is empty.
    fn read(needed: bool, name: &'static str, path: &[u8]) -> Self {
        Self { name, value: if needed { host::property(path) } else { Ok(Vec::new()) } }
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
