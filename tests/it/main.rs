//! What the unit tests cannot reach: the module in a WebAssembly engine and in a real Envoy, how it is built, and that
//! the repository keeps its word. What needs a built module or an Envoy is ignored by a plain `cargo test`, and run by
//! `make test`, which makes them ready first.
#![allow(
    clippy::arithmetic_side_effects,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::string_slice,
    clippy::unwrap_used,
    reason = "a test that panics has failed, as it should"
)]

mod artefact;
mod cost;
mod decision;
mod demo;
mod docker;
mod envoy;
mod explain;
mod host;
mod mesh;
mod scenario;
mod schema;
mod tidy;
mod wasm;
mod way;

use anyhow::Result;
use std::{path::PathBuf, sync::Arc};

/// The module as it ships.
fn shipped() -> PathBuf {
    built(testbed::DIST)
}

/// The module that a plain `cargo build` gives, on the SDK's dispatcher.
fn plain() -> PathBuf {
    built("target/wasm32-unknown-unknown/release/sluice.wasm")
}

fn built(path: &str) -> PathBuf {
    let path = testbed::root().join(path).canonicalize();
    path.expect("the module is not built: make test does that first")
}

/// The first message of a TLS client that asks for this name.
fn client_hello(name: &str) -> Result<Vec<u8>> {
    let roots = rustls::RootCertStore::empty();
    let config = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let mut client = rustls::ClientConnection::new(Arc::new(config), name.to_owned().try_into()?)?;
    let mut hello = Vec::new();
    client.write_tls(&mut hello)?;
    Ok(hello)
}
