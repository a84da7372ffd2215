//! Runs the scenarios against the native policy.

use crate::scenario_table::{
    Outcome::{Closed, Cluster, DefaultCluster},
    SCENARIOS,
};
use sluice::{
    address::parse_endpoint,
    config,
    policy::{Action, ConnectionInfo, Decision},
};

#[test]
fn every_scenario_has_its_outcome() {
    for scenario in SCENARIOS {
        let policy = config::parse(scenario.config.as_bytes()).expect(scenario.name);
        for &(source, destination, server_name, expected) in scenario.connections {
            let connection = ConnectionInfo {
                source: parse_endpoint(source.as_bytes()),
                destination: parse_endpoint(destination.as_bytes()),
                server_name: server_name.as_bytes(),
            };
            let decision = policy.decide(&connection);
            let has_outcome = match expected {
                Cluster(name) => matches!(decision, Decision::Cluster(index) if policy.cluster(index) == name),
                DefaultCluster => decision == Decision::Action(Action::Continue),
                Closed => decision == Decision::Action(Action::Deny),
            };
            let case = format!("{}: {source} → {destination} {server_name:?}", scenario.name);
            assert!(has_outcome, "{case}: expected {expected:?}, got {decision:?}");
        }
    }
}
