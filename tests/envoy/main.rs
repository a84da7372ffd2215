//! The built modules in a real Envoy, mostly with the shipped configuration. Assertions are on Envoy's counters and logs and on
//! the answers of the backends. `make test` builds the modules and downloads Envoy.
#![allow(
    clippy::arithmetic_side_effects,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::string_slice,
    clippy::unwrap_used,
    reason = "a panic fails the test"
)]

mod configuration;
mod demo;
mod failures;
mod growth;
mod logs;
mod proxy;
mod replacement;
mod routing;
mod scenarios;
mod versions;

#[path = "../common/client_hello.rs"]
mod client_hello;
#[path = "../common/log_lines.rs"]
mod log_lines;
#[path = "../common/scenarios.rs"]
mod scenario_table;
#[path = "../common/trapping_module.rs"]
mod trapping_module;
