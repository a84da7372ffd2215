//! The servers of a destination, and the data that clients exchange with them.

use anyhow::{Result, ensure};
use rustls::{
    ServerConfig, ServerConnection, StreamOwned,
    pki_types::{CertificateDer, PrivatePkcs8KeyDer},
};
use std::{
    collections::hash_map::DefaultHasher,
    hash::Hasher,
    io::{self, ErrorKind, Read, Write},
    net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
};
use testbed::Host;

pub const GREETING: u16 = 25;
pub const HTTP: u16 = 80;
pub const TLS: u16 = 443;
/// Sends back the bytes that it receives, and half-closes when the client does.
pub const ECHO: u16 = 7;
/// Both sides send a stream, half-close, and read the stream of the other side.
pub const STREAMS: u16 = 9;

/// The connections that a destination received: the port, the address of the peer, and the bytes that the peer sent. For [`TLS`],
/// the server name precedes them; for [`STREAMS`], their hash replaces them.
pub type Received = Arc<Mutex<Vec<(u16, IpAddr, Vec<u8>)>>>;

/// Starts the servers of a destination on all addresses of this host. Returns the received connections and the certificate.
pub fn serve(host: &Host) -> Result<(Received, CertificateDer<'static>)> {
    let signed = rcgen::generate_simple_self_signed(["www.example.com".to_owned()])?;
    let trusted = signed.cert.der().clone();
    let key = PrivatePkcs8KeyDer::from(signed.signing_key.serialize_der());
    let tls = ServerConfig::builder().with_no_client_auth().with_single_cert(vec![trusted.clone()], key.into())?;
    let tls = Arc::new(tls);
    let received = Received::default();
    for port in [GREETING, HTTP, TLS, ECHO, STREAMS] {
        for any in ["0.0.0.0", "::"] {
            let socket = host.run(|| listen(any.parse()?, port))?;
            let (received, tls) = (Arc::clone(&received), Arc::clone(&tls));
            thread::spawn(move || {
                for client in socket.incoming().flatten() {
                    let (received, tls) = (Arc::clone(&received), Arc::clone(&tls));
                    thread::spawn(move || {
                        let Ok(peer) = client.peer_addr() else { return };
                        // If the exchange fails, the error takes the place of the received data.
                        let sent = converse(port, client, &tls).unwrap_or_else(|error| error.to_string().into_bytes());
                        received.lock().expect("a server panicked").push((port, peer.ip(), sent));
                    });
                }
            });
        }
    }
    Ok((received, trusted))
}

/// Listens on this address. The IPv6 wildcard does not include IPv4.
fn listen(address: IpAddr, port: u16) -> Result<TcpListener> {
    let address = SocketAddr::new(address, port);
    let socket = socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::STREAM, None)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(1024)?;
    Ok(socket.into())
}

/// Serves one client of this port until it disconnects. Returns what [`Received`] records about its bytes.
fn converse(port: u16, mut client: TcpStream, tls: &Arc<ServerConfig>) -> Result<Vec<u8>> {
    let mut sent = Vec::new();
    match port {
        GREETING => {
            client.write_all(b"220 ready\r\n")?;
            client.read_to_end(&mut sent)?;
        }
        HTTP => {
            let mut buffer = [0; 1024];
            while !sent.ends_with(b"\r\n\r\n") {
                let read = client.read(&mut buffer)?;
                ensure!(read > 0, "the request ends early");
                sent.extend_from_slice(&buffer[..read]);
            }
            client.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello")?;
        }
        TLS => {
            let mut client = StreamOwned::new(ServerConnection::new(Arc::clone(tls))?, client);
            let mut line = [0; 5];
            client.read_exact(&mut line)?;
            sent = [client.conn.server_name().unwrap_or_default().as_bytes(), b" ", &line].concat();
            client.write_all(b"hello")?;
            client.conn.send_close_notify();
            client.flush()?;
        }
        ECHO => {
            let mut buffer = [0; 4096];
            loop {
                let read = client.read(&mut buffer)?;
                if read == 0 {
                    break;
                }
                client.write_all(&buffer[..read])?;
                sent.extend_from_slice(&buffer[..read]);
            }
        }
        _ => sent = streams(&client, 2, 1)?.to_be_bytes().to_vec(),
    }
    Ok(sent)
}

/// The length of a stream, in bytes.
pub const STREAM_LENGTH: usize = 100 << 20;

/// Sends the stream of the seed `own` and half-closes, while reading the stream of the other side. Returns the hash of the latter.
pub fn streams(socket: &TcpStream, own: u64, other: u64) -> Result<u64> {
    thread::scope(|scope| {
        let sender = scope.spawn(move || -> io::Result<()> {
            let mut socket = socket;
            for block in blocks(own) {
                socket.write_all(&block)?;
            }
            socket.shutdown(Shutdown::Write)
        });
        let mut hasher = DefaultHasher::new();
        let (mut buffer, mut length) = (vec![0; 1 << 16], 0);
        let mut socket = socket;
        loop {
            let read = socket.read(&mut buffer)?;
            if read == 0 {
                break;
            }
            length += read;
            hasher.write(&buffer[..read]);
        }
        ensure!(length == STREAM_LENGTH, "received {length} bytes of the stream {other}");
        sender.join().expect("the sender panicked")?;
        Ok(hasher.finish())
    })
}

/// Returns the stream of a seed: blocks of 64 KiB with numbers that do not repeat.
fn blocks(seed: u64) -> impl Iterator<Item = Vec<u8>> {
    let mut state = seed;
    (0..STREAM_LENGTH >> 16).map(move |_| {
        let number = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            state.to_le_bytes()
        };
        std::iter::repeat_with(number).take(1 << 13).flatten().collect()
    })
}

/// Returns the hash of the stream of a seed.
pub fn hash_of(seed: u64) -> u64 {
    let mut hasher = DefaultHasher::new();
    blocks(seed).for_each(|block| hasher.write(&block));
    hasher.finish()
}

/// Returns the bytes that are received until the other side half-closes.
pub fn read_all(mut socket: TcpStream) -> io::Result<Vec<u8>> {
    let mut all = Vec::new();
    socket.read_to_end(&mut all)?;
    Ok(all)
}

/// Returns the bytes that are received until the connection is closed or reset.
pub fn read_until_closed(mut socket: TcpStream) -> Result<Vec<u8>> {
    let mut received = Vec::new();
    match socket.read_to_end(&mut received) {
        Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(received),
        read => Ok(read.map(|_| received)?),
    }
}
