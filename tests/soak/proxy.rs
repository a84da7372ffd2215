//! An Envoy with either module, or with `tcp_proxy` alone, between clients and egresses in a separate network namespace.

use crate::{
    egress::{Behaviour, Egresses},
    tables::{self, CLUSTERS, DEFAULT, RESETS, RESTARTS, ROLES, SILENT, SLOW},
};
use anyhow::{Context, Result, ensure};
use std::{
    fs,
    io::{BufRead, BufReader},
    net::{Ipv4Addr, SocketAddr},
    process::{Child, Stdio},
    thread,
    time::{Duration, Instant},
};
use testbed::{Config, Envoy, Host, Module, envoy::value};

/// The address of the listener.
pub const LISTENER: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 10_000);

/// The filter under test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// `tcp_proxy` alone, with weighted clusters as its table.
    Plain,
    Wasm,
    Native,
}

impl From<Module> for Subject {
    fn from(module: Module) -> Self {
        match module {
            Module::Wasm => Self::Wasm,
            Module::Native => Self::Native,
        }
    }
}

impl Subject {
    pub const ALL: [Self; 3] = [Self::Plain, Self::Wasm, Self::Native];

    /// Returns the table of a generation, as text for CONFIGURATION.
    pub fn table(self, generation: u32) -> String {
        if self == Self::Plain { tables::weighted(generation) } else { tables::table(generation) }
    }

    /// Returns the configuration of Envoy, in which CONFIGURATION stands for the table.
    pub fn config(self) -> Result<Config> {
        let config = Config::file(&testbed::root().join("tests/data/soak.yaml"))?;
        let clusters: String = (0..CLUSTERS).map(cluster).collect();
        let config = config.with("    # CLUSTERS\n", &clusters)?;
        match self {
            Self::Plain => {
                let text = config.text();
                let filter = text.find("            - name: sluice\n").context("no filter sluice")?;
                let next = text.find("            - name: envoy.filters.network.tcp_proxy").context("no tcp_proxy")?;
                let filter = text[filter..next].to_owned();
                let weighted = "weighted_clusters: { clusters: CONFIGURATION }\n\n  clusters:";
                config.with(&filter, "")?.with("cluster: default\n\n  clusters:", weighted)
            }
            Self::Wasm => config.with_module(&Module::Wasm.path()?),
            Self::Native => config.with_module(&Module::Native.path()?),
        }
    }
}

fn cluster(index: usize) -> String {
    let (name, role) = (tables::name(index), index % ROLES.len());
    let ip = if index != DEFAULT && role == SLOW { "10.9.0.2" } else { "127.0.0.1" };
    let port = 20_000 + index;
    format!(
        "    - name: {name}
      circuit_breakers: {{ thresholds: [{{ max_connections: 100000, max_pending_requests: 100000 }}] }}
      load_assignment:
        cluster_name: {name}
        endpoints: [{{ lb_endpoints: [{{ endpoint: {{ address: {{ socket_address: {{ address: {ip}, port_value: {port} }} }} }} }}] }}]\n"
    )
}

/// Starts the egresses of all clusters.
pub fn egresses() -> Result<Egresses> {
    let egress = |index: usize| {
        let (role, port) = (index % ROLES.len(), 20_000 + index as u16);
        let local = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        match role {
            _ if index == DEFAULT => (local, Behaviour::Answers),
            RESTARTS => (local, Behaviour::Restarts),
            SILENT => (local, Behaviour::IsSilent),
            RESETS => (local, Behaviour::Resets),
            SLOW => ((Ipv4Addr::new(10, 9, 0, 1), port).into(), Behaviour::Answers),
            _ => (local, Behaviour::Answers),
        }
    };
    Egresses::start((0..CLUSTERS).map(egress).collect())
}

/// The link to the slow egresses.
struct SlowLink(Child);

impl SlowLink {
    fn start(host: &Host) -> Result<Self> {
        let mut command = host.command("setpriv");
        command.args(["--pdeathsig", "KILL", "--", "python3"]).arg(testbed::root().join("tests/soak/slow_link.py"));
        let mut link = Self(command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?);
        let mut line = String::new();
        BufReader::new(link.0.stdout.take().context("standard output is not a pipe")?).read_line(&mut line)?;
        ensure!(line == "up\n", "the slow link did not start");
        Ok(link)
    }
}

impl Drop for SlowLink {
    fn drop(&mut self) {
        // Both fail only if the process has ended already.
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

/// Runs `work` in a new network namespace.
pub fn in_a_network<T: Send>(work: impl FnOnce(&Host) -> Result<T> + Send) -> Result<T> {
    let host = Host::alone()?;
    host.run(|| -> Result<T> {
        // Envoy and the clients share these ports, and connections to one egress differ only in the port.
        fs::write("/proc/sys/net/ipv4/ip_local_port_range", "25000 65535")?;
        let _link = SlowLink::start(&host)?;
        work(&host)
    })
}

/// Runs `work` with all subjects at the same time.
pub fn at_once(work: impl Fn(Subject) -> Result<()> + Sync) -> Result<()> {
    thread::scope(|scope| {
        let threads = Subject::ALL.map(|subject| {
            let work = &work;
            scope.spawn(move || work(subject).with_context(|| format!("{subject:?}")))
        });
        threads.into_iter().try_for_each(|thread| thread.join().expect("a thread panicked"))
    })
}

/// Waits until a counter or gauge has this value. Queries only this one.
pub fn await_value(envoy: &Envoy, name: &str, expected: u64) -> Result<()> {
    let started = Instant::now();
    loop {
        let found = value(&envoy.get(&format!("/stats?filter=^{name}$"))?, name)?;
        if found == expected {
            return Ok(());
        }
        ensure!(started.elapsed() < testbed::DEADLINE, "{name} is {found}, not {expected}\n{}", envoy.end_of_log());
        thread::sleep(Duration::from_millis(20));
    }
}

/// Returns the resident memory of a process, in KiB.
pub fn resident(process: u32) -> Result<i64> {
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

/// Returns the targets of a process's file descriptors, sorted.
pub fn descriptors(process: u32) -> Result<Vec<String>> {
    let files = fs::read_dir(format!("/proc/{process}/fd"))?;
    // A descriptor may be closed while the folder is read.
    let mut kinds: Vec<String> = files
        .filter_map(|file| fs::read_link(file.ok()?.path()).ok())
        .map(|target| target.to_string_lossy().into_owned())
        .collect();
    kinds.sort();
    Ok(kinds)
}

/// Waits until a process has no more file descriptors than these. Returns their number.
pub fn await_descriptors(process: u32, before: &[String]) -> Result<usize> {
    let started = Instant::now();
    loop {
        let now = descriptors(process)?;
        if now.len() <= before.len() {
            return Ok(now.len());
        }
        ensure!(started.elapsed() < testbed::DEADLINE * 2, "descriptors: {now:?}, before: {before:?}");
        thread::sleep(Duration::from_millis(100));
    }
}
