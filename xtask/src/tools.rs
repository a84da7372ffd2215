//! Programs of other projects, which are installed under `target/tools` when first needed, and the tasks that use them.

use crate::{compiler::cargo, go, root};
use anyhow::{Result, bail};
use std::{
    env, fs,
    hash::{DefaultHasher, Hash, Hasher},
    path::PathBuf,
};
use tempfile::TempDir;
use testbed::pypi;
use xshell::{Shell, cmd};

/// Writes software bills of materials.
#[cfg(feature = "oci")]
pub const CARGO_CYCLONEDX: (&str, &str) = ("cargo-cyclonedx", "0.5.9");
const CARGO_DENY: (&str, &str) = ("cargo-deny", "0.20.2");
const CARGO_LLVM_COV: (&str, &str) = ("cargo-llvm-cov", "0.9.1");

/// A Go module. It is not used if `docker compose` already works.
const COMPOSE: (&str, &str) = ("github.com/docker/compose/v2", "v2.40.3");

/// Returns a folder for DOCKER_CONFIG with which `docker compose` works, or `None` if it works with the user's settings. The inner
/// error says why there is no such folder.
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
        // In a module of its own, because `go install` refuses a module with `exclude` directives.
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
                return Ok(Err(format!("Go cannot build {module} {version}: {}", said.trim())));
            }
        }
        fs::create_dir_all(folder.join("cli-plugins"))?;
        fs::rename(aside.path().join("docker-compose"), &plugin)?;
    }
    Ok(Ok(Some(folder)))
}

/// Builds actionlint, whose version `xtask/actionlint/go.mod` pins, if it is not built.
pub fn actionlint(sh: &Shell) -> Result<PathBuf> {
    let module = root()?.join("xtask/actionlint");
    let mut hasher = DefaultHasher::new();
    fs::read(module.join("go.sum"))?.hash(&mut hasher);
    let program = root()?.join(format!("target/tools/actionlint-{:016x}", hasher.finish()));
    if !program.exists() {
        println!("building actionlint, which takes half a minute");
        let go = go::program(sh, &module)?;
        cmd!(sh, "{go} -C {module} build -o {program} tool").env("GOFLAGS", "-mod=readonly").quiet().run()?;
    }
    Ok(program)
}

/// Fetches zizmor if it is not there yet.
pub fn zizmor() -> Result<PathBuf> {
    let program = "bin/zizmor";
    Ok(pypi::unpacked("zizmor", &pypi::version("zizmor")?, "tools/zizmor", &[program])?.join(program))
}

/// Checks licences, bans and sources of all dependencies, and advisories. If the database of advisories cannot be fetched, prints
/// a warning, or fails if AUDIT is `strict`.
pub fn audit() -> Result<()> {
    let sh = shell()?;
    let strict = match env::var("AUDIT").as_deref() {
        Err(env::VarError::NotPresent) | Ok("") => false,
        Ok("strict") => true,
        Ok(other) => bail!("AUDIT: {other:?}, expected: strict"),
        Err(error) => bail!("AUDIT: {error}"),
    };
    let deny = tool(&sh, CARGO_DENY)?;
    cmd!(sh, "{deny} --workspace --all-features check licenses bans sources").run()?;
    let fetched = cmd!(sh, "{deny} fetch db").quiet().ignore_status().output()?;
    if fetched.status.success() {
        cmd!(sh, "{deny} --workspace --all-features check --disable-fetch advisories").run()?;
        return Ok(());
    }
    let reason = String::from_utf8_lossy(&fetched.stderr);
    let reason = reason.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("no reason given");
    if strict {
        bail!("advisories are not checked, because their database cannot be fetched: {reason}");
    }
    eprintln!("warning: advisories are not checked, because their database cannot be fetched: {reason}");
    Ok(())
}

/// Prints the coverage of the native code by the native tests.
pub fn coverage() -> Result<()> {
    let sh = shell()?;
    let llvm_cov = tool(&sh, CARGO_LLVM_COV)?;
    cmd!(sh, "{llvm_cov} llvm-cov").run()?;
    Ok(())
}

/// Returns a shell in the root of the checkout.
pub fn shell() -> Result<Shell> {
    let sh = Shell::new()?;
    sh.change_dir(root()?);
    Ok(sh)
}

/// Returns the path of this program. Installs this version with cargo if it is not installed yet.
pub fn tool(sh: &Shell, (name, version): (&str, &str)) -> Result<PathBuf> {
    let tools = root()?.join("target/tools").join(format!("{name}-{version}"));
    let program = tools.join("bin").join(name);
    if !program.exists() {
        println!("compiling {name} {version}, which takes minutes");
        let install = cargo(sh).args(["install", "--quiet", "--locked", "--version", version, name, "--root"]);
        install.arg(&tools).run()?;
    }
    Ok(program)
}
