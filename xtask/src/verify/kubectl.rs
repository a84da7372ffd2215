//! kubectl, within limits of time and output, and the parts of a pod that the checks read.

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::{
    io::{self, Read},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

/// The time that one kubectl may take, so that a node or sidecar that hangs does not block the other checks.
const LIMIT: Duration = Duration::from_secs(30);

/// The maximum number of bytes that one kubectl may print, so that the log or the configuration of one pod cannot fill the memory.
const MAX_OUTPUT: u64 = 256 << 20;

/// Returns what kubectl prints. Fails if kubectl fails, takes too long or prints too much.
pub fn kubectl(arguments: &[&str]) -> Result<String> {
    let mut command = Command::new("kubectl");
    let process = command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut process = process.context("cannot start kubectl")?;
    let output = read(process.stdout.take().context("a pipe")?);
    let error = read(process.stderr.take().context("a pipe")?);
    let started = Instant::now();
    let status = loop {
        if let Some(status) = process.try_wait()? {
            break status;
        }
        if started.elapsed() > LIMIT {
            process.kill()?;
            process.wait()?;
            bail!("no answer within {LIMIT:?}: kubectl {}", arguments.join(" "));
        }
        thread::sleep(Duration::from_millis(10));
    };
    let (output, error) = (output.join().expect("no panic")?, error.join().expect("no panic")?);
    ensure!(status.success(), "kubectl {}: {status}: {}", arguments.join(" "), error.trim());
    Ok(output)
}

fn read(pipe: impl Read + Send + 'static) -> thread::JoinHandle<io::Result<String>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        // If kubectl writes more than is read here, its pipe breaks and it ends.
        let length = pipe.take(MAX_OUTPUT + 1).read_to_end(&mut bytes)?;
        if length as u64 > MAX_OUTPUT {
            return Err(io::Error::other(format!("more than {MAX_OUTPUT} bytes of output")));
        }
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    })
}

/// Returns the pods of all namespaces that match a selector and have not ended.
pub fn pods(selector: &str) -> Result<Vec<Value>> {
    let pods = kubectl(&["get", "pods", "--all-namespaces", "--selector", selector, "--output", "json"])?;
    let pods: Value = serde_json::from_str(&pods)?;
    // Pending too: a sidecar that is not ready keeps its application from starting.
    let live = |pod: &Value| {
        let ended = ["Succeeded", "Failed"].iter().any(|phase| pod["status"]["phase"] == *phase);
        !ended && pod["metadata"].get("deletionTimestamp").is_none()
    };
    Ok(list(&pods["items"]).into_iter().filter(live).collect())
}

/// The elements of an array; empty for anything else.
pub fn list(value: &Value) -> Vec<Value> {
    value.as_array().cloned().unwrap_or_default()
}

pub fn name(pod: &Value) -> Result<&str> {
    pod["metadata"]["name"].as_str().context("a pod without a name")
}

/// Returns a pod's addresses, one of each family.
pub fn addresses(pod: &Value) -> Vec<String> {
    list(&pod["status"]["podIPs"]).iter().filter_map(|ip| Some(ip["ip"].as_str()?.to_owned())).collect()
}

pub fn namespace(pod: &Value) -> Result<&str> {
    pod["metadata"]["namespace"].as_str().context("a pod without a namespace")
}

/// Returns what a command prints in a container.
pub fn exec(pod: &Value, container: &str, command: &[&str]) -> Result<String> {
    let exec = ["exec", "--namespace", namespace(pod)?, name(pod)?, "--container", container, "--"];
    kubectl(&[&exec, command].concat())
}

/// Returns the log of a container with a timestamp on each line.
pub fn log(pod: &Value, container: &str, since: &str) -> Result<String> {
    kubectl(&["logs", "--namespace", namespace(pod)?, name(pod)?, "--container", container, "--timestamps", since])
}

/// Returns the EnvoyFilter `sluice` of a namespace, or an empty text if there is none.
pub fn envoy_filter(namespace: &str) -> Result<String> {
    kubectl(&["get", "envoyfilters", "sluice", "--namespace", namespace, "--ignore-not-found", "--output", "json"])
}

/// Returns the answer of the Envoy admin interface on port 15000 of a pod, through a container that has pilot-agent.
pub fn admin(pod: &Value, container: &str, path: &str) -> Result<String> {
    exec(pod, container, &["pilot-agent", "request", "GET", path])
}

/// Returns the answer of [`admin`] as JSON.
pub fn admin_json(pod: &Value, container: &str, path: &str) -> Result<Value> {
    let answer = admin(pod, container, path)?;
    // The agent's own log lines may come first.
    let start = if answer.starts_with('{') { 0 } else { answer.find("\n{").context("the answer is not JSON")? };
    Ok(serde_json::from_str(&answer[start..])?)
}
