//! The built modules in a WebAssembly engine: the shipped module with its own entry points, and the module of a plain
//! `cargo build`, which uses the SDK's dispatcher. `make test` builds them.
#![allow(
    clippy::arithmetic_side_effects,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::string_slice,
    clippy::unwrap_used,
    reason = "a panic fails the test"
)]

mod artefact;
mod configuration;
mod contexts;
mod cost;
mod counters;
mod decisions;
mod errors;
mod limits;
mod modules;
mod vm;

#[path = "../common/log_lines.rs"]
mod log_lines;
#[path = "../common/scenarios.rs"]
mod scenario_table;
#[path = "../common/struct_message.rs"]
mod struct_message;
