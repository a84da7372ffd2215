//! IP addresses, and the text form in which Envoy passes them: `10.0.0.2:1234` or `[2001:db8::3]:443`.
//!
//! Pipes, internal listeners and addresses with a zone id have other forms and are not IP addresses here. The parser is
//! hand-written because the one of `core::net` adds 1.1 KB to the module; the tests compare the two.

use crate::cursor::Cursor;

/// An IP address as a 128-bit number. An IPv4 address is stored IPv4-mapped (`::ffff:10.0.0.1`), so both spellings are the
/// same address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address(pub u128);

/// An IP address and a TCP port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The IP address.
    pub address: Address,
    /// The TCP port.
    pub port: u16,
}

/// How an IP address was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notation {
    /// As a dotted quad, `10.0.0.1`.
    DottedQuad,
    /// As groups of hexadecimal digits, `2001:db8::1`; the last two may be a dotted quad.
    Groups,
}

/// The length of the prefix `::ffff:0:0/96`, which all IPv4-mapped addresses share.
pub const IPV4_PREFIX_LENGTH: u32 = 96;

impl Address {
    /// Wraps the 32 bits of an IPv4 address.
    #[must_use]
    pub fn from_ipv4(bits: u32) -> Self {
        Self(0xffff << 32 | bits as u128)
    }

    /// Returns the last octet of an IPv4 address, or the last byte of an IPv6 address.
    #[must_use]
    pub fn last_octet(self) -> u8 {
        let [octet, ..] = self.0.to_le_bytes();
        octet
    }

    /// Returns whether this is an IPv4 address.
    #[must_use]
    pub fn is_ipv4(self) -> bool {
        self.0 >> 32 == 0xffff
    }
}

/// Parses an address and a port in Envoy's form, or returns `None` for anything else.
#[must_use]
#[inline(never)]
pub fn parse_endpoint(text: &[u8]) -> Option<Endpoint> {
    let mut cursor = Cursor::new(text);
    let bracketed = cursor.take(b'[');
    let (address, notation) = parse_ip(&mut cursor)?;
    if bracketed != (notation == Notation::Groups) || bracketed && !cursor.take(b']') || !cursor.take(b':') {
        return None;
    }
    let port = u16::try_from(cursor.number(10, 65_535)?).ok()?;
    cursor.rest.is_empty().then_some(Endpoint { address, port })
}

/// Parses an IP address without brackets and zone id, and leaves what follows it unread.
#[inline(never)]
pub fn parse_ip(cursor: &mut Cursor<'_>) -> Option<(Address, Notation)> {
    // The groups read since the start or since "::", and the number of all groups read.
    let (mut groups, mut count) = (0_u128, 0_u32);
    // The groups before "::", and their number.
    let mut before_gap = None;
    while count < 8 {
        // Whether "::" was just read.
        let mut gap_ends_here = false;
        if before_gap.is_none() && cursor.rest.starts_with(b"::") {
            cursor.take(b':');
            cursor.take(b':');
            before_gap = Some((groups, count));
            groups = 0;
            gap_ends_here = true;
        } else if count > 0 && !cursor.take(b':') {
            break;
        }
        let start = *cursor;
        let group = cursor.number(16, 0xffff);
        if cursor.peek() == Some(b'.') {
            *cursor = start;
            let quad = parse_dotted_quad(cursor)?;
            if count == 0 && before_gap.is_none() {
                return Some((Address::from_ipv4(quad), Notation::DottedQuad));
            }
            groups = groups << 32 | u128::from(quad);
            count = count.wrapping_add(2);
            break; // a dotted quad is always last
        }
        let digits = start.rest.len().wrapping_sub(cursor.rest.len());
        if digits == 0 && gap_ends_here {
            break; // the address ends with "::"
        }
        if digits > 4 {
            return None;
        }
        groups = groups << 16 | u128::from(group?);
        count = count.wrapping_add(1);
    }
    match before_gap {
        None if count == 8 => Some((Address(groups), Notation::Groups)),
        // "::" stands for at least one group.
        Some((mut head, mut position)) if count < 8 => {
            while position < 8 {
                head <<= 16;
                position = position.wrapping_add(1);
            }
            Some((Address(head | groups), Notation::Groups))
        }
        _ => None,
    }
}

/// Parses a dotted quad without leading zeros.
fn parse_dotted_quad(cursor: &mut Cursor<'_>) -> Option<u32> {
    let mut quad = 0;
    for index in 0..4 {
        if index > 0 && !cursor.take(b'.') {
            return None;
        }
        quad = quad << 8 | cursor.decimal(255)?;
    }
    Some(quad)
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
        parse_endpoint(text.as_bytes()).map(|endpoint| endpoint.address.last_octet())
    }

    #[test]
    fn last_octet_of_addresses_in_envoys_form() {
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
    fn an_address_has_at_most_eight_groups() {
        let mut cursor = Cursor::new(b"1:2:3:4:5:6:7:8:9");
        assert!(parse_ip(&mut cursor).is_some());
        assert_eq!(cursor.rest, b":9");
    }

    #[test]
    fn other_texts_are_rejected() {
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
            assert_eq!(parse_endpoint(text.as_bytes()), None, "{text}");
        }
        assert_eq!(parse_endpoint(b"10.0.0.\xff:1"), None);
        assert_eq!(parse_endpoint(&[b'['; 65536]), None);
    }

    /// The standard library's result. It accepts zone ids, which we do not.
    fn by_std(text: &[u8]) -> Option<Endpoint> {
        let text = core::str::from_utf8(text).ok().filter(|text| !text.contains('%'))?;
        text.parse().ok().map(endpoint)
    }

    fn endpoint(from: SocketAddr) -> Endpoint {
        let address = match from.ip().to_canonical() {
            IpAddr::V4(ip) => u128::from(ip.to_ipv6_mapped()),
            IpAddr::V6(ip) => u128::from(ip),
        };
        Endpoint { address: Address(address), port: from.port() }
    }

    proptest::proptest! {
        #[test]
        fn every_address_parses_as_in_std(ip: IpAddr, port: u16) {
            let text = SocketAddr::new(ip, port).to_string();
            proptest::prop_assert_eq!(parse_endpoint(text.as_bytes()), Some(endpoint(SocketAddr::new(ip, port))));
        }

        #[test]
        fn text_close_to_an_address_parses_as_in_std(
            text in r"\[?([0-9a-f]{0,5}|:|::|25[0-9]|\.){0,18}(:[0-9]{1,3}){0,2}(\.[0-9]{1,3}){0,4}\]?:?[0-9]{0,6}"
        ) {
            proptest::prop_assert_eq!(parse_endpoint(text.as_bytes()), by_std(text.as_bytes()));
        }

        #[test]
        fn groups_and_gaps_parse_as_in_std(
            head in proptest::collection::vec("[0-9a-f]{1,4}", 0..9),
            tail in proptest::collection::vec("[0-9a-f]{1,4}", 0..9),
            gap: bool,
            embedded in proptest::option::of("[0-9]{1,3}\\.[0-9]{1,3}\\.[0-9]{1,3}\\.[0-9]{1,3}"),
        ) {
            let tail = tail.into_iter().chain(embedded).collect::<Vec<String>>();
            let middle = if gap { "::" } else if head.is_empty() || tail.is_empty() { "" } else { ":" };
            let text = format!("[{}{middle}{}]:7", head.join(":"), tail.join(":"));
            proptest::prop_assert_eq!(parse_endpoint(text.as_bytes()), by_std(text.as_bytes()), "{}", text);
        }

        #[test]
        fn arbitrary_bytes_parse_as_in_std(text: Vec<u8>) {
            proptest::prop_assert_eq!(parse_endpoint(&text), by_std(&text));
        }
    }
}
