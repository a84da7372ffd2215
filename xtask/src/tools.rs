//! Tasks of other people's cargo commands, which are installed under `target/tools` when first needed.

use crate::{compiler::cargo, root};
use anyhow::Result;
use std::{fs, path::PathBuf};
use tempfile::TempDir;
use xshell::{Shell, cmd};

const CARGO_DENY: (&str, &str) = ("cargo-deny", "0.20.2");
const CARGO_LLVM_COV: (&str, &str) = ("cargo-llvm-cov", "0.9.1");

/// A Go module, which is not asked for where `docker compose` works already.
const COMPOSE: (&str, &str) = ("github.com/docker/compose/v2", "v2.40.3");

/// The folder of docker's settings with which `docker compose` works, none for the user's own; the inner error says why
/// there is no such folder.
pub fn compose() -> Result<Result<Option<PathBuf>, String>> {
    let sh = shell()?;
    let works = cmd!(sh, "docker compose version").quiet().ignore_stdout().ignore_stderr().run();
    if works.is_ok() {
        return Ok(Ok(None));
    }
    let (module, version) = COMPOSE;
    let folder = root()?.join("target/tools").join(format!("compose-{version}"));
    let plugin = folder.join("cli-plugins/docker-compose");
    if !plugin.exists() {
        if cmd!(sh, "go version").quiet().ignore_stdout().run().is_err() {
            return Ok(Err("there is no `docker compose`, and no Go to build it with".into()));
        }
        println!("building Docker Compose {version}, for some minutes");
        // In a module of its own, as `go install` refuses what excludes other modules.
        let aside = TempDir::new_in(root()?.join("target"))?;
        let _aside = sh.push_dir(aside.path());
        let linked = format!("-s -w -X {module}/internal.Version={version}");
        for command in [
            cmd!(sh, "go mod init tools"),
            cmd!(sh, "go get {module}/cmd@{version}"),
            cmd!(sh, "go build -ldflags {linked} -o docker-compose {module}/cmd"),
        ] {
            let output = command.quiet().ignore_status().output()?;
            if !output.status.success() {
                let said = String::from_utf8_lossy(&output.stderr);
                return Ok(Err(format!("Go does not build {module} {version}: {}", said.trim())));
            }
        }
        fs::create_dir_all(folder.join("cli-plugins"))?;
        fs::rename(aside.path().join("docker-compose"), &plugin)?;
    }
    Ok(Ok(Some(folder)))
}

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

/// Installs a program if that was not done yet. Returns its path.
pub fn tool(sh: &Shell, (name, version): (&str, &str)) -> Result<PathBuf> {
    let tools = root()?.join("target/tools").join(format!("{name}-{version}"));
    let program = tools.join("bin").join(name);
    if !program.exists() {
        let install = cargo(sh).args(["install", "--quiet", "--locked", "--version", version, name, "--root"]);
        install.arg(&tools).run()?;
    }
    Ok(program)
}
