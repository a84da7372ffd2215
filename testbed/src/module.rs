//! Where the modules are that the tests run.

use crate::root;
use anyhow::{Context, Result};
use std::path::PathBuf;

/// The shipped module, relative to the checkout.
pub const DIST: &str = "dist/sluice.wasm";

/// Returns the path of the shipped module. Fails if it is not built.
pub fn shipped() -> Result<PathBuf> {
    built(DIST)
}

/// Returns the path of the module that a plain `cargo build` gives, on the SDK's dispatcher. Fails if it is not built.
pub fn sdk() -> Result<PathBuf> {
    built("target/wasm32-unknown-unknown/release/sluice.wasm")
}

fn built(path: &str) -> Result<PathBuf> {
    root().join(path).canonicalize().with_context(|| format!("{path} is not built: run make test"))
}
