//! Runs Prometheus with the shipped configuration.

use crate::folder;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};
use tempfile::TempDir;

/// A running Prometheus. It is killed when this is dropped, and by the kernel when the thread that started it ends.
pub struct Prometheus {
    process: Child,
    address: SocketAddr,
    folder: TempDir,
}

impl Prometheus {
    /// Starts a Prometheus that scrapes this Envoy every 200 ms.
    pub fn start(envoy: SocketAddr) -> Result<Self> {
        let shipped = fs::read_to_string(crate::folder().join("prometheus.yaml"))?;
        for text in ["127.0.0.1:9901", "scrape_interval: 5s", "evaluation_interval: 5s"] {
            ensure!(shipped.matches(text).count() == 1, "prometheus.yaml does not contain {text:?} once");
        }
        let config = shipped.replace("127.0.0.1:9901", &envoy.to_string()).replace("interval: 5s", "interval: 200ms");
        let temporary = TempDir::new()?;
        fs::write(temporary.path().join("prometheus.yaml"), config)?;
        fs::copy(folder().join("alerts.yaml"), temporary.path().join("alerts.yaml"))?;
        let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        let mut command = Command::new("setpriv");
        command.args([
            "--pdeathsig",
            "KILL",
            "--",
            "prometheus",
            "--config.file=prometheus.yaml",
            "--storage.tsdb.path=data",
        ]);
        command.arg(format!("--web.listen-address={address}")).current_dir(temporary.path());
        let log = fs::File::create(temporary.path().join("log"))?;
        let process = command.stdout(Stdio::null()).stderr(log).spawn().context("cannot start setpriv")?;
        let prometheus = Self { process, address, folder: temporary };
        prometheus.wait("Prometheus is not ready", || Ok(prometheus.body("/-/ready").is_ok()))?;
        Ok(prometheus)
    }

    fn body(&self, path: &str) -> Result<String> {
        Ok(ureq::get(format!("http://{}{path}", self.address)).call()?.body_mut().read_to_string()?)
    }

    /// Returns the answer to a query of the API.
    pub fn get(&self, path: &str) -> Result<Value> {
        Ok(serde_json::from_str(&self.body(path)?)?)
    }

    /// Returns the answer to a query that yields a list of strings.
    pub fn strings(&self, path: &str) -> Result<Vec<String>> {
        Ok(serde_json::from_value(self.get(path)?["data"].take())?)
    }

    /// Waits until an expression has a result.
    pub fn await_result(&self, expression: &str) -> Result<()> {
        let uri = format!("http://{}/api/v1/query", self.address);
        self.wait(&format!("{expression} has no result"), || {
            let text = ureq::get(&uri).query("query", expression).call()?.body_mut().read_to_string()?;
            let answer: Value = serde_json::from_str(&text)?;
            Ok(answer["data"]["result"].as_array().is_some_and(|result| !result.is_empty()))
        })
    }

    /// Returns the states of the active alerts of this name.
    pub fn alerts(&self, name: &str) -> Result<Vec<String>> {
        let answer = self.get("/api/v1/alerts")?;
        let alerts = answer["data"]["alerts"].as_array().context("no list of alerts")?;
        let alerts = alerts.iter().filter(|alert| alert["labels"]["alertname"] == name);
        Ok(alerts.filter_map(|alert| Some(alert["state"].as_str()?.to_owned())).collect())
    }

    /// Waits until the only alert of this name has this state.
    pub fn await_alert(&self, name: &str, state: &str) -> Result<()> {
        self.wait(&format!("{name} is not {state}"), || Ok(self.alerts(name)? == [state]))
    }

    fn wait(&self, failure: &str, is_done: impl Fn() -> Result<bool>) -> Result<()> {
        let started = Instant::now();
        while !is_done()? {
            let log = || fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
            ensure!(started.elapsed() < testbed::DEADLINE, "{failure}\n{}", log());
            thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        // Both fail only if the process has ended already.
        _ = self.process.kill();
        _ = self.process.wait();
    }
}
