//! A backend in one thread: it says one byte to whoever connects, then gives back what it reads.

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

/// Largest message that is sent, in bytes: it fits into the buffers of a socket, so that none has to wait to be written.
pub const LARGE: usize = 64 << 10;

const LISTENER: Token = Token(0);

/// Listens on a port that was free, as long as the process lasts, and greets with this byte.
pub fn start(greeting: u8) -> Result<SocketAddr> {
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    SockRef::from(&listener).listen(4_096)?;
    SockRef::from(&listener).set_send_buffer_size(4 * LARGE)?; // what it accepts has it too
    listener.set_nonblocking(true)?;
    thread::spawn(move || {
        if let Err(error) = serve(TcpListener::from_std(listener), greeting) {
            eprintln!("error: backend: {error}"); // whoever waits for a byte fails at its deadline
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
                // A client that has gone again is noticed when it is read.
                _ = client.write(&[greeting]);
                // Closed with a reset, nothing of a connection stays behind on either side.
                _ = SockRef::from(&client).set_linger(Some(Duration::ZERO));
                count += 1;
                poll.registry().register(&mut client, Token(count), Interest::READABLE)?;
                clients.insert(Token(count), client);
            }
        }
    }
}

/// Gives back what is there to read; whether the client is still there.
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
