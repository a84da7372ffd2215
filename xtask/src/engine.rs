//! A Docker engine for the tests, with the images that `envoy-docker/compose.yaml` uses. It has its own network, mount and
//! PID namespaces: it does not affect other engines, and everything that it runs ends with it.

use crate::{images::Root, root};
use anyhow::{Context, Result, bail, ensure};
use std::{
    fs::{self, File},
    path::Path,
    process::{Child, Command, Stdio},
    rc::Rc,
    thread,
    time::{Duration, Instant},
};
use tempfile::TempDir;
use xshell::{Shell, cmd};

/// How long an engine may take to start.
const DEADLINE: Duration = Duration::from_secs(60);

/// A running engine.
pub struct Engine {
    process: Child,
    folder: TempDir,
    _store: Rc<TempDir>,
}

impl Engine {
    /// Starts an engine with the images. The inner error says why no engine can be started here.
    pub fn start(program: &Path) -> Result<Result<Self, String>> {
        let sh = Shell::new()?;
        if cmd!(sh, "id -u").quiet().read()? != "0" {
            return Ok(Err("only root may start a Docker engine".into()));
        }
        // Not in /tmp, which may be in memory.
        let store = Rc::new(TempDir::new_in(root()?.join("target"))?);
        let envoy = EnvoyImage::new(program)?;
        // Builds need the network of this machine. The second engine, for the tests, has a network of its own.
        let on_this_network = ["--bridge=none", "--iptables=false", "--ip-forward=false"];
        let started = Self::launch(&store, &[], &on_this_network).and_then(|engine| {
            engine.call(&["import", "--change", "ENV PATH=/usr/local/bin", &envoy.archive, &envoy.name])?;
            engine.call(&["run", "--rm", "--network", "host", &envoy.name, "envoy", "--version"])?;
            Ok(engine)
        });
        match started {
            Ok(engine) => engine.make_tools_image()?,
            Err(error) => return Ok(Err(format!("no Docker engine works here: {error:#}"))),
        }
        let started = Self::launch(&store, &["--net"], &[]).and_then(|engine| {
            engine.call(&["network", "create", "--ipv6", "--subnet", "2001:db8::/64", "trial"])?;
            let serve = ["envoy", "--config-yaml", "admin: {}"];
            let run = ["run", "--detach", "--network", "trial", "--name", "trial", &envoy.name];
            engine.call(&[&run[..], &serve].concat())?;
            // In a chroot this fails: `exec` sees the root of the machine instead of the container's.
            engine.call(&["exec", "trial", "envoy", "--version"])?;
            engine.call(&["rm", "--force", "trial"])?;
            engine.call(&["network", "rm", "trial"])?;
            Ok(engine)
        });
        Ok(started.map_err(|error| format!("no Docker engine with a network of its own works here: {error:#}")))
    }

    fn launch(store: &Rc<TempDir>, namespaces: &[&str], arguments: &[&str]) -> Result<Self> {
        let folder = TempDir::new()?; // a short path, as required for sockets
        let log = File::create(folder.path().join("log"))?;
        let at = |name: &str| folder.path().join(name);
        let process = Command::new("setpriv")
            .args([
                "--pdeathsig",
                "KILL",
                "--",
                "unshare",
                "--mount",
                "--pid",
                "--fork",
                "--kill-child",
                "--mount-proc",
            ])
            .args(namespaces)
            .args(["sh", "-c", "ip link set lo up && exec dockerd \"$@\"", "sh", "--data-root"])
            .arg(store.path())
            .arg("--exec-root")
            .arg(at("exec"))
            .arg("--pidfile")
            .arg(at("id"))
            .arg("--host")
            .arg(host(folder.path()))
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("cannot start setpriv, which starts dockerd")?;
        let mut engine = Self { process, folder, _store: store.clone() };
        let started = Instant::now();
        loop {
            let answers = engine.docker().arg("info").stdout(Stdio::null()).stderr(Stdio::null()).status();
            if answers.context("cannot start docker")?.success() {
                return Ok(engine);
            }
            let ended = engine.process.try_wait()?;
            if ended.is_some() || started.elapsed() > DEADLINE {
                let log = fs::read_to_string(engine.folder.path().join("log"))?;
                let lines: Vec<&str> = log.lines().collect();
                bail!("{}", lines[lines.len().saturating_sub(5)..].join("\n"));
            }
            thread::sleep(Duration::from_millis(200));
        }
    }

    /// The address of the engine, in the form of `DOCKER_HOST`.
    pub fn host(&self) -> String {
        host(self.folder.path())
    }

    fn docker(&self) -> Command {
        let mut docker = Command::new("docker");
        docker.env("DOCKER_HOST", self.host()).env_remove("DOCKER_CONTEXT");
        docker
    }

    fn call(&self, arguments: &[&str]) -> Result<()> {
        let output = self.docker().args(arguments).output()?;
        let said = [output.stdout, output.stderr].concat();
        ensure!(output.status.success(), "docker {}: {}", arguments.join(" "), String::from_utf8_lossy(&said));
        Ok(())
    }

    /// Builds the tools' image. The base comes from debootstrap, not from a registry, and the packages come from Debian's
    /// mirror, as in the Dockerfile.
    fn make_tools_image(&self) -> Result<()> {
        let root = root()?;
        let sh = Shell::new()?;
        let base = root.join("target/debian-bookworm.tar");
        if !base.exists() {
            let made = TempDir::new_in(root.join("target"))?;
            let (tree, archive) = (made.path().join("tree"), made.path().join("archive"));
            println!("building the base of the tools image with debootstrap");
            cmd!(sh, "debootstrap --variant=minbase bookworm {tree}").quiet().ignore_stdout().run()?;
            cmd!(sh, "tar --create --file {archive} --directory {tree} .").quiet().run()?;
            fs::rename(archive, &base)?; // so that only a complete archive has this name
        }
        let base = base.to_str().context("a path that is not UTF-8")?;
        self.call(&["import", base, "debian:bookworm-slim"])?;
        let context = root.join("envoy-docker");
        let context = context.to_str().context("a path that is not UTF-8")?;
        self.call(&["build", "--network", "host", "--tag", "sluice-tools", context])
    }
}

/// A substitute for Envoy's official image: the program and the libraries that it loads, under the image name in the
/// compose file.
struct EnvoyImage {
    name: String,
    archive: String,
    _folder: TempDir,
}

impl EnvoyImage {
    fn new(program: &Path) -> Result<Self> {
        let root = root()?;
        let sh = Shell::new()?;
        let folder = TempDir::new_in(root.join("target"))?;
        let archive = folder.path().join("archive");
        let image = Root::new(&sh, folder.path())?;
        image.program(program, "/usr/local/bin/envoy")?;
        image.archive(&archive)?;
        let settings = fs::read_to_string(root.join("envoy-docker/.env"))?;
        let name = settings.lines().find_map(|line| line.strip_prefix("ENVOY_IMAGE="));
        let name = name.context("envoy-docker/.env: no ENVOY_IMAGE")?.to_owned();
        let archive = archive.into_os_string().into_string().ok().context("a path that is not UTF-8")?;
        Ok(Self { name, archive, _folder: folder })
    }
}

fn host(folder: &Path) -> String {
    format!("unix://{}/docker.sock", folder.display())
}

impl Drop for Engine {
    /// When this returns, nothing uses the store: the engine is the first process of its namespace, so it ends last.
    fn drop(&mut self) {
        let id = self.process.id();
        let engine = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap_or_default();
        let stopped = Command::new("sh").args(["-c", &format!("kill {engine}")]).stderr(Stdio::null()).status();
        if !stopped.is_ok_and(|status| status.success()) {
            // If this fails too, the process has ended already.
            _ = self.process.kill();
        }
        _ = self.process.wait();
    }
}
