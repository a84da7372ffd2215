//! `make demo`: live connections through a real Envoy with the shipped configuration, and the egress that answered each.

use crate::{
    module::{self, Steps},
    native, root,
    table::Table,
};
use anyhow::{Context, Result};
use std::{
    env,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::unix::process::CommandExt,
    path::Path,
    process::{Command, Stdio},
};
use testbed::{Backend, Config, Envoy, Module, config, envoy};
use xshell::{Shell, cmd};

/// Addresses of the documentation prefix of RFC 3849. They exist only in the demo's network namespace.
const IPV6: [Ipv6Addr; 4] = [
    Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2),
    Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 3),
    Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0xffff, 0xa8),
    Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x10ff),
];

/// Set if the demo runs in a network namespace of its own, in which it may add addresses.
const OWN_NAMESPACE: &str = "SLUICE_DEMO_OWN_NAMESPACE";

/// Builds the module that MODULE names, gets Envoy, and shows the traffic, in a network namespace if possible.
pub fn prepare() -> Result<()> {
    let module = match Module::from_environment()? {
        Module::Native => native::build()?,
        Module::Wasm => match module::fresh()? {
            Some(path) => path,
            None => module::build(Steps::WithoutWasmOpt)?,
        },
    };
    let program = envoy::program()?;
    let mut traffic = match namespace() {
        Some(unshare) => {
            let mut command = Command::new(unshare[0]);
            command.args(&unshare[1..]).arg(env::current_exe()?).env(OWN_NAMESPACE, "1");
            command
        }
        None => Command::new(env::current_exe()?),
    };
    // Replaces this process, so that there is one process to interrupt.
    Err(traffic.arg("demo-traffic").arg(module).env("ENVOY", program).exec().into())
}

/// Opens a connection from each source and prints the table. Fails if a connection was answered by the wrong egress.
pub fn traffic(module: &Path) -> Result<()> {
    let in_namespace = env::var_os(OWN_NAMESPACE).is_some();
    let sources = sources(in_namespace)?;
    let program = envoy::program()?;
    let [one, two] = [Backend::start("egress1")?, Backend::start("egress2")?];
    let config = Config::shipped("standalone.yaml")?
        .with_module(module)?
        .with_backend(9001, one.address())?
        .with_backend(9002, two.address())?;
    let running = Envoy::start(&program, &config)?;
    println!("module    {} ({} bytes)", module.strip_prefix(root()?)?.display(), module.metadata()?.len());
    println!("Envoy     {} ({})", program.display(), envoy::version(&program)?);
    println!("listener  {}", running.listener("sluice", &Ipv4Addr::LOCALHOST.into())?);
    println!();
    let mut table = Table::begin();
    for source in sources {
        let answer = || testbed::who_answers(source, running.listener("sluice", &source)?);
        table.row(source, answer, |counter| running.stat(counter))?;
    }
    table.end(|| running.end_of_log())?;
    if module.ends_with("target/shipped/sluice.wasm") {
        println!("This module was not optimised by wasm-opt. `make build-wasm` builds the shipped module.");
    }
    match (config::has_ipv6(), in_namespace) {
        (false, _) => println!("IPv6: not available here, so all sources are IPv4."),
        (true, false) => {
            println!(
                "IPv6: ::1 is the only source, because no network namespace with other IPv6 addresses can be created here."
            )
        }
        (true, true) => {}
    }
    Ok(())
}

/// The command that runs another command in a network namespace, if that works here.
fn namespace() -> Option<&'static [&'static str]> {
    // The second form is for users other than root.
    let ways: [&[&str]; 2] = [&["unshare", "--net"], &["unshare", "--net", "--user", "--map-root-user"]];
    ways.into_iter().find(|way| {
        let trial = "ip link set lo up && ip -6 address add 2001:db8::2/128 dev lo";
        let mut command = Command::new(way[0]);
        command.args(&way[1..]).args(["sh", "-c", trial]).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    })
}

fn sources(in_namespace: bool) -> Result<Vec<IpAddr>> {
    let mut sources: Vec<IpAddr> =
        [2, 3, 4, 5, 100, 101, 254].map(|octet| Ipv4Addr::new(127, 0, 0, octet).into()).into();
    sources.push(Ipv4Addr::new(127, 1, 2, 3).into());
    if in_namespace {
        let sh = Shell::new()?;
        cmd!(sh, "ip link set lo up").quiet().run()?;
        for address in IPV6 {
            let address = address.to_string();
            cmd!(sh, "ip -6 address add {address}/128 dev lo nodad").quiet().run()?;
            sources.push(address.parse().context("an address that we wrote")?);
        }
    }
    if config::has_ipv6() {
        sources.push(Ipv6Addr::LOCALHOST.into());
    }
    Ok(sources)
}
