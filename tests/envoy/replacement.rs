//! Replaces a table, or the native module, while Envoy runs.

use crate::proxy::{LOCALHOST, first_bytes, read_answer, scenario_envoy};
use anyhow::{Result, ensure};
use std::{
    fs,
    io::Write,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};
use testbed::{Config, Envoy, Module, Watching, connect, envoy, for_each_module};

for_each_module!(replacing_a_table_under_load_loses_no_connection_and_a_rejected_table_changes_nothing);

/// Starts Envoy with this module and table. Its listener is in a file that it watches.
pub fn watching(module: &Path, table: &str) -> Result<Watching> {
    watching_config(&scenario_envoy(module, "CONFIGURATION")?, table)
}

/// Like [`watching`], with a configuration in which CONFIGURATION stands for the table.
pub fn watching_config(config: &Config, table: &str) -> Result<Watching> {
    Watching::start(None, &envoy::program()?, config, table, &["--drain-time-s", "1"])
}

/// Returns a function that connects and returns the answer of the backend.
pub fn asker(envoy: &Envoy) -> Result<impl Fn() -> Result<String> + Clone + Send + use<>> {
    let address = envoy.listener("sluice", &LOCALHOST)?;
    let first = first_bytes("10.0.0.2:1", "198.51.100.7:443", "")?;
    Ok(move || -> Result<String> {
        let mut client = connect(LOCALHOST, address)?;
        client.write_all(&first)?;
        read_answer(client)
    })
}

pub fn table(cluster: &str) -> String {
    format!(r#"{{"routes": [{{"clusters": ["{cluster}"]}}], "otherwise": "deny"}}"#)
}

/// Connects from two threads until the returned function is called. That function returns the numbers of answered and lost
/// connections.
fn load(ask: &(impl Fn() -> Result<String> + Clone + Send + 'static)) -> impl FnOnce() -> Result<(u64, u64)> {
    let stop = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..2)
        .map(|_| {
            let (stop, ask) = (Arc::clone(&stop), ask.clone());
            thread::spawn(move || -> Result<(u64, u64)> {
                let (mut answered, mut lost) = (0, 0);
                while !stop.load(Ordering::Relaxed) {
                    match ask()?.as_str() {
                        "egress1" | "egress2" => answered += 1,
                        _ => lost += 1,
                    }
                }
                Ok((answered, lost))
            })
        })
        .collect();
    move || {
        stop.store(true, Ordering::Relaxed);
        let (mut answered, mut lost) = (0, 0);
        for client in clients {
            let counts = client.join().expect("a client panicked")?;
            (answered, lost) = (answered + counts.0, lost + counts.1);
        }
        Ok((answered, lost))
    }
}

/// Connects until this cluster answers.
fn await_cluster(ask: impl Fn() -> Result<String>, cluster: &str) -> Result<()> {
    let started = Instant::now();
    while ask()? != cluster {
        ensure!(started.elapsed() < testbed::DEADLINE, "the replacement has no effect: {cluster} does not answer");
    }
    Ok(())
}

fn replacing_a_table_under_load_loses_no_connection_and_a_rejected_table_changes_nothing(module: Module) -> Result<()> {
    const REPLACEMENTS: u64 = 100;
    let watching = watching(&module.path()?, &table("egress1"))?;
    let (envoy, ask) = (&watching.envoy, asker(&watching)?);
    let end_of_load = load(&ask);
    for replacement in 1..=REPLACEMENTS {
        let cluster = if replacement % 2 == 0 { "egress1" } else { "egress2" };
        watching.replace(&table(cluster))?;
        envoy.await_stat("listener_manager.listener_in_place_updated", replacement)?;
        await_cluster(&ask, cluster)?;
    }
    watching.replace(r#"{"routes": [{"clusters": []}]}"#)?;
    envoy.await_stat("listener_manager.lds.update_rejected", 1)?;
    assert_eq!(ask()?, "egress1", "the current table must stay in force");
    let (answered, lost) = end_of_load()?;
    assert!(
        answered > 2 * REPLACEMENTS && lost == 0,
        "{answered} connections answered, {lost} lost\n{}",
        envoy.end_of_log()
    );
    assert!(envoy.log().contains("routes[0].clusters: must not be empty"), "{}", envoy.end_of_log());
    Ok(())
}

/// Follows `docs/native-module.md`: copies the module under another name and then changes the configuration, there and back.
#[test]
fn a_native_module_with_a_new_name_replaces_the_loaded_one() -> Result<()> {
    let modules = tempfile::tempdir()?;
    let first = modules.path().join("libsluice.so");
    fs::copy(Module::Native.path()?, &first)?;
    let mut watching = watching(&first, &table("egress1"))?;
    let ask = asker(&watching)?;
    let end_of_load = load(&ask);
    fs::copy(&first, modules.path().join("libsluice_2.so"))?;
    let names = [("sluice", "libsluice.so"), ("sluice_2", "libsluice_2.so")];
    for (replacement, (from, to, cluster)) in [(0, 1, "egress2"), (1, 0, "egress1")].into_iter().enumerate() {
        let name = |index: usize| format!("{{ name: {}, metrics_namespace", names[index].0);
        watching.listeners = watching.listeners.replace(&name(from), &name(to));
        watching.replace(&table(cluster))?;
        watching.envoy.await_stat("listener_manager.listener_in_place_updated", replacement as u64 + 1)?;
        await_cluster(&ask, cluster)?;
        let started = Instant::now();
        loop {
            let maps = fs::read_to_string(format!("/proc/{}/maps", watching.envoy.id()))?;
            let is_mapped = |index: usize| maps.lines().any(|line| line.ends_with(&format!("/{}", names[index].1)));
            assert!(is_mapped(to), "{maps}");
            if !is_mapped(from) {
                break;
            }
            assert!(started.elapsed() < testbed::DEADLINE, "{} stays mapped:\n{maps}", names[from].1);
            thread::sleep(Duration::from_millis(50));
        }
    }
    let (answered, lost) = end_of_load()?;
    assert!(answered > 100 && lost == 0, "{answered} connections answered, {lost} lost");
    Ok(())
}
