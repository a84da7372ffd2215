//! Addresses in Envoy's format.
//!
//! Model: the library parses exactly the texts that the standard library's `SocketAddr` parses, except zone ids, to the same
//! addresses. It parses the text of any `SocketAddr` to that address.

use crate::input::Input;
use sluice::address::{Address, Endpoint, parse_endpoint};
use std::net::{IpAddr, SocketAddr};

/// Returns the address that `sluice` must parse from this text.
#[must_use]
pub fn by_std(text: &[u8]) -> Option<SocketAddr> {
    std::str::from_utf8(text).ok().filter(|text| !text.contains('%'))?.parse().ok()
}

/// Converts an address to the library's type.
#[must_use]
pub fn endpoint(address: SocketAddr) -> Endpoint {
    let ip = match address.ip() {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    };
    Endpoint { address: Address(ip.into()), port: address.port() }
}

/// Parses the data as a text. Then takes the data as the bits of an address, which is formatted and parsed.
pub fn run(data: &[u8]) {
    let found = parse_endpoint(data);
    assert_eq!(found, by_std(data).map(endpoint), "{:?}", String::from_utf8_lossy(data));

    let mut input = Input(data);
    let port = u16::from_be_bytes(input.array());
    let ip: IpAddr = match data.len() {
        ..=6 => input.array::<4>().into(),
        _ => input.array::<16>().into(),
    };
    let text = SocketAddr::new(ip, port).to_string();
    let found = parse_endpoint(text.as_bytes()).expect("an address that the standard library writes");
    assert_eq!(found, endpoint(SocketAddr::new(ip, port)), "{text}");
    assert_eq!(found.address.is_ipv4(), ip.to_canonical().is_ipv4(), "{text}");
    let last = match ip {
        IpAddr::V4(ip) => ip.octets()[3],
        IpAddr::V6(ip) => ip.octets()[15],
    };
    assert_eq!(found.address.last_octet(), last, "{text}");
}
