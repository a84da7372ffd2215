//! Servers that report the source and destination address of a connection, and clients that ask them.

use anyhow::{Context, Result};
use std::{
    io::{self, Read, Write},
    net::{IpAddr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{Mutex, MutexGuard},
    thread,
    time::Duration,
};
use testbed::Host;

/// The conversation with a client. The echo server returns the bytes that it receives.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    ClientFirst,
    ServerFirst,
    Echo,
}

/// Starts a server on all addresses of a host. It runs until this process ends.
pub fn start(host: &Host, port: u16, protocol: Protocol) -> Result<()> {
    let listener = host.run(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)))?;
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            thread::spawn(move || answer(&client, protocol)); // fails if the client has disconnected
        }
    });
    Ok(())
}

fn answer(mut client: &TcpStream, protocol: Protocol) -> io::Result<()> {
    let plain = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
    let seen = Seen { from: plain(client.peer_addr()?).ip(), to: plain(client.local_addr()?) };
    let answer = seen.answer();
    let number = record(seen);
    if protocol == Protocol::Echo {
        let mut back = client;
        return io::copy(&mut client, &mut back).map(drop);
    }
    let mut received = vec![0; 4_096];
    let length = if protocol == Protocol::ClientFirst { client.read(&mut received)? } else { 0 };
    received.truncate(length);
    if received.starts_with(b"GET ") {
        write!(client, "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", answer.len())?;
    }
    client.write_all(answer.as_bytes())?;
    client.shutdown(Shutdown::Write)?;
    let ended = io::copy(&mut client, &mut received);
    records()[number].received = received;
    ended.map(drop)
}

/// Starts a server that answers datagrams to this address. It runs until this process ends.
pub fn start_udp(host: &Host, address: SocketAddr) -> Result<()> {
    let socket = host.run(|| UdpSocket::bind(address))?;
    thread::spawn(move || {
        while let Ok((_, peer)) = socket.recv_from(&mut [0; 512]) {
            let seen = Seen { from: peer.ip(), to: address };
            _ = socket.send_to(seen.answer().as_bytes(), peer); // a client that has ended gets no answer
            record(seen);
        }
    });
    Ok(())
}

/// A connection or a datagram that reached a server.
#[derive(Clone, Debug)]
pub struct Record {
    pub seen: Seen,
    /// The bytes that the client sent, once it has ended the connection.
    pub received: Vec<u8>,
}

static RECORDS: Mutex<Vec<Record>> = Mutex::new(Vec::new());

/// Returns the records of all servers, in the order of arrival.
pub fn records() -> MutexGuard<'static, Vec<Record>> {
    RECORDS.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Adds a record and returns its index.
fn record(seen: Seen) -> usize {
    let mut records = records();
    records.push(Record { seen, received: Vec::new() });
    records.len() - 1
}

/// The source and destination address that a server saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    pub from: IpAddr,
    pub to: SocketAddr,
}

impl Seen {
    fn answer(&self) -> String {
        format!("from {} to {}", self.from, self.to)
    }
}

/// Connects from a host, sends bytes, and returns the addresses that the server saw.
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
    seen().with_context(|| format!("unexpected answer {answer:?}"))
}

/// Returns an HTTP/1.1 request.
pub fn http(host: &str) -> Vec<u8> {
    format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").into_bytes()
}
