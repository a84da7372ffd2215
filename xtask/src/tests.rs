//! `make test`: everything that the tests look at is made ready, then cargo runs them all.

use crate::{compiler, module, root};
use anyhow::Result;
use std::env;
use testbed::envoy;
use xshell::Shell;

/// Builds the shipped module if it is stale and the plain one, gets Envoy and runs the tests, the ignored ones too.
pub fn run() -> Result<()> {
    let root = root()?;
    let sh = Shell::new()?;
    sh.change_dir(&root);
    module::shipped()?;
    let compiler = compiler::find(&sh, &root)?;
    println!("compiler: {}", compiler.describe());
    compiler::cargo(&sh)
        .args(["build", "--locked", "--release", "--lib", "--target-dir", "target"])
        .args(compiler.module_target())
        .envs(compiler.module_environment())
        .run()?;
    let envoy = envoy::program()?;
    println!("Envoy: {}", envoy::version(&envoy)?);
    compiler::cargo(&sh)
        .args(["test", "--locked", "--", "--include-ignored"])
        .env("ENVOY", envoy)
        .env("SLUICE_XTASK", env::current_exe()?)
        .run()?;
    Ok(())
}
