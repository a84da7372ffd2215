//! Tasks of other people's cargo commands, which are installed under `target/tools` when first needed.

use crate::{compiler::cargo, root};
use anyhow::Result;
use std::path::PathBuf;
use xshell::{Shell, cmd};

const CARGO_DENY: (&str, &str) = ("cargo-deny", "0.20.2");
const CARGO_LLVM_COV: (&str, &str) = ("cargo-llvm-cov", "0.9.1");

/// Checks licences, bans and sources of all dependencies, and advisories where their database can be fetched.
pub fn audit() -> Result<()> {
    let sh = shell()?;
    let deny = tool(&sh, CARGO_DENY)?;
    cmd!(sh, "{deny} --all-features check licenses bans sources").run()?;
    let fetched = cmd!(sh, "{deny} fetch db").quiet().ignore_status().output()?;
    if fetched.status.success() {
        cmd!(sh, "{deny} --all-features check --disable-fetch advisories").run()?;
    } else {
        let why = String::from_utf8_lossy(&fetched.stderr);
        println!(
            "advisories: not checked, their database cannot be fetched: {}",
            why.lines().last().unwrap_or("no reason")
        );
    }
    Ok(())
}

/// Prints how much of the native code the native tests reach.
pub fn coverage() -> Result<()> {
    let sh = shell()?;
    let llvm_cov = tool(&sh, CARGO_LLVM_COV)?;
    cmd!(sh, "{llvm_cov} llvm-cov").run()?;
    Ok(())
}

fn shell() -> Result<Shell> {
    let sh = Shell::new()?;
    sh.change_dir(root()?);
    Ok(sh)
}

fn tool(sh: &Shell, (name, version): (&str, &str)) -> Result<PathBuf> {
    let tools = root()?.join("target/tools").join(format!("{name}-{version}"));
    let program = tools.join("bin").join(name);
    if !program.exists() {
        let install = cargo(sh).args(["install", "--quiet", "--locked", "--version", version, name, "--root"]);
        install.arg(&tools).run()?;
    }
    Ok(program)
}
