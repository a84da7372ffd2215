//! Egress backends: servers in this process that say who they are.

use anyhow::Result;
use std::{
    io::{self, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    thread,
};

/// A TCP server on 127.0.0.1 that writes its name to whoever connects and ends its side. It lasts as long as the process.
pub struct Backend {
    address: SocketAddr,
}

impl Backend {
    /// Listens on a port that was free.
    pub fn start(name: &'static str) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                // A client that has gone again hears nothing; whoever waits for the name notices.
                thread::spawn(move || greet(&client, name));
            }
        });
        Ok(Self { address })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

/// Reads to the end what the client says, as closing before would reset the connection.
fn greet(mut client: &TcpStream, name: &str) -> io::Result<u64> {
    client.write_all(name.as_bytes())?;
    client.shutdown(Shutdown::Write)?;
    io::copy(&mut client, &mut io::sink())
}
