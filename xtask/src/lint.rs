//! `make lint`: checks the format, runs clippy for this machine (also with the feature `native`) and for WebAssembly (with and
//! without the SDK), and runs actionlint and zizmor on the workflows.

use crate::{compiler, root, tools};
use anyhow::Result;
use xshell::{Shell, cmd};

/// Fails on any warning. Clippy does not check the lines of xtask that call Binaryen, because it would compile Binaryen a second
/// time, for minutes.
pub fn run() -> Result<()> {
    let root = root()?;
    let sh = Shell::new()?;
    sh.change_dir(&root);
    let clippy =
        |arguments: &[&str]| compiler::cargo(&sh).arg("clippy").args(arguments).args(["--", "--deny", "warnings"]);
    compiler::cargo(&sh).args(["fmt", "--all", "--check"]).run()?;
    compiler::cargo(&sh).args(["fmt", "--manifest-path", "fuzz/Cargo.toml", "--check"]).run()?;
    workflows(&sh)?;
    clippy(&["--manifest-path", "fuzz/Cargo.toml", "--all-targets"]).run()?;
    clippy(&["--workspace", "--all-targets", "--features", "xtask/oci,xtask/proto,xtask/verify"]).run()?;
    clippy(&["--test", "*"]).run()?; // --all-targets does not include targets with `test = false`
    clippy(&["--lib", "--profile", "test", "--no-default-features", "--features", "native"]).run()?;
    let compiler = compiler::find(&sh, &root)?;
    for features in [&[][..], &["--no-default-features"]] {
        let arguments = [&["--lib"], compiler.module_target(), features].concat();
        clippy(&arguments).envs(compiler.module_environment()).run()?;
    }
    Ok(())
}

/// Fails on any finding in `.github`. Works offline.
fn workflows(sh: &Shell) -> Result<()> {
    let (actionlint, zizmor) = (tools::actionlint(sh)?, tools::zizmor()?);
    let workflows = sh.read_dir(".github/workflows")?;
    cmd!(sh, "{actionlint} {workflows...}").run()?;
    cmd!(sh, "{zizmor} --offline --quiet --no-progress --persona pedantic .github").run()?;
    Ok(())
}
