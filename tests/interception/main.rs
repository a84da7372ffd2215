//! Transparent interception from end to end, with the shipped configurations: a client whose connections are redirected, its
//! sidecar, two egress routers and a destination, each in a network namespace. Assertions are on what the destination received
//! and on Envoy's counters and logs. `make test-docker` runs these tests, as root.
#![allow(
    clippy::arithmetic_side_effects,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::string_slice,
    clippy::unwrap_used,
    reason = "a panic fails the test"
)]

mod cost;
mod destination;
mod egress;
mod hostile;
mod identity;
mod load;
mod network;
mod outages;
mod rotation;
mod router;
mod router_destinations;
mod sidecar;
mod topology;
mod traffic;

#[path = "../common/client_hello.rs"]
mod client_hello;
#[path = "../common/tls.rs"]
mod tls;
#[path = "../common/trapping_module.rs"]
mod trapping_module;
