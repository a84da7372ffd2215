//! Replacing a table while Envoy runs.

use crate::proxy::{LOCALHOST, first_bytes, read_answer, scenario_envoy};
use anyhow::Result;
use std::{
    fs,
    io::Write,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Instant,
};
use testbed::{Envoy, connect, envoy, module::shipped};

#[test]
fn replacing_a_table_under_load_loses_no_connection_and_a_rejected_one_changes_nothing() -> Result<()> {
    const REPLACEMENTS: u64 = 100;
    let folder = tempfile::tempdir()?;
    let config = scenario_envoy(&shipped()?, "CONFIGURATION")?;
    // Moves the listener to a file that Envoy watches.
    let text = config.text();
    let (start, end) = (text.find("  listeners:\n").expect("listeners"), text.find("\n  clusters:").expect("clusters"));
    let listener =
        text[start..end].lines().skip(1).map(|line| line.get(4..).unwrap_or("")).collect::<Vec<_>>().join("\n");
    let listener =
        listener.replacen("- name:", "- \"@type\": type.googleapis.com/envoy.config.listener.v3.Listener\n  name:", 1);
    let replace = |table: &str| -> Result<()> {
        let temporary = folder.path().join("temporary.yaml");
        fs::write(&temporary, format!("resources:\n{}", listener.replace("CONFIGURATION", table)))?;
        Ok(fs::rename(temporary, folder.path().join("listeners.yaml"))?)
    };
    let table = |cluster: &str| format!(r#"{{"routes": [{{"clusters": ["{cluster}"]}}], "otherwise": "deny"}}"#);
    let watched = folder.path().join("listeners.yaml");
    let dynamic = format!(
        "dynamic_resources: {{ lds_config: {{ path_config_source: {{ path: {} }} }} }}\n\nstatic_resources:\n",
        watched.display()
    );
    let config = config.with(&text[start..=end], "")?.with("static_resources:\n", &dynamic)?;
    replace(&table("egress1"))?;
    let envoy = Envoy::start_with(
        &envoy::program()?,
        &config,
        &["--drain-time-s", "1", "--service-node", "test", "--service-cluster", "test"],
    )?;
    envoy.await_stat("listener_manager.listener_create_success", 2)?; // one for each worker

    let address = envoy.listener("sluice", &LOCALHOST)?;
    let first = first_bytes("10.0.0.2:1", "198.51.100.7:443", "")?;
    let ask = move || -> Result<String> {
        let mut client = connect(LOCALHOST, address)?;
        client.write_all(&first)?;
        read_answer(client)
    };
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
    for replacement in 1..=REPLACEMENTS {
        let cluster = if replacement % 2 == 0 { "egress1" } else { "egress2" };
        replace(&table(cluster))?;
        envoy.await_stat("listener_manager.listener_in_place_updated", replacement)?;
        let started = Instant::now();
        while ask()? != cluster {
            assert!(started.elapsed() < testbed::DEADLINE, "replacement {replacement} has no effect");
        }
    }
    replace(r#"{"routes": [{"clusters": []}]}"#)?;
    envoy.await_stat("listener_manager.lds.update_rejected", 1)?;
    assert_eq!(ask()?, "egress1", "the current table stays in force");
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        let (answered, lost) = client.join().expect("a client panicked")?;
        assert!(
            answered > REPLACEMENTS && lost == 0,
            "{answered} connections answered, {lost} lost\n{}",
            envoy.end_of_log()
        );
    }
    assert!(envoy.log().contains("routes[0].clusters: must not be empty"), "{}", envoy.end_of_log());
    Ok(())
}
