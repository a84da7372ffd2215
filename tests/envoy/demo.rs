//! Runs and interrupts `make demo` as a user does.

use anyhow::{Context, Result};
use std::{
    env, fs,
    io::{BufRead, BufReader, Read},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};
use testbed::{Module, for_each_module};

fn demo() -> Result<Child> {
    Ok(command()?.spawn()?)
}

fn command() -> Result<Command> {
    let xtask = env::var_os("SLUICE_XTASK").context("make test sets SLUICE_XTASK")?;
    let mut command = Command::new("env");
    // A shell ignores SIGINT in the processes that it starts in the background.
    command.arg("--default-signal=INT").arg(xtask).arg("demo").current_dir(testbed::root());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    Ok(command)
}

for_each_module!(the_demo_shows_the_egress_of_each_source);

fn the_demo_shows_the_egress_of_each_source(module: Module) -> Result<()> {
    let (name, file) = match module {
        Module::Wasm => ("wasm", "sluice.wasm"),
        Module::Native => ("native", "libsluice.so"),
    };
    let output = command()?.env("MODULE", name).output()?;
    let shown = String::from_utf8(output.stdout)?;
    assert!(output.status.success(), "{shown}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(shown.lines().any(|line| line.starts_with("module ") && line.contains(file)), "{shown}");
    let rows: Vec<Vec<&str>> = shown
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .filter(|words| words.len() == 5 && words[1].starts_with("egress"))
        .collect();
    assert!(rows.len() >= 8, "{shown}");
    assert!(rows.iter().all(|row| row[1] == row[2]), "{shown}");
    for (source, egress) in [("127.0.0.2", "egress1"), ("127.0.0.3", "egress2")] {
        assert!(rows.iter().any(|row| row[0] == source && row[1] == egress), "{shown}");
    }
    Ok(())
}

#[test]
fn the_demo_without_a_network_namespace_explains_its_ipv6_sources() -> Result<()> {
    let folder = tempfile::tempdir()?;
    std::os::unix::fs::symlink("/bin/false", folder.path().join("unshare"))?;
    let path = env::join_paths(
        [folder.path().to_owned()].into_iter().chain(env::split_paths(&env::var_os("PATH").context("PATH")?)),
    )?;
    let output = command()?.env("PATH", path).output()?;
    let shown = String::from_utf8(output.stdout)?;
    assert!(output.status.success(), "{shown}");
    assert!(!shown.contains("2001:db8"), "{shown}");
    assert_eq!(shown.matches("\nIPv6: ").count(), 1, "{shown}");
    Ok(())
}

#[test]
fn the_demo_reports_why_it_fails() -> Result<()> {
    let output = command()?.env("ENVOY", "/bin/false").output()?;
    let why = String::from_utf8(output.stderr)?;
    assert!(!output.status.success() && why.contains("error: Envoy did not start: exit status: 1"), "{why}");
    let output = command()?.env("ENVOY", "/nowhere").output()?;
    let why = String::from_utf8(output.stderr)?;
    assert!(!output.status.success() && why.contains("error: ENVOY: /nowhere is not a program"), "{why}");
    let output = command()?.env("MODULE", "dynamic").output()?;
    let why = String::from_utf8(output.stderr)?;
    assert!(
        !output.status.success() && why.contains("error: MODULE: \"dynamic\", expected one of: wasm native"),
        "{why}"
    );
    Ok(())
}

#[test]
fn an_interrupted_demo_leaves_no_process_behind() -> Result<()> {
    let mut demo = demo()?;
    // The demo prints this line once Envoy runs.
    let mut lines = BufReader::new(demo.stdout.take().context("standard output is not a pipe")?).lines();
    let listener = lines.find(|line| line.as_ref().is_ok_and(|line| line.starts_with("listener")));
    if listener.is_none() {
        let mut why = String::new();
        demo.stderr.take().context("standard error is not a pipe")?.read_to_string(&mut why)?;
        panic!("the demo ended early: {why}");
    }
    let children = children(demo.id())?;
    assert_eq!(children.len(), 1, "Envoy must be the only child of the demo");
    testbed::kill(demo.id(), testbed::Signal::SIGINT)?;
    assert!(!demo.wait()?.success(), "the demo was not interrupted");
    let started = Instant::now();
    while alive(children[0]) {
        assert!(started.elapsed() < testbed::DEADLINE, "Envoy outlives the demo");
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

fn children(parent: u32) -> Result<Vec<u32>> {
    let mut children = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Ok(id) = entry?.file_name().to_string_lossy().parse() else { continue };
        if status(id).is_some_and(|(of, _)| of == parent) {
            children.push(id);
        }
    }
    Ok(children)
}

fn alive(id: u32) -> bool {
    status(id).is_some_and(|(_, state)| state != "Z")
}

/// Returns the parent and the state of a process, or `None` if there is no process with this id.
fn status(id: u32) -> Option<(u32, String)> {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    let (_, after_name) = stat.rsplit_once(") ")?;
    let mut fields = after_name.split(' ');
    let state = fields.next()?.to_owned();
    Some((fields.next()?.parse().ok()?, state))
}
