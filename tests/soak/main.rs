//! Long runs and faults on a real Envoy with each module, with a ledger of every connection: `make soak`.
#![allow(
    clippy::arithmetic_side_effects,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::string_slice,
    clippy::unwrap_used,
    reason = "a panic fails the test"
)]

mod client;
mod egress;
mod faults;
mod ledger;
mod load;
mod pressure;
mod proxy;
mod restart;
mod soak;
mod tables;
