//! An Envoy with little memory, and one with as many connections as its descriptors permit, up to 10,000.

use crate::{
    client::{Conversation, Kind, Outcome},
    egress::{FLOOD, UNRECORDED},
    ledger::{Entry, check, compare},
    load::Load,
    proxy::{LISTENER, Subject, await_value, descriptors, egresses, in_a_network, resident},
    restart::Held,
    soak::connections,
    tables::CLUSTERS,
};
use anyhow::{Context, Result, ensure};
use std::{
    fs,
    io::Write,
    net::{Ipv4Addr, TcpStream},
    sync::atomic::Ordering::SeqCst,
    thread,
    time::Duration,
};
use testbed::{Envoy, Host, Module, connect, envoy, for_each_module};

for_each_module!(no_connection_is_misrouted_without_enough_memory);

/// The number of connections that fill Envoy's memory.
const FLOODS: u64 = 100;

/// The growth of the heap at which Envoy stops accepting connections, in bytes.
const ALLOWED: u64 = 40 << 20;

fn overload_manager(limit: u64) -> String {
    format!(
        "overload_manager:
  refresh_interval: 0.1s
  resource_monitors:
    - name: envoy.resource_monitors.fixed_heap
      typed_config:
        \"@type\": type.googleapis.com/envoy.extensions.resource_monitors.fixed_heap.v3.FixedHeapConfig
        max_heap_size_bytes: {limit}
  actions:
    - name: envoy.overload_actions.shrink_heap
      triggers: [{{ name: envoy.resource_monitors.fixed_heap, threshold: {{ value: 0.5 }} }}]
    - name: envoy.overload_actions.stop_accepting_connections
      triggers: [{{ name: envoy.resource_monitors.fixed_heap, threshold: {{ value: 1.0 }} }}]

static_resources:\n"
    )
}

/// Returns a number from the answer of `/memory`.
fn memory(envoy: &Envoy, name: &str) -> Result<u64> {
    let text = envoy.get("/memory")?;
    let line = text.lines().find(|line| line.contains(name)).with_context(|| format!("no {name}: {text}"))?;
    Ok(line.chars().filter(char::is_ascii_digit).collect::<String>().parse()?)
}

/// Sends to an egress that does not read, until Envoy accepts no more bytes.
fn flood(last: u8) -> Result<TcpStream> {
    let mut stream = connect(Ipv4Addr::new(127, 3, 200, last).into(), LISTENER)?;
    let header = [&UNRECORDED.to_le_bytes()[..], &0u32.to_le_bytes(), &FLOOD.to_le_bytes()].concat();
    stream.write_all(&header)?;
    stream.set_write_timeout(Some(Duration::from_secs(1)))?;
    while stream.write_all(&[0; 64 << 10]).is_ok() {}
    Ok(stream)
}

fn no_connection_is_misrouted_without_enough_memory(module: Module) -> Result<()> {
    in_a_network(|host| starve_of_memory(host, module.into()))
}

/// Connections that arrive while Envoy accepts none have to wait, and are then routed as usual.
fn starve_of_memory(host: &Host, subject: Subject) -> Result<()> {
    const CONNECTIONS: u64 = 2_000;
    const STOPPED: &str = "overload.envoy.overload_actions.stop_accepting_connections.active";
    // Small buffers in the kernel, so that Envoy has to buffer the data.
    for file in ["tcp_rmem", "tcp_wmem"] {
        fs::write(format!("/proc/sys/net/ipv4/{file}"), "4096 65536 131072")?;
    }
    let egresses = egresses()?;
    let program = envoy::program()?;
    let config = subject.config()?.with("CONFIGURATION", &subject.table(0))?;
    let usual = Envoy::start_in(host, &program, &config, &[])?;
    let limit = memory(&usual, "\"heap_size\"")? - memory(&usual, "\"pageheap_unmapped\"")? + ALLOWED;
    drop(usual);
    let envoy = Envoy::start_in(host, &program, &config.with("static_resources:\n", &overload_manager(limit))?, &[])?;
    let load = Load::new(subject);
    load.limit.store(CONNECTIONS / 2, SeqCst);
    let entries = thread::scope(|scope| {
        let clients = scope.spawn(|| load.run(CONNECTIONS));
        let pressure = || -> Result<()> {
            let floods: Vec<_> = (1..=FLOODS).map(|last| scope.spawn(move || flood(last as u8))).collect();
            let floods = floods.into_iter().map(|flood| flood.join().expect("a flood panicked"));
            let floods = floods.collect::<Result<Vec<_>>>()?;
            await_value(&envoy, STOPPED, 1).with_context(|| envoy.get("/memory").unwrap_or_default())?;
            load.limit.store(CONNECTIONS, SeqCst); // lets the other half of the connections begin
            await_value(&envoy, STOPPED, 0)?; // once the egress has reset the floods
            drop(floods);
            Ok(())
        };
        let pressed = pressure().inspect_err(|_| load.failed.store(true, SeqCst));
        let entries = clients.join().expect("the clients panicked");
        Ok::<_, anyhow::Error>((entries?, pressed?).0)
    })?;
    await_value(&envoy, "listener.127.0.0.1_10000.downstream_cx_active", 0)?;
    let seen = egresses.stop()?;
    // The ledger lists the floods as clients that left. Their ids are above all others.
    let floods = (1..=FLOODS).map(|last| Entry {
        id: CONNECTIONS + last,
        opened: 0,
        source: Ipv4Addr::new(127, 3, 200, last as u8),
        kind: Kind::Hangs,
        window: (0, 0),
        conversation: Conversation { outcome: Outcome::Left, answered_by: None, length: 0, hash: 0 },
    });
    let entries: Vec<Entry> = entries.into_iter().chain(floods).collect();
    let sums = check(&entries, &[0], &seen, subject)?;
    let counters = compare(&entries, &sums, &seen, &[0; CLUSTERS], subject, &envoy)?;
    println!("{subject:?}: {} connections, {} answered; {counters}", entries.len(), sums.answered);
    Ok(())
}

/// Returns the number of files that a process may open.
fn descriptor_limit() -> Result<u64> {
    let limits = fs::read_to_string("/proc/self/limits")?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files")).context("no limit")?;
    Ok(line.split_whitespace().next().context("no number")?.parse()?)
}

#[test]
fn held_connections_are_all_answered_at_the_end() -> Result<()> {
    let is_short = connections()? < 100_000;
    let (most, time) = if is_short { (500, 2) } else { (10_000, 60) };
    // Envoy and this process each use two descriptors per connection.
    let number = ((descriptor_limit()? - 400) / 2).min(most);
    for subject in Subject::ALL {
        let text = in_a_network(|host| hold(host, subject, number, Duration::from_secs(time)))?;
        println!("{subject:?}: {number} connections held for {time} s: {text}");
    }
    Ok(())
}

fn hold(host: &Host, subject: Subject, number: u64, time: Duration) -> Result<String> {
    let egresses = egresses()?;
    let table = if subject == Subject::Plain { "[{name: a-fast0, weight: 1}]" } else { &subject.table(0) };
    let config = subject.config()?.with("CONFIGURATION", table)?;
    let envoy = Envoy::start_in(host, &envoy::program()?, &config, &["--concurrency", "4"])?;
    let before = (resident(envoy.id())?, descriptors(envoy.id())?.len());
    let mut held =
        Held::open((0..number).map(|index| Ipv4Addr::new(127, 1, (index / 250) as u8, (index % 250) as u8 + 1)))?;
    thread::sleep(time);
    let answered = held.ask() as u64;
    ensure!(answered == number, "only {answered} of {number} connections are answered at the end");
    let during = (resident(envoy.id())?, descriptors(envoy.id())?.len());
    drop(held);
    await_value(&envoy, "listener.127.0.0.1_10000.downstream_cx_active", 0)?;
    let accepted: u64 = egresses.stop()?.accepted.iter().sum();
    ensure!(accepted == number, "the egresses accepted {accepted} connections, expected {number}");
    let kib = during.0 - before.0;
    Ok(format!(
        "{} KiB more, {:.1} KiB a connection; {} descriptors, {} before",
        kib,
        kib as f64 / number as f64,
        during.1,
        before.1
    ))
}
