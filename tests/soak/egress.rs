//! The egresses: one thread that serves all of them, and a ledger of the requests that they received.
//!
//! ```text
//! request  id (8 bytes)  flags (4 bytes)  length (4 bytes)  payload
//! answer   egress (1 byte)  hash of the payload (8 bytes)  payload
//! ```

use anyhow::{Context, Result};
use mio::{
    Events, Interest, Poll, Token,
    net::{TcpListener, TcpStream},
};
use socket2::SockRef;
use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hasher},
    io::{self, ErrorKind, Read, Write},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// The id of a request that the ledger does not record.
pub const UNRECORDED: u64 = u64::MAX;

/// A flag of a request: the egress answers only after the client has half-closed.
pub const ANSWER_AFTER_HALF_CLOSE: u32 = 1;

/// A length that makes the egress stop reading. It resets the connection after [`FLOOD_DURATION`].
pub const FLOOD: u32 = u32::MAX;
const FLOOD_DURATION: Duration = Duration::from_secs(8);

/// The lengths of a request and of an answer without the payload.
pub const REQUEST: usize = 16;
pub const ANSWER: usize = 9;

/// How long a restarting egress stays up, and down.
const UP: Duration = Duration::from_millis(400);
const DOWN: Duration = Duration::from_millis(100);

/// How an egress treats requests.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Behaviour {
    Answers,
    Restarts,
    IsSilent,
    Resets,
}

/// A request that an egress received.
#[derive(Clone, Copy)]
pub struct Received {
    pub id: u64,
    pub egress: u8,
    pub length: u32,
    pub hash: u64,
}

/// The requests and connections that all egresses received.
#[derive(Default)]
pub struct Seen {
    pub received: Vec<Received>,
    /// The number of connections of each egress.
    pub accepted: Vec<u64>,
}

/// The running egresses.
pub struct Egresses {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<Seen>>,
}

struct Egress {
    address: SocketAddr,
    behaviour: Behaviour,
    listener: Option<TcpListener>,
    next_change: Instant,
}

struct Client {
    stream: TcpStream,
    egress: usize,
    read: Vec<u8>,
}

impl Egresses {
    /// Listens on these addresses.
    pub fn start(egresses: Vec<(SocketAddr, Behaviour)>) -> Result<Self> {
        let mut poll = Poll::new()?;
        let now = Instant::now();
        let egresses = egresses.into_iter().enumerate().map(|(index, (address, behaviour))| {
            let listener = listen(&mut poll, index, address)?;
            Ok(Egress { address, behaviour, listener: Some(listener), next_change: now + UP })
        });
        let egresses = egresses.collect::<Result<Vec<_>>>()?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || serve(&mut poll, egresses, &stopped));
        Ok(Self { stop, thread })
    }

    /// Stops the egresses and returns what they received.
    pub fn stop(self) -> Result<Seen> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the egresses panicked")
    }
}

/// Returns the hash of a payload.
pub fn hash(payload: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(payload);
    hasher.finish()
}

fn listen(poll: &mut Poll, index: usize, address: SocketAddr) -> Result<TcpListener> {
    let mut listener = TcpListener::bind(address).with_context(|| format!("cannot listen on {address}"))?;
    SockRef::from(&listener).listen(4_096)?;
    SockRef::from(&listener).set_send_buffer_size(256 << 10)?; // large enough for an answer, so that no write has to wait
    poll.registry().register(&mut listener, Token(index), Interest::READABLE)?;
    Ok(listener)
}

fn serve(poll: &mut Poll, mut egresses: Vec<Egress>, stop: &AtomicBool) -> Result<Seen> {
    let mut events = Events::with_capacity(1_024);
    let mut clients: HashMap<Token, Client> = HashMap::new();
    let mut floods: Vec<(Instant, Token)> = Vec::new();
    let mut next = egresses.len();
    let mut seen = Seen { accepted: vec![0; egresses.len()], ..Seen::default() };
    while !stop.load(Ordering::Relaxed) {
        match poll.poll(&mut events, Some(Duration::from_millis(20))) {
            Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error.into()),
            _ => {}
        }
        for event in &events {
            let token = event.token();
            let Some(egress) = egresses.get(token.0) else {
                if let Some(client) = clients.get_mut(&token) {
                    let behaviour = egresses[client.egress].behaviour;
                    if !read(client, behaviour, &mut seen.received).unwrap_or(false) {
                        clients.remove(&token);
                    } else if client.is_flood() && floods.iter().all(|(_, flood)| *flood != token) {
                        floods.push((Instant::now() + FLOOD_DURATION, token));
                    }
                }
                continue;
            };
            let Some(listener) = &egress.listener else { continue };
            while let Ok((mut stream, _)) = listener.accept() {
                seen.accepted[token.0] += 1;
                next += 1;
                poll.registry().register(&mut stream, Token(next), Interest::READABLE)?;
                clients.insert(Token(next), Client { stream, egress: token.0, read: Vec::new() });
            }
        }
        floods.retain(|(ends, token)| {
            let lasts = Instant::now() < *ends;
            if !lasts && let Some(client) = clients.remove(token) {
                reset(&client.stream);
            }
            lasts
        });
        for (index, egress) in egresses.iter_mut().enumerate() {
            if egress.behaviour != Behaviour::Restarts || Instant::now() < egress.next_change {
                continue;
            }
            if egress.listener.take().is_some() {
                clients.retain(|_, client| client.egress != index || reset(&client.stream));
                egress.next_change = Instant::now() + DOWN;
            } else {
                match listen(poll, index, egress.address) {
                    Ok(listener) => (egress.listener, egress.next_change) = (Some(listener), Instant::now() + UP),
                    // A process that was just forked holds a copy of the old listener. The next round tries again.
                    Err(error) if error.root_cause().to_string().contains("in use") => {}
                    Err(error) => return Err(error),
                }
            }
        }
    }
    Ok(seen)
}

impl Client {
    fn is_flood(&self) -> bool {
        header(&self.read).is_some_and(|(_, _, length)| length == FLOOD)
    }
}

/// Makes the kernel reset the connection when it is closed. Returns false, so that the caller drops the connection.
fn reset(stream: &TcpStream) -> bool {
    // This fails if the connection has ended already, and then it needs no reset.
    _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
    false
}

/// Reads the available bytes and answers complete requests. Returns whether the connection stays open.
fn read(client: &mut Client, behaviour: Behaviour, received: &mut Vec<Received>) -> io::Result<bool> {
    if client.is_flood() {
        return Ok(true); // reads no more, so that the proxy has to buffer the rest
    }
    let mut buffer = [0; 16 << 10];
    let ended = loop {
        match client.stream.read(&mut buffer) {
            Ok(0) => break true,
            Ok(length) => {
                client.read.extend_from_slice(&buffer[..length]);
                if client.is_flood() {
                    return Ok(true);
                }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => break false,
            Err(error) => return Err(error),
        }
    };
    while let Some((id, flags, length)) = header(&client.read) {
        let Some(payload) = client.read.get(REQUEST..REQUEST + length as usize) else { break };
        if flags & ANSWER_AFTER_HALF_CLOSE != 0 && !ended {
            break;
        }
        let hash = hash(payload);
        if id != UNRECORDED {
            received.push(Received { id, egress: client.egress as u8, length, hash });
        }
        match behaviour {
            Behaviour::Answers | Behaviour::Restarts => {
                let answer = [&[client.egress as u8][..], &hash.to_le_bytes(), payload].concat();
                client.stream.write_all(&answer)?;
            }
            Behaviour::IsSilent => {}
            Behaviour::Resets => return Ok(reset(&client.stream)),
        }
        client.read.drain(..REQUEST + length as usize);
    }
    Ok(!ended)
}

fn header(bytes: &[u8]) -> Option<(u64, u32, u32)> {
    let (id, rest) = bytes.split_first_chunk()?;
    let (flags, rest) = rest.split_first_chunk()?;
    let (length, _) = rest.split_first_chunk()?;
    Some((u64::from_le_bytes(*id), u32::from_le_bytes(*flags), u32::from_le_bytes(*length)))
}
