//! Many connections, while Envoy receives valid, invalid and hostile tables in turn.

use crate::{
    ledger::{Sums, check, compare},
    load::Load,
    proxy::{Subject, at_once, await_descriptors, await_value, descriptors, egresses, in_a_network, resident},
    tables::{ROLES, cluster, hostile, invalid, name, zero_weight},
};
use anyhow::{Context, Result, ensure};
use std::{
    env,
    sync::{Mutex, atomic::Ordering::SeqCst},
    thread,
    time::{Duration, Instant},
};
use testbed::{Host, Watching, envoy, envoy::value};

/// How much more an Envoy with a module may grow than a plain one, in KiB.
const TOLERANCE: i64 = 2_048;

/// Growth is measured after this number of connections, or after a tenth of the run if it has fewer than twice this number.
const WARM_UP: u64 = 100_000;

/// Returns the number of connections to make with each subject: the environment variable CONNECTIONS, or one million.
pub fn connections() -> Result<u64> {
    match env::var("CONNECTIONS") {
        Ok(number) => number.parse().with_context(|| format!("CONNECTIONS: {number:?}, expected a number")),
        Err(_) => Ok(1_000_000),
    }
}

/// Returns the number of replacements in a run: one per thousand connections, from 3 to 200.
fn replacements(connections: u64) -> u32 {
    (connections / 1_000).clamp(3, 200) as u32
}

/// The result of a run.
pub struct RunResult {
    /// The growth of Envoy's resident memory after the warm-up.
    kib: i64,
    /// A summary of the ledger and the counters.
    pub text: String,
}

#[test]
fn every_connection_reaches_the_cluster_of_a_table_in_force_around_its_arrival() -> Result<()> {
    let connections = connections()?;
    let growth = Mutex::new(Vec::new());
    at_once(|subject| {
        let started = Instant::now();
        let result = in_a_network(|host| run(host, subject, connections, 2, |_| Ok(())))?;
        let took = started.elapsed().as_secs_f64();
        println!("{subject:?}: {connections} connections in {took:.0} s: {}", result.text);
        growth.lock().expect("a run panicked").push((subject, result.kib));
        Ok(())
    })?;
    let growth = growth.into_inner().expect("a run panicked");
    let plain = growth.iter().find(|(subject, _)| *subject == Subject::Plain).context("no run of tcp_proxy alone")?.1;
    // In a short run, the buffers of the first connections dominate the difference.
    if connections >= 2 * WARM_UP {
        for (subject, kib) in growth {
            ensure!(kib <= plain.max(0) + TOLERANCE, "{subject:?} grew by {kib} KiB, tcp_proxy alone by {plain} KiB");
        }
    }
    Ok(())
}

/// Makes connections while replacing the table, and checks all connections and counters. The disturbance lasts until the result
/// of `disturb` is dropped.
pub fn run<T>(
    host: &Host,
    subject: Subject,
    connections: u64,
    drain_seconds: u32,
    disturb: impl FnOnce(&Watching) -> Result<T>,
) -> Result<RunResult> {
    let egresses = egresses()?;
    let drain = drain_seconds.to_string();
    let arguments = ["--concurrency", "4", "--drain-time-s", &drain];
    let config = subject.config()?;
    let envoy = Watching::start(Some(host), &envoy::program()?, &config, &subject.table(0), &arguments)?;
    let load = Load::new(subject);
    // After the first replacement, Envoy holds two sets of listening sockets: those in use and those of the newest listener.
    replace_with_next_generation(&load, &envoy, subject)?;
    let descriptors_before = descriptors(envoy.id())?;
    let disturbance = disturb(&envoy)?;
    let (entries, replaced) = thread::scope(|scope| {
        let clients = scope.spawn(|| load.run(connections));
        let replaced = replace(&load, &envoy, subject, connections).inspect_err(|_| load.failed.store(true, SeqCst));
        let entries = clients.join().expect("the clients panicked");
        Ok::<_, anyhow::Error>((entries?, replaced?))
    })?;
    drop(disturbance);
    for gauge in ["listener.127.0.0.1_10000.downstream_cx_active", "listener_manager.total_filter_chains_draining"] {
        await_value(&envoy, gauge, 0)?;
    }
    thread::sleep(Duration::from_secs(1)); // until the last connections to the egresses have ended
    let kib = resident(envoy.id())? - replaced.resident;
    let descriptors_after = await_descriptors(envoy.id(), &descriptors_before)?;
    let seen = egresses.stop()?;
    let removed = load.removed.lock().expect("a client panicked");
    let sums = check(&entries, &load.sent_at.lock().expect("a client panicked"), &seen, subject)?;
    let counters = compare(&entries, &sums, &seen, &removed, subject, &envoy)?;
    let Sums { answered, closed, cut, left, .. } = sums;
    let text = format!(
        "{} replacements, {} rejected; {answered} answered, {closed} closed, {cut} cut, {left} left by the client; \
         counters: {counters}; resident {} KiB, {kib:+} after {} connections; {descriptors_after} descriptors",
        replaced.replacements, replaced.rejected, replaced.resident, replaced.connections
    );
    Ok(RunResult { kib, text })
}

/// The state after all replacements: the resident memory after the warm-up in KiB, the number of connections until then,
/// and the numbers of replacements and of rejected ones.
struct Replaced {
    resident: i64,
    connections: u64,
    replacements: u32,
    rejected: u64,
}

/// Replaces the table at regular intervals, measured in connections.
fn replace(load: &Load, envoy: &Watching, subject: Subject, connections: u64) -> Result<Replaced> {
    let replacements = replacements(connections);
    let step = connections / u64::from(replacements + 1);
    let warm_up = if connections < 2 * WARM_UP { connections / 10 } else { WARM_UP };
    let mut replaced = Replaced { resident: 0, connections: 0, replacements, rejected: 0 };
    for replacement in 0..replacements {
        let begin = u64::from(replacement + 1) * step;
        // The clients may go on to the next replacement, but not further.
        load.limit.store(begin + step, SeqCst);
        while load.begun.load(SeqCst) < begin {
            ensure!(!load.failed.load(SeqCst), "a client failed\n{}", envoy.end_of_log());
            thread::sleep(Duration::from_millis(2));
        }
        if replaced.resident == 0 && begin >= warm_up {
            (replaced.resident, replaced.connections) = (resident(envoy.id())?, begin);
        }
        let index = replacement as usize / 3;
        if replacement % 3 == 0 {
            replace_with_next_generation(load, envoy, subject)?;
            continue;
        }
        let bad = if replacement % 3 == 1 { invalid(index) } else { hostile(index) };
        // Large configurations make Envoy's heap grow, with or without a module, so `tcp_proxy` alone receives the same texts.
        let bad = if subject == Subject::Plain { zero_weight(&bad) } else { bad };
        envoy.replace(&bad)?;
        replaced.rejected += 1;
        await_value(envoy, "listener_manager.lds.update_rejected", replaced.rejected)?;
    }
    load.limit.store(connections, SeqCst);
    Ok(replaced)
}

/// Replaces the table with the next generation, and waits until all workers use it.
fn replace_with_next_generation(load: &Load, envoy: &Watching, subject: Subject) -> Result<()> {
    load.await_connections_before(load.confirmed.load(SeqCst));
    let generation = load.send();
    envoy.replace(&subject.table(generation))?;
    await_value(envoy, "listener_manager.listener_in_place_updated", generation.into())?;
    if subject == Subject::Native {
        record_ending_counters(load, envoy, generation - 1)?;
    }
    // At 0, the last worker has removed the filter chain of the previous table.
    await_value(envoy, "listener_manager.total_filter_chains_draining", 0)?;
    load.confirmed.store(generation, SeqCst);
    Ok(())
}

/// Records the counters for the clusters of a replaced table. With the native module, Envoy removes them with the table, after
/// the drain time. One second after its replacement, no worker uses the table any more.
fn record_ending_counters(load: &Load, envoy: &Watching, generation: u32) -> Result<()> {
    thread::sleep(Duration::from_secs(1));
    let stats = envoy.get("/stats?filter=^wasmcustom.sluice.routed")?;
    let mut removed = load.removed.lock().expect("a client panicked");
    for cluster in (0..ROLES.len()).map(|role| cluster(generation, role)) {
        let name = format!("wasmcustom.sluice.routed.{}", name(cluster));
        ensure!(stats.contains(&name), "{name} was removed too early:\n{stats}");
        removed[cluster] += value(&stats, &name)?;
    }
    Ok(())
}
