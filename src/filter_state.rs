//! Cluster name → the bytes of `SetEnvoyFilterStateArguments`, which make tcp_proxy take that cluster.

use alloc::{string::String, vec::Vec};
use prost::Message;

mod proto {
    include!(concat!(env!("OUT_DIR"), "/envoy.source.extensions.common.wasm.rs"));
}

/// The foreign function that takes an override's message.
pub const FOREIGN_FUNCTION: &[u8] = b"set_envoy_filter_state";

/// The key of the filter state by which tcp_proxy overrides its cluster
/// (<https://github.com/envoyproxy/envoy/blob/9e5580933739775e8bce696a57a2e1bc99368f23/docs/root/configuration/listeners/network_filters/tcp_proxy_filter.rst>).
const CLUSTER: &str = "envoy.tcp_proxy.cluster";

/// A cluster that connections can be sent to, encoded once, at load.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Override {
    /// The cluster's name.
    pub cluster: String,
    /// What [`FOREIGN_FUNCTION`] takes to make tcp_proxy use it.
    pub message: Vec<u8>,
}

impl Override {
    /// The override to the cluster of this name.
    #[must_use]
    #[inline(never)]
    pub fn new(cluster: String) -> Self {
        // Grown step by step: a vector or string that begins with a capacity has an allocation of its own in the module.
        let (mut path, mut message) = (String::new(), Vec::new());
        path.push_str(CLUSTER);
        // A network filter writes to the state of the connection, which any span fits; this one, 0, takes no bytes.
        let span = proto::LifeSpan::FilterChain.into();
        let arguments = proto::SetEnvoyFilterStateArguments { path, value: cluster, span };
        // Without the check of encode() for room, which a vector always has.
        arguments.encode_raw(&mut message);
        Self { message, cluster: arguments.value }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_override_is_encoded_as_envoy_reads_it() {
        // Field 1, 23 bytes; field 2, 7 bytes; field 3 is the default and so absent.
        assert_eq!(Override::new("egress1".into()).message, b"\x0a\x17envoy.tcp_proxy.cluster\x12\x07egress1");
    }

    #[test]
    fn a_long_cluster_name_is_not_cut() {
        let name = "x".repeat(1024);
        let message = Override::new(name.clone()).message;
        assert_eq!(message.len(), 2 + 23 + 3 + 1024);
        assert!(message.ends_with(name.as_bytes()));
    }
}
