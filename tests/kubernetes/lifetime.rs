//! The removal of a cluster.

use anyhow::{Context, Result, ensure};
use std::{
    env, fs,
    path::Path,
    process::{self, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

/// The supervisor's input closes whenever the test process ends, even after `kill -9`.
#[test]
fn a_cluster_is_removed_completely_when_its_test_ends() -> Result<()> {
    let tools = env::var_os("SLUICE_CLUSTER_TOOLS").context("make test-mesh sets SLUICE_CLUSTER_TOOLS")?;
    let name = format!("sluice-ended-{}", process::id());
    let folder = testbed::root().join("target/kubernetes").join(&name);
    fs::create_dir_all(&folder)?;
    let script = testbed::root().join("tests/kubernetes/node/supervise.sh");
    let mut supervisor = Command::new("sh").arg(script).arg(&folder).arg(tools).stdin(Stdio::piped()).spawn()?;
    let kubelets = || processes(&name, "kubelet");
    let started = within_a_minute(|| folder.join("started").exists() && kubelets() == 2 && cgroups(&name) > 0);
    drop(supervisor.stdin.take());
    ensure!(started, "the cluster did not start: {} kubelets, {} cgroups", kubelets(), cgroups(&name));
    ensure!(supervisor.wait()?.success(), "the supervisor failed");
    ensure!(!folder.exists(), "{} is left", folder.display());
    ensure!(cgroups(&name) == 0, "{} cgroups are left", cgroups(&name));
    ensure!(processes(&name, "") == 0, "{} processes are left", processes(&name, ""));
    Ok(())
}

fn within_a_minute(condition: impl Fn() -> bool) -> bool {
    let started = Instant::now();
    while !condition() {
        if started.elapsed() > Duration::from_secs(60) {
            return false;
        }
        thread::sleep(Duration::from_millis(100));
    }
    true
}

/// Returns the number of processes of this cluster whose program has this name.
fn processes(cluster: &str, program: &str) -> usize {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let lines = entries.filter_map(|entry| fs::read_to_string(entry.path().join("cmdline")).ok());
    lines
        .filter(|line| line.contains(cluster) && line.split('\0').next().unwrap_or_default().ends_with(program))
        .count()
}

/// Returns the number of the cluster's cgroups at the top of the hierarchies.
fn cgroups(cluster: &str) -> usize {
    let named = |folder: &Path| {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(cluster)).count()
    };
    let hierarchies = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten();
    hierarchies.map(|hierarchy| named(&hierarchy.path())).sum::<usize>() + named(Path::new("/sys/fs/cgroup"))
}
