//! CIDR prefixes.
//!
//! Model: the standard library parses the address and ipnet creates the network. `sluice` accepts a text exactly if this network
//! has no host bits, is not IPv4-mapped, and its length is written without sign and leading zero. Its prefix contains the same
//! addresses as ipnet's network.

use crate::{address::endpoint, input::Input};
use ipnet::IpNet;
use sluice::cidr::Cidr;
use std::net::{IpAddr, SocketAddr};

/// Returns the network that `sluice` must parse from this text.
#[must_use]
pub fn by_ipnet(text: &[u8]) -> Option<IpNet> {
    let text = std::str::from_utf8(text).ok().filter(|text| !text.contains('%'))?;
    let (address, length) = text.split_once('/')?;
    let net = IpNet::new(address.parse().ok()?, length.parse().ok()?).ok()?;
    let mapped = matches!(net.addr(), IpAddr::V6(ip) if ip.to_ipv4_mapped().is_some());
    (net.trunc() == net && !mapped && length == net.prefix_len().to_string()).then_some(net)
}

fn compare(text: &[u8], probes: impl IntoIterator<Item = IpAddr>) {
    let expected = by_ipnet(text);
    let found = Cidr::parse(text);
    assert_eq!(found.is_some(), expected.is_some(), "{:?}", String::from_utf8_lossy(text));
    let (Some(found), Some(expected)) = (found, expected) else { return };
    assert_eq!(Cidr::from_bytes(found.to_bytes()), found);
    for ip in probes.into_iter().chain([expected.network(), expected.broadcast()]) {
        let address = endpoint(SocketAddr::new(ip, 1)).address;
        assert_eq!(found.contains(address), expected.contains(&ip.to_canonical()), "{ip} in {expected}");
    }
}

/// Parses the data as a text. Then takes the data as the bits of a network and of addresses near it.
pub fn run(data: &[u8]) {
    compare(data, []);

    let mut input = Input(data);
    let length = input.byte();
    let bits: [u8; 16] = input.array();
    let (ip, other): (IpAddr, IpAddr) = if length & 0x80 == 0 {
        ([bits[0], bits[1], bits[2], bits[3]].into(), [bits[4], bits[5], bits[6], bits[7]].into())
    } else {
        (bits.into(), input.array::<16>().into())
    };
    let length = length & 0x7f;
    let Ok(net) = IpNet::new(ip, length) else { return };
    // The address of the network with one bit flipped.
    let near: IpAddr = match net.network() {
        IpAddr::V4(ip) => std::net::Ipv4Addr::from(u32::from(ip) ^ 1 << (bits[8] % 32)).into(),
        IpAddr::V6(ip) => std::net::Ipv6Addr::from(u128::from(ip) ^ 1 << (input.byte() % 128)).into(),
    };
    compare(format!("{}/{length}", net.network()).as_bytes(), [ip, other, near]);
    compare(net.to_string().as_bytes(), [ip]);
}
