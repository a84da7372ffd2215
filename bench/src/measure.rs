//! One sample of each figure, from a running Envoy.

use crate::{echo::LARGE, variant::Variant};
use anyhow::{Context, Result, ensure};
use nix::{time::clock_getcpuclockid, unistd::Pid};
use socket2::SockRef;
use std::{
    fs,
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    path::Path,
    thread,
    time::{Duration, Instant},
};
use testbed::{Envoy, connect};

/// A running Envoy that has loaded a variant's filter and is idle.
pub struct Running {
    envoy: Envoy,
    address: SocketAddr,
    splits: Option<bool>,
}

/// The measurements of several connections.
pub struct Connections {
    /// Envoy's CPU time for one connection, in µs.
    pub cpu: f64,
    /// The times from connecting to the backend's first byte in µs, ascending.
    pub latencies: Vec<f64>,
}

/// The time for which Envoy must use almost no CPU to count as idle.
const IDLE: Duration = Duration::from_millis(60);

impl Running {
    /// Starts an Envoy with this number of workers and waits until it is idle.
    pub fn start(program: &Path, variant: &Variant, backends: [SocketAddr; 2], workers: u32) -> Result<Self> {
        let config = variant.config()?.with_backend(9001, backends[0])?.with_backend(9002, backends[1])?;
        let envoy = Envoy::start_with(program, &config, &["--concurrency", &workers.to_string()])
            .with_context(|| variant.name.clone())?;
        let address = envoy.listener("sluice", &Ipv4Addr::LOCALHOST.into())?;
        let running = Self { envoy, address, splits: variant.splits };
        running.wait_until_idle()?;
        Ok(running)
    }

    fn wait_until_idle(&self) -> Result<()> {
        let started = Instant::now();
        let mut before = self.cpu()?;
        loop {
            thread::sleep(IDLE);
            let now = self.cpu()?;
            if now - before < IDLE / 60 {
                return Ok(());
            }
            ensure!(started.elapsed() < testbed::DEADLINE, "Envoy does not become idle");
            before = now;
        }
    }

    /// The CPU time of all of Envoy's threads since the start, from the scheduler's clock.
    pub fn cpu(&self) -> Result<Duration> {
        let clock = clock_getcpuclockid(Pid::from_raw(self.envoy.id().cast_signed()))?;
        Ok(clock.now()?.into())
    }

    /// The resident memory in MiB.
    pub fn resident(&self) -> Result<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.envoy.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
        Ok(kib / 1_024.0)
    }

    /// Opens connections one after the other.
    pub fn connections(&self, count: usize) -> Result<Connections> {
        let before = self.cpu()?;
        let latencies: Result<Vec<f64>> = (0..count).map(|index| self.greeted(index)).collect();
        thread::sleep(Duration::from_millis(5)); // lets Envoy close the last one
        let cpu = micros(self.cpu()? - before) / count as f64;
        let mut latencies = latencies?;
        latencies.sort_by(f64::total_cmp);
        Ok(Connections { cpu, latencies })
    }

    /// Opens connections from several threads for this time. Returns the connections per second.
    pub fn saturated(&self, clients: usize, lasting: Duration) -> Result<f64> {
        let started = Instant::now();
        let client = |start: usize| -> Result<usize> {
            let mut count = 0;
            while started.elapsed() < lasting {
                self.greeted(start + count)?;
                count += 1;
            }
            Ok(count)
        };
        let counts: Result<Vec<usize>> = thread::scope(|scope| {
            let threads: Vec<_> = (0..clients).map(|index| scope.spawn(move || client(index * 64))).collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap_or_else(|_| anyhow::bail!("a client panicked")))
                .collect()
        });
        Ok(counts?.iter().sum::<usize>() as f64 / started.elapsed().as_secs_f64())
    }

    /// Sends messages of this size on one connection, each after the echo of the previous one. Returns Envoy's CPU time
    /// for one of them in µs.
    pub fn echo(&self, size: usize, count: usize) -> Result<f64> {
        let mut client = connect(source(0), self.address)?;
        let (message, mut answer) = ([7; LARGE], [0; LARGE]);
        client.read_exact(&mut answer[..1])?;
        let before = self.cpu()?;
        for _ in 0..count {
            client.write_all(&message[..size])?;
            client.read_exact(&mut answer[..size])?;
        }
        Ok(micros(self.cpu()? - before) / count as f64)
    }

    /// Connects, waits for the first byte and closes. Returns the time until that byte in µs.
    fn greeted(&self, index: usize) -> Result<f64> {
        let started = Instant::now();
        let mut client = connect(source(index), self.address)?;
        let greeting = first_byte(&mut client)?;
        let took = micros(started.elapsed());
        if let Some(splits) = self.splits {
            let expected = if splits && index % 2 == 1 { b'2' } else { b'1' };
            ensure!(
                greeting == expected,
                "connection {index} was not routed as configured: {}",
                self.envoy.end_of_log()
            );
        }
        SockRef::from(&client).set_linger(Some(Duration::ZERO))?;
        Ok(took)
    }
}

fn first_byte(client: &mut TcpStream) -> Result<u8> {
    let mut byte = [0];
    client.read_exact(&mut byte)?;
    Ok(byte[0])
}

/// Source addresses with even and odd last octets in turn.
fn source(index: usize) -> IpAddr {
    Ipv4Addr::new(127, 0, 0, 2 + (index % 128) as u8).into()
}

fn micros(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}
