//! Clients that connect until all connections of a run are made.

use crate::{
    client::{Kind, Random, converse},
    ledger::Entry,
    proxy::{LISTENER, Subject},
    tables::{CLUSTERS, SILENT, Verdict, verdict},
};
use anyhow::{Context, Result};
use std::{
    net::Ipv4Addr,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::SeqCst},
    },
    thread,
    time::{Duration, Instant},
};

/// The number of concurrent clients.
pub const THREADS: usize = 32;

const IDLE: u32 = u32::MAX;

/// The state that the clients share with the replacement of tables.
pub struct Load {
    started: Instant,
    subject: Subject,
    /// The number of connections that have begun, and the number that may begin.
    pub begun: AtomicU64,
    pub limit: AtomicU64,
    /// The generation that all workers use, and the last one that was sent.
    pub confirmed: AtomicU32,
    pub sent: AtomicU32,
    /// The final values of the counters that Envoy has removed, summed by cluster.
    pub removed: Mutex<Vec<u64>>,
    /// The time at which each generation was sent, in milliseconds after the start.
    pub sent_at: Mutex<Vec<u32>>,
    /// The generation at which each client began its connection.
    slots: Vec<AtomicU32>,
    pub failed: AtomicBool,
    finished: AtomicBool,
}

impl Load {
    pub fn new(subject: Subject) -> Self {
        Self {
            started: Instant::now(),
            subject,
            begun: AtomicU64::new(0),
            limit: AtomicU64::new(0),
            confirmed: AtomicU32::new(0),
            sent: AtomicU32::new(0),
            removed: Mutex::new(vec![0; CLUSTERS]),
            sent_at: Mutex::new(vec![0]),
            slots: (0..THREADS).map(|_| AtomicU32::new(IDLE)).collect(),
            failed: AtomicBool::new(false),
            finished: AtomicBool::new(false),
        }
    }

    /// Returns the time since the start, in milliseconds.
    fn now(&self) -> u32 {
        self.started.elapsed().as_millis() as u32
    }

    /// Records that the next generation is sent now, and returns it.
    pub fn send(&self) -> u32 {
        self.sent_at.lock().expect("a client panicked").push(self.now());
        self.sent.fetch_add(1, SeqCst) + 1
    }

    /// Prevents further connections from beginning.
    pub fn finish(&self) {
        self.finished.store(true, SeqCst);
    }

    /// Waits until all connections that began before this generation was in force have ended.
    pub fn await_connections_before(&self, generation: u32) {
        while self.slots.iter().any(|slot| slot.load(SeqCst) < generation) && !self.failed.load(SeqCst) {
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Connects with [`THREADS`] clients until this number of connections is made.
    pub fn run(&self, connections: u64) -> Result<Vec<Entry>> {
        let entries = thread::scope(|scope| {
            let clients: Vec<_> =
                (0..THREADS).map(|thread| scope.spawn(move || self.client(thread, connections))).collect();
            let entries = clients.into_iter().map(|client| client.join().expect("a client panicked"));
            entries.collect::<Result<Vec<_>>>()
        })?;
        Ok(entries.concat())
    }

    fn client(&self, thread: usize, connections: u64) -> Result<Vec<Entry>> {
        let mut random = Random(0x5_1u64 + thread as u64 * 0x9E37_79B9);
        let mut entries = Vec::new();
        while !self.failed.load(SeqCst) && !self.finished.load(SeqCst) {
            let id = self.begun.fetch_add(1, SeqCst);
            if id >= connections {
                break;
            }
            while id >= self.limit.load(SeqCst) && !self.failed.load(SeqCst) {
                thread::sleep(Duration::from_millis(2));
            }
            let entry = self.connection(id, thread, &mut random).inspect_err(|_| self.failed.store(true, SeqCst))?;
            entries.push(entry);
        }
        Ok(entries)
    }

    fn connection(&self, id: u64, thread: usize, random: &mut Random) -> Result<Entry> {
        let second = match random.below(1_000) {
            0..4 => 3,
            4..7 => 5,
            7..12 => 4,
            12..20 => 2,
            20..40 => 6,
            40..60 => 7,
            60..70 => 8,
            _ => 1,
        };
        let source = Ipv4Addr::new(127, second, thread as u8, 1 + random.below(254) as u8);
        let kind = match (verdict(source), random.below(1_000)) {
            (Verdict::Denied, _) => Kind::Asks,
            (_, 0..2) => Kind::Hangs,
            (_, 2..42) => Kind::ResetsAtOnce,
            (_, 42..82) => Kind::ResetsAfterTheRequest,
            (_, 82..182) => Kind::HalfCloses,
            _ => Kind::Asks,
        };
        let patience = match (self.subject, verdict(source)) {
            (Subject::Plain, _) => Duration::from_secs(1), // any source may reach the silent egress here
            (_, Verdict::Role(SILENT)) => Duration::from_millis(100),
            _ => Duration::from_secs(30),
        };
        let payload = random.payload();
        let opened = self.now();
        let slot = &self.slots[thread];
        slot.store(0, SeqCst); // holds back the next table until the current generation is read
        let first = self.confirmed.load(SeqCst);
        slot.store(first, SeqCst);
        let conversation = converse(id, source, LISTENER, kind, &payload, patience);
        let last = self.sent.load(SeqCst);
        slot.store(IDLE, SeqCst);
        let conversation = conversation.with_context(|| format!("connection {id} from {source}"))?;
        Ok(Entry { id, opened, source, kind, window: (first, last), conversation })
    }
}
