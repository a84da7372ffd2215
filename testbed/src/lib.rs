//! A real Envoy with a shipped configuration, between clients and egress backends in this process. The demo, the tests and the
//! benchmarks share this crate.

pub mod backend;
pub mod config;
pub mod envoy;
pub mod module;
pub mod network;
pub mod pypi;
pub mod watching;

pub use backend::Backend;
pub use config::Config;
pub use envoy::Envoy;
pub use module::{DIST, Module};
pub use network::{Host, Network};
pub use nix::sys::signal::Signal;
pub use watching::Watching;

use anyhow::{Context, Result};
use nix::{sys::signal, unistd::Pid};
use socket2::{Domain, SockAddr, Socket, Type};
use std::{
    io::Read,
    net::{IpAddr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    time::Duration,
};

/// The timeout of every operation on this machine.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// Returns the path of the checkout in which this crate was built.
#[must_use]
pub fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_owned()
}

/// Sends a signal to a process. A minimal Debian does not have the program `kill`.
pub fn kill(process: u32, name: Signal) -> Result<()> {
    let process = i32::try_from(process).context("not the id of a process")?;
    signal::kill(Pid::from_raw(process), name).with_context(|| format!("cannot send {name} to the process {process}"))
}

/// Connects from this source address. Reads and writes that take longer than [`DEADLINE`] fail.
pub fn connect(source: IpAddr, to: SocketAddr) -> Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
    let bound = socket.bind(&SockAddr::from(SocketAddr::new(source, 0)));
    bound.with_context(|| format!("cannot use the source address {source}"))?;
    socket.connect_timeout(&to.into(), DEADLINE).with_context(|| format!("cannot connect from {source} to {to}"))?;
    socket.set_read_timeout(Some(DEADLINE))?;
    socket.set_write_timeout(Some(DEADLINE))?;
    Ok(socket.into())
}

/// Connects from this source address and returns the answer: the name of a [`Backend`], or nothing if the connection is closed.
pub fn who_answers(source: IpAddr, to: SocketAddr) -> Result<String> {
    let mut answer = String::new();
    connect(source, to)?.read_to_string(&mut answer)?;
    Ok(answer)
}
