//! Servers that say who reached them at which address, and clients that ask them.

use anyhow::{Context, Result};
use std::{
    io::{self, Read, Write},
    net::{IpAddr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    thread,
    time::Duration,
};
use testbed::Host;

/// Who speaks first; the echo says what it hears.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum First {
    Client,
    Server,
    Echo,
}

/// Serves all addresses of a host as long as this process lasts.
pub fn start(host: &Host, port: u16, first: First) -> Result<()> {
    let listener = host.run(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)))?;
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            thread::spawn(move || answer(&client, first)); // a client that has gone hears nothing
        }
    });
    Ok(())
}

fn answer(mut client: &TcpStream, first: First) -> io::Result<()> {
    if first == First::Echo {
        let mut back = client;
        return io::copy(&mut client, &mut back).map(drop);
    }
    let plain = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
    let (peer, local) = (plain(client.peer_addr()?), plain(client.local_addr()?));
    let mut said = [0; 4_096];
    let length = if first == First::Client { client.read(&mut said)? } else { 0 };
    let answer = format!("from {} to {local}", peer.ip());
    if said[..length].starts_with(b"GET ") {
        write!(client, "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", answer.len())?;
    }
    client.write_all(answer.as_bytes())?;
    client.shutdown(Shutdown::Write)?;
    io::copy(&mut client, &mut io::sink())?;
    Ok(())
}

/// What a server saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    pub from: IpAddr,
    pub to: SocketAddr,
}

/// Connects from a host, says this, and reads what the server saw.
pub fn ask(host: &Host, to: SocketAddr, say: &[u8]) -> Result<Seen> {
    let answer = host.run(|| -> Result<String> {
        let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(5))?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        stream.write_all(say)?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    });
    let answer = answer?;
    let seen = || {
        let (_, seen) = answer.rsplit_once("from ")?;
        let (from, to) = seen.split_once(" to ")?;
        Some(Seen { from: from.parse().ok()?, to: to.parse().ok()? })
    };
    seen().with_context(|| format!("no answer but {answer:?}"))
}

/// A request of HTTP/1.1.
pub fn http(host: &str) -> Vec<u8> {
    format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").into_bytes()
}
