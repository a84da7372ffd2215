//! The shipped manifests on the cluster, edited as users do, and the clients that they create.

use crate::{
    cluster::{Cluster, REGISTRY, istio_tag},
    pod::{self, Pod, list},
    server::{self, Protocol, Seen},
    sidecar_admin::extension,
};
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::{
    fs,
    net::{IpAddr, SocketAddr},
    process::Command,
};

/// The routers, by the parity of the sources that they serve, and their namespace.
pub const ROUTERS: [&str; 2] = ["egress-router1", "egress-router2"];
pub const ROUTERS_NAMESPACE: &str = "egress-routers";

impl Cluster {
    /// Copies the shipped manifests and edits only the settings that README.md names.
    pub fn fresh_manifests(&self) -> Result<()> {
        if self.manifests.exists() {
            fs::remove_dir_all(&self.manifests)?;
        }
        let done = Command::new("cp").arg("-r").arg(testbed::root().join("istio")).arg(&self.manifests).status()?;
        ensure!(done.success(), "cp: {done}");
        self.edit(SETTINGS, "  module: ", &self.module)?;
        self.edit(SETTINGS, "  istioProxy: ", &format!("docker.io/istio/proxyv2:{}", istio_tag()))?;
        self.edit(SETTINGS, DIRECT, &format!("{}\n#{DIRECT}", direct(REGISTRY)))?;
        self.admit(API)
    }

    /// Adds a rule that admits connections of the clients' pods to this address without the routers.
    pub fn admit(&self, address: &str) -> Result<()> {
        self.edit(SETTINGS, &format!("#{DIRECT}"), &format!("\n{DIRECT}{}", direct(address)))
    }

    /// Replaces the rest of the only line of a manifest that begins with `begin`.
    pub fn edit(&self, file: &str, begin: &str, end: &str) -> Result<()> {
        let path = self.manifests.join(file);
        let text = fs::read_to_string(&path)?;
        ensure!(
            text.lines().filter(|line| line.starts_with(begin)).count() == 1,
            "{file}: not exactly one line begins with {begin:?}"
        );
        let edited = text
            .lines()
            .map(|line| if line.starts_with(begin) { format!("{begin}{end}\n") } else { format!("{line}\n") });
        Ok(fs::write(path, edited.collect::<String>())?)
    }

    /// Applies the manifests as users do, with strict validation.
    pub fn apply(&self) -> Result<String> {
        self.kubectl(&["apply", "--validate=strict", "--kustomize", &self.manifests.to_string_lossy()])
    }

    /// Applies the manifests and waits until the filter of every client's sidecar fulfils a condition.
    pub fn apply_until(&self, what: &str, received: impl Fn(&Value) -> bool) -> Result<()> {
        self.apply()?;
        self.eventually(what, |cluster| {
            for client in &self.clients {
                let filter = extension(client)?;
                let log = || client.log(cluster, "istio-proxy").map(|log| pod::tail(&log)).unwrap_or_default();
                ensure!(received(&filter), "{}: {filter}\n{}", client.name, log());
            }
            Ok(())
        })
    }

    /// Replaces the clients' pods and waits until the new ones run. Their sidecars need not be ready.
    pub fn replace_clients(&mut self) -> Result<()> {
        self.kubectl(&["delete", "pods", "--selector=app=client", "--grace-period=1"])?;
        let mut clients = Vec::new();
        self.eventually("new clients", |cluster| {
            clients = cluster.pods("default", "app=client")?;
            ensure!(clients.len() == 2, "expected 2 clients, found {}", clients.len());
            for client in &clients {
                crate::sidecar_admin::admin(client, "/server_info")?;
            }
            Ok(())
        })?;
        self.clients = clients;
        Ok(())
    }

    /// Waits until the clients' Deployment is rolled out, and one client has an even address and the other one an odd address in
    /// each family. The cluster chooses the addresses, so one client is replaced until this is the case.
    pub fn roll_clients_out(&mut self) -> Result<()> {
        for _ in 0..8 {
            self.rolled_out("default", "client")?;
            let mut clients = self.pods("default", "app=client")?;
            // There may be a third pod, which is about to be deleted.
            if clients.len() == 2 {
                let router = |client: &Pod, index: usize| expected_router(client.addresses[index]);
                if [0, 1].iter().all(|index| router(&clients[0], *index) != router(&clients[1], *index)) {
                    clients.sort_by_key(|client| router(client, 0));
                    self.clients = clients;
                    return Ok(());
                }
                self.kubectl(&["delete", "pod", &clients[1].name, "--grace-period=1"])?;
            }
        }
        bail!("the clients did not get one even and one odd address");
    }

    /// Returns the pod of the service `backend`.
    pub fn backend(&self) -> Result<Pod> {
        self.pods("default", "app=backend")?.pop().context("no pod of the backend")
    }

    /// Starts the servers in the current pod of the service `backend`.
    pub fn serve_backend(&self) -> Result<()> {
        let host = self.backend()?.host;
        [80, 5432].iter().try_for_each(|port| server::start(&host, *port, Protocol::ClientFirst))
    }

    /// Waits until the routers are rolled out.
    pub fn routers_rolled_out(&self) -> Result<()> {
        ROUTERS.iter().try_for_each(|router| self.rolled_out(ROUTERS_NAMESPACE, router))
    }

    /// Returns the routers' pods.
    pub fn routers(&self) -> Result<Vec<Pod>> {
        self.pods(ROUTERS_NAMESPACE, &format!("app in ({})", ROUTERS.join(",")))
    }

    /// Connects, and expects the router for the parity of the source and the requested destination.
    pub fn expect_routed(&self, client: &Pod, to: SocketAddr, say: &[u8]) -> Result<Seen> {
        let seen = server::ask(&client.host, to, say).with_context(|| format!("{} → {to}", client.name))?;
        let (router, expected) = (self.router(seen.from)?, expected_router(client.source(to.ip())));
        ensure!(
            (router.as_str(), seen.to) == (expected, to),
            "{} → {to}: expected {expected}, got {router}: {seen:?}",
            client.source(to.ip())
        );
        Ok(seen)
    }

    /// Returns the router that has this address, or `none`.
    pub fn router(&self, address: IpAddr) -> Result<String> {
        // Includes routers that drain.
        let selector = format!("app in ({})", ROUTERS.join(","));
        let pods = list(&self.get(&["--namespace", ROUTERS_NAMESPACE, "pods", "--selector", &selector])?, "/items");
        let address = address.to_string();
        let has = |pod: &&Value| list(pod, "/status/podIPs").iter().any(|ip| ip["ip"] == address.as_str());
        Ok(pods
            .iter()
            .find(has)
            .map_or("none", |pod| pod["metadata"]["labels"]["app"].as_str().unwrap_or("none"))
            .to_owned())
    }

    /// Connects from each client and expects no answer.
    pub fn expect_refused(&self, to: SocketAddr, say: &[u8]) -> Result<()> {
        for client in &self.clients {
            let seen = server::ask(&client.host, to, say);
            ensure!(seen.is_err(), "{} → {to}: {seen:?}", client.name);
        }
        Ok(())
    }

    /// Returns the address of a service.
    pub fn service_address(&self, namespace: &str, name: &str) -> Result<IpAddr> {
        Ok(pod::text(&self.get(&["--namespace", namespace, "service", name])?, "/spec/clusterIP")?.parse()?)
    }
}

/// The file that users edit, and the beginning of the line that admits the module's registry.
pub const SETTINGS: &str = "settings/settings.yaml";
const DIRECT: &str = "    - { ports: ";

/// Returns the rest of that line for an address.
fn direct(address: &str) -> String {
    let (host, port) = address.split_once(':').expect("HOST:PORT");
    format!("[{{ port: {port} }}], to: [{{ ipBlock: {{ cidr: {host}/32 }} }}] }}")
}

/// The API server's own address.
const API: &str = "172.18.0.1:6443";

/// Returns the router for a source, by its last octet.
pub fn expected_router(source: IpAddr) -> &'static str {
    let last = match source {
        IpAddr::V4(address) => address.octets()[3],
        IpAddr::V6(address) => address.octets()[15],
    };
    ROUTERS[usize::from(last % 2)]
}
