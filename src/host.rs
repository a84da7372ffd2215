//! The interface of the proxy that the filter runs in. `wasm` implements these traits for the proxy-wasm ABI, `native`
//! for Envoy's dynamic modules, and `recording` for tests. Tests also compile the files for
//! WebAssembly, with a fake host and a fake memory, so that Miri and AddressSanitizer check their unsafe code.

#[cfg(any(test, all(target_arch = "wasm32", not(feature = "sdk"))))]
mod allocator;
#[cfg(any(test, all(target_arch = "wasm32", not(feature = "sdk"))))]
mod entry_points;
#[cfg(all(feature = "native", not(target_arch = "wasm32")))]
mod native;
#[cfg(test)]
pub mod recording;
#[cfg(all(target_arch = "wasm32", feature = "sdk"))]
mod sdk;
#[cfg(any(test, target_arch = "wasm32"))]
mod wasm;

use crate::text::Text;

/// The filter state key whose value replaces the cluster that `tcp_proxy` is configured with
/// (<https://github.com/envoyproxy/envoy/blob/9e5580933739775e8bce696a57a2e1bc99368f23/docs/root/configuration/listeners/network_filters/tcp_proxy_filter.rst>).
pub const CLUSTER_OVERRIDE_KEY: &str = "envoy.tcp_proxy.cluster";

/// The proxy's log.
pub trait Log {
    /// Writes a line to the log. Failures are ignored: there is nowhere to report them.
    fn log(&self, level: Level, line: &Text);
}

/// The proxy, while a configuration is loaded.
pub trait Host: Log {
    /// A cluster override in the form that [`Connection::set_override`] takes.
    type Override;
    /// The handle of a counter.
    type Counter;

    /// Prepares the override of `tcp_proxy`'s cluster by `cluster`, once instead of for every connection.
    fn prepare_override(&self, cluster: &str) -> Self::Override;

    /// Defines a counter, or finds the one of this name that exists.
    fn define_counter(&self, name: &str) -> Result<Self::Counter, Status>;
}

/// A new connection, while the filter decides about it.
pub trait Connection: Log {
    /// The proxy.
    type Host: Host;
    /// Bytes that the proxy returns.
    type Bytes: AsRef<[u8]>;

    /// The address of the downstream peer, in the form that [`crate::address`] describes.
    fn source_address(&self) -> Result<Self::Bytes, Status>;

    /// The address that the peer connected to, in the same form.
    fn destination_address(&self) -> Result<Self::Bytes, Status>;

    /// The server name (SNI) of the TLS handshake. Fails if there is none or no listener filter looked for it.
    fn server_name(&self) -> Result<Self::Bytes, Status>;

    /// Writes a prepared override to the filter state [`CLUSTER_OVERRIDE_KEY`] of the connection.
    fn set_override(&self, prepared: &<Self::Host as Host>::Override) -> Result<(), Status>;

    /// Adds one to a counter. Failures are ignored.
    fn increment(&self, counter: &<Self::Host as Host>::Counter);

    /// Closes the connection to the downstream peer. The result of the callback alone is not enough: Envoy would continue
    /// with the next filter at the first bytes.
    fn close(&self);

    /// Returns whether the proxy's log shows lines of this level, or `false` if the proxy does not return its log level.
    fn log_enabled(&self, level: Level) -> bool;
}

/// The severity of a log line. The numbers are those of the proxy-wasm ABI and of Envoy's dynamic modules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// A decision.
    Debug = 1,
    /// A connection that the policy could not decide or the proxy could not route, a counter that the proxy refused, or a
    /// configuration with the mode `observe`.
    Warn = 3,
    /// A rejected configuration, or a connection without one.
    Error = 4,
}

/// The reason for a failed call to the proxy. For the Wasm module, the status of the proxy-wasm ABI that the proxy returned
/// (<https://github.com/proxy-wasm/spec/tree/main/abi-versions/v0.2.1>). The native module chooses one of
/// the constants if Envoy only returns `false`, and passes on Envoy's metrics result for a counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status(pub u32);

impl Status {
    /// The proxy does not have what was asked for.
    pub const NOT_FOUND: Self = Self(1);
    /// The proxy does not accept an argument.
    pub const BAD_ARGUMENT: Self = Self(2);
}
