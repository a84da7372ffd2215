//! Configurations and addresses from small sets of values, so that routes and connections often match.

use crate::{
    input::Input,
    model::{Action, Model, Route, Target},
};
use ipnet::IpNet;
use std::net::{IpAddr, SocketAddr};

const IPS: [&str; 12] = [
    "10.0.0.2",
    "10.0.1.3",
    "10.1.0.4",
    "192.0.2.255",
    "::ffff:10.0.0.3",
    "::ffff:192.0.2.8",
    "::10.0.0.2",
    "fd00::2",
    "fd00:0:0:1::3",
    "2001:db8::ff",
    "::",
    "0.0.0.0",
];
const PATTERNS: [&str; 8] =
    ["a.example", "*.example", "*.a.example", "B.EXAMPLE", "example.", "*.a.example.", "_a-1", "a.b.c.d"];
const SERVER_NAMES: [&str; 10] =
    ["", "a.example", "B.a.Example.", "b.example", "example", "example.", "c.org", ".", "a..example", ".example"];
const PORTS: [u16; 6] = [1, 25, 80, 443, 8_080, 65_535];
const CLUSTERS: [&str; 4] = ["a", "b", "outbound|80||c.d", "\u{e9}\"\\\n"];

/// Returns an address, often a known one.
pub fn ip(input: &mut Input<'_>) -> IpAddr {
    match input.byte() {
        index @ 0..=191 => IPS[usize::from(index) % IPS.len()].parse().unwrap(),
        192..=223 => input.array::<4>().into(),
        _ => input.array::<16>().into(),
    }
}

/// Returns an address and a port, often known ones.
pub fn address(input: &mut Input<'_>) -> SocketAddr {
    SocketAddr::new(ip(input), if input.one_in(8) { u16::from_le_bytes(input.array()) } else { input.pick(&PORTS) })
}

/// Returns the server name that a client requests.
pub fn server_name<'a>(input: &mut Input<'a>) -> &'a [u8] {
    if input.one_in(8) { input.text() } else { input.pick(&SERVER_NAMES).as_bytes() }
}

fn action(input: &mut Input<'_>) -> Action {
    input.pick(&[Action::Continue, Action::Deny])
}

fn prefix(input: &mut Input<'_>) -> IpNet {
    let ip = ip(input).to_canonical();
    let width = if ip.is_ipv4() { 32 } else { 128 };
    let length = match input.byte() {
        whole @ 0..=63 => (whole % 17) * 8,
        other => other & 0x7f,
    };
    let net = IpNet::new(ip, length.min(width)).unwrap().trunc();
    // The configuration cannot express a prefix whose first address is IPv4-mapped.
    match net.network() {
        IpAddr::V6(ip) if ip.to_ipv4_mapped().is_some() => IpNet::new(IpAddr::from([0_u16; 8]), 0).unwrap(),
        _ => net,
    }
}

fn list<T>(input: &mut Input<'_>, chance: u8, entry: impl Fn(&mut Input<'_>) -> T) -> Option<Vec<T>> {
    input.one_in(chance).then(|| (0..=input.byte() % 3).map(|_| entry(input)).collect())
}

fn route(input: &mut Input<'_>) -> Route {
    Route {
        source: list(input, 2, prefix),
        destination: list(input, 3, prefix),
        destination_ports: list(input, 3, |input| input.pick(&PORTS)),
        sni: list(input, 3, |input| input.pick(&PATTERNS).to_owned()),
        target: if input.one_in(3) {
            Target::Action(action(input))
        } else {
            Target::Clusters((0..=input.byte() % 4).map(|_| input.pick(&CLUSTERS).to_owned()).collect())
        },
    }
}

/// Returns a valid configuration.
pub fn model(input: &mut Input<'_>) -> Model {
    let routes = (0..=input.byte() % 5).map(|_| route(input)).collect();
    Model { routes, otherwise: action(input), on_error: action(input), observes: input.one_in(8) }
}
