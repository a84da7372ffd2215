//! The shipped Istio manifests on a Kubernetes cluster of two nodes. `make test-mesh` builds the programs and images, and runs
//! these tests as root. Slow tests are marked `ignore` and run with `make test-mesh-full`.
#![allow(
    clippy::arithmetic_side_effects,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::string_slice,
    clippy::unwrap_used,
    reason = "a panic fails the test"
)]

mod chains;
mod cluster;
mod connections;
mod declared_externals;
mod disruptions;
mod drain;
mod failover;
mod hostile;
mod hostile_pods;
mod hostile_sidecar;
mod hostile_ways;
mod identity;
mod istiod;
mod keeper;
mod lifetime;
mod limits;
mod manifests;
mod metrics;
mod module_delivery;
mod pod;
mod policies;
mod server;
mod shipped;
mod sidecar_admin;
mod sidecars;
mod tenants;
mod trust;
mod verify;
mod verify_routers;

#[path = "../common/client_hello.rs"]
mod client_hello;
#[path = "../common/tls.rs"]
mod tls;

use anyhow::Result;
use client_hello::client_hello;
use cluster::OUTSIDE;
use std::{net::SocketAddr, time::Duration};

/// Returns the body of a successful answer from this URL.
fn get(url: &str) -> Result<String> {
    let answer = ureq::get(url).config().timeout_global(Some(Duration::from_secs(5))).build().call();
    Ok(answer?.body_mut().read_to_string()?)
}

/// Returns a socket address of the host outside, by address family: 0 for IPv4, 1 for IPv6.
fn outside(family: usize, port: u16) -> SocketAddr {
    SocketAddr::new(OUTSIDE[family].parse().unwrap(), port)
}

/// Returns the ports that the host outside serves, with the bytes that a client sends first.
fn conversations() -> Result<[(u16, Vec<u8>); 3]> {
    Ok([(443, client_hello("a.example.com")?), (80, server::http("a.example.com")), (25, Vec::new())])
}
