//! The ends of the filter's log lines about a connection.

/// The connection keeps the cluster that `tcp_proxy` is configured with.
pub const KEPT: &str = ": tcp_proxy's cluster is kept";

/// The connection was closed.
pub const CLOSED: &str = ": connection closed";
