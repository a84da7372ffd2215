//! Envoy's hot restart and draining, under load.

use crate::{
    client::{Outcome, Random, answer, request},
    egress::UNRECORDED,
    ledger::check,
    load::Load,
    proxy::{LISTENER, Subject, at_once, egresses, in_a_network},
};
use anyhow::{Result, ensure};
use std::{
    fs,
    io::Write,
    net::{Ipv4Addr, TcpStream},
    process,
    sync::atomic::Ordering::SeqCst,
    thread,
    time::{Duration, Instant},
};
use testbed::{Config, Envoy, Host, connect, envoy};

/// The number of connections that stay open throughout.
const HELD: u8 = 50;

/// The time after a hot restart at which the old Envoy ends.
const PARENT_LIVES: Duration = Duration::from_secs(6);

/// Open connections, each of which has been answered once.
pub struct Held(Vec<TcpStream>);

impl Held {
    /// Opens connections from these sources.
    pub fn open(sources: impl Iterator<Item = Ipv4Addr>) -> Result<Self> {
        let streams = sources.map(|source| connect(source.into(), LISTENER));
        let mut held = Self(streams.collect::<Result<_>>()?);
        ensure!(held.ask() == held.0.len(), "not all new connections are answered");
        Ok(held)
    }

    /// Sends a request on each connection and returns the number of answers.
    pub fn ask(&mut self) -> usize {
        let payload = Random(7).payload();
        let request = request(UNRECORDED, 0, &payload);
        let ask = |stream: &mut TcpStream| {
            stream.write_all(&request).is_ok() && answer(stream, &payload).0 == Outcome::Answered
        };
        self.0.iter_mut().map(ask).filter(|answered| *answered).count()
    }
}

fn held() -> Result<Held> {
    Held::open((1..=HELD).map(|last| Ipv4Addr::new(127, 1, 200, last)))
}

/// The effect of a restart on connections.
#[derive(Debug, PartialEq, Eq)]
struct Kept {
    /// The number of connections that were held open and kept.
    held: usize,
    /// Whether every connection that arrived meanwhile had an outcome that the behaviour of its egress explains.
    right: bool,
}

/// Returns a configuration that routes the held connections to egresses that answer.
fn config(subject: Subject) -> Result<Config> {
    let answering = "[{name: a-fast0, weight: 1}, {name: a-fast1, weight: 1}, {name: a-fast2, weight: 1}]";
    let table = if subject == Subject::Plain { answering.to_owned() } else { subject.table(0) };
    subject.config()?.with("CONFIGURATION", &table)
}

/// Runs clients during `work`, and checks each of their connections.
fn under_load(subject: Subject, work: impl FnOnce() -> Result<(usize, Envoy)>) -> Result<Kept> {
    let egresses = egresses()?;
    let load = Load::new(subject);
    load.limit.store(u64::MAX, SeqCst);
    let (entries, held) = thread::scope(|scope| {
        let clients = scope.spawn(|| load.run(u64::MAX));
        let done = work();
        load.finish();
        let entries = clients.join().expect("the clients panicked");
        Ok::<_, anyhow::Error>((entries?, done?.0))
    })?;
    let checked = check(&entries, &[0], &egresses.stop()?, subject);
    println!("{subject:?}: {} connections, {held} of {HELD} held", entries.len());
    Ok(Kept { held, right: checked.inspect_err(|error| println!("{subject:?}: {error:#}")).is_ok() })
}

#[test]
fn a_hot_restart_loses_no_connection() -> Result<()> {
    at_once(|subject| {
        let kept = in_a_network(|host| hot_restart(host, subject))?;
        ensure!(kept == Kept { held: HELD.into(), right: true }, "{kept:?}");
        Ok(())
    })
}

fn hot_restart(host: &Host, subject: Subject) -> Result<Kept> {
    let base = (process::id() * 4 + subject as u32).to_string();
    let (program, config) = (envoy::program()?, config(subject)?);
    let start = |epoch| {
        let lives = PARENT_LIVES.as_secs().to_string();
        let arguments = ["--base-id", &base, "--restart-epoch", epoch, "--concurrency", "2", "--drain-time-s", "2"];
        Envoy::start_in(host, &program, &config, &[&arguments[..], &["--parent-shutdown-time-s", &lives]].concat())
    };
    let old = start("0")?;
    let kept = under_load(subject, || {
        let mut held = held()?;
        thread::sleep(Duration::from_secs(1));
        let new = start("1")?;
        let restarted = Instant::now();
        let mut kept = usize::MAX;
        while restarted.elapsed() < PARENT_LIVES - Duration::from_secs(2) {
            kept = kept.min(held.ask());
            thread::sleep(Duration::from_millis(100));
        }
        let started = Instant::now();
        while fs::read_link(format!("/proc/{}/exe", old.id())).is_ok() {
            ensure!(started.elapsed() < testbed::DEADLINE, "the old Envoy did not end");
            thread::sleep(Duration::from_millis(100));
        }
        thread::sleep(Duration::from_secs(1)); // the new Envoy alone serves the clients
        ensure!(new.stat("server.hot_restart_epoch")? == 1, "{}", new.end_of_log());
        Ok((kept, new))
    });
    _ = fs::remove_file(format!("/dev/shm/envoy_shared_memory_{base}0")); // Envoy does not remove it
    kept
}

#[test]
fn draining_keeps_established_connections() -> Result<()> {
    at_once(|subject| {
        let kept = in_a_network(|host| drain(host, subject))?;
        ensure!(kept == usize::from(HELD), "{kept} of {HELD} are kept");
        Ok(())
    })
}

/// Drains the listeners until they refuse new connections. Returns the number of established connections that are still answered.
fn drain(host: &Host, subject: Subject) -> Result<usize> {
    let egresses = egresses()?;
    let arguments = ["--drain-time-s", "2"];
    let envoy = Envoy::start_in(host, &envoy::program()?, &config(subject)?, &arguments)?;
    let mut held = held()?;
    let mut kept = held.ask();
    envoy.post("/drain_listeners?graceful")?;
    let started = Instant::now();
    while TcpStream::connect(LISTENER).is_ok() {
        kept = kept.min(held.ask());
        ensure!(started.elapsed() < testbed::DEADLINE, "new connections are still accepted");
        thread::sleep(Duration::from_millis(100));
    }
    thread::sleep(Duration::from_secs(1));
    kept = kept.min(held.ask());
    egresses.stop()?;
    Ok(kept)
}
