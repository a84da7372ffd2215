//! The clients of the soak tests.

use crate::egress::{ANSWER, ANSWER_AFTER_HALF_CLOSE, REQUEST, hash};
use anyhow::Result;
use socket2::SockRef;
use std::{
    io::{self, ErrorKind, Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream},
    thread,
    time::Duration,
};
use testbed::connect;

/// The behaviour of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Sends a request, reads the answer and closes.
    Asks,
    /// Sends a request, half-closes, and then reads the answer.
    HalfCloses,
    /// Resets the connection as soon as it is open.
    ResetsAtOnce,
    /// Sends a request and resets the connection without waiting for the answer.
    ResetsAfterTheRequest,
    /// Sends nothing for a while and closes.
    Hangs,
}

/// How a connection ended for its client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The client received the complete and correct answer.
    Answered,
    /// The connection was closed before the first byte of the answer.
    Closed,
    /// The connection was closed in the middle of the answer.
    Cut,
    /// The client closed the connection first, or stopped waiting.
    Left,
}

/// A connection as its client saw it.
#[derive(Clone, Copy, Debug)]
pub struct Conversation {
    pub outcome: Outcome,
    pub answered_by: Option<u8>,
    pub length: u32,
    pub hash: u64,
}

/// A pseudo-random number generator (xorshift64*).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// Returns a number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        (self.next() >> 33) % end
    }

    /// Returns the payload of a request: mostly short, one in a hundred up to 16 KiB.
    pub fn payload(&mut self) -> Vec<u8> {
        let most = if self.below(100) == 0 { 16 << 10 } else { 512 };
        let length = self.below(most) as usize;
        let mut payload: Vec<u8> = (0..length / 8 + 1).flat_map(|_| self.next().to_le_bytes()).collect();
        payload.truncate(length);
        payload
    }
}

/// Returns the bytes of a request.
pub fn request(id: u64, flags: u32, payload: &[u8]) -> Vec<u8> {
    [&id.to_le_bytes()[..], &flags.to_le_bytes(), &(payload.len() as u32).to_le_bytes(), payload].concat()
}

/// Connects and behaves as this kind of client. Waits at most `patience` for an answer.
pub fn converse(
    id: u64,
    source: Ipv4Addr,
    to: SocketAddr,
    kind: Kind,
    payload: &[u8],
    patience: Duration,
) -> Result<Conversation> {
    let mut conversation =
        Conversation { outcome: Outcome::Left, answered_by: None, length: payload.len() as u32, hash: hash(payload) };
    let mut stream = match connect(source.into(), to) {
        Ok(stream) => stream,
        // Envoy accepted the connection and reset it before this thread went on.
        Err(error) if error.downcast_ref::<io::Error>().is_some_and(|io| io.kind() == ErrorKind::ConnectionReset) => {
            conversation.outcome = Outcome::Closed;
            return Ok(conversation);
        }
        Err(error) => return Err(error),
    };
    let flags = if kind == Kind::HalfCloses { ANSWER_AFTER_HALF_CLOSE } else { 0 };
    if matches!(kind, Kind::ResetsAtOnce | Kind::ResetsAfterTheRequest) {
        SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    }
    match kind {
        Kind::ResetsAtOnce => return Ok(conversation),
        Kind::Hangs => {
            thread::sleep(Duration::from_millis(300));
            return Ok(conversation);
        }
        _ => {}
    }
    if stream.write_all(&request(id, flags, payload)).is_err() {
        conversation.outcome = Outcome::Closed;
        return Ok(conversation);
    }
    if kind == Kind::ResetsAfterTheRequest {
        return Ok(conversation);
    }
    if kind == Kind::HalfCloses {
        _ = stream.shutdown(Shutdown::Write); // fails if Envoy has closed the connection, which the read reports
    }
    stream.set_read_timeout(Some(patience))?;
    (conversation.outcome, conversation.answered_by) = answer(&mut stream, payload);
    Ok(conversation)
}

/// Reads the answer to this payload. Returns the outcome and the egress that answered.
pub fn answer(stream: &mut TcpStream, payload: &[u8]) -> (Outcome, Option<u8>) {
    let mut bytes = vec![0; ANSWER + payload.len()];
    let mut length = 0;
    while length < bytes.len() {
        match stream.read(&mut bytes[length..]) {
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                return (Outcome::Left, bytes.first().copied().filter(|_| length > 0));
            }
            Ok(0) | Err(_) => {
                let by = bytes.first().copied().filter(|_| length > 0);
                return (if length == 0 { Outcome::Closed } else { Outcome::Cut }, by);
            }
            Ok(read) => length += read,
        }
    }
    let expected = [&hash(payload).to_le_bytes(), payload].concat();
    assert!(bytes[1..] == expected, "the answer is not the payload that was sent");
    (Outcome::Answered, Some(bytes[0]))
}

const _: () = assert!(REQUEST == size_of::<u64>() + 2 * size_of::<u32>());
