//! Hosts on one bridge, each in its own network namespace. Only this process holds the namespaces. So they are removed when their
//! owner is dropped or when the process ends, even if it is killed.

use anyhow::{Context, Result, ensure};
use nix::sched::{CloneFlags, setns, unshare};
use std::{
    fs::File,
    os::fd::AsRawFd,
    process::{self, Command},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

/// A bridge. It has no addresses and routes nothing.
pub struct Network {
    bridge: Host,
    ports: AtomicUsize,
}

impl Network {
    /// Creates a bridge. Requires root.
    pub fn new() -> Result<Self> {
        let bridge = Host::alone()?;
        bridge.ip("link add bridge type bridge mcast_snooping 0")?;
        bridge.ip("link set bridge up")?;
        Ok(Self { bridge, ports: AtomicUsize::new(0) })
    }

    /// Adds a host with these addresses on its `eth0`. All hosts reach each other directly, whatever their addresses.
    pub fn host(&self, addresses: &[&str]) -> Result<Host> {
        let mut host = Host::alone()?;
        host.bridge = Some(Arc::clone(&self.bridge.namespace));
        let port = format!("port{}", self.ports.fetch_add(1, Ordering::Relaxed));
        self.bridge.ip(&format!("link add {port} type veth peer name eth0 netns {}", host.path()))?;
        self.bridge.ip(&format!("link set {port} master bridge up"))?;
        host.ip("link set eth0 up")?;
        for address in addresses {
            host.ip(&format!("address add {address} dev eth0 nodad"))?;
        }
        host.ip("route add default dev eth0")?;
        if addresses.iter().any(|address| address.contains(':')) {
            host.ip("-6 route add default dev eth0")?;
        }
        Ok(host)
    }
}

/// A network namespace. Its clones are the same host.
#[derive(Clone)]
pub struct Host {
    namespace: Arc<File>,
    /// Keeps the bridge alive while the host exists.
    bridge: Option<Arc<File>>,
}

impl Host {
    /// Creates a host with a loopback interface only.
    pub fn alone() -> Result<Self> {
        let made = thread::scope(|scope| {
            let thread = scope.spawn(|| -> Result<File> {
                unshare(CloneFlags::CLONE_NEWNET).context("cannot create a network namespace")?;
                Ok(File::open("/proc/thread-self/ns/net")?)
            });
            thread.join().expect("neither of the two calls panics")
        });
        let host = Self { namespace: Arc::new(made?), bridge: None };
        host.ip("link set lo up")?;
        Ok(host)
    }

    /// Returns the host in which a process of this machine runs.
    pub fn of_process(id: u32) -> Result<Self> {
        let path = format!("/proc/{id}/ns/net");
        let namespace = File::open(&path).with_context(|| format!("cannot open {path}"))?;
        Ok(Self { namespace: Arc::new(namespace), bridge: None })
    }

    /// Returns the path by which other processes find the namespace while this host exists.
    fn path(&self) -> String {
        format!("/proc/{}/fd/{}", process::id(), self.namespace.as_raw_fd())
    }

    /// Runs a function on a thread in the host. Sockets stay in the host in which they were created.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let thread = move || {
            setns(&*self.namespace, CloneFlags::CLONE_NEWNET).expect("the namespace is ours and open");
            work()
        };
        match thread::scope(|scope| scope.spawn(thread).join()) {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// Returns a command that runs a program in the host.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path())).arg("--").arg(program);
        command
    }

    /// Runs a program with arguments, which are separated by spaces. Fails if the program fails.
    pub fn call(&self, program: &str, arguments: &str) -> Result<()> {
        let output = self.command(program).args(arguments.split(' ')).output();
        let output = output.context("cannot start nsenter")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{program} {arguments}: {}: {said}", output.status);
        Ok(())
    }

    fn ip(&self, arguments: &str) -> Result<()> {
        self.call("ip", arguments)
    }
}

/// Returns the reason why hosts cannot be created on this machine, or `None` if they can.
pub fn hindrance() -> Option<String> {
    let trial = || Network::new()?.host(&["192.0.2.1/24", "2001:db8::1/64"]);
    trial().err().map(|error| format!("{error:#}"))
}
