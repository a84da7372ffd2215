//! What sluice does when it is configured and when a connection comes: read the addresses, let the table decide, write
//! the override. Decides nothing itself.

use crate::{
    address, config,
    filter_state::FOREIGN_FUNCTION,
    host::{self, Level, Property, Status},
    line::Line,
    route::{Action, Connection, Criterion, Decision, Table},
};
use alloc::boxed::Box;

/// What the proxy does with a connection after `on_new_connection`: the next filter.
pub const CONTINUE: u32 = 0;
/// What the proxy does with a connection after `on_new_connection`: nothing more.
pub const STOP: u32 = 1;

/// What a plugin counts beside its clusters; the first two are the actions.
const OUTCOMES: [&str; 4] = ["continued", "denied", "unreadable", "host_errors"];
const UNREADABLE: usize = 2;
const HOST_ERRORS: usize = 3;

/// A configuration in force.
#[derive(Default)]
pub struct Plugin {
    table: Table,
    /// The counters of the outcomes; those of the clusters are in the table.
    counters: [usize; OUTCOMES.len()],
}

impl Plugin {
    /// Gives a plugin that has none yet the configuration of this size. Whether it is accepted; where not, the log says why.
    #[inline(never)]
    pub fn configure(&mut self, size: usize) -> bool {
        let error = load(size, &mut self.table);
        if !error.bytes().is_empty() {
            host::log(Level::Error, &error);
            return false;
        }
        let mut place = 0;
        while place < self.table.end_of_clusters() {
            let cluster = self.table.cluster(place);
            let (counter, next) = (host::define_counter(b"routed.", cluster.name), cluster.next);
            self.table.set_counter(place, counter);
            place = next;
        }
        for (counter, outcome) in self.counters.iter_mut().zip(&OUTCOMES) {
            *counter = host::define_counter(b"", outcome.as_bytes());
        }
        true
    }

    #[inline(never)]
    fn route(&self) -> Action {
        let source = property(true, b"source\0address");
        let destination = property(self.table.needs_destination(), b"destination\0address");
        // Without TLS, or without a listener filter that looks for it, there is no name, and no route with names matches.
        let name = property(self.table.needs & Criterion::Sni as u8 != 0, b"connection\0requested_server_name");
        let decision = self.table.decide(&Connection {
            source: address::parse(&source.value),
            destination: address::parse(&destination.value),
            name: &name.value,
        });
        let mut status = Status::OK;
        let (failed, action) = match decision {
            Decision::Action(action) => (false, Some(action)),
            Decision::Unreadable(_) => {
                self.count_outcome(UNREADABLE);
                (true, Some(self.table.on_error))
            }
            Decision::Cluster(place) => {
                let cluster = self.table.cluster(place);
                status = host::call_foreign_function(FOREIGN_FUNCTION, cluster.message);
                if status == Status::OK {
                    host::count(cluster.counter);
                    (false, None)
                } else {
                    self.count_outcome(HOST_ERRORS);
                    (true, Some(self.table.on_error))
                }
            }
        };
        if let Some(action) = action {
            self.count_outcome(action as usize);
        }
        let level = if failed { Level::Warn } else { Level::Debug };
        if failed || host::logs(level) {
            let line = if decision == Decision::Unreadable(Criterion::Destination) {
                self.line("destination.address", &destination, decision, status, action)
            } else {
                self.line("source.address", &source, decision, status, action)
            };
            host::log(level, &line);
        }
        action.unwrap_or_default()
    }

    /// What becomes of a connection with this property; the action is none where a cluster of ours is taken.
    #[inline(never)]
    fn line(&self, name: &str, of: &Property, decision: Decision, status: Status, action: Option<Action>) -> Line {
        let mut line = Line::new(name);
        if of.status == Status::OK {
            line.text(" ").quoted(&of.value);
        } else {
            of.status.end(line.text(" not given"));
        }
        match decision {
            Decision::Cluster(place) => {
                line.text(if action.is_none() { " takes " } else { " cannot take " });
                line.quoted(self.table.cluster(place).name);
                status.end(&mut line);
            }
            Decision::Unreadable(_) if of.status == Status::OK => {
                line.text(" is no IP address and port");
            }
            _ => {}
        }
        line.text(match action {
            None => "",
            Some(Action::Continue) => ", tcp_proxy's cluster stays",
            Some(Action::Deny) => ", connection closed",
        });
        line
    }

    #[inline(never)]
    fn count_outcome(&self, outcome: usize) {
        if let Some(&counter) = self.counters.get(outcome) {
            host::count(counter);
        }
    }
}

/// Reads the configuration into an empty table: what is wrong, an empty line where nothing is.
fn load(size: usize, to: &mut Table) -> Line {
    // Nothing is there to be read where the size is 0.
    let Property { value: text, status } = if size == 0 {
        Property { value: Box::default(), status: Status::OK }
    } else {
        host::plugin_configuration(size)
    };
    if status == Status::OK && text.len() == size {
        return config::read(&text, to);
    }
    let mut line = Line::new("plugin configuration: ");
    status.end(line.number(text.len()).text(" of ").number(size).text(" bytes read"));
    line
}

/// Routes or closes the connection that the host is at; where there is no plugin to say which, it is closed.
pub fn on_new_connection(plugin: Option<&Plugin>) -> u32 {
    let action = match plugin {
        Some(plugin) => plugin.route(),
        None => {
            host::log(Level::Error, &Line::new("unconfigured connection closed"));
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

/// The property at a path of the connection's; empty where it is not needed.
#[inline(never)]
fn property(needed: bool, path: &[u8]) -> Property {
    if needed { host::property(path) } else { Property { value: Box::default(), status: Status::OK } }
}
