//! Kubernetes' and Istio's control planes: etcd, the API server and the controllers of Deployments, endpoints and
//! service accounts on a host of their own; istiod as a pod, from the manifest that istioctl generates.

use super::{
    keeper,
    pod::{self, Cluster, Data, Image, Pod, list, text},
};
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use std::{
    cell::RefCell,
    env,
    fs::{self, File},
    io::Write as _,
    net::IpAddr,
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};
use testbed::{Host, Network, envoy, root};

/// How long anything of the control planes may take.
pub const DEADLINE: Duration = Duration::from_secs(90);

/// Addresses as kind gives them: the control plane is the first host among the pods.
const ADDRESS: &str = "10.244.0.2";
const API: &str = "10.96.0.1";
/// Endpoints are those of pods on a node.
const NODE: &str = "this-machine";
const TOKEN: &str = "of-the-tests";

/// The control planes and the pods' network.
pub struct ControlPlane {
    pub network: Network,
    pub host: Host,
    pub folder: PathBuf,
    pub tools: PathBuf,
    envoy: PathBuf,
    hosts: RefCell<Vec<(String, String)>>,
    processes: Vec<(&'static str, Child)>,
    /// Here so that it lasts.
    _istiod: Option<Pod>,
}

impl ControlPlane {
    /// Starts Kubernetes.
    pub fn start() -> Result<Self> {
        let tools = env::var_os("SLUICE_MESH_TOOLS").context("make test-mesh sets SLUICE_MESH_TOOLS")?;
        let folder = root().join("target/mesh/run");
        if folder.exists() {
            fs::remove_dir_all(&folder)?;
        }
        fs::create_dir_all(&folder)?;
        let network = Network::new()?;
        let host = network.host(&[&format!("{ADDRESS}/16"), &format!("{API}/32"), "fd00:10:244::2/56"])?;
        let mut plane = Self {
            network,
            host,
            folder,
            tools: tools.into(),
            envoy: envoy::program()?,
            hosts: RefCell::default(),
            processes: Vec::new(),
            _istiod: None,
        };
        plane.kubernetes()?;
        Ok(plane)
    }

    fn kubernetes(&mut self) -> Result<()> {
        let folder = self.folder.join("kubernetes");
        fs::create_dir_all(&folder)?;
        let at = |name: &str| folder.join(name).to_string_lossy().into_owned();
        fs::write(at("tokens.csv"), format!("{TOKEN},tests,tests,\"system:masters\"\n"))?;
        let key = Command::new("openssl").args(["genrsa", "-out", &at("key.pem"), "2048"]).output()?;
        ensure!(key.status.success(), "openssl: {}", String::from_utf8_lossy(&key.stderr));
        let kubeconfig = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "tests",
            "clusters": [{"name": "tests", "cluster": {"server": format!("https://{ADDRESS}"), "insecure-skip-tls-verify": true}}],
            "users": [{"name": "tests", "user": {"token": TOKEN}}],
            "contexts": [{"name": "tests", "context": {"cluster": "tests", "user": "tests"}}],
        });
        fs::write(self.kubeconfig(), kubeconfig.to_string())?;
        let etcd = format!("--data-dir={} --listen-peer-urls=http://127.0.0.1:2380", at("etcd"));
        self.daemon("etcd", "etcd".into(), &format!("{etcd} --unsafe-no-fsync"))?;
        let flags = [
            "--etcd-servers=http://127.0.0.1:2379 --secure-port=443 --authorization-mode=RBAC",
            "--service-cluster-ip-range=10.96.0.0/16,fd00:10:96::/112 --allow-privileged",
            "--service-account-issuer=https://kubernetes.default.svc --api-audiences=https://kubernetes.default.svc,istio-ca",
            &format!("--advertise-address={ADDRESS} --cert-dir={} --token-auth-file={}", at("certs"), at("tokens.csv")),
            &format!("--service-account-key-file={0} --service-account-signing-key-file={0}", at("key.pem")),
        ];
        self.daemon("kube-apiserver", self.tool("kube-apiserver"), &flags.join(" "))?;
        self.eventually("the API server", |plane| plane.kubectl(&["get", "--raw", "/readyz"]).map(drop))?;
        let controllers = [
            "deployment-controller,replicaset-controller,endpointslice-controller",
            "serviceaccount-controller,root-ca-certificate-publisher-controller",
        ];
        let flags = [
            &format!("--kubeconfig={} --leader-elect=false", self.kubeconfig()),
            &format!("--root-ca-file={} --controllers={}", at("certs/apiserver.crt"), controllers.join(",")),
        ];
        self.daemon(
            "kube-controller-manager",
            self.tool("kube-controller-manager"),
            &flags.map(String::as_str).join(" "),
        )?;
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE}});
        self.kubectl_with(&["create", "-f", "-"], &node.to_string())?;
        self.eventually("service accounts", |plane| plane.kubectl(&["get", "serviceaccount", "default"]).map(drop))
    }

    /// Installs Istio with the settings that stock Envoy needs and waits until istiod is ready.
    pub fn istio(&mut self, settings: &[&str]) -> Result<()> {
        let mut arguments = vec!["manifest", "generate", "--set", "profile=minimal"];
        for setting in settings {
            arguments.extend(["--set", setting]);
        }
        let manifest = self.istioctl(&arguments)?;
        fs::write(self.folder.join("istio.yaml"), &manifest)?;
        self.kubectl(&["create", "namespace", "istio-system"])?;
        let apply = ["apply", "--server-side", "--force-conflicts", "-f", "-"];
        // The kinds that the first pass defines are known to the second.
        if self.kubectl_with(&apply, &manifest).is_err() {
            self.eventually("Istio's manifest", |plane| plane.kubectl_with(&apply, &manifest).map(drop))?;
        }
        let pod = self.pods("istio-system", "app=istiod", 1)?.remove(0);
        let service = self.get(&["--namespace", "istio-system", "service", "istiod"])?;
        let address = text(&service, "/spec/clusterIP")?.to_owned();
        self.hosts.borrow_mut().push((address.clone(), "istiod.istio-system.svc".to_owned()));
        let istiod = self.start_pod(pod, &["10.244.0.3", "fd00:10:244::3"], &[&address])?;
        istiod.host.call("iptables", "-t nat -A PREROUTING -p tcp --dport 443 -j REDIRECT --to-ports 15017")?;
        self._istiod = Some(istiod);
        self.eventually("istiod's webhooks", |plane| {
            plane
                .kubectl(&["get", "mutatingwebhookconfiguration,validatingwebhookconfiguration", "-o", "json"])
                .and_then(|text| {
                    let hooks: Value = serde_json::from_str(&text)?;
                    for hook in list(&hooks, "/items").iter().flat_map(|item| list(item, "/webhooks")) {
                        ensure!(hook["clientConfig"].get("caBundle").is_some(), "{} has no CA", hook["name"]);
                    }
                    Ok(())
                })
        })
    }

    /// The pods of a Deployment, once the API server has as many.
    pub fn pods(&self, namespace: &str, selector: &str, count: usize) -> Result<Vec<Value>> {
        let mut pods = Vec::new();
        self.eventually(&format!("{count} pods {selector}"), |plane| {
            pods = list(&plane.get(&["--namespace", namespace, "pods", "--selector", selector])?, "/items");
            pods.retain(|pod| pod["metadata"].get("deletionTimestamp").is_none());
            ensure!(pods.len() == count, "there are {}", pods.len());
            Ok(())
        })?;
        Ok(pods)
    }

    /// Runs a pod of the API server at these addresses. In place of kube-proxy, it has the addresses of the services that
    /// have no other pod.
    pub fn run_pod(&self, mut spec: Value, addresses: &[&str], services: &[&str]) -> Result<Pod> {
        spec["spec"]["nodeName"] = json!(NODE);
        let prefixed =
            |address: &&str| if address.contains(':') { format!("{address}/56") } else { format!("{address}/16") };
        let mut local: Vec<String> = addresses.iter().map(prefixed).collect();
        local.extend(services.iter().map(|address| format!("{address}/32")));
        let host = self.network.host(&local.iter().map(String::as_str).collect::<Vec<_>>())?;
        let parsed: Vec<IpAddr> = addresses.iter().map(|address| address.parse()).collect::<Result<_, _>>()?;
        let ips: Vec<Value> = addresses.iter().map(|address| json!({"ip": address})).collect();
        let status = json!({"status": {"phase": "Pending", "podIP": addresses[0], "podIPs": ips}});
        let namespace = text(&spec, "/metadata/namespace")?.to_owned();
        let name = text(&spec, "/metadata/name")?.to_owned();
        let binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": name}, "target": {"kind": "Node", "name": NODE}});
        let path = format!("/api/v1/namespaces/{namespace}/pods/{name}/binding");
        self.kubectl_with(&["create", "--raw", &path, "-f", "-"], &binding.to_string())?;
        self.report(&namespace, &name, &status)?;
        Pod::start(self, spec, host, parsed, &self.folder.join("pods"))
    }

    fn report(&self, namespace: &str, name: &str, status: &Value) -> Result<()> {
        let status = status.to_string();
        let patch = ["patch", "pod", "-n", namespace, name, "--subresource=status", "--type=merge", "-p", &status];
        self.kubectl(&patch).map(drop)
    }

    /// Waits until a pod is ready and tells the API server.
    pub fn await_ready(&self, pod: &mut Pod) -> Result<()> {
        pod.await_ready()?;
        let ready = ["Ready", "ContainersReady"].map(|kind| json!({"type": kind, "status": "True"}));
        self.report(&pod.namespace, &pod.name, &json!({"status": {"phase": "Running", "conditions": ready}}))
    }

    /// Runs a pod so and waits until it is ready.
    pub fn start_pod(&self, spec: Value, addresses: &[&str], services: &[&str]) -> Result<Pod> {
        let mut pod = self.run_pod(spec, addresses, services)?;
        self.await_ready(&mut pod)?;
        Ok(pod)
    }

    pub fn kubeconfig(&self) -> String {
        self.folder.join("kubeconfig").to_string_lossy().into_owned()
    }

    fn tool(&self, name: &str) -> PathBuf {
        self.tools.join(name)
    }

    /// What kubectl prints.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.kubectl_with(arguments, "")
    }

    /// What kubectl prints on another host.
    pub fn kubectl_on(&self, host: &Host, arguments: &[&str]) -> Result<String> {
        self.call(host, "kubectl", arguments, "")
    }

    /// What kubectl prints when it reads this.
    pub fn kubectl_with(&self, arguments: &[&str], input: &str) -> Result<String> {
        self.call(&self.host, "kubectl", arguments, input)
    }

    /// What kubectl gets, as JSON.
    pub fn get(&self, arguments: &[&str]) -> Result<Value> {
        Ok(serde_json::from_str(&self.kubectl(&[&["get", "--output=json"], arguments].concat())?)?)
    }

    /// What istioctl prints.
    pub fn istioctl(&self, arguments: &[&str]) -> Result<String> {
        self.call(&self.host, "istioctl", arguments, "")
    }

    /// What crane prints.
    pub fn crane(&self, arguments: &[&str]) -> Result<String> {
        self.call(&self.host, "crane", arguments, "")
    }

    fn call(&self, host: &Host, tool: &str, arguments: &[&str], input: &str) -> Result<String> {
        let mut command = host.command(&self.tool(tool).to_string_lossy());
        command.args(arguments).env("KUBECONFIG", self.kubeconfig()).env("HOME", &self.folder).current_dir(root());
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let mut stdin = process.stdin.take().context("a pipe")?;
        let input = input.to_owned();
        let writer = thread::spawn(move || stdin.write_all(input.as_bytes()));
        let output = process.wait_with_output()?;
        _ = writer.join(); // it fails where the program did, without having read all
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{tool} {}: {}: {said}", arguments.join(" "), output.status);
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Starts a program that lasts as long as this process.
    fn daemon(&mut self, name: &'static str, program: PathBuf, arguments: &str) -> Result<()> {
        self.daemon_on(&self.host.clone(), name, program, arguments)
    }

    /// The same, on another host.
    pub fn daemon_on(&mut self, host: &Host, name: &'static str, program: PathBuf, arguments: &str) -> Result<()> {
        let log = File::create(self.folder.join(format!("{name}.log")))?;
        let mut command = host.command("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(program).args(arguments.split(' '));
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).current_dir(&self.folder);
        let process = keeper::run(move || command.spawn()).with_context(|| format!("cannot start {name}"))?;
        self.processes.push((name, process));
        Ok(())
    }

    /// Ends a program that was started so.
    pub fn end(&mut self, name: &str) -> Result<()> {
        let index = self.processes.iter().position(|(running, _)| *running == name);
        let (_, mut process) = self.processes.remove(index.with_context(|| format!("no {name} runs"))?);
        process.kill()?;
        process.wait()?;
        Ok(())
    }

    /// Tries until it succeeds; the last reason where it never does.
    pub fn eventually(&self, what: &str, mut attempt: impl FnMut(&Self) -> Result<()>) -> Result<()> {
        let started = Instant::now();
        loop {
            let Err(error) = attempt(self) else { return Ok(()) };
            if started.elapsed() > DEADLINE {
                let logs: String = self
                    .processes
                    .iter()
                    .map(|(name, _)| {
                        let log = fs::read(self.folder.join(format!("{name}.log"))).unwrap_or_default();
                        format!("\n{name}:\n{}", pod::tail(&String::from_utf8_lossy(&log)))
                    })
                    .collect();
                bail!("{what}: not within {DEADLINE:?}: {error:#}{logs}");
            }
            thread::sleep(Duration::from_millis(100));
        }
    }
}

impl Cluster for ControlPlane {
    fn image(&self, reference: &str) -> Result<Image> {
        let bootstrap = (self.tool("envoy_bootstrap.json"), "/var/lib/istio/envoy/envoy_bootstrap_tmpl.json");
        let envoy = (self.envoy.clone(), "/usr/local/bin/envoy");
        let name = reference.rsplit_once('/').map_or(reference, |(_, name)| name);
        Ok(match name.split([':', '@']).next().unwrap_or_default() {
            "pilot" => Image {
                files: vec![(self.tool("pilot-discovery"), "/usr/local/bin/pilot-discovery"), bootstrap],
                entrypoint: "/usr/local/bin/pilot-discovery",
            },
            "proxyv2" => Image {
                files: vec![(self.tool("pilot-agent"), "/usr/local/bin/pilot-agent"), envoy, bootstrap],
                entrypoint: "/usr/local/bin/pilot-agent",
            },
            "envoy" => Image { files: vec![envoy], entrypoint: "/docker-entrypoint.sh" },
            "busybox" => Image { files: vec![("/usr/bin/busybox".into(), "/usr/local/bin/nc")], entrypoint: "sh" },
            _ => bail!("{reference}: an image that these tests do not know"),
        })
    }

    fn config_map(&self, namespace: &str, name: &str) -> Result<Option<Data>> {
        let found = self.kubectl(&["get", "configmap", "-n", namespace, name, "--ignore-not-found", "-o", "json"])?;
        if found.is_empty() {
            return Ok(None);
        }
        let map: Value = serde_json::from_str(&found)?;
        let mut data = Vec::new();
        for (key, value) in map["data"].as_object().into_iter().flatten() {
            data.push((key.clone(), value.as_str().context("data")?.as_bytes().to_owned()));
        }
        for (key, _) in map["binaryData"].as_object().into_iter().flatten() {
            let template = format!("go-template={{{{index .binaryData {key:?} | base64decode}}}}");
            let mut command = self.host.command(&self.tool("kubectl").to_string_lossy());
            command.env("KUBECONFIG", self.kubeconfig()).args(["get", "configmap", "-n", namespace, name, "-o"]);
            data.push((key.clone(), command.arg(template).output()?.stdout));
        }
        Ok(Some(data))
    }

    fn token(&self, pod: &Value, audience: Option<&str>) -> Result<String> {
        let (namespace, name) = (text(pod, "/metadata/namespace")?, text(pod, "/metadata/name")?);
        let account = text(pod, "/spec/serviceAccountName")?;
        let bound = ["--bound-object-kind=Pod", "--bound-object-name", name];
        let audience = audience.map(|audience| format!("--audience={audience}"));
        let mut arguments = vec!["create", "token", account, "-n", namespace];
        arguments.extend(bound);
        arguments.extend(audience.as_deref());
        Ok(self.kubectl(&arguments)?.trim().to_owned())
    }

    fn environment(&self) -> Vec<(String, String)> {
        vec![("KUBERNETES_SERVICE_HOST".into(), API.into()), ("KUBERNETES_SERVICE_PORT".into(), "443".into())]
    }

    fn hosts(&self) -> String {
        let services = self.hosts.borrow();
        let services = services.iter().map(|(address, name)| format!("{address} {name}\n"));
        format!("127.0.0.1 localhost\n::1 localhost\n{}", services.collect::<String>())
    }
}
