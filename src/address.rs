//! Envoy's address text → address and port.
//!
//! Envoy writes `10.0.0.2:1234` and `[2001:db8::3]:443`; pipes, internal listeners and addresses with a zone id look
//! different and are no IP address here. Hand-written because the parser of `core::net` is 1.1 KB larger in the module.

use crate::cursor::Cursor;

/// An IP address as the number of its IPv6 form: an IPv4 address is the IPv6 one that it is embedded in
/// (`::ffff:10.0.0.1`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Address {
    /// The first eight bytes.
    pub high: u64,
    /// The last eight bytes.
    pub low: u64,
}

/// An IP address and a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Endpoint {
    /// The address.
    pub address: Address,
    /// The port.
    pub port: u32,
}

impl Address {
    /// The last octet of an IPv4 address, the last byte of an IPv6 one.
    #[must_use]
    pub fn last_octet(self) -> u8 {
        let [octet, ..] = self.low.to_le_bytes();
        octet
    }

    /// Whether it is an IPv4 address.
    #[must_use]
    pub fn is_ipv4(self) -> bool {
        self.high == 0 && self.low >> 32 == 0xffff
    }
}

/// The address and port that the text stands for; none where it is anything else than an IP address and a port.
#[must_use]
#[inline(never)]
pub fn parse(text: &[u8]) -> Option<Endpoint> {
    let mut text = Cursor(text);
    let bracketed = text.take(b'[');
    let (address, is_quad) = ip(&mut text)?;
    if bracketed == is_quad || bracketed && !text.take(b']') || !text.take(b':') {
        return None;
    }
    let port = text.number(10, 65_535);
    (port <= 65_535 && text.0.is_empty()).then_some(Endpoint { address, port })
}

/// The network and the length that a CIDR's text stands for, whatever the network's host bits; the length is that of the
/// IPv6 form. None for an IPv6 prefix of embedded IPv4 addresses too.
#[must_use]
pub fn parse_cidr(text: &[u8]) -> Option<(Address, u32)> {
    let mut text = Cursor(text);
    let (address, is_quad) = ip(&mut text)?;
    if !text.take(b'/') || address.is_ipv4() != is_quad {
        return None;
    }
    let width = if is_quad { 32 } else { 128 };
    let length = text.decimal(width);
    (length <= width && text.0.is_empty()).then_some((address, length.wrapping_add(128).wrapping_sub(width)))
}

/// An IP address without brackets and zone id, and whether it is written as a dotted quad.
#[inline(never)]
fn ip(text: &mut Cursor<'_>) -> Option<(Address, bool)> {
    // The groups that are written, and how many of them stand before "::", or 8 where there is none.
    let (mut groups, mut count, mut head) = ([0; 8], 0_usize, 8);
    while count < 8 {
        if head == 8 && text.0.starts_with(b"::") {
            text.bytes(2);
            head = count;
        } else if count > 0 && !text.take(b':') {
            break;
        }
        let start = *text;
        let group = text.number(16, 0xffff);
        if text.0.first() == Some(&b'.') {
            *text = start;
            let quad = quad(text)?;
            if count == 0 && head == 8 {
                return Some((Address { high: 0, low: 0xffff_0000_0000 | u64::from(quad) }, true));
            }
            *groups.get_mut(count)? = quad >> 16;
            *groups.get_mut(count.wrapping_add(1))? = quad & 0xffff;
            count = count.wrapping_add(2);
            break; // it ends the text
        }
        let digits = start.0.len().wrapping_sub(text.0.len());
        if digits == 0 && count == head {
            break; // "::" ends the text
        }
        if group > 0xffff || digits > 4 {
            return None;
        }
        *groups.get_mut(count)? = group;
        count = count.wrapping_add(1);
    }
    // "::" stands for one group at least.
    if (count == 8) != (head == 8) {
        return None;
    }
    let mut address = Address::default();
    for place in 0_usize..8 {
        let tail = place.wrapping_add(count).checked_sub(8).filter(|&place| place >= head);
        let place = if place < head { Some(place) } else { tail };
        let group = place.and_then(|place| groups.get(place)).map_or(0, |&group| group);
        address.high = address.high << 16 | address.low >> 48;
        address.low = address.low << 16 | u64::from(group);
    }
    Some((address, false))
}

/// A dotted quad, without leading zeros.
fn quad(text: &mut Cursor<'_>) -> Option<u32> {
    let mut address: u32 = 0;
    for place in 0..4 {
        if place > 0 && !text.take(b'.') {
            return None;
        }
        address = address << 8 | u32::from(u8::try_from(text.decimal(255)).ok()?);
    }
    Some(address)
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::net::{IpAddr, SocketAddr};
    use std::{
        format,
        string::{String, ToString},
        vec::Vec,
    };

    fn octet(text: &str) -> Option<u8> {
        parse(text.as_bytes()).map(|endpoint| endpoint.address.last_octet())
    }

    #[test]
    fn the_last_octet_of_what_envoy_writes() {
        for (text, expected) in [
            ("10.0.0.2:1234", 2),
            ("10.0.0.255:0", 255),
            ("0.0.0.0:65535", 0),
            ("[2001:db8::3]:443", 3),
            ("[2001:db8::1:ff03]:443", 3),
            ("[::ffff:192.168.1.100]:80", 100),
            ("[::ffff:c0a8:164]:80", 100),
            ("[::1]:1", 1),
            ("[::]:1", 0),
            ("[fe80::1:2:3:fffe]:1", 254),
            ("[1:2:3:4:5:6:7:8]:1", 8),
            ("[64:ff9b::10.0.0.7]:1", 7),
        ] {
            assert_eq!(octet(text), Some(expected), "{text}");
        }
    }

    #[test]
    fn what_is_no_ip_address_is_none() {
        for text in [
            "",
            ":",
            "10.0.0.2",
            "10.0.0.2:",
            "10.0.0.2:65536",
            "10.0.0.2:+1",
            "10.0.0.2:1 ",
            " 10.0.0.2:1",
            "10.0.0.256:1",
            "10.0.0.02:1",
            "10.0.0:1",
            "10.0.0.0.2:1",
            "10..0.2:1",
            "10.0.0.2.:1",
            "0x0a.0.0.2:1",
            "2001:db8::3:443",
            "[2001:db8::3]",
            "[2001:db8::3]443",
            "[2001:db8::3]:",
            "2001:db8::3",
            "[:::]:1",
            "[1::2::3]:1",
            "[1:2:3:4:5:6:7]:1",
            "[1:2:3:4:5:6:7:8:9]:1",
            "[1:2:3:4::5:6:7:8]:1",
            "[12345::]:1",
            "[1:]:1",
            "[:1]:1",
            "[g::]:1",
            "[1.2.3.4::]:1",
            "[1.2.3.4]:1",
            "[::1.2.3.4:1]:1",
            "[1:2:3:4:5:6:7:1.2.3.4]:1",
            "[fe80::1%eth0]:1",
            "[fe80::1%1]:1",
            "[]:1",
            "/var/run/app.sock",
            "@abstract",
            "envoy://internal/1",
            "envoy_internal_address",
            "localhost:80",
            "\0",
            "10.0.0.2\0:1",
        ] {
            assert_eq!(parse(text.as_bytes()), None, "{text}");
        }
        assert_eq!(parse(b"10.0.0.\xff:1"), None);
        assert_eq!(parse(&[b'['; 65536]), None);
    }

    /// What the standard library reads, less the zone ids that it takes.
    fn by_std(text: &[u8]) -> Option<Endpoint> {
        let text = core::str::from_utf8(text).ok().filter(|text| !text.contains('%'))?;
        text.parse().ok().map(endpoint)
    }

    fn endpoint(from: SocketAddr) -> Endpoint {
        let address = match from.ip().to_canonical() {
            IpAddr::V4(ip) => u128::from(ip.to_ipv6_mapped()),
            IpAddr::V6(ip) => u128::from(ip),
        };
        let address = Address { high: (address >> 64) as u64, low: address as u64 };
        Endpoint { address, port: from.port().into() }
    }

    proptest::proptest! {
        #[test]
        fn every_address_is_read_as_std_reads_it(ip: IpAddr, port: u16) {
            let text = SocketAddr::new(ip, port).to_string();
            proptest::prop_assert_eq!(parse(text.as_bytes()), Some(endpoint(SocketAddr::new(ip, port))));
        }

        #[test]
        fn text_that_is_almost_an_address_is_read_as_std_reads_it(
            text in r"\[?([0-9a-f]{0,5}|:|::|25[0-9]|\.){0,18}(:[0-9]{1,3}){0,2}(\.[0-9]{1,3}){0,4}\]?:?[0-9]{0,6}"
        ) {
            proptest::prop_assert_eq!(parse(text.as_bytes()), by_std(text.as_bytes()));
        }

        #[test]
        fn groups_and_gaps_are_read_as_std_reads_them(
            head in proptest::collection::vec("[0-9a-f]{1,4}", 0..9),
            tail in proptest::collection::vec("[0-9a-f]{1,4}", 0..9),
            gap: bool,
            embedded in proptest::option::of("[0-9]{1,3}\\.[0-9]{1,3}\\.[0-9]{1,3}\\.[0-9]{1,3}"),
        ) {
            let tail = tail.into_iter().chain(embedded).collect::<Vec<String>>();
            let middle = if gap { "::" } else if head.is_empty() || tail.is_empty() { "" } else { ":" };
            let text = format!("[{}{middle}{}]:7", head.join(":"), tail.join(":"));
            proptest::prop_assert_eq!(parse(text.as_bytes()), by_std(text.as_bytes()), "{}", text);
        }

        #[test]
        fn bytes_of_any_kind_are_read_as_std_reads_them(text: Vec<u8>) {
            proptest::prop_assert_eq!(parse(&text), by_std(&text));
        }
    }
}
