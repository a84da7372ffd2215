//! Checks that the files of `observability/` agree with the documentation. `tests/observability` loads them into Prometheus.

use std::{collections::BTreeSet, fs};

fn read(path: &str) -> String {
    fs::read_to_string(testbed::root().join(path)).unwrap()
}

#[test]
fn every_alert_has_a_section_in_the_documentation() {
    let (rules, document) = (read("observability/alerts.yaml"), read("docs/operations.md"));
    let sections: BTreeSet<&str> = document.lines().filter_map(|line| line.strip_prefix("### ")).collect();
    let mut alerts = BTreeSet::new();
    for rule in rules.split("- alert: ").skip(1) {
        let name = rule.lines().next().unwrap();
        let runbook = format!("runbook: docs/operations.md#{}\n", name.to_lowercase());
        assert!(rule.contains(&runbook), "{name}: expected {runbook}");
        alerts.insert(name);
    }
    assert_eq!(alerts, sections, "alerts.yaml and docs/operations.md name different alerts");
}

#[test]
fn panels_of_the_dashboard_have_titles_descriptions_and_expressions() {
    let dashboard: serde_json::Value = serde_json::from_str(&read("observability/dashboard.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    assert!(!panels.is_empty());
    let mut ids = BTreeSet::new();
    for panel in panels {
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{panel}");
        assert!(["title", "description"].iter().all(|field| !panel[field].as_str().unwrap().is_empty()), "{panel}");
        let targets = panel["targets"].as_array().unwrap();
        assert!(!targets.is_empty() && targets.iter().all(|target| target["expr"].is_string()), "{panel}");
    }
}
