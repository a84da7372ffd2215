//! Pods of the cluster, as the API server describes them, and their network namespaces.

use crate::cluster::Cluster;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::{
    ffi::OsStr,
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};
use testbed::Host;

/// A pod that runs on a node.
#[derive(Clone)]
pub struct Pod {
    pub name: String,
    pub namespace: String,
    pub node: String,
    /// Of both families.
    pub addresses: Vec<IpAddr>,
    /// Its network namespace. What connects from there is seen by its sidecar as the application is.
    pub host: Host,
    /// The API server's object.
    pub object: Value,
}

impl Pod {
    /// A pod that has been started; fails as long as it has no address or no process.
    pub fn started(cluster: &Cluster, object: Value) -> Result<Self> {
        let name = text(&object, "/metadata/name")?.to_owned();
        let node = text(&object, "/spec/nodeName").with_context(|| name.clone())?.to_owned();
        let addresses = list(&object, "/status/podIPs")
            .iter()
            .map(|ip| Ok(text(ip, "/ip")?.parse()?))
            .collect::<Result<Vec<_>>>()?;
        ensure!(!addresses.is_empty(), "{name} has no address");
        let process = process(cluster, &node, text(&object, "/metadata/uid")?).with_context(|| name.clone())?;
        let namespace = text(&object, "/metadata/namespace")?.to_owned();
        Ok(Self { name, namespace, node, addresses, host: Host::of_process(process)?, object })
    }

    /// The address of the destination's family, which a connection to it has as its source.
    pub fn source(&self, to: IpAddr) -> IpAddr {
        *self.addresses.iter().find(|address| address.is_ipv4() == to.is_ipv4()).expect("both families")
    }

    /// What a container wrote, standard output and error.
    pub fn log(&self, cluster: &Cluster, container: &str) -> Result<String> {
        cluster.kubectl(&["logs", "--namespace", &self.namespace, &self.name, "--container", container])
    }

    /// Runs a command in a container and returns what it printed.
    pub fn exec(&self, cluster: &Cluster, container: &str, command: &[&str]) -> Result<String> {
        let exec = ["exec", "--namespace", &self.namespace, &self.name, "--container", container, "--"];
        cluster.kubectl(&[&exec, command].concat())
    }

    /// The name of the router that this pod belongs to, if it is one.
    pub fn app(&self) -> &str {
        self.object["metadata"]["labels"]["app"].as_str().unwrap_or_default()
    }
}

/// A process of the pod, by this machine's numbers, from the pod's cgroup on its node.
fn process(cluster: &Cluster, node: &str, uid: &str) -> Result<u32> {
    let hierarchies = ["/sys/fs/cgroup/pids", "/sys/fs/cgroup"]; // of cgroup v1 and v2
    let node = hierarchies.map(|hierarchy| Path::new(hierarchy).join(format!("{}-{node}", cluster.name())));
    let pod = format!("pod{uid}");
    let folder = node.iter().find_map(|node| find(node, 3, &|name| name == pod.as_str()));
    let folder = folder.with_context(|| format!("no cgroup {pod}"))?;
    let containers = fs::read_dir(&folder)?.flatten().map(|entry| entry.path().join("cgroup.procs"));
    let processes: String = containers.filter_map(|file| fs::read_to_string(file).ok()).collect();
    Ok(processes.lines().next().with_context(|| format!("no process in {}", folder.display()))?.parse()?)
}

/// Finds a folder by name, at most this many levels down.
fn find(folder: &Path, levels: usize, named: &dyn Fn(&OsStr) -> bool) -> Option<PathBuf> {
    let folders: Vec<PathBuf> =
        fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
    let here = folders.iter().find(|path| path.file_name().is_some_and(named)).cloned();
    here.or_else(|| folders.iter().filter(|_| levels > 1).find_map(|path| find(path, levels - 1, named)))
}

/// The text at a JSON pointer.
pub fn text<'a>(value: &'a Value, pointer: &str) -> Result<&'a str> {
    value.pointer(pointer).and_then(Value::as_str).with_context(|| format!("no text at {pointer} in {value}"))
}

/// The items at a JSON pointer; empty if there is no list.
pub fn list(value: &Value, pointer: &str) -> Vec<Value> {
    value.pointer(pointer).and_then(Value::as_array).cloned().unwrap_or_default()
}

/// The last lines of a log, for messages.
pub fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(25)..].join("\n")
}

/// How long anything of the cluster may take.
pub const DEADLINE: Duration = Duration::from_secs(90);
