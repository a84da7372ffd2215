//! Everything that runs: a cluster with Istio and the shipped manifests, a registry, and a host outside.

use super::{
    control_plane::ControlPlane,
    get,
    pod::{Pod, list, text},
    server::{self, First, Seen},
};
use anyhow::{Context, Result, anyhow, ensure};
use serde_json::Value;
use std::{
    env, fs,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
    sync::{LazyLock, Mutex},
};
use testbed::Host;

/// A private address, as crane speaks plain HTTP to no other.
pub const REGISTRY: &str = "10.88.0.5:5000";

/// Where the connections go that leave the mesh.
pub const OUTSIDE: [&str; 2] = ["198.51.100.7", "2001:db8::7"];
/// The same host, as declared-externals/serviceentry-by-address.yaml has it.
pub const DECLARED: &str = "198.51.100.9";

/// The last octets of the routers' pods. Those of the clients are 10 and up, and no two clients have the same.
const ROUTERS: [(&str, [&str; 2]); 2] = [("egress-router1", ["201", "202"]), ("egress-router2", ["211", "212"])];
const BACKEND: &str = "10.244.0.221";

/// What differs from an Istio as it comes: stock Envoy has none of Istio's own filters, addresses are of both families,
/// and the registry speaks plain HTTP.
const SETTINGS: [&str; 6] = [
    "values.pilot.env.PILOT_ENABLE_METADATA_EXCHANGE=false",
    "values.pilot.env.PILOT_ENABLE_ALPN_FILTER=false",
    "values.pilot.env.ISTIO_DUAL_STACK=true",
    "values.pilot.ipFamilyPolicy=PreferDualStack",
    "meshConfig.defaultConfig.proxyMetadata.ISTIO_DUAL_STACK=true",
    "meshConfig.defaultConfig.proxyMetadata.WASM_INSECURE_REGISTRIES=10.88.0.5:5000",
];

pub struct Cluster {
    pub plane: ControlPlane,
    /// A copy of the shipped folder, in which the module's reference is edited as a user does it.
    pub manifests: PathBuf,
    /// The module's reference there.
    pub module: String,
    pub clients: Vec<Pod>,
    pub routers: Vec<Pod>,
    pub backend: Pod,
    _outside: Host,
    pub registry: Host,
    next_client: u8,
}

static CLUSTER: LazyLock<Mutex<Result<Cluster, String>>> =
    LazyLock::new(|| Mutex::new(Cluster::start().map_err(|error| format!("{error:#}"))));

/// Runs a test on the cluster, which all tests share, alone; it leaves it as it found it.
pub fn on_it(test: impl FnOnce(&mut Cluster) -> Result<()>) -> Result<()> {
    let mut cluster = CLUSTER.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    test(cluster.as_mut().map_err(|error| anyhow!("the cluster did not start: {error}"))?)
}

impl Cluster {
    fn start() -> Result<Self> {
        let mut plane = ControlPlane::start()?;
        plane.istio(&SETTINGS)?;
        let [four, six] = OUTSIDE;
        let outside = plane.network.host(&[&format!("{four}/24"), &format!("{DECLARED}/24"), &format!("{six}/64")])?;
        for (port, first) in
            [(443, First::Client), (80, First::Client), (25, First::Server), (5432, First::Client), (7, First::Echo)]
        {
            server::start(&outside, port, first)?;
        }
        let registry = plane.network.host(&["10.88.0.5/24"])?;
        start_registry(&mut plane, &registry)?;
        let module = push_shipped(&plane)?;
        plane.eventually("the webhooks", |plane| {
            plane.kubectl(&["apply", "--validate=strict", "-f", "tests/data/mesh/telemetry.yaml"]).map(drop)
        })?;
        plane.kubectl(&["apply", "--validate=strict", "-f", "tests/data/mesh/backend.yaml"])?;
        let backend = plane.pods("default", "app=backend", 1)?.remove(0);
        let backend = plane.start_pod(backend, &[BACKEND], &[&service_address(&plane, "backend")?])?;
        for port in [80, 5432] {
            server::start(&backend.host, port, First::Client)?;
        }
        let manifests = plane.folder.join("istio");
        let mut cluster = Self {
            plane,
            manifests,
            module,
            clients: Vec::new(),
            routers: Vec::new(),
            backend,
            _outside: outside,
            registry,
            next_client: 10,
        };
        cluster.fresh_manifests()?;
        cluster.apply()?;
        for (name, octets) in ROUTERS {
            for (spec, octet) in cluster.plane.pods("default", &format!("app={name}"), 2)?.into_iter().zip(octets) {
                cluster.routers.push(cluster.start_pod(spec, octet)?);
            }
        }
        cluster.roll_clients_out()?;
        Ok(cluster)
    }

    fn start_pod(&self, spec: Value, octet: &str) -> Result<Pod> {
        self.plane.start_pod(spec, &[&format!("10.244.0.{octet}"), &format!("fd00:10:244::{octet}")], &[])
    }

    /// The shipped manifests with the module of this cluster, and nothing else edited.
    pub fn fresh_manifests(&self) -> Result<()> {
        if self.manifests.exists() {
            fs::remove_dir_all(&self.manifests)?;
        }
        let done = Command::new("cp").arg("-r").arg(testbed::root().join("istio")).arg(&self.manifests).status()?;
        ensure!(done.success(), "cp: {done}");
        self.edit("settings.yaml", "  module: ", &self.module)
    }

    /// Edits the line of a manifest that begins so.
    pub fn edit(&self, file: &str, begin: &str, end: &str) -> Result<()> {
        let path = self.manifests.join(file);
        let text = fs::read_to_string(&path)?;
        ensure!(text.lines().filter(|line| line.starts_with(begin)).count() == 1, "{file}: not one line {begin:?}");
        let edited = text
            .lines()
            .map(|line| if line.starts_with(begin) { format!("{begin}{end}\n") } else { format!("{line}\n") });
        Ok(fs::write(path, edited.collect::<String>())?)
    }

    /// Applies the manifests as a user does, but strictly.
    pub fn apply(&self) -> Result<String> {
        self.plane.kubectl(&["apply", "--validate=strict", "-k", &self.manifests.to_string_lossy()])
    }

    /// Applies and waits until every client's sidecar has taken what it says of the module.
    pub fn apply_until(&self, what: &str, taken: impl Fn(&Value) -> bool) -> Result<()> {
        self.apply()?;
        self.plane.eventually(what, |_| {
            for client in &self.clients {
                let filter = extension(client)?;
                ensure!(taken(&filter), "{}: {filter}\n{}", client.name, super::pod::tail(&client.log("istio-proxy")));
            }
            Ok(())
        })
    }

    /// Ends the clients and runs those that their Deployment gets instead, without waiting for them to be ready.
    pub fn replace_clients(&mut self) -> Result<()> {
        for client in self.clients.drain(..) {
            self.plane.kubectl(&["delete", "pod", &client.name, "--force", "--grace-period=0"])?;
        }
        for spec in self.plane.pods("default", "app=client", 2)? {
            let octet = self.client_octet();
            let addresses = [format!("10.244.0.{octet}"), format!("fd00:10:244::{octet}")];
            self.clients.push(self.plane.run_pod(spec, &addresses.each_ref().map(String::as_str), &[])?);
        }
        Ok(())
    }

    fn client_octet(&mut self) -> u8 {
        self.next_client += 1;
        self.next_client - 1
    }

    /// What a Deployment's controller does with the clients is done with their pods; each gets an address of its own.
    pub fn roll_clients_out(&mut self) -> Result<()> {
        let started = std::time::Instant::now();
        loop {
            let pods = list(&self.plane.get(&["pods", "--selector=app=client"])?, "/items");
            for spec in pods {
                let name = text(&spec, "/metadata/name")?.to_owned();
                let known = self.clients.iter().position(|client| client.name == name);
                if spec["metadata"].get("deletionTimestamp").is_some() {
                    known.map(|index| self.clients.remove(index));
                    self.plane.kubectl(&[
                        "delete",
                        "pod",
                        &name,
                        "--force",
                        "--grace-period=0",
                        "--ignore-not-found",
                    ])?;
                } else if known.is_none() {
                    let octet = self.client_octet().to_string();
                    self.clients.push(self.start_pod(spec, &octet)?);
                }
            }
            let status = self.plane.get(&["deployment", "client"])?;
            let count = |name: &str| status["status"][name].as_u64().unwrap_or(0);
            let current = status["metadata"]["generation"] == status["status"]["observedGeneration"];
            let rolled_out =
                ["updatedReplicas", "availableReplicas", "replicas"].into_iter().all(|name| count(name) == 2);
            // The Deployment does not count a pod that is still to be ended here.
            if current && rolled_out && self.clients.len() == 2 {
                return Ok(());
            }
            ensure!(started.elapsed() < super::control_plane::DEADLINE, "the clients are not rolled out: {status}");
        }
    }

    /// The Deployment whose pod has this address.
    pub fn router(&self, address: IpAddr) -> &str {
        let found = self.routers.iter().find(|router| router.addresses.contains(&address));
        found.map_or("none", |router| &router.name[.."egress-router1".len()])
    }

    /// Connects and expects the router of the source's parity, and the destination that was asked for.
    pub fn expect_routed(&self, client: &Pod, to: SocketAddr, say: &[u8]) -> Result<Seen> {
        let seen = server::ask(&client.host, to, say).with_context(|| format!("{} → {to}", client.name))?;
        let expected = expected_router(source(client, to));
        ensure!((self.router(seen.from), seen.to) == (expected, to), "{} → {to}: {seen:?}", source(client, to));
        Ok(seen)
    }

    /// Connects from each client and expects that nobody hears of it.
    pub fn expect_refused(&self, to: SocketAddr, say: &[u8]) -> Result<()> {
        for client in &self.clients {
            let seen = server::ask(&client.host, to, say);
            ensure!(seen.is_err(), "{} → {to}: {seen:?}", client.name);
        }
        Ok(())
    }

    /// Pushes a module that does the same and is another file, as it has a custom section of this name more, in the form of
    /// an image, and gives its reference.
    pub fn push_another(&self, tag: &str) -> Result<String> {
        let mut module = fs::read(testbed::root().join(testbed::DIST))?;
        let length = u8::try_from(tag.len())?;
        module.extend([0, length + 1, length]);
        module.extend(tag.as_bytes());
        let folder = self.plane.folder.join(tag);
        fs::create_dir_all(&folder)?;
        fs::write(folder.join("plugin.wasm"), module)?;
        let tar = folder.join("plugin.tar");
        let done = Command::new("tar").arg("-cf").arg(&tar).arg("-C").arg(&folder).arg("plugin.wasm").status()?;
        ensure!(done.success(), "tar: {done}");
        let reference = format!("{REGISTRY}/sluice:{tag}");
        let pushed =
            self.plane.crane(&["append", "--oci-empty-base", "-f", &tar.to_string_lossy(), "-t", &reference])?;
        Ok(format!("oci://{}", pushed.trim()))
    }

    /// Whether a task of xtask that asks the cluster succeeds, and what it prints. There is no kubelet here, so what it asks
    /// of one is answered by tests/data/mesh/kubectl.
    pub fn verify(&self, arguments: &[&str]) -> Result<(bool, String)> {
        let mut command = task(&self.plane, &testbed::root().join("tests/data/mesh"), arguments)?;
        command
            .env("SLUICE_PODS", self.plane.folder.join("pods"))
            .env("SLUICE_KUBECTL", self.plane.tools.join("kubectl"));
        let output = command.output()?;
        let said = [output.stdout, output.stderr].concat();
        Ok((output.status.success(), String::from_utf8(said)?))
    }

    /// Starts the registry that was ended by [`ControlPlane::end`].
    pub fn restart_registry(&mut self) -> Result<()> {
        let host = self.registry.clone();
        start_registry(&mut self.plane, &host)
    }
}

/// The address of a client that is of the destination's family.
pub fn source(client: &Pod, to: SocketAddr) -> IpAddr {
    *client.addresses.iter().find(|address| address.is_ipv4() == to.is_ipv4()).expect("both families")
}

/// The router of a source by its last octet.
pub fn expected_router(source: IpAddr) -> &'static str {
    let last = match source {
        IpAddr::V4(address) => address.octets()[3],
        IpAddr::V6(address) => address.octets()[15],
    };
    ROUTERS[usize::from(last % 2)].0
}

/// The configuration of the filter that a sidecar's Envoy has by discovery.
pub fn extension(client: &Pod) -> Result<Value> {
    let dump: Value = serde_json::from_str(&admin(client, "/config_dump")?)?;
    let filters: Vec<Value> =
        list(&dump, "/configs").into_iter().flat_map(|config| list(&config, "/ecds_filters")).collect();
    let found = filters.iter().find(|filter| filter["ecds_filter"]["name"] == "sluice");
    Ok(found.with_context(|| format!("no sluice among {filters:?}"))?["ecds_filter"]["typed_config"].clone())
}

/// The file that the filter's module is in, in the sidecar.
pub fn module_file(filter: &Value) -> Option<&str> {
    filter.pointer("/config/vm_config/code/local/filename")?.as_str()
}

/// What a sidecar's Envoy answers.
pub fn admin(pod: &Pod, path: &str) -> Result<String> {
    pod.host.run(|| get(&format!("http://127.0.0.1:15000{path}")))
}

/// The counters and gauges of a sidecar's Envoy whose name is so.
pub fn stats(pod: &Pod, named: impl Fn(&str) -> bool) -> Result<Vec<(String, u64)>> {
    let stats = admin(pod, "/stats")?;
    let stats = stats.lines().filter_map(|line| {
        let (name, value) = line.rsplit_once(": ")?;
        named(name).then_some((name.to_owned(), value.parse().ok()?))
    });
    Ok(stats.collect())
}

/// Where a service is reached.
pub fn service_address(plane: &ControlPlane, name: &str) -> Result<String> {
    Ok(text(&plane.get(&["service", name])?, "/spec/clusterIP")?.to_owned())
}

fn start_registry(plane: &mut ControlPlane, host: &Host) -> Result<()> {
    let config = plane.folder.join("registry.yaml");
    let storage = plane.folder.join("registry");
    let text = format!(
        "version: 0.1\nstorage: {{ filesystem: {{ rootdirectory: {} }} }}\nhttp: {{ addr: '{REGISTRY}' }}\n",
        storage.display()
    );
    fs::write(&config, text)?;
    plane.daemon_on(host, "registry", "docker-registry".into(), &format!("serve {}", config.display()))?;
    plane.eventually("the registry", |_| host.run(|| get(&format!("http://{REGISTRY}/v2/"))).map(drop))
}

/// `make oci-push`, and the reference that it prints.
fn push_shipped(plane: &ControlPlane) -> Result<String> {
    let reference = format!("{REGISTRY}/sluice:shipped");
    let output = task(plane, &plane.tools, &["oci-push", &reference])?.output()?;
    let (said, why) = (String::from_utf8(output.stdout)?, String::from_utf8_lossy(&output.stderr).into_owned());
    let reference = said.lines().find(|line| line.starts_with("oci://") && !line.contains("-compat"));
    Ok(reference.with_context(|| format!("{}: {said}{why}", output.status))?.to_owned())
}

/// A task of xtask on the control plane's host, with these programs first in PATH.
fn task(plane: &ControlPlane, programs: &Path, arguments: &[&str]) -> Result<Command> {
    let xtask = env::var("SLUICE_XTASK").context("make test-mesh sets SLUICE_XTASK")?;
    let mut path = vec![programs.to_owned()];
    path.extend(env::split_paths(&env::var_os("PATH").context("PATH")?));
    let mut command = plane.host.command(&xtask);
    command.args(arguments).env("PATH", env::join_paths(path)?).env("KUBECONFIG", plane.kubeconfig());
    command.current_dir(testbed::root());
    Ok(command)
}
