//! Native tests: the decisions of the library, the configurations that it accepts, and the consistency of the repository.
//! A plain `cargo test` runs them.
#![allow(
    clippy::arithmetic_side_effects,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::string_slice,
    clippy::unwrap_used,
    reason = "a panic fails the test"
)]

mod bindings;
mod configurations;
mod decision;
mod explain;
mod observability;
mod scenarios;
mod schema;
mod setup;
mod struct_messages;
mod tidy;

#[path = "../common/scenarios.rs"]
mod scenario_table;
#[path = "../common/struct_message.rs"]
mod struct_message;
