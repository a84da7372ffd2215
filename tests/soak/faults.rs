//! Modules that fail, and an Envoy that competes for its CPU.

use crate::{
    client::{Conversation, Kind, Outcome, Random, converse},
    proxy::{LISTENER, Subject, egresses, in_a_network},
    soak::run,
    tables::{DEFAULT, Verdict, verdict},
};
use anyhow::{Context, Result, ensure};
use std::{
    net::Ipv4Addr,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};
use testbed::{Config, Envoy, Host, Module, envoy, for_each_module, root};

for_each_module! {
    a_failing_module_closes_its_connections_and_recovers,
    no_connection_is_misrouted_without_enough_cpu,
}

/// The last octet of the source addresses on which the modules of `make soak` fail on purpose.
const FAILS: u8 = 13;

/// Returns the path of the module that fails on purpose.
fn failing(module: Module) -> Result<std::path::PathBuf> {
    let name = match module {
        Module::Wasm => "sluice.wasm",
        Module::Native => "libsluice_fault.so",
    };
    let path = root().join("target/fault").join(name);
    path.canonicalize().with_context(|| format!("the {name} that fails on purpose is not built: run make soak"))
}

fn a_failing_module_closes_its_connections_and_recovers(module: Module) -> Result<()> {
    let text = Config::file(&root().join("tests/data/soak.yaml"))?;
    let clusters = Subject::from(module).config()?;
    let clusters = clusters.text().split_once("  clusters:\n").context("no clusters")?.1.to_owned();
    let config = text.with("    # CLUSTERS\n", &clusters)?.with_module(&failing(module)?)?;
    let config = config.with("CONFIGURATION", &Subject::from(module).table(0))?;
    in_a_network(|host| fail_and_recover(host, module, &config))
}

/// Connects from a source and returns the outcome. Fails if the wrong egress answered.
fn ask(id: u64, source: Ipv4Addr) -> Result<Outcome> {
    let payload = Random(id + 1).payload();
    let conversation = converse(id, source, LISTENER, Kind::Asks, &payload, testbed::DEADLINE)?;
    let Conversation { outcome, answered_by, .. } = conversation;
    let right = answered_by.is_none_or(|by| Verdict::Role(by.into()) == verdict(source));
    ensure!(right, "{source} was answered by {answered_by:?}");
    Ok(outcome)
}

fn fail_and_recover(host: &Host, module: Module, config: &Config) -> Result<()> {
    const CLIENTS: u64 = 600;
    let egresses = egresses()?;
    let envoy = Envoy::start_in(host, &envoy::program()?, config, &["--concurrency", "2"])?;
    let source = |id: u64, last: u8| Ipv4Addr::new(127, 1, (id % 250) as u8, last);
    for id in 0..CLIENTS {
        ensure!(
            ask(id, source(id, 14 + (id % 200) as u8))? == Outcome::Answered,
            "connection {id}, before the first failure, was not answered"
        );
    }
    let mut closed = 0;
    for id in CLIENTS..2 * CLIENTS {
        if id % 50 == 0 {
            ensure!(
                ask(id, source(id, FAILS))? == Outcome::Closed,
                "connection {id}, on which the module fails, was not closed"
            );
        } else if ask(id, source(id, 14 + (id % 200) as u8))? == Outcome::Closed {
            closed += 1;
        }
    }
    let failures = CLIENTS / 50;
    let started = Instant::now();
    let mut id = 2 * CLIENTS;
    let mut in_a_row = 0;
    while in_a_row < 100 {
        let answered = ask(id, source(id, 14 + (id % 200) as u8))? == Outcome::Answered;
        (id, in_a_row) = (id + 1, if answered { in_a_row + 1 } else { 0 });
        if !answered {
            closed += 1;
            thread::sleep(Duration::from_millis(20));
        }
        ensure!(
            started.elapsed() < testbed::DEADLINE * 3,
            "the module does not recover\n{}",
            envoy.get("/stats?filter=wasm|cx_total")?
        );
    }
    let custom = envoy.get("/stats?filter=wasmcustom.sluice.routed")?;
    let counts = custom.lines().filter_map(|line| line.rsplit_once(": ")?.1.parse::<u64>().ok());
    let routed: u64 = counts.sum();
    match module {
        Module::Native => {
            assert_eq!(closed, 0, "connections closed although the module did not fail on them");
            assert_eq!(envoy.stat("wasmcustom.sluice.panics")?, failures);
            assert_eq!(routed, id - failures);
        }
        Module::Wasm => {
            // A trap ends the VM of one worker. Connections that arrive until Envoy reloads it are closed.
            let reloads = envoy.get("/stats?filter=vm_reload_success")?;
            let reloads: u64 = reloads.lines().filter_map(|line| line.rsplit_once(": ")?.1.parse::<u64>().ok()).sum();
            assert!((1..=failures).contains(&reloads), "{reloads} reloads");
            assert!(routed <= id - failures && routed >= id - failures - closed, "{routed} routed, {closed} closed");
            println!("{reloads} reloads, {closed} other connections closed");
        }
    }
    drop(envoy);
    assert_eq!(egresses.stop()?.accepted[DEFAULT], 0, "a connection reached the default cluster without a decision");
    Ok(())
}

/// Busy loops on the first core. They end with the test, or when they exceed their CPU time limit.
struct Busy(Vec<Child>);

impl Busy {
    fn start(number: usize) -> Result<Self> {
        let start = || {
            let script = "ulimit -t 60; while :; do :; done";
            let mut command = Command::new("setpriv");
            command.args(["--pdeathsig", "KILL", "--", "taskset", "-c", "0", "sh", "-c", script]).stdin(Stdio::null());
            command.spawn().context("cannot start setpriv")
        };
        let mut busy = Self(Vec::new());
        for _ in 0..number {
            busy.0.push(start()?);
        }
        Ok(busy)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        for process in &mut self.0 {
            // Both fail only if the process has ended already.
            _ = process.kill();
            _ = process.wait();
        }
    }
}

/// Envoy shares one core with 16 busy loops.
fn no_connection_is_misrouted_without_enough_cpu(module: Module) -> Result<()> {
    in_a_network(|host| {
        let ran = run(host, module.into(), 3_000, 8, |envoy| {
            let id = envoy.id().to_string();
            let pinned = Command::new("taskset").args(["-a", "-p", "-c", "0", &id]).stdout(Stdio::null()).status()?;
            ensure!(pinned.success(), "taskset failed");
            Busy::start(16)
        })?;
        println!("{module:?}: {}", ran.text);
        Ok(())
    })
}
