//! `make lint`: format and clippy, on the machine's target and on the module's, through both of its doors.

use crate::{compiler, root};
use anyhow::Result;
use xshell::{Shell, cmd};

/// Fails on any warning. All features means Binaryen too, which compiles for minutes.
pub fn run(all_features: bool) -> Result<()> {
    let root = root()?;
    let sh = Shell::new()?;
    sh.change_dir(&root);
    let features: &[&str] = if all_features { &["--all-features"] } else { &[] };
    let cargo = compiler::cargo();
    cmd!(sh, "{cargo} fmt --all --check").run()?;
    cmd!(sh, "{cargo} clippy --quiet --workspace --all-targets {features...} -- --deny warnings").run()?;
    let compiler = compiler::find(&sh, &root)?;
    for door in [&[][..], &["--no-default-features"]] {
        let target = compiler.module_target();
        cmd!(sh, "{cargo} clippy --quiet --lib {target...} {door...} -- --deny warnings")
            .envs(compiler.module_environment())
            .run()?;
    }
    Ok(())
}
