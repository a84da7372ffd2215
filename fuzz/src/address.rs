//! Addresses in Envoy's form.
//!
//! Model: the standard library's `SocketAddr`, without zone ids, reads the same texts as the same addresses, and every text
//! that it writes is read as the address that it was written from.

use crate::input::Input;
use sluice::address::{Address, Endpoint, parse_endpoint};
use std::net::{IpAddr, SocketAddr};

/// What `sluice` must read in this text.
#[must_use]
pub fn by_std(text: &[u8]) -> Option<SocketAddr> {
    std::str::from_utf8(text).ok().filter(|text| !text.contains('%'))?.parse().ok()
}

/// The address as the library has it.
#[must_use]
pub fn endpoint(address: SocketAddr) -> Endpoint {
    let ip = match address.ip() {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    };
    Endpoint { address: Address(ip.into()), port: address.port() }
}

/// Reads the data as a text, and as the bits of an address that is written and read.
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
