//! Egress backends: servers in this process that send their names.

use anyhow::Result;
use std::{
    io::{self, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    thread,
};

/// A TCP server on 127.0.0.1 that sends its name to each client and half-closes. It runs until the process ends.
pub struct Backend {
    address: SocketAddr,
}

impl Backend {
    /// Listens on a free port.
    pub fn start(name: &'static str) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                // This fails if the client has disconnected. A test that waits for the name fails then, too.
                thread::spawn(move || greet(&client, name));
            }
        });
        Ok(Self { address })
    }

    /// Returns the address of the listener.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

/// Reads until the client half-closes, because closing earlier would reset the connection.
fn greet(mut client: &TcpStream, name: &str) -> io::Result<u64> {
    client.write_all(name.as_bytes())?;
    client.shutdown(Shutdown::Write)?;
    io::copy(&mut client, &mut io::sink())
}
