//! A backend in one thread. It sends one byte to each client and then echoes what it reads.

use anyhow::Result;
use mio::{
    Events, Interest, Poll, Token,
    net::{TcpListener, TcpStream},
};
use socket2::SockRef;
use std::{
    collections::HashMap,
    io::{self, ErrorKind, Read, Write},
    net::{Ipv4Addr, SocketAddr},
    thread,
    time::Duration,
};

/// The size of the largest message in bytes. It fits into a socket's buffers, so a write never blocks.
pub const LARGE: usize = 64 << 10;

const LISTENER: Token = Token(0);

/// Listens on a free port until the process ends, and greets each client with this byte.
pub fn start(greeting: u8) -> Result<SocketAddr> {
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    SockRef::from(&listener).listen(4_096)?;
    SockRef::from(&listener).set_send_buffer_size(4 * LARGE)?; // accepted sockets inherit it
    listener.set_nonblocking(true)?;
    thread::spawn(move || {
        if let Err(error) = serve(TcpListener::from_std(listener), greeting) {
            eprintln!("error: backend: {error}"); // a client that waits for a byte fails at its deadline
        }
    });
    Ok(address)
}

fn serve(mut listener: TcpListener, greeting: u8) -> io::Result<()> {
    let mut poll = Poll::new()?;
    let mut events = Events::with_capacity(1_024);
    let mut clients: HashMap<Token, TcpStream> = HashMap::new();
    let mut buffer = vec![0; LARGE];
    let mut count = 0;
    poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
    loop {
        poll.poll(&mut events, None)?;
        for event in &events {
            if event.token() != LISTENER {
                if let Some(client) = clients.get_mut(&event.token())
                    && !echo(client, &mut buffer)
                {
                    clients.remove(&event.token());
                }
                continue;
            }
            while let Ok((mut client, _)) = listener.accept() {
                // A client that has disconnected is noticed at the next read.
                _ = client.write(&[greeting]);
                // A reset leaves no state of the connection on either side.
                _ = SockRef::from(&client).set_linger(Some(Duration::ZERO));
                count += 1;
                poll.registry().register(&mut client, Token(count), Interest::READABLE)?;
                clients.insert(Token(count), client);
            }
        }
    }
}

/// Echoes the available data. Returns whether the client is still connected.
fn echo(client: &mut TcpStream, buffer: &mut [u8]) -> bool {
    loop {
        match client.read(buffer) {
            Ok(0) => return false,
            Ok(size) if client.write_all(&buffer[..size]).is_ok() => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return true,
            _ => return false,
        }
    }
}
