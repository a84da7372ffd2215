//! The pods of the cluster, their descriptions from the API server, and their network namespaces.

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
    /// The addresses of both families.
    pub addresses: Vec<IpAddr>,
    /// The network namespace. The sidecar treats connections from there like those of the application.
    pub host: Host,
    /// The object of the API server.
    pub object: Value,
}

impl Pod {
    /// Returns a started pod. Fails as long as the pod has no address or no process.
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

    /// Returns the source address of connections to this destination: the pod's address of the same family.
    pub fn source(&self, to: IpAddr) -> IpAddr {
        *self
            .addresses
            .iter()
            .find(|address| address.is_ipv4() == to.is_ipv4())
            .expect("the pod has no address of this family")
    }

    /// Returns the standard output and error of a container.
    pub fn log(&self, cluster: &Cluster, container: &str) -> Result<String> {
        cluster.kubectl(&["logs", "--namespace", &self.namespace, &self.name, "--container", container])
    }

    /// Returns the access log of a container's Envoy: the lines of its output that are JSON objects.
    pub fn entries(&self, cluster: &Cluster, container: &str) -> Result<Vec<Value>> {
        let log = self.log(cluster, container)?;
        Ok(log.lines().filter_map(|line| serde_json::from_str(line).ok()).filter(Value::is_object).collect())
    }

    /// Runs a command in a container and returns its output.
    pub fn exec(&self, cluster: &Cluster, container: &str, command: &[&str]) -> Result<String> {
        let exec = ["exec", "--namespace", &self.namespace, &self.name, "--container", container, "--"];
        cluster.kubectl(&[&exec, command].concat())
    }

    /// Returns the folder of a container's memory cgroup, by the container's status.
    pub fn cgroup(&self, cluster: &Cluster, status: &Value) -> Result<PathBuf> {
        cgroup(cluster, "memory", &self.node, text(status, "/containerID")?.trim_start_matches("containerd://"))
    }

    /// Returns the label `app`, which is the name of the router for a router's pod.
    pub fn app(&self) -> &str {
        self.object["metadata"]["labels"]["app"].as_str().unwrap_or_default()
    }
}

/// Applies manifests, runs `test`, deletes the manifests and waits until their pods are deleted too.
pub fn with_applied(cluster: &Cluster, manifests: &str, test: impl FnOnce() -> Result<()>) -> Result<()> {
    let applied = cluster.kubectl_with(&["apply", "--validate=strict", "-f", "-"], manifests);
    let outcome = applied.and_then(|_| test());
    cluster.kubectl_with(&["delete", "--ignore-not-found", "--cascade=foreground", "-f", "-"], manifests)?;
    outcome
}

/// Returns the manifest of a pod with these labels and annotations, which are in YAML's flow style.
pub fn manifest(namespace: &str, name: &str, labels: &str, annotations: &str, command: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata:\n  namespace: {namespace}\n  name: {name}\n  labels: {{ {labels} }}\n  \
         annotations: {{ {annotations} }}\nspec: {}\n",
        specification(command)
    )
}

/// Returns the specification of a pod in flow style: a busybox container that runs `command` in a shell, with the clients' service
/// account. `$IPS` holds the pod's addresses.
pub fn specification(command: &str) -> String {
    format!(
        "{{ serviceAccountName: client, automountServiceAccountToken: false, terminationGracePeriodSeconds: 1, restartPolicy: Never, containers: [{{ \
         name: app, image: docker.io/library/busybox, command: [sh, -c, '{command}'], \
         env: [{{ name: IPS, valueFrom: {{ fieldRef: {{ fieldPath: status.podIPs }} }} }}] }}] }}"
    )
}

/// Returns the id of the process with this name in a pod's network.
pub fn process_of(pod: &Pod, name: &str) -> Result<u32> {
    let network = pod.host.run(|| fs::read_link("/proc/thread-self/ns/net"))?;
    let processes = fs::read_dir("/proc")?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let of_pod = |id: &u32| {
        fs::read_link(format!("/proc/{id}/ns/net")).is_ok_and(|link| link == network)
            && fs::read_to_string(format!("/proc/{id}/comm")).is_ok_and(|found| found.trim() == name)
    };
    processes.into_iter().find(of_pod).with_context(|| format!("{}: no process {name}", pod.name))
}

/// Returns the id of a process of the pod in this machine's PID namespace, from the pod's cgroup on its node.
fn process(cluster: &Cluster, node: &str, uid: &str) -> Result<u32> {
    let folder = cgroup(cluster, "pids", node, &format!("pod{uid}"))?;
    let containers = fs::read_dir(&folder)?.flatten().map(|entry| entry.path().join("cgroup.procs"));
    let processes: String = containers.filter_map(|file| fs::read_to_string(file).ok()).collect();
    Ok(processes.lines().next().with_context(|| format!("no process in {}", folder.display()))?.parse()?)
}

/// Returns the folder of a cgroup of a node by its name, in this hierarchy of cgroup v1 or in cgroup v2.
fn cgroup(cluster: &Cluster, hierarchy: &str, node: &str, name: &str) -> Result<PathBuf> {
    let hierarchies = [Path::new("/sys/fs/cgroup").join(hierarchy), PathBuf::from("/sys/fs/cgroup")];
    let node = hierarchies.map(|hierarchy| hierarchy.join(format!("{}-{node}", cluster.name())));
    node.iter().find_map(|node| find(node, 4, &|folder| folder == name)).with_context(|| format!("no cgroup {name}"))
}

/// Finds a folder by name, at most `levels` levels down.
fn find(folder: &Path, levels: usize, named: &dyn Fn(&OsStr) -> bool) -> Option<PathBuf> {
    let folders: Vec<PathBuf> =
        fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
    let here = folders.iter().find(|path| path.file_name().is_some_and(named)).cloned();
    here.or_else(|| folders.iter().filter(|_| levels > 1).find_map(|path| find(path, levels - 1, named)))
}

/// Returns the string at a JSON pointer.
pub fn text<'a>(value: &'a Value, pointer: &str) -> Result<&'a str> {
    value.pointer(pointer).and_then(Value::as_str).with_context(|| format!("no string at {pointer} in {value}"))
}

/// Returns the items of the list at a JSON pointer, or nothing if there is no list.
pub fn list(value: &Value, pointer: &str) -> Vec<Value> {
    value.pointer(pointer).and_then(Value::as_array).cloned().unwrap_or_default()
}

/// Returns the last lines of a log, for error messages.
pub fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(25)..].join("\n")
}

/// The timeout of every operation of the cluster.
pub const DEADLINE: Duration = Duration::from_secs(90);
