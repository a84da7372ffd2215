//! What a kubelet does, without containers: runs the pods that the API server has, each in a network namespace of its
//! own, each container in namespaces of its own on this machine's programs, with the arguments, environment, volumes,
//! user and restrictions that its specification names.

use super::keeper;
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::{
    fmt::Write as _,
    fs::{self, File},
    net::IpAddr,
    path::{Path, PathBuf},
    process::{Child, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};
use testbed::Host;

/// How long a container may take until it is ready.
const READY: Duration = Duration::from_secs(90);

/// What an image brings: files of this machine and where they stand in it, and what is called if the specification does
/// not say.
pub struct Image {
    pub files: Vec<(PathBuf, &'static str)>,
    pub entrypoint: &'static str,
}

/// The entries of a ConfigMap.
pub type Data = Vec<(String, Vec<u8>)>;

/// Where a pod's data come from that its specification only names.
pub trait Cluster {
    /// The image of this reference.
    fn image(&self, reference: &str) -> Result<Image>;
    /// A ConfigMap; none where there is none.
    fn config_map(&self, namespace: &str, name: &str) -> Result<Option<Data>>;
    /// A token of the pod's service account for this audience.
    fn token(&self, pod: &Value, audience: Option<&str>) -> Result<String>;
    /// Environment that each container gets.
    fn environment(&self) -> Vec<(String, String)>;
    /// The text of /etc/hosts.
    fn hosts(&self) -> String;
}

/// A pod that runs. Dropping it ends its containers.
pub struct Pod {
    pub name: String,
    pub namespace: String,
    pub addresses: Vec<IpAddr>,
    pub host: Host,
    folder: PathBuf,
    spec: Value,
    containers: Vec<(String, Child)>,
}

impl Pod {
    /// Runs the init containers and starts the others, sidecars included.
    pub fn start(cluster: &impl Cluster, spec: Value, host: Host, addresses: Vec<IpAddr>, runs: &Path) -> Result<Self> {
        let name = text(&spec, "/metadata/name")?.to_owned();
        let namespace = text(&spec, "/metadata/namespace")?.to_owned();
        let folder = runs.join(&namespace).join(&name);
        let mut pod = Self { name, namespace, addresses, host, folder, spec, containers: Vec::new() };
        fs::create_dir_all(&pod.folder)?;
        for volume in list(&pod.spec, "/spec/volumes") {
            pod.volume(cluster, &volume).with_context(|| format!("{}: volume {}", pod.name, volume["name"]))?;
        }
        for container in list(&pod.spec, "/spec/initContainers") {
            let sidecar = container["restartPolicy"] == "Always";
            pod.run(cluster, &container, !sidecar).with_context(|| format!("{}: {}", pod.name, container["name"]))?;
        }
        for container in list(&pod.spec, "/spec/containers") {
            pod.run(cluster, &container, false).with_context(|| format!("{}: {}", pod.name, container["name"]))?;
        }
        Ok(pod)
    }

    /// What a container wrote, standard output and error.
    pub fn log(&self, container: &str) -> String {
        let log = fs::read(self.folder.join(format!("{container}.log"))).unwrap_or_default();
        String::from_utf8_lossy(&log).into_owned()
    }

    /// Waits until the probes of all containers succeed.
    pub fn await_ready(&mut self) -> Result<()> {
        let containers = [list(&self.spec, "/spec/initContainers"), list(&self.spec, "/spec/containers")].concat();
        for container in containers {
            let name = text(&container, "/name")?;
            let started = Instant::now();
            while container.get("readinessProbe").is_some() && !self.probe(&container)? {
                let running = self.containers.iter_mut().find(|(running, _)| running == name);
                if let Some(status) = running.context("not started")?.1.try_wait()? {
                    bail!("{} {name} ended: {status}\n{}", self.name, tail(&self.log(name)));
                }
                let late = started.elapsed() > READY;
                ensure!(!late, "{} {name} is not ready after {READY:?}:\n{}", self.name, tail(&self.log(name)));
                thread::sleep(Duration::from_millis(100));
            }
        }
        Ok(())
    }

    fn probe(&self, container: &Value) -> Result<bool> {
        let probe = &container["readinessProbe"];
        let port = |port: &Value| -> Result<u16> {
            let number = port.as_u64().or_else(|| {
                let named = list(container, "/ports").into_iter().find(|candidate| candidate["name"] == *port)?;
                named["containerPort"].as_u64()
            });
            Ok(u16::try_from(number.context("a probe of a port that is not there")?)?)
        };
        let address = self.addresses[0];
        if let Some(tcp) = probe.get("tcpSocket") {
            let port = port(&tcp["port"])?;
            return Ok(self.host.run(|| std::net::TcpStream::connect((address, port)).is_ok()));
        }
        let http = probe.get("httpGet").context("a probe that is neither httpGet nor tcpSocket")?;
        let url = format!("http://{address}:{}{}", port(&http["port"])?, text(http, "/path")?);
        Ok(self.host.run(|| super::get(&url).is_ok()))
    }

    fn volume(&self, cluster: &impl Cluster, volume: &Value) -> Result<()> {
        let folder = self.folder.join("volumes").join(text(volume, "/name")?);
        fs::create_dir_all(&folder)?;
        // emptyDir is writable by the container's user, whoever that is.
        fs::set_permissions(&folder, std::os::unix::fs::PermissionsExt::from_mode(0o777))?;
        let sources = match volume.get("projected") {
            Some(projected) => list(projected, "/sources"),
            None => vec![volume.clone()],
        };
        for source in sources {
            if let Some(map) = source.get("configMap") {
                let optional = map["optional"] == true;
                let Some(data) = cluster.config_map(&self.namespace, text(map, "/name")?)? else {
                    ensure!(optional, "there is no ConfigMap {}", map["name"]);
                    continue;
                };
                let items = list(map, "/items");
                for (key, value) in data {
                    let renamed = items.iter().find(|item| item["key"] == key).map(|item| text(item, "/path"));
                    let path = renamed.transpose()?.unwrap_or(&key);
                    fs::write(folder.join(path), value)?;
                }
            } else if let Some(token) = source.get("serviceAccountToken") {
                let token_text = cluster.token(&self.spec, token["audience"].as_str())?;
                fs::write(folder.join(text(token, "/path")?), token_text)?;
            } else if let Some(downward) = source.get("downwardAPI") {
                for item in list(downward, "/items") {
                    let value = self.field(text(&item, "/fieldRef/fieldPath")?)?;
                    fs::write(folder.join(text(&item, "/path")?), value)?;
                }
            } else if let Some(secret) = source.get("secret") {
                ensure!(secret["optional"] == true, "a Secret, of which the tests have none");
            } else {
                ensure!(source.get("emptyDir").is_some(), "a volume of another kind: {source}");
            }
        }
        Ok(())
    }

    /// A field of the pod, as the downward API gives it.
    fn field(&self, path: &str) -> Result<String> {
        Ok(match path {
            "status.podIP" | "status.hostIP" => self.addresses[0].to_string(),
            "metadata.labels" | "metadata.annotations" => {
                let mut lines = String::new();
                for (key, value) in self.spec.pointer(&pointer(path)).and_then(Value::as_object).context("a map")? {
                    writeln!(lines, "{key}={value}")?; // a JSON string is quoted and escaped as the kubelet does it
                }
                lines
            }
            _ => text(&self.spec, &pointer(path))?.to_owned(),
        })
    }

    fn environment(&self, cluster: &impl Cluster, container: &Value) -> Result<Vec<(String, String)>> {
        let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        let mut environment = vec![("PATH".to_owned(), path.to_owned())];
        environment.extend(cluster.environment());
        for variable in list(container, "/env") {
            let value = if let Some(path) = variable.pointer("/valueFrom/fieldRef/fieldPath") {
                self.field(path.as_str().context("a path")?)?
            } else if let Some(limit) = variable.pointer("/valueFrom/resourceFieldRef/resource") {
                limit_of(container, limit.as_str().context("a resource")?)?
            } else {
                variable["value"].as_str().unwrap_or_default().to_owned()
            };
            let value = expand(&value, &environment);
            environment.push((text(&variable, "/name")?.to_owned(), value));
        }
        Ok(environment)
    }

    fn run(&mut self, cluster: &impl Cluster, container: &Value, to_its_end: bool) -> Result<()> {
        let name = text(container, "/name")?.to_owned();
        let image = cluster.image(text(container, "/image")?)?;
        let environment = self.environment(cluster, container)?;
        let mut words: Vec<String> = strings(container, "/command");
        if words.is_empty() {
            words.push(image.entrypoint.to_owned());
        }
        words.extend(strings(container, "/args"));
        let words: Vec<String> = words.iter().map(|word| expand(word, &environment)).collect();
        let script = self.script(cluster, container, &image, &environment, &words)?;
        let path = self.folder.join(format!("{name}.sh"));
        fs::write(&path, script)?;
        let log = File::create(self.folder.join(format!("{name}.log")))?;
        // Whatever a container starts ends with it: it is the first process of a namespace of its own. And it ends with
        // us, as the thread that starts it lasts as long as we do.
        let mut command = self.host.command("setpriv");
        command.args(["--pdeathsig", "KILL", "--", "unshare", "--mount", "--pid", "--fork", "--kill-child=KILL", "--"]);
        command.args(["sh", "-e"]).arg(&path).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let mut process = keeper::run(move || command.spawn())?;
        if to_its_end {
            let status: ExitStatus = process.wait()?;
            ensure!(status.success(), "{status}:\n{}", tail(&self.log(&name)));
        } else {
            fs::write(self.folder.join(format!("{name}.id")), process.id().to_string())?; // for tests/data/mesh/kubectl
            self.containers.push((name, process));
        }
        Ok(())
    }

    /// What makes the container's root folder and starts it there.
    fn script(
        &self,
        cluster: &impl Cluster,
        container: &Value,
        image: &Image,
        environment: &[(String, String)],
        words: &[String],
    ) -> Result<String> {
        let root = self.folder.join("root");
        fs::create_dir_all(&root)?;
        let mut script = String::new();
        writeln!(script, "mount -t tmpfs -o mode=755 tmpfs {0}\ncd {0}", quote(&root.to_string_lossy()))?;
        script.push_str(concat!(
            "mkdir usr etc proc dev run var\n",
            "mkdir -m 1777 tmp\n",
            "ln -s usr/bin usr/sbin usr/lib usr/lib64 .\n",
            "ln -s /run var/run\n",
            "mount --rbind -o ro /usr usr\n",
            "mount -t tmpfs tmpfs usr/local\n",
            "mkdir usr/local/bin\n",
            "mount --rbind /dev dev\n",
            "mount -t proc proc proc\n",
            "for each in alternatives ssl protocols ethertypes ld.so.cache; do\n",
            "    ! [ -e /etc/$each ] || cp -a /etc/$each etc/\n",
            "done\n",
            "echo 'root:x:0:0::/:/bin/sh' >etc/passwd\n",
            "echo 'root:x:0:' >etc/group\n",
            ": >etc/resolv.conf\n",
        ));
        writeln!(script, "printf %s {} >etc/hosts", quote(&cluster.hosts()))?;
        for (file, place) in &image.files {
            let place = place.trim_start_matches('/');
            let folder = Path::new(place).parent().context("a folder")?.to_string_lossy().into_owned();
            writeln!(
                script,
                "mkdir -p {folder}; touch {place}; mount --bind {} {place}",
                quote(&file.to_string_lossy())
            )?;
        }
        for mount in list(container, "/volumeMounts") {
            let place = text(&mount, "/mountPath")?.replace("/var/run/", "/run/");
            let place = place.trim_start_matches('/').to_owned();
            let volume = self.folder.join("volumes").join(text(&mount, "/name")?);
            let read_only = if mount["readOnly"] == true { "-o ro " } else { "" };
            writeln!(script, "mkdir -p {place}; mount {read_only}--bind {} {place}", quote(&volume.to_string_lossy()))?;
        }
        let security = &container["securityContext"];
        if security["readOnlyRootFilesystem"] == true {
            script.push_str("mount -o remount,ro .\n");
        }
        let user = security["runAsUser"].as_u64();
        ensure!(security["runAsNonRoot"] != true || user != Some(0), "runs as root and says that it must not");
        // Where the image decides on a user that is not root.
        let user = user.unwrap_or(if security["runAsNonRoot"] == true { 1337 } else { 0 });
        let group = security["runAsGroup"].as_u64().unwrap_or(user);
        write!(script, "exec chroot . env -i")?;
        for (name, value) in environment {
            write!(script, " {}", quote(&format!("{name}={value}")))?;
        }
        write!(script, " setpriv --reuid {user} --regid {group} --clear-groups --pdeathsig KILL")?;
        if security["allowPrivilegeEscalation"] == false && user != 0 {
            script.push_str(" --no-new-privs");
        }
        if strings(security, "/capabilities/drop").iter().any(|dropped| dropped == "ALL") {
            let added = strings(security, "/capabilities/add");
            let added: String = added.iter().map(|each| format!(",+{}", each.to_lowercase())).collect();
            write!(script, " --inh-caps=-all{added} --bounding-set=-all{added}")?;
        }
        script.push_str(" --");
        for word in words {
            write!(script, " {}", quote(word))?;
        }
        script.push('\n');
        Ok(script)
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        for (_, process) in &mut self.containers {
            // Both fail only where the process has ended already.
            _ = process.kill();
            _ = process.wait();
        }
    }
}

/// The text at a JSON pointer.
pub fn text<'a>(value: &'a Value, pointer: &str) -> Result<&'a str> {
    value.pointer(pointer).and_then(Value::as_str).with_context(|| format!("no text at {pointer} in {value}"))
}

/// The items at a JSON pointer; none where there is no list.
pub fn list(value: &Value, pointer: &str) -> Vec<Value> {
    value.pointer(pointer).and_then(Value::as_array).cloned().unwrap_or_default()
}

fn strings(value: &Value, pointer: &str) -> Vec<String> {
    list(value, pointer).iter().filter_map(|item| Some(item.as_str()?.to_owned())).collect()
}

fn pointer(path: &str) -> String {
    format!("/{}", path.replace('.', "/"))
}

/// A container's limit as a whole number, or what this machine would give.
fn limit_of(container: &Value, resource: &str) -> Result<String> {
    let (section, name) = resource.split_once('.').context("limits.NAME")?;
    let Some(quantity) = container.pointer(&format!("/resources/{section}/{name}")).and_then(Value::as_str) else {
        return Ok(if name == "cpu" { "2".into() } else { (1_u64 << 30).to_string() });
    };
    let digits = quantity.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let number: u64 = digits.parse().with_context(|| format!("{quantity} is not a quantity that is known here"))?;
    Ok(match &quantity[digits.len()..] {
        "" => number,
        "m" => number.div_ceil(1_000),
        "Mi" => number << 20,
        "Gi" => number << 30,
        unit => bail!("a quantity in {unit}"),
    }
    .to_string())
}

/// `$(NAME)` becomes the variable's value.
fn expand(word: &str, environment: &[(String, String)]) -> String {
    environment.iter().fold(word.to_owned(), |word, (name, value)| word.replace(&format!("$({name})"), value))
}

fn quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// The last lines, for people.
pub fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(25)..].join("\n")
}
