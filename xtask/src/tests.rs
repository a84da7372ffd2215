//! `make test`, `test-docker`, `soak` and `bench-egress`: prepare what the test targets need and run them.

use crate::{
    compiler,
    engine::Engine,
    module, native,
    tools::{self, shell},
};
use anyhow::Result;
use std::{env, ffi::OsString, path::PathBuf};
use testbed::{envoy, network};
use xshell::{Shell, cmd};

/// Builds the modules, gets Envoy, and runs all targets that need no privileges.
pub fn run() -> Result<()> {
    let sh = shell()?;
    let (_, environment) = ready()?;
    module::plain()?;
    let native_host = &["--lib", "--no-default-features", "--features", "native"];
    for targets in [
        &["--package", "xtask", "--features", "oci,verify"][..],
        &[],
        native_host,
        &["--test", "wasm", "--test", "envoy"],
    ] {
        compiler::cargo(&sh).args(["test", "--locked"]).args(targets).envs(environment.iter().cloned()).run()?;
    }
    let skipped = target("observability", &[], no_prometheus(&sh), &environment)?;
    under_valgrind(&sh, native_host)?;
    println!("{skipped} tests skipped");
    Ok(())
}

/// Returns why Prometheus cannot be used here, or `None` if it can.
fn no_prometheus(sh: &Shell) -> Option<&'static str> {
    let works = |program: &str| cmd!(sh, "{program} --version").quiet().ignore_stdout().ignore_stderr().run().is_ok();
    (!(works("prometheus") && works("promtool"))).then_some("Prometheus is not installed")
}

/// Runs the unit tests of the native module's host file again under valgrind, if it is installed.
fn under_valgrind(sh: &Shell, targets: &[&str]) -> Result<()> {
    const RUNNER: &str = "target.'cfg(unix)'.runner = 'valgrind --quiet --error-exitcode=9 --leak-check=full \
                          --errors-for-leak-kinds=definite --show-leak-kinds=definite'";
    if cmd!(sh, "valgrind --version").quiet().ignore_stdout().ignore_stderr().run().is_err() {
        println!("valgrind is not installed: the native module's tests under it are skipped");
        return Ok(());
    }
    let test = compiler::cargo(sh).args(["test", "--locked", "--config", RUNNER]).args(targets);
    test.args(["--", "host::native::", "--test-threads=1"]).run()?;
    Ok(())
}

/// Builds the shipped modules if they are stale and gets Envoy. Returns the path of Envoy and the environment of the tests.
pub fn ready() -> Result<(PathBuf, Vec<(&'static str, OsString)>)> {
    module::shipped()?;
    native::build()?;
    let envoy = envoy::program()?;
    println!("Envoy: {}", envoy::version(&envoy)?);
    let environment = vec![("ENVOY", envoy.clone().into()), ("SLUICE_XTASK", env::current_exe()?.into())];
    Ok((envoy, environment))
}

/// Runs the interception tests and the tests on a Docker engine. Lists tests that cannot run here as skipped, with the reason.
pub fn docker() -> Result<()> {
    let (envoy, mut environment) = ready()?;
    let mut skipped = target("interception", &[], network::hindrance().as_deref(), &environment)?;

    match Engine::start(&envoy)? {
        Ok(engine) => {
            environment.push(("DOCKER_HOST", engine.host().into()));
            skipped += target("docker", &["compose_1::"], compose_1(), &environment)?;
            let settings = tools::compose()?;
            let hindrance = settings.as_ref().err().map(String::as_str);
            if let Ok(Some(folder)) = &settings {
                environment.push(("DOCKER_CONFIG", folder.into()));
            }
            skipped += target("docker", &["compose_2::"], hindrance, &environment)?;
        }
        Err(reason) => skipped += target("docker", &[], Some(&reason), &environment)?,
    }
    println!("{skipped} tests skipped");
    Ok(())
}

/// Measures what mutual TLS costs on the egress path.
pub fn bench_egress() -> Result<()> {
    let (_, environment) = ready()?;
    let arguments = ["--ignored", "cost::"];
    println!("{} tests skipped", target("interception", &arguments, network::hindrance().as_deref(), &environment)?);
    Ok(())
}

/// Runs the soak test and the fault tests one after the other, or in parallel if CONNECTIONS selects a short run.
pub fn soak() -> Result<()> {
    let hindrance = network::hindrance();
    let mut environment = Vec::new();
    if hindrance.is_none() {
        environment = ready()?.1;
        native::build_faulty()?;
        module::faulty()?;
    }
    let is_short = env::var("CONNECTIONS").is_ok_and(|number| number.parse().is_ok_and(|number: u64| number < 100_000));
    let threads = if is_short { "--test-threads=8" } else { "--test-threads=1" };
    println!("{} tests skipped", target("soak", &[threads], hindrance.as_deref(), &environment)?);
    Ok(())
}

/// Runs the tests of a target with these arguments, such as part of their names, or lists them as skipped if there is a
/// hindrance. Returns the number of skipped tests.
pub fn target(
    name: &str,
    arguments: &[&str],
    hindrance: Option<&str>,
    environment: &[(&str, OsString)],
) -> Result<usize> {
    let sh = shell()?;
    let test = || compiler::cargo(&sh).args(["test", "--locked", "--test", name, "--"]).args(arguments);
    let Some(reason) = hindrance else {
        test().arg("--show-output").envs(environment.iter().map(|(name, value)| (name, value))).run()?;
        return Ok(0);
    };
    println!("{name} {} is skipped: {reason}", arguments.join(" "));
    let list = test().arg("--list").quiet().ignore_stderr().read()?;
    let tests: Vec<&str> = list.lines().filter_map(|line| line.strip_suffix(": test")).collect();
    for test in &tests {
        println!("test {test} ... skipped");
    }
    Ok(tests.len())
}

/// Returns why Docker Compose 1 cannot be used here, or `None` if it can.
fn compose_1() -> Option<&'static str> {
    let version = Shell::new().and_then(|sh| cmd!(sh, "docker-compose version --short").quiet().ignore_stderr().read());
    let found = version.is_ok_and(|version| version.starts_with("1."));
    (!found).then_some("docker-compose 1 is not installed")
}
