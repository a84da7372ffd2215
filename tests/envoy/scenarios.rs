//! The scenarios, and tables of routes.

use crate::{
    proxy::{answer_to, first_bytes, read_answer, scenario_envoy, send, start},
    scenario_table::{Outcome, SCENARIOS},
};
use anyhow::Result;
use std::collections::HashMap;
use testbed::module::{sdk, shipped};

#[test]
fn every_scenario_has_its_outcome() -> Result<()> {
    let modules = [shipped()?, sdk()?];
    for (scenario, module) in SCENARIOS.iter().flat_map(|scenario| modules.iter().map(move |module| (scenario, module)))
    {
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
            "a denied connection reaches no egress"
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
    assert!(!envoy.log().contains("wasm log"), "{}", envoy.end_of_log());
    Ok(())
}

/// All workers and plugins share the counter of a name. Each plugin has its own table.
#[test]
fn two_listeners_in_one_vm_have_their_own_tables_and_share_counters() -> Result<()> {
    for module in [shipped()?, sdk()?] {
        let config = scenario_envoy(&module, r#"{"routes": [{"clusters": ["egress1"]}], "otherwise": "deny"}"#)?;
        let text = config.text();
        let start_of_listener = text.find("    - name: sluice\n").expect("the listener");
        let end_of_listener = text.find("\n  clusters:").expect("the clusters");
        let listener = &text[start_of_listener..end_of_listener];
        let other = listener
            .replacen("    - name: sluice\n", "    - name: other\n", 1)
            .replace(r#""clusters": ["egress1"]"#, r#""clusters": ["egress2", "egress1"]"#);
        let config = config.with(listener, &format!("{listener}{other}"))?;
        let envoy = start(&config)?;
        let first = first_bytes("10.0.0.2:1", "198.51.100.7:443", "")?;
        for _ in 0..100 {
            for (name, expected) in [("sluice", "egress1"), ("other", "egress2")] {
                assert_eq!(read_answer(send(&envoy, name, &first)?)?, expected, "{name}");
            }
        }
        assert_eq!(envoy.stat("wasmcustom.sluice.routed.egress1")?, 100);
        assert_eq!(envoy.stat("wasmcustom.sluice.routed.egress2")?, 100);
        let prometheus = envoy.get("/stats/prometheus")?;
        assert!(prometheus.lines().any(|line| line == "sluice_routed_egress1{} 100"), "{prometheus}");
    }
    Ok(())
}
