//! CIDR prefixes, IPv4 and IPv6.

use crate::{
    address::{Address, parse_cidr},
    bytes::Bytes,
    cursor::Cursor,
};

/// The addresses of one family that begin with the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    network: Address,
    /// Ones where the addresses are the same.
    mask: Address,
}

impl Prefix {
    /// The prefix that the text stands for; none where it is no CIDR, has host bits set, or is an IPv6 prefix of
    /// embedded IPv4 addresses, which would match nothing.
    #[must_use]
    #[inline(never)]
    pub fn parse(text: &[u8]) -> Option<Self> {
        let (network, length) = parse_cidr(text)?;
        let (half, is_low) = length.checked_sub(64).map_or((length, false), |length| (length, true));
        // So many ones, from the highest bit on.
        let ones = !u64::MAX.checked_shr(half).unwrap_or(0);
        let mask = if is_low { Address { high: u64::MAX, low: ones } } else { Address { high: ones, low: 0 } };
        (network.high & !mask.high | network.low & !mask.low == 0).then_some(Self { network, mask })
    }

    /// Appends it, in 32 bytes.
    pub fn write(&self, to: &mut Bytes) {
        let halves = [self.network.high, self.network.low, self.mask.high, self.mask.low];
        to.extend(halves.map(u64::to_le_bytes).as_flattened());
    }

    /// The one that is written next; none where there are too few bytes.
    #[inline(always)]
    pub fn read(from: &mut Cursor<'_>) -> Option<Self> {
        let bytes = from.chunk::<32>()?;
        let [network_high, network_low, mask_high, mask_low] = *bytes.as_chunks().0 else { return None };
        Some(Self {
            network: Address { high: u64::from_le_bytes(network_high), low: u64::from_le_bytes(network_low) },
            mask: Address { high: u64::from_le_bytes(mask_high), low: u64::from_le_bytes(mask_low) },
        })
    }

    /// Whether the address is one of these.
    #[must_use]
    pub fn contains(&self, address: Address) -> bool {
        address.high & self.mask.high == self.network.high
            && address.low & self.mask.low == self.network.low
            && (!address.is_ipv4() || self.network.is_ipv4())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address;
    use core::net::{IpAddr, SocketAddr};
    use ipnet::IpNet;
    use std::{format, string::ToString};

    fn read(ip: IpAddr) -> Address {
        address::parse(SocketAddr::new(ip, 1).to_string().as_bytes()).unwrap().address
    }

    #[test]
    fn what_is_no_cidr_is_refused() {
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
            assert_eq!(Prefix::parse(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn families_are_kept_apart_and_embedded_addresses_are_ipv4() {
        let contains =
            |prefix: &str, ip: &str| Prefix::parse(prefix.as_bytes()).unwrap().contains(read(ip.parse().unwrap()));
        assert!(contains("0.0.0.0/0", "203.0.113.9"));
        assert!(contains("0.0.0.0/0", "::ffff:203.0.113.9"));
        assert!(contains("10.1.0.0/16", "::ffff:10.1.2.3"));
        assert!(!contains("10.1.0.0/16", "::ffff:10.2.2.3"));
        assert!(!contains("0.0.0.0/0", "2001:db8::1"));
        assert!(!contains("::/0", "203.0.113.9"));
        assert!(!contains("::/0", "::ffff:203.0.113.9"));
        assert!(contains("::/0", "2001:db8::1"));
        assert!(contains("::/96", "::10.0.0.1")); // a deprecated form, which is no embedded address
        assert!(contains("10.0.0.7/32", "10.0.0.7") && !contains("10.0.0.7/32", "10.0.0.6"));
        assert!(contains("2001:db8::1/128", "2001:db8::1") && !contains("2001:db8::1/128", "2001:db8::"));
    }

    /// What the ipnet crate says, of addresses that are canonical.
    fn by_ipnet(net: IpNet, ip: IpAddr) -> bool {
        net.contains(&ip.to_canonical())
    }

    proptest::proptest! {
        #[test]
        fn matching_is_as_in_ipnet(network: IpAddr, length in 0_u8..=128, ip: IpAddr, flipped in 0_u32..128) {
            let network = network.to_canonical();
            let width = if network.is_ipv4() { 32 } else { 128 };
            let net = IpNet::new(network, length.min(width)).unwrap().trunc();
            let prefix = Prefix::parse(net.to_string().as_bytes()).unwrap();
            proptest::prop_assert_eq!(prefix.contains(read(ip)), by_ipnet(net, ip));
            // A neighbour: the network's address with one bit flipped.
            let near: IpAddr = match net.network() {
                IpAddr::V4(ip) => core::net::Ipv4Addr::from(u32::from(ip) ^ 1 << (flipped % 32)).into(),
                IpAddr::V6(ip) => core::net::Ipv6Addr::from(u128::from(ip) ^ 1 << flipped).into(),
            };
            proptest::prop_assert_eq!(prefix.contains(read(near)), by_ipnet(net, near));
        }

        #[test]
        fn texts_are_prefixes_where_ipnet_says_so_and_no_host_bit_is_set(ip: IpAddr, length in 0_u8..=140) {
            let text = format!("{}/{length}", ip.to_canonical());
            let expected = text.parse::<IpNet>().is_ok_and(|net| net.trunc() == net);
            proptest::prop_assert_eq!(Prefix::parse(text.as_bytes()).is_some(), expected, "{}", text);
        }
    }
}
