//! The repository's tasks: `cargo xtask TASK`. The Makefile lists those for users.

mod bench;
mod compiler;
mod demo;
mod docker;
mod engine;
mod fuzz;
mod go;
mod images;
mod inlining;
mod lint;
mod matrix;
mod mesh;
mod module;
mod native;
#[cfg(feature = "oci")]
mod oci;
#[cfg(feature = "proto")]
mod proto;
#[cfg(feature = "oci")]
mod release;
#[cfg(feature = "oci")]
mod sbom;
mod table;
mod tests;
mod tools;
#[cfg(feature = "verify")]
mod verify;

use anyhow::{Context, Result, bail};
use std::{env, path::PathBuf, process::ExitCode};

fn main() -> ExitCode {
    match dispatch() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch() -> Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match *arguments {
        ["audit"] => tools::audit(),
        ["bench"] => bench::run(),
        ["bench-egress"] => tests::bench_egress(),
        ["bench-limits"] => bench::limits(),
        ["build-native"] => native::build_for_target().map(drop),
        ["build-wasm"] => module::build(module::Steps::All).map(drop),
        ["coverage"] => tools::coverage(),
        ["demo"] => demo::prepare(),
        ["demo-traffic", module] => demo::traffic(module.as_ref()),
        ["docker-demo"] => docker::demo(),
        ["fuzz", seconds] => fuzz::run(seconds),
        ["lint"] => lint::run(),
        #[cfg(feature = "oci")]
        ["oci"] => oci::build(),
        #[cfg(feature = "oci")]
        ["oci-push", reference] => oci::push(reference),
        #[cfg(feature = "oci")]
        ["release"] => release::build(),
        #[cfg(not(feature = "oci"))]
        [task @ ("oci" | "oci-push" | "release"), ..] => {
            bail!("to run this task: cargo run --package xtask --features oci,wasm-opt -- {task}")
        }
        #[cfg(feature = "proto")]
        ["regen-proto"] => proto::regenerate(),
        #[cfg(not(feature = "proto"))]
        ["regen-proto"] => bail!("to run this task: cargo run --package xtask --features proto -- regen-proto"),
        ["sanitize"] => fuzz::sanitize(),
        ["soak"] => tests::soak(),
        ["test"] => tests::run(),
        ["test-docker"] => tests::docker(),
        ["test-matrix"] => matrix::run(false),
        ["test-mesh"] => mesh::run(false),
        ["test-mesh-full"] => mesh::run(true),
        ["test-oldest"] => matrix::run(true),
        #[cfg(feature = "verify")]
        ["verify"] => verify::run(None),
        #[cfg(feature = "verify")]
        ["verify", to] => verify::run(Some(to)),
        #[cfg(not(feature = "verify"))]
        ["verify", ..] => bail!("to run this task: cargo run --package xtask --features verify -- verify"),
        ["wasm-size"] => module::check_size(),
        _ => bail!(
            "usage: cargo xtask audit|bench|bench-egress|bench-limits|build-native|build-wasm|coverage|demo|docker-demo|fuzz SECONDS|lint|oci|oci-push REFERENCE|regen-proto|\
             release|sanitize|soak|test|test-docker|test-matrix|test-mesh|test-mesh-full|test-oldest|verify [HOST:PORT]|wasm-size"
        ),
    }
}

/// The checkout in which the task is called, which need not be the one from which it was built.
fn root() -> Result<PathBuf> {
    let here = env::current_dir()?;
    let root = here.ancestors().find(|dir| dir.join("protos/set_envoy_filter_state.proto").is_file());
    root.map(Into::into).with_context(|| format!("{} is not in a checkout of sluice", here.display()))
}
