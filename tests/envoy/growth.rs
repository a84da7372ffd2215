//! Checks that the memory of an Envoy with the native module grows no more than without it, over many connections and
//! replacements.

use crate::{
    proxy::scenario_envoy,
    replacement::{asker, table, watching_config},
};
use anyhow::{Context, Result};
use std::{fs, thread, time::Duration};
use testbed::{Config, Module, Watching};

const CONNECTIONS: u32 = 100_000;
const REPLACEMENTS: u32 = 100;

/// How much more an Envoy with the module may grow than the plain one, in KiB. The resident memory of two equal Envoys differs by
/// about this much.
const TOLERANCE: i64 = 2_048;

/// Returns the scenarios' configuration of Envoy without the filter. Replacements change the prefix of its statistics.
fn plain() -> Result<Config> {
    let config = scenario_envoy(&Module::Wasm.path()?, "CONFIGURATION")?;
    let text = config.text();
    let filter = text.find("            - name: sluice\n").context("no filter sluice")?;
    let next = text.find("            - name: envoy.filters.network.tcp_proxy").context("no tcp_proxy")?;
    let filter = text[filter..next].to_owned();
    config.with(&filter, "")?.with("stat_prefix: sluice", "stat_prefix: CONFIGURATION")
}

/// Makes connections while replacing the configuration. Returns the growth of the resident memory after the first tenth, in KiB.
fn growth(watching: &Watching, replacements: [&str; 2], answers: [&str; 2]) -> Result<i64> {
    let ask = asker(watching)?;
    let mut after_warm_up = 0;
    for replacement in 0..REPLACEMENTS {
        if replacement == REPLACEMENTS / 10 {
            after_warm_up = resident(watching.envoy.id())?;
        }
        watching.replace(replacements[replacement as usize % 2])?;
        let clients: Vec<_> = (0..2)
            .map(|_| {
                let ask = ask.clone();
                thread::spawn(move || -> Result<Vec<String>> {
                    (0..CONNECTIONS / REPLACEMENTS / 2).map(|_| ask()).collect()
                })
            })
            .collect();
        for client in clients {
            for answer in client.join().expect("a client panicked")? {
                assert!(answers.contains(&answer.as_str()), "{answer:?}\n{}", watching.envoy.end_of_log());
            }
        }
    }
    watching.envoy.await_stat("listener_manager.listener_in_place_updated", u64::from(REPLACEMENTS) - 1)?;
    thread::sleep(Duration::from_secs(3)); // until the replaced listeners have drained
    Ok(resident(watching.envoy.id())? - after_warm_up)
}

fn resident(process: u32) -> Result<i64> {
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

#[test]
fn the_native_module_grows_no_more_than_a_plain_tcp_proxy() -> Result<()> {
    let plain = watching_config(&plain()?, "first")?;
    let plain = growth(&plain, ["first", "second"], ["default", "default"])?;
    let module = scenario_envoy(&Module::Native.path()?, "CONFIGURATION")?;
    let tables = [table("egress1"), table("egress2")];
    let native = watching_config(&module, &tables[0])?;
    let native = growth(&native, [&tables[0], &tables[1]], ["egress1", "egress2"])?;
    println!("growth of the resident memory: {native} KiB with the module, {plain} KiB without");
    assert!(native <= plain.max(0) + TOLERANCE, "{native} KiB with the module, {plain} KiB without");
    Ok(())
}
