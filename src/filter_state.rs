//! Cluster name → the bytes of `SetEnvoyFilterStateArguments`, which make tcp_proxy take that cluster.
//!
//! Written by hand, which is smaller than what prost makes of the message; the tests read them back with prost.

use crate::bytes::Bytes;

/// The foreign function that takes an override's message.
pub const FOREIGN_FUNCTION: &[u8] = b"set_envoy_filter_state";

/// Field 1, the key of the filter state by which tcp_proxy overrides its cluster
/// (<https://github.com/envoyproxy/envoy/blob/9e5580933739775e8bce696a57a2e1bc99368f23/docs/root/configuration/listeners/network_filters/tcp_proxy_filter.rst>),
/// and the tag of field 2, the cluster.
const START: &[u8] = b"\x0a\x17envoy.tcp_proxy.cluster\x12";

/// Appends the message for the cluster of this name, of at most 16,383 bytes. It ends in the name: the span, field 3, is 0,
/// which takes no bytes. A network filter writes to the state of the connection, which any span fits.
pub fn encode(cluster: &[u8], to: &mut Bytes) {
    to.extend(START);
    let length = cluster.len();
    if length > SHORT {
        to.push(low_bits(length) | 0x80);
        to.push(low_bits(length >> 7));
    } else {
        to.push(low_bits(length));
    }
    to.extend(cluster);
}

/// How long the message is for a name of this length.
#[must_use]
pub fn size(name: usize) -> usize {
    name.wrapping_add(START.len()).wrapping_add(if name > SHORT { 2 } else { 1 })
}

/// The most that one byte of a length says.
const SHORT: usize = 0x7f;

#[expect(clippy::cast_possible_truncation, reason = "the rest is in the next byte")]
fn low_bits(length: usize) -> u8 {
    length as u8
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message;
    use std::{string::String, vec::Vec};

    mod proto {
        include!(concat!(env!("OUT_DIR"), "/envoy.source.extensions.common.wasm.rs"));
    }

    fn message(cluster: &str) -> Vec<u8> {
        let mut message = Bytes::default();
        encode(cluster.as_bytes(), &mut message);
        message.to_vec()
    }

    #[test]
    fn an_override_is_encoded_as_envoy_reads_it() {
        // Field 1, 23 bytes; field 2, 7 bytes; field 3 is the default and so absent.
        assert_eq!(message("egress1"), b"\x0a\x17envoy.tcp_proxy.cluster\x12\x07egress1");
    }

    #[test]
    fn a_long_cluster_name_is_not_cut() {
        let name = "x".repeat(1024);
        let message = message(&name);
        assert_eq!(message.len(), 2 + 23 + 3 + 1024);
        assert!(message.ends_with(name.as_bytes()));
    }

    #[test]
    fn an_override_is_what_prost_encodes() {
        for length in [1, 2, 126, 127, 128, 129, 255, 256, 1_023, 1_024, 16_383] {
            let name: String = "egress".chars().cycle().take(length).collect();
            let arguments = proto::SetEnvoyFilterStateArguments {
                path: "envoy.tcp_proxy.cluster".into(),
                value: name.clone(),
                span: proto::LifeSpan::FilterChain.into(),
            };
            assert_eq!(message(&name), arguments.encode_to_vec(), "{length}");
            assert_eq!(size(length), message(&name).len(), "{length}");
        }
    }
}
