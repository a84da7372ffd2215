//! CIDR prefixes, IPv4 and IPv6.

use crate::{
    address::{Address, IPV4_PREFIX_LENGTH, Notation, parse_ip},
    cursor::Cursor,
};

/// All addresses of one family that start with the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    network: Address,
    /// One bits for the prefix, zero bits for the host part.
    mask: u128,
}

impl Cidr {
    /// Parses `NETWORK/LENGTH`. Returns `None` for anything else, for a network with host bits, and for an IPv4-mapped
    /// IPv6 prefix such as `::ffff:10.0.0.0/104`, which must be written as `10.0.0.0/8`.
    #[must_use]
    pub fn parse(text: &[u8]) -> Option<Self> {
        let mut cursor = Cursor::new(text);
        let (network, notation) = parse_ip(&mut cursor)?;
        let is_quad = notation == Notation::DottedQuad;
        if network.is_ipv4() != is_quad || !cursor.take(b'/') {
            return None;
        }
        let family_offset = if is_quad { IPV4_PREFIX_LENGTH } else { 0 };
        let host_bits = 128_u32.checked_sub(family_offset.wrapping_add(cursor.decimal(128)?))?;
        let half = |host_bits: u32| u64::MAX.checked_shl(host_bits).unwrap_or(0);
        let mask = u128::from(half(host_bits.saturating_sub(64))) << 64 | u128::from(half(host_bits));
        (cursor.rest.is_empty() && network.0 & !mask == 0).then_some(Self { network, mask })
    }

    /// The network and the mask, 16 bytes each, little-endian.
    #[must_use]
    pub fn to_bytes(&self) -> [[u8; 16]; 2] {
        [self.network.0.to_le_bytes(), self.mask.to_le_bytes()]
    }

    /// The opposite of [`Self::to_bytes`].
    #[must_use]
    pub fn from_bytes([network, mask]: [[u8; 16]; 2]) -> Self {
        Self { network: Address(u128::from_le_bytes(network)), mask: u128::from_le_bytes(mask) }
    }

    /// Returns whether the prefix contains the address. An IPv6 prefix contains no IPv4 address.
    #[must_use]
    pub fn contains(&self, address: Address) -> bool {
        address.0 & self.mask == self.network.0 && (!address.is_ipv4() || self.network.is_ipv4())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address;
    use core::net::{IpAddr, SocketAddr};
    use ipnet::IpNet;
    use std::{format, string::ToString};

    fn address(ip: IpAddr) -> Address {
        address::parse_endpoint(SocketAddr::new(ip, 1).to_string().as_bytes()).unwrap().address
    }

    #[test]
    fn other_texts_are_rejected() {
        for text in [
            "",
            "10.0.0.0",
            "10.0.0.0/",
            "/8",
            "10.0.0.0/33",
            "10.0.0.0/08",
            "10.0.0.0/+8",
            "10.0.0.0/-1",
            "10.0.0.0/8/8",
            "10.0.0.0/ 8",
            "10.0.0/8",
            "010.0.0.0/8",
            "10.0.0.1/8",
            "0.0.0.1/0",
            "fd00::/129",
            "fd00::1/64",
            "::1/0",
            "[fd00::]/8",
            "fe80::%1/64",
            "::ffff:10.0.0.0/104",
            "::ffff:0:0/96",
            "10.0.0.0/99999999999",
        ] {
            assert_eq!(Cidr::parse(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn families_are_separate_and_embedded_addresses_are_ipv4() {
        let contains =
            |prefix: &str, ip: &str| Cidr::parse(prefix.as_bytes()).unwrap().contains(address(ip.parse().unwrap()));
        assert!(contains("0.0.0.0/0", "203.0.113.9"));
        assert!(contains("0.0.0.0/0", "::ffff:203.0.113.9"));
        assert!(contains("10.1.0.0/16", "::ffff:10.1.2.3"));
        assert!(!contains("10.1.0.0/16", "::ffff:10.2.2.3"));
        assert!(!contains("0.0.0.0/0", "2001:db8::1"));
        assert!(!contains("::/0", "203.0.113.9"));
        assert!(!contains("::/0", "::ffff:203.0.113.9"));
        assert!(contains("::/0", "2001:db8::1"));
        assert!(contains("::/96", "::10.0.0.1")); // a deprecated form, not an embedded address
        assert!(contains("10.0.0.7/32", "10.0.0.7") && !contains("10.0.0.7/32", "10.0.0.6"));
        assert!(contains("2001:db8::1/128", "2001:db8::1") && !contains("2001:db8::1/128", "2001:db8::"));
    }

    /// The result of the ipnet crate for the canonical address.
    fn by_ipnet(net: IpNet, ip: IpAddr) -> bool {
        net.contains(&ip.to_canonical())
    }

    proptest::proptest! {
        #[test]
        fn matching_is_as_in_ipnet(network: IpAddr, length in 0_u8..=128, ip: IpAddr, flipped in 0_u32..128) {
            let network = network.to_canonical();
            let width = if network.is_ipv4() { 32 } else { 128 };
            let net = IpNet::new(network, length.min(width)).unwrap().trunc();
            let prefix = Cidr::parse(net.to_string().as_bytes()).unwrap();
            proptest::prop_assert_eq!(prefix.contains(address(ip)), by_ipnet(net, ip));
            // A neighbour: the network's address with one bit flipped.
            let near: IpAddr = match net.network() {
                IpAddr::V4(ip) => core::net::Ipv4Addr::from(u32::from(ip) ^ 1 << (flipped % 32)).into(),
                IpAddr::V6(ip) => core::net::Ipv6Addr::from(u128::from(ip) ^ 1 << flipped).into(),
            };
            proptest::prop_assert_eq!(prefix.contains(address(near)), by_ipnet(net, near));
        }

        #[test]
        fn texts_parse_if_ipnet_accepts_them_without_host_bits(ip: IpAddr, length in 0_u8..=140) {
            let text = format!("{}/{length}", ip.to_canonical());
            let expected = text.parse::<IpNet>().is_ok_and(|net| net.trunc() == net);
            proptest::prop_assert_eq!(Cidr::parse(text.as_bytes()).is_some(), expected, "{}", text);
        }
    }
}
