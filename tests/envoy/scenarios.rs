//! Runs the scenarios, and tables of two listeners.

use crate::{
    proxy::{answer, answer_to, first_bytes, module_lines, read_answer, scenario_envoy, send, standalone, start},
    scenario_table::{Outcome, SCENARIOS},
};
use anyhow::Result;
use std::{collections::HashMap, path::Path};
use testbed::{Envoy, Module, for_each_module, module::sdk};

for_each_module! {
    every_scenario_has_its_outcome,
    two_listeners_have_their_own_tables_and_share_counters,
}

fn every_scenario_has_its_outcome(module: Module) -> Result<()> {
    expect_the_outcomes(&module.path()?)
}

#[test]
fn every_scenario_has_its_outcome_on_the_sdk_dispatcher() -> Result<()> {
    expect_the_outcomes(&sdk()?)
}

/// Runs all scenarios with this module.
fn expect_the_outcomes(module: &Path) -> Result<()> {
    for scenario in SCENARIOS {
        let envoy = start(&scenario_envoy(module, scenario.config)?)?;
        let mut counts: HashMap<String, u64> = HashMap::new();
        for &(source, destination, server_name, expected) in scenario.connections {
            let answer = answer_to(&envoy, &first_bytes(source, destination, server_name)?)?;
            let (expected, counter) = match expected {
                Outcome::Cluster(cluster) => (cluster, format!("wasmcustom.sluice.routed.{cluster}")),
                Outcome::DefaultCluster => ("default", "wasmcustom.sluice.continued".to_owned()),
                Outcome::Closed => ("", "wasmcustom.sluice.denied".to_owned()),
            };
            let case = format!("{}: {}: {source} → {destination} {server_name:?}", module.display(), scenario.name);
            assert_eq!(answer, expected, "{case}\n{}", envoy.end_of_log());
            *counts.entry(counter).or_default() += 1;
            if !expected.is_empty() {
                *counts.entry(format!("cluster.{expected}.upstream_cx_total")).or_default() += 1;
            }
        }
        for (counter, expected) in counts {
            assert_eq!(envoy.stat(&counter)?, expected, "{}: {counter}", scenario.name);
        }
        let upstream =
            ["default", "egress1", "egress2", "egress3"].map(|name| format!("cluster.{name}.upstream_cx_total"));
        let upstream: u64 = upstream.iter().map(|counter| envoy.stat(counter)).sum::<Result<u64>>()?;
        let closed = scenario.connections.iter().filter(|(.., outcome)| *outcome == Outcome::Closed).count();
        assert_eq!(
            upstream + closed as u64,
            scenario.connections.len() as u64,
            "a denied connection must not reach an egress"
        );
    }
    Ok(())
}

#[test]
fn denied_connections_do_not_disturb_others_on_the_sdk_dispatcher() -> Result<()> {
    let table = r#"{"routes": [{"match": {"source": ["10.0.0.0/8"]}, "action": "deny"}, {"clusters": ["egress1"]}], "otherwise": "deny"}"#;
    let config = scenario_envoy(&sdk()?, table)?;
    let envoy = start(&config)?;
    for _ in 0..50 {
        assert_eq!(answer_to(&envoy, &first_bytes("10.0.0.2:1", "198.51.100.7:443", "")?)?, "");
        assert_eq!(answer_to(&envoy, &first_bytes("11.0.0.2:1", "198.51.100.7:443", "")?)?, "egress1");
    }
    assert_eq!(envoy.stat("cluster.egress1.upstream_cx_total")?, 50);
    assert_eq!(module_lines(&envoy), [""; 0]);
    Ok(())
}

/// Returns the name of a counter in Prometheus' format. There, Envoy removes the namespace of Wasm's counters, but keeps a native
/// module's unless `envoy.reloadable_features.dynamic_modules_strip_custom_stat_prefix` is on.
fn prometheus_name(module: Module, counter: &str) -> String {
    match module {
        Module::Wasm => format!("sluice_{counter}"),
        Module::Native => format!("envoy_wasmcustom_sluice_{counter}"),
    }
}

/// Each listener has its own table. All workers and listeners share the counter of a name.
fn two_listeners_have_their_own_tables_and_share_counters(module: Module) -> Result<()> {
    let envoy = two_listeners(&module.path()?)?;
    let prometheus = envoy.get("/stats/prometheus")?;
    let expected = prometheus_name(module, "routed_egress1{} 100");
    assert!(prometheus.lines().any(|line| line == expected), "{prometheus}");
    Ok(())
}

#[test]
fn two_listeners_have_their_own_tables_and_share_counters_on_the_sdk_dispatcher() -> Result<()> {
    two_listeners(&sdk()?).map(drop)
}

/// Starts an Envoy with two listeners, and connects 100 times to each of them.
fn two_listeners(module: &Path) -> Result<Envoy> {
    let config = scenario_envoy(module, r#"{"routes": [{"clusters": ["egress1"]}], "otherwise": "deny"}"#)?;
    let text = config.text();
    let start_of_listener = text.find("    - name: sluice\n").expect("the listener");
    let end_of_listener = text.find("\n  clusters:").expect("the clusters");
    let listener = &text[start_of_listener..end_of_listener];
    let other = listener
        .replacen("    - name: sluice\n", "    - name: other\n", 1)
        .replace(r#""clusters": ["egress1"]"#, r#""clusters": ["egress2", "egress1"]"#);
    let envoy = start(&config.with(listener, &format!("{listener}{other}"))?)?;
    let first = first_bytes("10.0.0.2:1", "198.51.100.7:443", "")?;
    for _ in 0..100 {
        for (name, expected) in [("sluice", "egress1"), ("other", "egress2")] {
            assert_eq!(read_answer(send(&envoy, name, &first)?)?, expected, "{name}");
        }
    }
    assert_eq!(envoy.stat("wasmcustom.sluice.routed.egress1")?, 100);
    assert_eq!(envoy.stat("wasmcustom.sluice.routed.egress2")?, 100);
    Ok(envoy)
}

#[test]
fn with_a_runtime_flag_a_native_module_has_the_counter_names_of_wasm_in_prometheus() -> Result<()> {
    let layer = "layered_runtime: { layers: [{ name: static, static_layer: \
        { envoy.reloadable_features.dynamic_modules_strip_custom_stat_prefix: true } }] }\n\nstatic_resources:\n";
    let envoy = start(&standalone(Module::Native)?.with("static_resources:\n", layer)?)?;
    assert_eq!(answer(&envoy, "127.0.0.2")?, "egress1");
    let prometheus = envoy.get("/stats/prometheus")?;
    assert!(prometheus.lines().any(|line| line == "sluice_routed_egress1{} 1"), "{prometheus}");
    Ok(())
}
