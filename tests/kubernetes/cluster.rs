//! The cluster: its start, commands that use it, the registry of modules, and the hosts outside.

use crate::{
    keeper,
    pod::{DEADLINE, Pod, list},
    server::{self, Protocol},
};
use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::Value;
use std::{
    env,
    ffi::OsString,
    fs::{self, File},
    io::Write as _,
    net::SocketAddr,
    path::PathBuf,
    process::{self, Child, Command, Stdio},
    sync::{LazyLock, Mutex},
    thread,
    time::{Duration, Instant},
};
use testbed::Host;

/// The registry of modules. Its address is private, because crane speaks plain HTTP to private addresses only.
pub const REGISTRY: &str = "10.88.0.5:5000";

/// The host outside the cluster, by address family. Its DNS name is `destination.example.com`.
pub const OUTSIDE: [&str; 2] = ["198.51.100.7", "2001:db8::7"];
/// Another address of this host, which declared-externals/serviceentry-by-address.yaml declares.
pub const DECLARED: &str = "198.51.100.9";

/// The settings that differ from Istio's defaults. They are for test images with stock Envoy, which lacks Istio's own filters; for
/// both address families; and for a registry that speaks plain HTTP.
const ISTIO: [&str; 8] = [
    "profile=minimal",
    "hub=docker.io/istio",
    "values.pilot.env.PILOT_ENABLE_METADATA_EXCHANGE=false",
    "values.pilot.env.PILOT_ENABLE_ALPN_FILTER=false",
    "values.pilot.env.ISTIO_DUAL_STACK=true",
    "values.pilot.ipFamilyPolicy=PreferDualStack",
    "meshConfig.defaultConfig.proxyMetadata.ISTIO_DUAL_STACK=true",
    "meshConfig.defaultConfig.proxyMetadata.WASM_INSECURE_REGISTRIES=10.88.0.5:5000",
];

/// Returns istioctl's options for the Istio to install: `tests` for the pinned version, `previous` for an older one, or `cni` for
/// the pinned version with its CNI plugin instead of init containers.
fn istio() -> Result<Vec<String>> {
    let variant = env::var("SLUICE_ISTIO").unwrap_or_else(|_| "tests".into());
    let mut settings: Vec<String> = ISTIO.iter().map(|&setting| setting.into()).collect();
    settings.push(format!("tag={}", istio_tag()));
    match variant.as_str() {
        "tests" | "previous" => {}
        "cni" => settings.extend(
            [
                "components.cni.enabled=true",
                "values.cni.cniConfDir=/run/cni/configuration",
                "values.cni.cniBinDir=/run/cni/programs",
            ]
            .map(Into::into),
        ),
        other => bail!("SLUICE_ISTIO: {other:?}, expected one of: tests previous cni"),
    }
    Ok(settings.into_iter().flat_map(|setting| ["--set".into(), setting]).collect())
}

/// Returns the tag of Istio's images.
pub fn istio_tag() -> &'static str {
    if env::var("SLUICE_ISTIO").is_ok_and(|variant| variant == "previous") { "previous" } else { "tests" }
}

/// Expects that a client's sidecar was injected by the selected Istio.
fn expect_istio(client: &Pod) -> Result<()> {
    let variant = env::var("SLUICE_ISTIO").unwrap_or_default();
    let init = list(&client.object, "/spec/initContainers");
    let has = |name: &str| init.iter().any(|container| container["name"] == name);
    let image = format!("proxyv2:{}", istio_tag());
    ensure!(client.object["spec"].to_string().contains(&image), "{}: no image {image}", client.name);
    // With the plugin, a container validates the plugin's redirection.
    let (present, absent) =
        if variant == "cni" { ("istio-validation", "istio-init") } else { ("istio-init", "istio-validation") };
    ensure!(has(present) && !has(absent), "{}: {init:?}", client.name);
    Ok(())
}

/// A Kubernetes cluster of two nodes with Istio. It lives until this process ends.
pub struct Cluster {
    /// The cluster's own folder, which is removed with it.
    pub folder: PathBuf,
    tools: PathBuf,
    /// The network around the nodes: the control plane, the registries and the host outside.
    pub outside: Host,
    /// Holds the write end of the supervisor's input. The cluster is removed when this end is closed.
    _supervisor: Child,
    registry: Option<Child>,
    /// The reference of the shipped module in the registry.
    pub module: String,
    /// A copy of `istio/`, which tests edit as users do.
    pub manifests: PathBuf,
    pub clients: Vec<Pod>,
}

static CLUSTER: LazyLock<Mutex<Result<Cluster, String>>> =
    LazyLock::new(|| Mutex::new(Cluster::start().map_err(|error| format!("{error:#}"))));

/// Runs a test on the cluster that all tests share, one test at a time. The test must restore the state that it found.
pub fn on_cluster(test: impl FnOnce(&mut Cluster) -> Result<()>) -> Result<()> {
    let mut cluster = CLUSTER.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let cluster = cluster.as_mut().map_err(|error| anyhow!("the cluster did not start: {error}"))?;
    let started = Instant::now();
    let outcome = test(cluster);
    println!("{:.0} s", started.elapsed().as_secs_f32());
    outcome
}

impl Cluster {
    fn start() -> Result<Self> {
        let started = Instant::now();
        let tools: PathBuf =
            env::var_os("SLUICE_CLUSTER_TOOLS").context("make test-mesh sets SLUICE_CLUSTER_TOOLS")?.into();
        let folder = testbed::root().join(format!("target/kubernetes/sluice-{}", process::id()));
        fs::create_dir_all(&folder)?;
        let mut command = Command::new("sh");
        command
            .arg(testbed::root().join("tests/kubernetes/node/supervise.sh"))
            .arg(&folder)
            .arg(&tools)
            .stdin(Stdio::piped());
        let supervisor = keeper::run(move || command.spawn())?;
        let outside = control_plane(&folder)?;
        let manifests = folder.join("istio");
        let mut cluster = Self {
            folder,
            tools,
            outside,
            _supervisor: supervisor,
            registry: None,
            module: String::new(),
            manifests,
            clients: Vec::new(),
        };
        let step = |what: &str| eprintln!("{:5.1} s: {what}", started.elapsed().as_secs_f32());
        cluster.eventually("the API server", |cluster| cluster.kubectl(&["get", "--raw", "/readyz"]).map(drop))?;
        cluster.kubectl(&["apply", "--filename", "tests/data/kubernetes/dns.yaml"])?;
        cluster.eventually("two ready nodes", |cluster| {
            let nodes = list(&cluster.get(&["nodes"])?, "/items");
            let ready = |node: &&Value| {
                list(node, "/status/conditions").iter().any(|one| one["type"] == "Ready" && one["status"] == "True")
            };
            ensure!(nodes.iter().filter(ready).count() == 2, "{nodes:?}");
            Ok(())
        })?;
        step("nodes ready");
        let settings = istio()?;
        let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
        cluster.istioctl(&[&["install", "--skip-confirmation"], &settings[..]].concat())?;
        step("Istio installed");
        cluster.eventually("Istio's webhooks", |cluster| {
            cluster
                .kubectl(&["apply", "--validate=strict", "--filename", "tests/data/kubernetes/telemetry.yaml"])
                .map(drop)
        })?;
        for (port, first) in [
            (443, Protocol::ClientFirst),
            (80, Protocol::ClientFirst),
            (25, Protocol::ServerFirst),
            (5432, Protocol::ClientFirst),
            (7, Protocol::Echo),
        ] {
            server::start(&cluster.outside, port, first)?;
        }
        for address in OUTSIDE {
            server::start_udp(&cluster.outside, SocketAddr::new(address.parse()?, 4433))?;
        }
        cluster.start_registry()?;
        cluster.module = cluster.push_shipped()?;
        cluster.kubectl(&["apply", "--validate=strict", "--filename", "tests/data/kubernetes/backend.yaml"])?;
        cluster.fresh_manifests()?;
        cluster.apply()?;
        cluster.rolled_out("egress-routers", "egress-router1")?;
        cluster.rolled_out("egress-routers", "egress-router2")?;
        cluster.rolled_out("default", "backend")?;
        cluster.serve_backend()?;
        cluster.roll_clients_out()?;
        step("shipped manifests rolled out");
        cluster.clients.iter().try_for_each(expect_istio)?;
        Ok(cluster)
    }

    /// Returns the prefix of the names of its nodes' cgroups.
    pub fn name(&self) -> String {
        self.folder.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Returns the path of an administrator's kubeconfig, for programs in the network `outside`.
    pub fn kubeconfig(&self) -> PathBuf {
        self.folder.join("kubeconfig/admin")
    }

    /// Repeats an attempt until it succeeds. Returns the last error if it does not succeed within [`DEADLINE`].
    pub fn eventually(&self, what: &str, mut attempt: impl FnMut(&Self) -> Result<()>) -> Result<()> {
        let started = Instant::now();
        loop {
            let Err(error) = attempt(self) else { return Ok(()) };
            if started.elapsed() > DEADLINE {
                let pods = self.kubectl(&["get", "pods", "--all-namespaces", "--output", "wide"]).unwrap_or_default();
                let warnings = [
                    "get",
                    "events",
                    "--all-namespaces",
                    "--field-selector",
                    "type=Warning",
                    "--sort-by=.lastTimestamp",
                ];
                let events = self.kubectl(&warnings).unwrap_or_default();
                bail!(
                    "timed out after {DEADLINE:?} waiting for {what}: {error:#}\n{pods}{}",
                    crate::pod::tail(&events)
                );
            }
            thread::sleep(Duration::from_millis(200));
        }
    }

    /// Runs kubectl and returns its output.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.kubectl_with(arguments, "")
    }

    /// Runs kubectl with this input and returns its output.
    pub fn kubectl_with(&self, arguments: &[&str], input: &str) -> Result<String> {
        self.call("kubectl", arguments, input)
    }

    /// Runs kubectl in the network of another host and returns its output.
    pub fn kubectl_from(&self, host: &Host, arguments: &[&str]) -> Result<String> {
        self.call_from(host, "kubectl", arguments, "")
    }

    /// Runs `kubectl get` and returns its output as JSON.
    pub fn get(&self, arguments: &[&str]) -> Result<Value> {
        Ok(serde_json::from_str(&self.kubectl(&[&["get", "--output=json"], arguments].concat())?)?)
    }

    /// Runs istioctl and returns its output.
    pub fn istioctl(&self, arguments: &[&str]) -> Result<String> {
        let previous = env::var("SLUICE_ISTIO").is_ok_and(|variant| variant == "previous");
        self.call(if previous { "../previous/istioctl" } else { "istioctl" }, arguments, "")
    }

    fn call(&self, tool: &str, arguments: &[&str], input: &str) -> Result<String> {
        self.call_from(&self.outside, tool, arguments, input)
    }

    /// Starts a kubectl that prints until it is killed.
    pub fn spawn_kubectl(&self, arguments: &[&str]) -> Result<Child> {
        let mut command = self.command(&self.outside, "kubectl");
        Ok(command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?)
    }

    fn command(&self, host: &Host, tool: &str) -> Command {
        let mut command = host.command(&self.tools.join("bin").join(tool).to_string_lossy());
        command.env("KUBECONFIG", self.kubeconfig()).env("HOME", &self.folder).current_dir(testbed::root());
        command
    }

    fn call_from(&self, host: &Host, tool: &str, arguments: &[&str], input: &str) -> Result<String> {
        let mut command = self.command(host, tool);
        command.args(arguments);
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let mut stdin = process.stdin.take().context("no pipe to the process")?;
        let input = input.to_owned();
        let writer = thread::spawn(move || stdin.write_all(input.as_bytes()));
        let output = process.wait_with_output()?;
        _ = writer.join(); // fails if the program has ended without reading all of its input
        let stderr = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{tool} {}: {}: {stderr}", arguments.join(" "), output.status);
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Returns the running pods that a selector matches, without those that are being deleted.
    pub fn pods(&self, namespace: &str, selector: &str) -> Result<Vec<Pod>> {
        let pods = list(&self.get(&["--namespace", namespace, "pods", "--selector", selector])?, "/items");
        let live = pods.into_iter().filter(|pod| pod["metadata"].get("deletionTimestamp").is_none());
        live.map(|pod| Pod::started(self, pod)).collect()
    }

    /// Waits until all pods that a selector matches are ready, and returns them.
    pub fn ready_pods(&self, namespace: &str, selector: &str) -> Result<Vec<Pod>> {
        let selector = format!("--selector={selector}");
        self.kubectl(&["wait", "pods", "--namespace", namespace, &selector, "--for=condition=Ready", "--timeout=90s"])?;
        self.pods(namespace, selector.trim_start_matches("--selector="))
    }

    /// Waits until a Deployment is rolled out.
    pub fn rolled_out(&self, namespace: &str, deployment: &str) -> Result<()> {
        let name = format!("deployment/{deployment}");
        let status = self.kubectl(&["rollout", "status", "--namespace", namespace, &name, "--timeout=90s"]);
        status
            .map(drop)
            .or_else(|error| self.eventually(&format!("the rollout of {deployment}"), |_| bail!("{error:#}")))
    }

    /// Starts the registry of modules.
    pub fn start_registry(&mut self) -> Result<()> {
        let config = self.folder.join("registry.yaml");
        let text = format!(
            "version: 0.1\nstorage: {{ filesystem: {{ rootdirectory: {} }} }}\nhttp: {{ addr: '{REGISTRY}' }}\n",
            self.folder.join("registry").display()
        );
        fs::write(&config, text)?;
        let log = File::create(self.folder.join("logs/registry.log"))?;
        let mut command = self.outside.command("setpriv");
        command.args(["--pdeathsig", "KILL", "--", "docker-registry", "serve"]).arg(config);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        self.registry = Some(keeper::run(move || command.spawn())?);
        self.eventually("the registry", |cluster| {
            cluster.outside.run(|| crate::get(&format!("http://{REGISTRY}/v2/"))).map(drop)
        })
    }

    /// Stops the registry of modules.
    pub fn end_registry(&mut self) -> Result<()> {
        let mut registry = self.registry.take().context("no registry runs")?;
        registry.kill()?;
        registry.wait()?;
        Ok(())
    }

    /// Runs `make oci-push` and returns the reference that it prints.
    fn push_shipped(&self) -> Result<String> {
        let output = self.task(&["oci-push", &format!("{REGISTRY}/sluice:shipped")])?.output()?;
        let (stdout, stderr) =
            (String::from_utf8(output.stdout)?, String::from_utf8_lossy(&output.stderr).into_owned());
        let reference = stdout.lines().find(|line| line.starts_with("oci://") && !line.contains("-compat"));
        Ok(reference.with_context(|| format!("{}: {stdout}{stderr}", output.status))?.to_owned())
    }

    /// Pushes a copy of the shipped module with another digest, due to a custom section, and returns its reference.
    pub fn push_another(&self, tag: &str) -> Result<String> {
        let mut module = fs::read(testbed::root().join(testbed::DIST))?;
        let length = u8::try_from(tag.len())?;
        module.extend([0, length + 1, length]);
        module.extend(tag.as_bytes());
        let folder = self.folder.join(tag);
        fs::create_dir_all(&folder)?;
        fs::write(folder.join("plugin.wasm"), module)?;
        let tar = folder.join("plugin.tar");
        let done = Command::new("tar").arg("-cf").arg(&tar).arg("-C").arg(&folder).arg("plugin.wasm").status()?;
        ensure!(done.success(), "tar: {done}");
        let reference = format!("{REGISTRY}/sluice:{tag}");
        let append = ["append", "--oci-empty-base", "-f", &tar.to_string_lossy(), "-t", &reference];
        Ok(format!("oci://{}", self.call("crane", &append, "")?.trim()))
    }

    /// Runs `make verify`. Returns whether it succeeded, and its output.
    pub fn verify(&self, to: Option<&str>) -> Result<(bool, String)> {
        self.run_verify(to, &[])
    }

    /// Runs `make verify` with these environment variables.
    pub fn verify_with(&self, variables: &[(&str, &str)]) -> Result<(bool, String)> {
        self.run_verify(None, variables)
    }

    fn run_verify(&self, to: Option<&str>, variables: &[(&str, &str)]) -> Result<(bool, String)> {
        let arguments: Vec<&str> = ["verify"].into_iter().chain(to).collect();
        let mut command = self.task(&arguments)?;
        let output = command.env("MANIFESTS", &self.manifests).envs(variables.iter().copied()).output()?;
        let printed = [output.stdout, output.stderr].concat();
        Ok((output.status.success(), String::from_utf8(printed)?))
    }

    /// Returns a command that runs a task of xtask outside the cluster, with the cluster's tools first in PATH.
    fn task(&self, arguments: &[&str]) -> Result<Command> {
        let xtask = env::var("SLUICE_XTASK").context("make test-mesh sets SLUICE_XTASK")?;
        let path: OsString = env::join_paths(
            [self.tools.join("bin")].into_iter().chain(env::split_paths(&env::var_os("PATH").context("PATH")?)),
        )?;
        let mut command = self.outside.command(&xtask);
        command.args(arguments).env("PATH", path).env("KUBECONFIG", self.kubeconfig()).current_dir(testbed::root());
        Ok(command)
    }
}

/// Waits until the control plane has started. Returns its network, which is that of the first process in its namespaces.
fn control_plane(folder: &std::path::Path) -> Result<Host> {
    let started = Instant::now();
    while !folder.join("started").exists() {
        if started.elapsed() > DEADLINE {
            let log = fs::read_to_string(folder.join("cluster.log")).unwrap_or_default();
            bail!("the control plane did not start within {DEADLINE:?}:\n{}", crate::pod::tail(&log));
        }
        thread::sleep(Duration::from_millis(50));
    }
    let unshare = fs::read_to_string(folder.join("unshare.pid"))?;
    let unshare = unshare.trim();
    let children = fs::read_to_string(format!("/proc/{unshare}/task/{unshare}/children"))?;
    Host::of_process(children.trim().parse().context("unshare has no child")?)
}
