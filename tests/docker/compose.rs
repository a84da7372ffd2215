//! Runs Docker Compose with the shipped files.

use anyhow::{Result, ensure};
use std::{
    path::PathBuf,
    process::{Command, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};
use testbed::Module;

/// The folder with the shipped files.
pub fn folder() -> PathBuf {
    testbed::root().join("envoy-docker")
}

/// Runs a command and returns its standard output.
pub fn read(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output()?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {}\n{stderr}", output.status);
    Ok(String::from_utf8(output.stdout)?)
}

/// Docker Compose with the shipped files for a module. Only one test uses it at a time, because its addresses are fixed.
pub struct Compose<'a> {
    pub program: &'a [&'a str],
    module: Module,
    overlay: Option<&'a str>,
    _lock: MutexGuard<'static, ()>,
}

impl<'a> Compose<'a> {
    /// Waits until no other test uses Docker Compose. Starts no service.
    pub fn new(program: &'a [&'a str], module: Module) -> Self {
        static LOCK: Mutex<()> = Mutex::new(());
        Self { program, module, overlay: None, _lock: LOCK.lock().unwrap_or_else(PoisonError::into_inner) }
    }

    /// Starts all services.
    pub fn up(program: &'a [&'a str], module: Module) -> Result<Self> {
        Self::new(program, module).start()
    }

    /// Adds another file to `compose.yaml`. Starts no service.
    pub fn with(program: &'a [&'a str], overlay: &'a str) -> Self {
        let mut compose = Self::new(program, Module::Wasm);
        compose.overlay = Some(overlay);
        compose
    }

    /// Starts all services, those of this file too.
    pub fn up_with(program: &'a [&'a str], overlay: &'a str) -> Result<Self> {
        Self::with(program, overlay).start()
    }

    fn start(self) -> Result<Self> {
        self.call(&["up", "--detach"])?;
        for router in ["egress-router1", "egress-router1b", "egress-router2", "egress-router2b"] {
            self.inside(
                "client-even",
                &format!("curl --silent --fail --retry 20 --retry-connrefused {router}:8082/ready"),
            )?;
        }
        Ok(self)
    }

    /// Runs Docker Compose with these arguments and returns its output.
    pub fn call(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(self.program[0]);
        command.args(&self.program[1..]);
        let native = (self.module == Module::Native).then_some("compose.native.yaml");
        if let Some(file) = native.or(self.overlay) {
            command.args(["--file", "compose.yaml", "--file", file]);
        }
        read(command.args(arguments).current_dir(folder()))
    }

    /// Runs a command, whose words are separated by spaces, in the container of a service and returns its output.
    pub fn inside(&self, service: &str, command: &str) -> Result<String> {
        let words: Vec<&str> = command.split(' ').collect();
        self.call(&[&["exec", "-T", service], &words[..]].concat())
    }

    /// Returns the id of the container of a service.
    fn container(&self, service: &str) -> Result<String> {
        Ok(self.call(&["ps", "--quiet", service])?.trim().to_owned())
    }

    /// Returns the statistics of a service's Envoy, read inside its network namespace.
    pub fn stats(&self, service: &str) -> Result<String> {
        if service == "sidecar" {
            let get = "curl --silent --fail --unix-socket /run/sluice/admin.sock http://sidecar/stats";
            return self.inside("operator", get);
        }
        let network = format!("container:{}", self.container(service)?);
        let get = ["sluice-tools", "curl", "--silent", "--fail", "127.0.0.1:9901/stats"];
        read(Command::new("docker").args(["run", "--rm", "--network", &network]).args(get))
    }

    /// Waits until exactly `times` lines in the log of a service contain all of these words.
    pub fn await_lines(&self, service: &str, words: &[&str], times: usize) -> Result<()> {
        let started = Instant::now();
        loop {
            let log = self.call(&["logs", "--no-color", service])?;
            let found = log.lines().filter(|line| words.iter().all(|word| line.contains(word))).count();
            if found == times {
                return Ok(());
            }
            ensure!(started.elapsed() < testbed::DEADLINE, "{found} lines with {words:?}, not {times}, in:\n{log}");
            thread::sleep(Duration::from_millis(100));
        }
    }
}

impl Drop for Compose<'_> {
    fn drop(&mut self) {
        // If this fails, the next test fails to start the services.
        _ = self.call(&["down", "--volumes"]);
    }
}
