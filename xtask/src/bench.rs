//! `make bench`: builds the modules, then the package `bench` measures them.

use crate::{compiler, module, native, tools::shell};
use anyhow::Result;
use testbed::envoy;

/// Builds the modules, gets Envoy and measures.
pub fn run() -> Result<()> {
    let ([shipped, direct], plain) = (module::shipped_and_direct()?, module::plain()?);
    let native = native::build()?;
    let sh = shell()?;
    let bench = compiler::cargo(&sh).args(["run", "--quiet", "--locked", "--package", "bench", "--"]);
    bench.arg(shipped).arg(direct).arg(plain).arg(native).env("ENVOY", envoy::program()?).run()?;
    Ok(())
}

/// Measures both modules with a configuration at all limits.
pub fn limits() -> Result<()> {
    let (shipped, native) = (module::shipped()?, native::build()?);
    let sh = shell()?;
    let bench = compiler::cargo(&sh).args(["run", "--quiet", "--locked", "--package", "bench", "--", "limits"]);
    bench.arg(shipped).arg(native).env("ENVOY", envoy::program()?).run()?;
    Ok(())
}
