//! `make docker-demo`: runs the containers of `envoy-docker/compose.yaml` on this machine's Docker engine, and shows which egress
//! answered each connection.

use crate::{module, native, root, table::Table};
use anyhow::{Context, Result, bail, ensure};
use std::{
    net::IpAddr,
    path::PathBuf,
    process::{Command, Stdio},
};
use testbed::{Module, envoy};

/// The application behind the sidecar.
const APPLICATION: [&str; 2] = ["172.30.80.10", "fd00:172:30:80::11"];

/// The clients of the standalone proxy and their addresses, then the proxy's addresses.
const CLIENTS: [(&str, &str); 4] = [
    ("client-even", "172.30.80.4"),
    ("client-odd", "172.30.80.5"),
    ("client-even", "fd00:172:30:80::4"),
    ("client-odd", "fd00:172:30:80::5"),
];
const STANDALONE: [&str; 2] = ["172.30.80.30", "fd00:172:30:80::30"];

/// The destination's addresses, then those of the routers as the destination sees them, with their egress.
const DESTINATION: [&str; 2] = ["198.51.100.80", "2001:db8::80"];
const ROUTERS: [(&str, &str); 4] = [
    ("198.51.100.21", "egress1"),
    ("2001:db8::21", "egress1"),
    ("198.51.100.22", "egress2"),
    ("2001:db8::22", "egress2"),
];

/// A container, and an endpoint that must answer it before the demo sends traffic.
const READY: [(&str, &str); 4] = [
    ("egress1", "127.0.0.1:9901/ready"),
    ("client-even", "egress-router1:8082/ready"),
    ("client-even", "egress-router2:8082/ready"),
    ("destination", "127.0.0.1"),
];

/// The container that reaches an Envoy's admin interface, and the command that reads the counters there.
const SIDECAR_STATS: (&str, &[&str]) =
    ("operator", &["curl", "--silent", "--fail", "--unix-socket", "/run/sluice/admin.sock", "http://sidecar/stats"]);
const STANDALONE_STATS: (&str, &[&str]) = ("egress1", &["curl", "--silent", "--fail", "127.0.0.1:9901/stats"]);

/// Brings the containers up with the module that MODULE names, shows the traffic and removes them, unless they were there before.
pub fn demo() -> Result<()> {
    let wanted = Module::from_environment()?;
    let compose = Compose::find(wanted)?;
    let there_before = !compose.read(&["ps", "--quiet"]).context("no Docker engine answers")?.is_empty();
    match wanted {
        Module::Wasm => module::shipped().map(drop)?,
        Module::Native => native::build().map(drop)?,
    }
    let shown = compose.run(&["up", "--detach"]).and_then(|()| traffic(&compose));
    if !there_before {
        compose.run(&["down", "--volumes"])?;
    }
    shown
}

fn traffic(compose: &Compose) -> Result<()> {
    for (service, url) in READY {
        let retrying = ["--retry", "30", "--retry-delay", "1", "--retry-connrefused"];
        compose.inside(service, &[&["curl", "--silent", "--fail", url], &retrying[..]].concat())?;
    }
    let mut table = Table::begin();
    for (source, destination) in APPLICATION.into_iter().zip(DESTINATION) {
        let source: IpAddr = source.parse()?;
        let url = if source.is_ipv6() { format!("http://[{destination}]") } else { format!("http://{destination}") };
        let http = ["curl", "--silent", "--show-error", "--max-time", "20", &url];
        let server_first = ["nc", "-d", "-w", "20", destination, "25"];
        for command in [&http, &server_first] {
            let answer = || egress_of(&compose.inside("application", command)?);
            table.row(source, answer, |counter| compose.stat(SIDECAR_STATS, counter))?;
        }
    }
    for (client, source) in CLIENTS {
        let source: IpAddr = source.parse()?;
        let proxy = STANDALONE[usize::from(source.is_ipv6())];
        let answer = || compose.inside(client, &["nc", "-d", "-w", "20", proxy, "10000"]);
        table.row(source, answer, |counter| compose.stat(STANDALONE_STATS, counter))?;
    }
    table.end(|| {
        compose.read(&["logs", "--no-color", "sidecar", "standalone"]).unwrap_or_else(|error| format!("{error:#}"))
    })?;
    println!("The first four were redirected to the sidecar, and the destination showed which router they came from;");
    println!("the others connected to the standalone proxy's port.");
    identities(compose)?;
    Ok(())
}

/// Prints the verified identities and the claimed sources, from the routers' access logs.
fn identities(compose: &Compose) -> Result<()> {
    println!("\n{:<16} {:<32} {:<26} destination", "router", "identity", "source");
    for router in ["egress-router1", "egress-router2"] {
        let log = compose.read(&["logs", "--no-color", router])?;
        let lines: Vec<&str> = log.lines().filter(|line| line.contains("\"identity\":\"")).collect();
        ensure!(!lines.is_empty(), "{router} logged no identity:\n{log}");
        for line in &lines[lines.len().saturating_sub(2)..] {
            let field = |name: &str| {
                let value = line.split_once(&format!("\"{name}\":\"")).and_then(|(_, rest)| rest.split('"').next());
                value.unwrap_or("-")
            };
            println!("{router:<16} {:<32} {:<26} {}", field("identity"), field("source"), field("destination"));
        }
    }
    Ok(())
}

/// The egress whose router the destination saw.
fn egress_of(answer: &str) -> Result<String> {
    let source = answer.split_once("source=").and_then(|(_, rest)| rest.split(' ').next());
    let source = source.with_context(|| format!("the destination answered {answer:?}"))?;
    let egress = ROUTERS.iter().find(|(address, _)| *address == source).map(|(_, egress)| *egress);
    Ok(egress.with_context(|| format!("the destination saw {source}, which is not an address of a router"))?.to_owned())
}

/// Docker Compose, version 2 or docker-compose 1.29, in the folder of `compose.yaml`.
struct Compose {
    program: &'static [&'static str],
    files: &'static [&'static str],
    folder: PathBuf,
}

impl Compose {
    fn find(module: Module) -> Result<Self> {
        let folder = root()?.join("envoy-docker");
        let files: &[&str] = match module {
            Module::Wasm => &[],
            Module::Native => &["--file", "compose.yaml", "--file", "compose.native.yaml"],
        };
        for program in [&["docker", "compose"][..], &["docker-compose"]] {
            let compose = Self { program, files, folder: folder.clone() };
            let trial = compose.command(&["version"]).stdout(Stdio::null()).stderr(Stdio::null()).status();
            if trial.is_ok_and(|status| status.success()) {
                return Ok(compose);
            }
        }
        bail!("there is neither `docker compose` nor `docker-compose`: please install Docker and Docker Compose")
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.program[0]);
        command
            .args(&self.program[1..])
            .args(self.files)
            .args(arguments)
            .current_dir(&self.folder)
            .stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> Result<()> {
        let status = self.command(arguments).status()?;
        ensure!(status.success(), "{} {}: {status}", self.program.join(" "), arguments.join(" "));
        Ok(())
    }

    /// Returns the standard output of a Compose command.
    fn read(&self, arguments: &[&str]) -> Result<String> {
        let output = self.command(arguments).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        let why = said.lines().last().unwrap_or_default(); // docker-compose 1.29 prints a stack trace before it
        ensure!(output.status.success(), "{} {}: {why}", self.program.join(" "), arguments.join(" "));
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    }

    /// Returns the output of a command in a service's container.
    fn inside(&self, service: &str, command: &[&str]) -> Result<String> {
        self.read(&[&["exec", "-T", service], command].concat())
    }

    /// Returns a counter of an Envoy, read with this command in the container of this service.
    fn stat(&self, (service, command): (&str, &[&str]), name: &str) -> Result<u64> {
        envoy::value(&self.inside(service, command)?, name)
    }
}
