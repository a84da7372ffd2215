//! The filter: what happens when the proxy loads a configuration and when a connection arrives. The policy decides; the
//! filter reads what the policy needs, carries out the decision, counts it and logs it.

use crate::{
    address::{Endpoint, parse_endpoint},
    config,
    host::{Connection, Host, Level, Status},
    policy::{Action, ClusterIndex, ConnectionInfo, Decision, Policy, Side},
    text::{Text, concatenate},
};
use alloc::{boxed::Box, vec::Vec};

/// The value written to the filter state `envoy.tcp_proxy.cluster` for a connection that a loaded configuration denies, so that
/// access logs show the denial. The counter has the same name, which is made from [`Outcome::NAMES`].
pub const DENIED: &str = "sluice.denied";

/// A loaded configuration.
pub struct Filter<H: Host> {
    policy: Box<Policy>,
    /// The prepared override and the counter of each cluster of the policy, at the same index.
    clusters: Vec<Cluster<H>>,
    /// The override that marks a denied connection.
    denied_override: H::Override,
    /// The counters of [`Outcome::NAMES`].
    outcomes: [Counter<H>; Outcome::NAMES.len()],
}

struct Cluster<H: Host> {
    prepared: H::Override,
    routed: Counter<H>,
}

/// A counter, or `None` if the proxy refused to define it.
type Counter<H> = Option<<H as Host>::Counter>;

/// An outcome with a counter of its own, besides the routed connections of each cluster.
#[derive(Clone, Copy)]
enum Outcome {
    /// The connection keeps the cluster of `tcp_proxy`.
    Continued,
    /// The configuration denied the connection, which is closed unless the mode is `observe`. Not counted without a configuration.
    Denied,
    /// An address that the policy needs was missing or not an IP address and port. Counted in addition to one of the first two.
    Unreadable,
    /// The proxy refused the override of a route. Counted in addition to one of the first two.
    HostError,
}

impl Outcome {
    /// The names of the counters, in the order of the variants.
    const NAMES: [&str; 4] = ["continued", "denied", "unreadable", "host_errors"];
}

impl<H: Host> Filter<H> {
    /// Loads a configuration of `size` bytes, which `read` returns. If it is rejected, the reason is logged.
    pub fn load<T: AsRef<[u8]>>(host: &H, size: usize, read: impl FnOnce() -> Result<T, Status>) -> Option<Box<Self>> {
        let policy = match config::load(size, read) {
            Ok(policy) => policy,
            Err(error) => {
                host.log(Level::Error, &error.to_line());
                return None;
            }
        };
        if policy.observes {
            host.log(Level::Warn, &Text::new("sluice: mode is observe: decisions are not applied"));
        }
        let mut clusters = Vec::new();
        for name in &policy.clusters {
            let routed = define_counter(host, "sluice.routed.", name);
            clusters.push(Cluster { prepared: host.prepare_override(name), routed });
        }
        let outcomes = Outcome::NAMES.map(|name| define_counter(host, "sluice.", name));
        Some(Box::new(Self { policy, clusters, denied_override: host.prepare_override(DENIED), outcomes }))
    }

    /// Decides about a new connection and carries out the decision. The caller closes it on [`Action::Deny`].
    #[inline(never)]
    fn handle<C: Connection<Host = H>>(&self, connection: &C) -> Action {
        let source = parse_address(connection.source_address());
        let destination =
            if self.policy.reads_destination() { parse_address(connection.destination_address()) } else { None };
        let server_name = if self.policy.reads_server_name() { connection.server_name().ok() } else { None };
        let server_name = server_name.as_ref().map_or(b"".as_slice(), AsRef::as_ref);
        let decision = self.policy.decide(&ConnectionInfo { source, destination, server_name });

        let (mut is_error, mut refused) = (false, None);
        // `None` if the connection is routed to a cluster.
        let action = match decision {
            Decision::Action(action) => Some(action),
            Decision::Unreadable(_) => {
                is_error = true;
                self.count(connection, Outcome::Unreadable);
                Some(self.policy.on_error)
            }
            Decision::Cluster(index) => match self.route(connection, index) {
                Ok(()) => None,
                Err(status) => {
                    (is_error, refused) = (true, Some(status));
                    self.count(connection, Outcome::HostError);
                    Some(self.policy.on_error)
                }
            },
        };
        match action {
            Some(Action::Continue) => self.count(connection, Outcome::Continued),
            Some(Action::Deny) => {
                self.count(connection, Outcome::Denied);
                // For access logs, and as a last barrier: if the proxy did not close the connection, it would call `tcp_proxy` at
                // the first bytes. `tcp_proxy` would then look for a cluster of this name, which must not exist. The
                // result is ignored, because the connection is closed anyway.
                _ = self.apply(connection, &self.denied_override);
            }
            None => {}
        }
        let level = if is_error { Level::Warn } else { Level::Debug };
        if is_error || connection.log_enabled(level) {
            connection.log(level, &self.describe(connection, decision, refused, action));
        }
        if self.policy.observes { Action::Continue } else { action.unwrap_or(Action::Continue) }
    }

    /// Sets the override of a connection, unless the policy only observes.
    #[inline(never)]
    fn apply<C: Connection<Host = H>>(&self, connection: &C, value: &H::Override) -> Result<(), Status> {
        if self.policy.observes { Ok(()) } else { connection.set_override(value) }
    }

    /// Overrides the cluster of a connection.
    fn route<C: Connection<Host = H>>(&self, connection: &C, index: ClusterIndex) -> Result<(), Status> {
        let cluster = self.clusters.get(index.position()).ok_or(Status::NOT_FOUND)?;
        self.apply(connection, &cluster.prepared)?;
        if let Some(counter) = &cluster.routed {
            connection.increment(counter);
        }
        Ok(())
    }

    #[inline(never)]
    fn count<C: Connection<Host = H>>(&self, connection: &C, outcome: Outcome) {
        if let Some(Some(counter)) = self.outcomes.get(outcome as usize) {
            connection.increment(counter);
        }
    }

    /// Returns the log line about a connection: the decision and its result.
    fn describe<C: Connection<Host = H>>(
        &self,
        connection: &C,
        decision: Decision,
        refused: Option<Status>,
        action: Option<Action>,
    ) -> Text {
        let (name, address) = match decision {
            Decision::Unreadable(Side::Destination) => ("destination.address", connection.destination_address()),
            _ => ("source.address", connection.source_address()),
        };
        let mut line = Text::new("sluice: ");
        line.push(name);
        match address {
            Ok(address) => {
                line.push(" ").push_quoted(address.as_ref());
                if let Decision::Unreadable(_) = decision {
                    line.push(" is not an IP address and port");
                }
            }
            Err(status) => push_status(line.push(" is not available"), status),
        }
        if let Decision::Cluster(index) = decision {
            line.push(if refused.is_some() { " cannot be routed to " } else { " is routed to " });
            line.push_quoted(self.policy.cluster(index).as_bytes());
        }
        if let Some(status) = refused {
            push_status(&mut line, status);
        }
        line.push(match action {
            None => "",
            Some(Action::Continue) => ": tcp_proxy's cluster is kept",
            Some(Action::Deny) => ": connection closed",
        });
        if self.policy.observes {
            line.push(" (not applied)");
        }
        line
    }
}

/// Handles a new connection. Without a filter, because no configuration was accepted, it is denied. On [`Action::Deny`] the
/// connection has been closed, and the caller must also stop it, so that the next filter is not called at once.
pub fn on_new_connection<C: Connection>(filter: Option<&Filter<C::Host>>, connection: &C) -> Action {
    let action = match filter {
        Some(filter) => {
            #[cfg(feature = "fault")]
            fail_on_purpose(connection);
            filter.handle(connection)
        }
        None => {
            connection.log(Level::Error, &Text::new("sluice: no configuration: connection closed"));
            Action::Deny
        }
    };
    if action == Action::Deny {
        connection.close();
    }
    action
}

/// Panics for a client whose address ends with 13. Only in builds for `make soak`, which shows how a proxy reacts.
#[cfg(feature = "fault")]
#[expect(clippy::panic, reason = "it is the purpose")]
fn fail_on_purpose<C: Connection>(connection: &C) {
    if parse_address(connection.source_address()).is_some_and(|source| source.address.last_octet() == 13) {
        panic!("on purpose");
    }
}

#[inline(never)]
fn define_counter<H: Host>(host: &H, prefix: &str, name: &str) -> Counter<H> {
    let name = concatenate(prefix, name);
    match host.define_counter(&name) {
        Ok(counter) => Some(counter),
        Err(status) => {
            let mut line = Text::new("sluice: cannot define the counter ");
            push_status(line.push_quoted(name.as_bytes()), status);
            host.log(Level::Warn, &line);
            None
        }
    }
}

#[inline(never)]
fn parse_address<T: AsRef<[u8]>>(address: Result<T, Status>) -> Option<Endpoint> {
    parse_endpoint(address.ok()?.as_ref())
}

#[inline(never)]
fn push_status(line: &mut Text, status: Status) {
    line.push(" (host status ").push_number(status.0 as usize).push(")");
}

#[cfg(test)]
mod tests;
