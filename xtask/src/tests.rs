//! `make test` and `make test-docker`: everything that the tests look at is made ready, then cargo runs them.

use crate::{compiler, engine::Engine, module, root, tools};
use anyhow::Result;
use std::{env, ffi::OsString, path::PathBuf};
use testbed::{envoy, network};
use xshell::{Shell, cmd};

/// The modules of tests that `make test-docker` and `make test-mesh` run, as they take rights that not every machine gives.
const ELSEWHERE: [&str; 3] = ["docker::", "mesh::", "way::"];

/// Builds the shipped module if it is stale and the plain one, gets Envoy and runs the tests, the ignored ones too.
pub fn run() -> Result<()> {
    let root = root()?;
    let sh = Shell::new()?;
    sh.change_dir(&root);
    let (_, environment) = ready()?;
    module::plain()?;
    compiler::cargo(&sh).args(["test", "--locked", "--package", "xtask"]).run()?;
    compiler::cargo(&sh)
        .args(["test", "--locked", "--", "--include-ignored"])
        .args(ELSEWHERE.iter().flat_map(|module| ["--skip", module]))
        .envs(environment)
        .run()?;
    Ok(())
}

/// Builds the shipped module if it is stale and gets Envoy, and the environment by which the tests find what they run.
pub fn ready() -> Result<(PathBuf, Vec<(&'static str, OsString)>)> {
    module::shipped()?;
    let envoy = envoy::program()?;
    println!("Envoy: {}", envoy::version(&envoy)?);
    let environment = vec![("ENVOY", envoy.clone().into()), ("SLUICE_XTASK", env::current_exe()?.into())];
    Ok((envoy, environment))
}

/// Runs the tests in network namespaces and those on a Docker engine. What cannot run here is shown as ignored, and a
/// line before says why.
pub fn docker() -> Result<()> {
    let (envoy, mut environment) = ready()?;
    let mut skipped = group("way::", network::hindrance().as_deref(), &environment)?;

    match Engine::start(&envoy)? {
        Ok(engine) => {
            environment.push(("DOCKER_HOST", engine.host().into()));
            skipped += group("docker::compose_1", compose_1(), &environment)?;
            let settings = tools::compose()?;
            let hindrance = settings.as_ref().err().map(String::as_str);
            if let Ok(Some(folder)) = &settings {
                environment.push(("DOCKER_CONFIG", folder.into()));
            }
            skipped += group("docker::compose_2", hindrance, &environment)?;
        }
        Err(reason) => skipped += group("docker::", Some(&reason), &environment)?,
    }
    println!("{skipped} tests skipped");
    Ok(())
}

/// Runs the tests of this module, or shows them as ignored where there is a hindrance: how many it skipped.
pub fn group(module: &str, hindrance: Option<&str>, environment: &[(&str, OsString)]) -> Result<usize> {
    let sh = Shell::new()?;
    sh.change_dir(root()?);
    let test = || compiler::cargo(&sh).args(["test", "--locked", "--test", "it", "--"]).arg(module);
    let Some(reason) = hindrance else {
        test()
            .args(["--include-ignored", "--show-output"])
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .run()?;
        return Ok(0);
    };
    println!("{module} is skipped: {reason}");
    test().run()?;
    let list = test().args(["--list", "--ignored"]).quiet().ignore_stderr().read()?;
    Ok(list.lines().filter(|line| line.ends_with(": test")).count())
}

/// Why there is no Docker Compose 1, if so.
fn compose_1() -> Option<&'static str> {
    let version = Shell::new().and_then(|sh| cmd!(sh, "docker-compose version --short").quiet().ignore_stderr().read());
    let found = version.is_ok_and(|version| version.starts_with("1."));
    (!found).then_some("there is no docker-compose of version 1")
}
