//! The destinations that an egress router refuses.

use crate::{
    destination::GREETING,
    network::{RouterNetwork, SERVERS, await_line, header_for},
    topology::router,
};
use anyhow::{Context, Result};
use std::{
    io::Read,
    net::{SocketAddr, TcpStream},
};

#[test]
fn forbidden_destinations_are_refused() -> Result<()> {
    let network = RouterNetwork::new(&router()?)?;
    for (number, (destination, logged)) in [
        ("127.0.0.1:25", "127.0.0.1:25"),
        ("127.9.9.9:25", "127.9.9.9:25"),
        ("127.0.0.1:9901", "127.0.0.1:9901"),
        ("0.1.2.3:25", "0.1.2.3:25"),
        ("[::1]:25", "[::1]:25"),
        ("[::127.0.0.1]:25", "[::127.0.0.1]:25"),
        ("[::ffff:127.0.0.1]:25", "[::ffff:127.0.0.1]:25"),
        ("[::ffff:0.0.0.0]:25", "[::ffff:0.0.0.0]:25"),
        ("[::ffff:169.254.169.254]:25", "[::ffff:169.254.169.254]:25"),
        ("[::ffff:198.51.100.7]:25", "[::ffff:198.51.100.7]:25"),
        ("[::ffff:0:127.0.0.1]:25", "[::ffff:0:7f00:1]:25"),
        ("[64:ff9b::127.0.0.1]:25", "[64:ff9b::7f00:1]:25"),
        ("[64:ff9b::100.100.100.200]:25", "[64:ff9b::6464:64c8]:25"),
        ("[64:ff9b:1::169.254.169.254]:25", "[64:ff9b:1::a9fe:a9fe]:25"),
        ("[2002:7f00:1::1]:25", "[2002:7f00:1::1]:25"),
        ("[fd00:42::42]:25", "[fd00:42::42]:25"),
        ("[64:ff9b::169.254.169.254]:25", "[64:ff9b::a9fe:a9fe]:25"),
        ("169.254.169.254:25", "169.254.169.254:25"),
        ("169.254.1.1:25", "169.254.1.1:25"),
        ("[fe80::1]:25", "[fe80::1]:25"),
        ("100.100.100.200:25", "100.100.100.200:25"),
        ("168.63.129.16:25", "168.63.129.16:25"),
        ("[fd00:ec2::254]:25", "[fd00:ec2::254]:25"),
        ("[fd20:ce::254]:25", "[fd20:ce::254]:25"),
        ("[fd00:c1::a9fe:a9fe]:25", "[fd00:c1::a9fe:a9fe]:25"),
        ("10.1.0.21:25", "10.1.0.21:25"), // the router's own address, which the list `never` contains
        ("10.1.0.21:8080", "10.1.0.21:8080"),
        ("198.51.100.21:25", "198.51.100.21:25"), // the router's address on the other side
        ("[fd00:1::21]:25", "[fd00:1::21]:25"),
        ("10.1.200.1:25", "10.1.200.1:25"),
        ("10.20.0.1:25", "10.20.0.1:25"), // private, and listed for another tenant only
        ("192.168.1.1:25", "192.168.1.1:25"),
        ("172.31.255.1:25", "172.31.255.1:25"),
        ("100.127.0.1:25", "100.127.0.1:25"),
        ("[fd12::1]:25", "[fd12::1]:25"),
        ("[fec0::1]:25", "[fec0::1]:25"),
    ]
    .into_iter()
    .enumerate()
    {
        assert_eq!(network.ask(&network.peer, &header_for(destination))?, (Vec::new(), 0), "{destination}");
        network.egress.await_stat("cluster.forbidden.upstream_cx_none_healthy", number as u64 + 1)?;
        let fields = [("destination", logged), ("chain", "forbidden"), ("cluster", "forbidden"), ("flags", "UH")];
        await_line(&network.egress, &fields)?;
    }
    // The listener filter refuses these.
    for (number, destination) in ["0.0.0.0:25", "[::]:25"].into_iter().enumerate() {
        assert_eq!(network.ask(&network.peer, &header_for(destination))?, (Vec::new(), 0), "{destination}");
        network.egress.await_stat("proxy_proto.egress.versions.v2.error", number as u64 + 1)?;
    }
    for (number, destination) in ["198.51.100.7:25", "[2001:db8::7]:25"].iter().enumerate() {
        let (received, connected) = network.ask(&network.peer, &header_for(destination))?;
        assert_eq!((received.as_slice(), connected), (b"220 ready\r\n".as_slice(), number as u64 + 1), "{destination}");
    }
    Ok(())
}

#[test]
fn the_servers_at_forbidden_destinations_would_answer() -> Result<()> {
    let network = RouterNetwork::new(&router()?)?;
    for destination in ["127.0.0.1:25", "127.9.9.9:25", "[::1]:25", "0.0.0.0:25", "[::]:25", "10.1.0.21:25"] {
        let destination: SocketAddr = destination.parse()?;
        let mut socket = network.router.run(|| TcpStream::connect(destination))?;
        let mut greeting = [0; 11];
        socket.read_exact(&mut greeting)?;
        assert_eq!(&greeting, b"220 ready\r\n");
    }
    for address in &SERVERS {
        let (address, _) = address.split_once('/').context("no prefix length")?;
        let destination = SocketAddr::new(address.parse()?, GREETING);
        network.router.run(|| TcpStream::connect(destination)).context(address)?;
    }
    Ok(())
}
