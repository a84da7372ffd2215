//! Envoy's address text → address and port.
//!
//! Envoy writes `10.0.0.2:1234` and `[2001:db8::3]:443`; pipes, internal listeners and addresses with a zone id look
//! different and are no IP address here. Hand-written because the parser of `core::net` is 1.1 KB larger in the module.

/// An IP address. An IPv4 address embedded in an IPv6 one (`::ffff:10.0.0.1`) is the IPv4 address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// The family.
    pub is_ipv4: bool,
    /// The address as a number, of 32 bits or of 128.
    pub bits: u128,
}

/// An IP address and a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The address.
    pub address: Address,
    /// The port.
    pub port: u16,
}

impl Address {
    /// The last octet of an IPv4 address, the last byte of an IPv6 one.
    #[must_use]
    pub fn last_octet(self) -> u8 {
        let [.., octet] = self.bits.to_be_bytes();
        octet
    }

    fn ipv6(bits: u128) -> Self {
        let is_ipv4 = bits >> 32 == 0xffff;
        Self { is_ipv4, bits: if is_ipv4 { bits & 0xffff_ffff } else { bits } }
    }
}

/// The address and port that the text stands for; none where it is anything else than an IP address and a port.
#[must_use]
pub fn parse(text: &[u8]) -> Option<Endpoint> {
    let (address, port) = if let Some(text) = text.strip_prefix(b"[") {
        let (address, rest) = split_once(text, b']')?;
        (Address::ipv6(ipv6(address)?), rest.strip_prefix(b":")?)
    } else {
        let (address, port) = split_once(text, b':')?;
        (Address { is_ipv4: true, bits: ipv4(address)?.into() }, port)
    };
    Some(Endpoint { address, port: number(port, 10)? })
}

/// The network and the length that a CIDR's text stands for, whatever the network's host bits.
#[must_use]
pub fn parse_cidr(text: &[u8]) -> Option<(Address, u32)> {
    let (address, length) = split_once(text, b'/')?;
    let (address, width) = match ipv4(address) {
        Some(bits) => (Address { is_ipv4: true, bits: bits.into() }, 32),
        None => (Address { is_ipv4: false, bits: ipv6(address)? }, 128),
    };
    let length = match length {
        [b'0', _, ..] => return None,
        digits => u32::from(number(digits, 10)?),
    };
    (length <= width).then_some((address, length))
}

/// What is before and after the first such byte.
fn split_once(text: &[u8], at: u8) -> Option<(&[u8], &[u8])> {
    let (head, tail) = text.split_at_checked(text.iter().position(|&byte| byte == at)?)?;
    Some((head, tail.get(1..)?))
}

/// A dotted quad, without leading zeros.
fn ipv4(text: &[u8]) -> Option<u32> {
    let mut address: u32 = 0;
    let mut octets: u32 = 0;
    for octet in text.split(|&byte| byte == b'.') {
        if octets == 4 || octet.len() > 3 || (octet.len() > 1 && octet.first() == Some(&b'0')) {
            return None;
        }
        address = address << 8 | u32::from(u8::try_from(number(octet, 10)?).ok()?);
        octets = octets.wrapping_add(1);
    }
    (octets == 4).then_some(address)
}

/// An IPv6 address without brackets and zone id.
fn ipv6(text: &[u8]) -> Option<u128> {
    let Some(gap) = text.windows(2).position(|pair| pair == b"::") else {
        let (address, bits) = groups(text)?;
        return (bits == 128).then_some(address);
    };
    let (head, tail) = text.split_at_checked(gap)?;
    if head.contains(&b'.') {
        return None; // an embedded IPv4 address ends the text
    }
    let ((head, head_bits), (tail, tail_bits)) = (groups(head)?, groups(tail.get(2..)?)?);
    // "::" stands for one group at least.
    let gap_bits = 112_u32.checked_sub(head_bits)?.checked_sub(tail_bits)?.wrapping_add(16);
    let head = head.checked_shl(gap_bits.wrapping_add(tail_bits)).unwrap_or(0);
    Some(head | tail)
}

/// The groups of an IPv6 address side by side, and how many bits they are: at most 128, the rest is refused.
fn groups(text: &[u8]) -> Option<(u128, u32)> {
    let (mut address, mut bits) = (0_u128, 0_u32);
    if text.is_empty() {
        return Some((0, 0));
    }
    let mut parts = text.split(|&byte| byte == b':').peekable();
    while let Some(part) = parts.next() {
        let (group, width) = if parts.peek().is_none() && part.contains(&b'.') {
            (ipv4(part)?, 32)
        } else if part.len() <= 4 {
            (u32::from(number(part, 16)?), 16)
        } else {
            return None;
        };
        bits = bits.wrapping_add(width);
        if bits > 128 {
            return None;
        }
        address = address << width | u128::from(group);
    }
    Some((address, bits))
}

/// Digits and nothing else, as far as 65535.
pub(crate) fn number(digits: &[u8], radix: u32) -> Option<u16> {
    let mut value: u16 = 0;
    for &digit in digits {
        let digit = u16::try_from(char::from(digit).to_digit(radix)?).ok()?;
        value = value.checked_mul(u16::try_from(radix).ok()?)?.checked_add(digit)?;
    }
    (!digits.is_empty()).then_some(value)
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
            IpAddr::V4(ip) => Address { is_ipv4: true, bits: u32::from(ip).into() },
            IpAddr::V6(ip) => Address { is_ipv4: false, bits: ip.into() },
        };
        Endpoint { address, port: from.port() }
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
