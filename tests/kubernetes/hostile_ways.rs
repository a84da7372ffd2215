//! The ways out that hostile.rs tries.

use crate::{
    cluster::Cluster,
    hostile_pods::{EXCLUDED, Pods, node},
    identity::{authenticate, connect, foreign_authority, hear, mesh_authority, proxy_header},
    pod::{Pod, list},
    policies::connect_as_1337,
    server::{self, Protocol},
    shipped::{ROUTERS, ROUTERS_NAMESPACE},
    tls::{self, DAY, Identity},
};
use anyhow::{Context, Result, ensure};
use rustls::ClientConfig;
use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    sync::Arc,
    time::{Duration, SystemTime},
};

/// The port of the hostile tenant, and the ports of other tenants, on every router.
pub const OWN: u16 = 8090;
const OTHERS: [u16; 2] = [8080, 8100];

/// The port of the servers that are started for some ways.
const SERVED: u16 = 7007;

/// Tries to reach a server, and returns its answer.
pub type Attempt<'a> = Box<dyn Fn() -> Result<String> + Send + Sync + 'a>;

pub struct Way<'a> {
    pub name: &'a str,
    /// The router through which the attempt may arrive, or `None` if it must not arrive.
    pub router: Option<&'static str>,
    /// The socket address of the server that the attempt would reach. Port 0 stands for any port.
    pub server: SocketAddr,
    pub attempt: Attempt<'a>,
}

/// The ways, and the number of addresses that are in use in the first two of hostile.rs's `NETWORKS`.
#[derive(Default)]
pub struct Ways<'a> {
    pub list: Vec<Way<'a>>,
    next: u8,
}

impl<'a> Ways<'a> {
    /// Adds a way to a public destination of its own.
    fn add(&mut self, name: &'a str, router: Option<&'static str>, attempt: impl FnOnce(SocketAddr) -> Attempt<'a>) {
        let to = self.address(5432);
        self.add_to(name, router, to, attempt);
    }

    /// Adds a way to this destination.
    pub fn add_to(
        &mut self,
        name: &'a str,
        router: Option<&'static str>,
        to: SocketAddr,
        attempt: impl FnOnce(SocketAddr) -> Attempt<'a>,
    ) {
        self.list.push(Way { name, router, server: to, attempt: attempt(to) });
    }

    pub fn address(&mut self, port: u16) -> SocketAddr {
        self.next += 1;
        SocketAddr::new(Ipv4Addr::new(198, 51, 100, 128 + self.next).into(), port)
    }

    fn address_v6(&mut self, port: u16) -> SocketAddr {
        self.next += 1;
        SocketAddr::new(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 1, self.next.into()).into(), port)
    }
}

/// Returns an attempt with a plain connection of a pod, which is redirected to the sidecar if the pod has one.
pub fn plain(pod: &Pod, to: SocketAddr, say: Vec<u8>) -> Attempt<'_> {
    Box::new(move || pod.host.run(|| hear(connect(to)?, &say)))
}

/// Returns an attempt with a connection to this router and a header that claims an address of the pod as its source.
fn direct<'a>(pod: &'a Pod, router: SocketAddr, to: SocketAddr, tls: Option<&Arc<ClientConfig>>) -> Attempt<'a> {
    let header = proxy_header(pod.source(to.ip()), to);
    let Some(tls) = tls.cloned() else { return plain(pod, router, [&header[..], b"hello"].concat()) };
    Box::new(move || pod.host.run(|| hear(authenticate(router, &header, &tls)?, b"hello")))
}

/// Returns an attempt with a connection that bypasses the sidecar.
fn as_1337(pod: &Pod, to: SocketAddr, say: Vec<u8>) -> Attempt<'_> {
    Box::new(move || {
        let answer = connect_as_1337(pod, to, &say)?;
        ensure!(!answer.is_empty(), "the connection was closed");
        Ok(answer)
    })
}

/// The addresses of the routers that the ways need.
pub struct Routers {
    pub pods: [Pod; 2],
    services: [IpAddr; 2],
}

impl Routers {
    pub fn find(cluster: &Cluster) -> Result<Self> {
        let one = |app: &str| cluster.pods(ROUTERS_NAMESPACE, &format!("app={app}"))?.pop().context("no router");
        Ok(Self {
            pods: [one(ROUTERS[0])?, one(ROUTERS[1])?],
            services: [
                cluster.service_address(ROUTERS_NAMESPACE, ROUTERS[0])?,
                cluster.service_address(ROUTERS_NAMESPACE, ROUTERS[1])?,
            ],
        })
    }

    /// Returns a socket address of a router's pod.
    pub fn pod(&self, index: usize, port: u16) -> SocketAddr {
        SocketAddr::new(self.pods[index].addresses[0], port)
    }
}

/// The tenant's SPIFFE ID.
const ID: &str = "spiffe://cluster.local/ns/tenant-a/sa/client";

/// Adds ways to a router without the sidecar, with forged certificates or none.
pub fn forged<'a>(ways: &mut Ways<'a>, cluster: &Cluster, pods: &'a Pods, routers: &Routers) -> Result<()> {
    let pod = &pods.labelled;
    let (first, second) = (routers.pod(0, OWN), routers.pod(1, OWN));
    let service = SocketAddr::new(routers.services[0], OWN);
    ways.add("forged header, plaintext, to its router's pod", None, |to| direct(pod, first, to, None));
    ways.add("the same to its router's Service", None, |to| direct(pod, service, to, None));
    ways.add("the same to the other router", None, |to| direct(pod, second, to, None));
    ways.add("the same to another tenant's port", None, |to| direct(pod, routers.pod(1, OTHERS[1]), to, None));
    let (v6, router) = (ways.address_v6(5432), SocketAddr::new(routers.pods[0].addresses[1], OWN));
    ways.add_to("the same with IPv6", None, v6, |to| direct(pod, router, to, None));
    ways.add("the same as uid 1337 of a pod with a sidecar", None, |to| {
        let header = proxy_header(pods.client.addresses[0], to);
        as_1337(&pods.client, first, [&header[..], b"hello"].concat())
    });
    let (mesh, foreign) = (mesh_authority(cluster)?, foreign_authority()?);
    let now = SystemTime::now() - Duration::from_secs(60);
    for (name, identity) in [
        ("TLS without a certificate", None),
        ("TLS, self-signed certificate with its own ID", Some(Identity::self_signed(ID)?)),
        ("TLS, certificate of a foreign CA of the same name", Some(foreign.issue(ID, now)?)),
        ("TLS, certificate of the mesh that has expired", Some(mesh.issue(ID, now - 3 * DAY)?)),
        (
            "TLS, certificate of the mesh, another service account",
            Some(mesh.issue("spiffe://cluster.local/ns/tenant-a/sa/default", now)?),
        ),
        (
            "TLS, certificate of the mesh, another trust domain",
            Some(mesh.issue("spiffe://other.example/ns/tenant-a/sa/client", now)?),
        ),
        ("TLS, certificate of the mesh, an ID that begins like its own", Some(mesh.issue(&format!("{ID}-2"), now)?)),
    ] {
        let tls = tls::client(identity.as_ref())?;
        ways.add(name, None, |to| direct(pod, first, to, Some(&tls)));
    }
    Ok(())
}

/// Adds ways with the tenant's own certificate, which a manifest can obtain but an application cannot.
pub fn genuine<'a>(ways: &mut Ways<'a>, pods: &'a Pods, routers: &Routers, own: &Arc<ClientConfig>) {
    let (pod, first, router) = (&pods.labelled, routers.pod(0, OWN), Some(ROUTERS[0]));
    ways.add("its own certificate, by its manifest, to its router", router, |to| direct(pod, first, to, Some(own)));
    ways.add("the same, claims another tenant's source", router, |to| {
        let (header, own) = (proxy_header(pods.other_tenant.addresses[0], to), Arc::clone(own));
        Box::new(move || pod.host.run(|| hear(authenticate(first, &header, &own)?, b"hello")))
    });
    ways.add("the same without a header", None, |_| {
        let own = Arc::clone(own);
        Box::new(move || pod.host.run(|| hear(authenticate(first, b"", &own)?, b"hello")))
    });
    ways.add("the same with a header of version 1", None, |to| {
        let header = format!("PROXY TCP4 {} {} 1234 {}\r\n", pod.addresses[0], to.ip(), to.port()).into_bytes();
        let own = Arc::clone(own);
        Box::new(move || pod.host.run(|| hear(authenticate(first, &header, &own)?, b"hello")))
    });
    ways.add("the same with the header inside TLS", None, |to| {
        let (header, own) = (proxy_header(pod.addresses[0], to), Arc::clone(own));
        Box::new(move || pod.host.run(|| hear(authenticate(first, b"", &own)?, &header)))
    });
    ways.add("the same to the other router", None, |to| direct(pod, routers.pod(1, OWN), to, Some(own)));
    for (name, router, port) in [
        ("the same to the port of tenant-b, own router", 0, OTHERS[1]),
        ("the same to the port of tenant-b, its router", 1, OTHERS[1]),
        ("the same to the port of the clients", 0, OTHERS[0]),
    ] {
        ways.add(name, None, |to| direct(pod, routers.pod(router, port), to, Some(own)));
    }
    ways.add("the same from another namespace", None, |to| direct(&pods.foreign, first, to, Some(own)));
    ways.add("the same from a pod without the label", None, |to| direct(&pods.bare, first, to, Some(own)));
}

/// Adds ways to private destinations with the tenant's own certificate, so that the routers refuse them, not the sidecar's table.
pub fn private<'a>(
    ways: &mut Ways<'a>,
    cluster: &Cluster,
    pods: &'a Pods,
    routers: &Routers,
    own: &Arc<ClientConfig>,
) -> Result<()> {
    let ((node, node_address), backend) = (node(cluster, &pods.labelled)?, cluster.backend()?);
    for host in [&node, &routers.pods[0].host, &routers.pods[1].host] {
        server::start(host, SERVED, Protocol::ClientFirst)?;
    }
    let node = SocketAddr::new(node_address, SERVED);
    let service = SocketAddr::new(cluster.service_address("default", "backend")?, 80);
    let backend = |port| SocketAddr::new(backend.addresses[0], port);
    for (name, to, server) in [
        ("10.0.0.0/8", "10.88.0.77:80".parse()?, None),
        ("192.168.0.0/16", "192.168.77.7:80".parse()?, None),
        ("100.64.0.0/10", "100.64.77.7:80".parse()?, None),
        ("fc00::/7", "[fd12:3456::7]:80".parse()?, None),
        ("fec0::/10", "[fec0:77::7]:80".parse()?, None),
        ("IPv4 as IPv6", "[::ffff:10.88.0.78]:80".parse()?, Some("10.88.0.78:80".parse()?)),
        ("the metadata service", "169.254.169.254:80".parse()?, None),
        ("the host of the API server", "172.18.0.1:80".parse()?, None),
        ("a node", node, None),
        ("a pod", backend(5432), None),
        ("a Service", service, Some(backend(80))),
        ("the router's loopback", SocketAddr::new(Ipv4Addr::LOCALHOST.into(), SERVED), None),
        ("the router's own address", routers.pod(0, SERVED), None),
        ("the other router's address", routers.pod(1, SERVED), None),
    ] {
        let name: &'a str = Box::leak(format!("own certificate, to {name}, {to}").into_boxed_str());
        ways.add_to(name, None, server.unwrap_or(to), |_| direct(&pods.labelled, routers.pod(0, OWN), to, Some(own)));
    }
    let listed = "10.88.0.66:5432".parse()?;
    ways.add_to("own certificate, to an address and port of its list", Some(ROUTERS[0]), listed, |to| {
        direct(&pods.labelled, routers.pod(0, OWN), to, Some(own))
    });
    let private = "192.168.77.8:5432".parse()?;
    ways.add_to("through its sidecar to a private address", None, private, |to| {
        plain(&pods.client, to, b"hello".to_vec())
    });
    Ok(())
}

/// Adds ways through the sidecar and around it.
pub fn sidecars<'a>(ways: &mut Ways<'a>, pods: &'a Pods, routers: &Routers) {
    let (client, hello) = (&pods.client, b"hello".to_vec());
    let with_header = |to| [&proxy_header(client.addresses[0], to)[..], b"hello"].concat();
    ways.add("through its sidecar", Some(ROUTERS[0]), |to| plain(client, to, hello.clone()));
    let v6 = ways.address_v6(5432);
    ways.add_to("the same with IPv6", Some(ROUTERS[0]), v6, |to| plain(client, to, hello.clone()));
    let denied = ways.address(25);
    ways.add_to("through its sidecar, port 25, which its table denies", None, denied, |to| {
        plain(client, to, hello.clone())
    });
    // The connection reaches its own destination, which receives the header as data.
    let inner = ways.address(5432);
    ways.add("through its sidecar, another destination's header as data", Some(ROUTERS[0]), |to| {
        plain(client, to, with_header(inner))
    });
    ways.add_to("  the destination of that header", None, inner, |_| Box::new(|| Ok(String::new())));
    for (name, at) in [
        ("through its sidecar to its router's pod, forged header", routers.pod(0, OWN)),
        ("through its sidecar to its router's Service, forged header", SocketAddr::new(routers.services[0], OWN)),
        (
            "through its sidecar to tenant-b's Service port, forged header",
            SocketAddr::new(routers.services[1], OTHERS[1]),
        ),
        ("port 15001 of its sidecar, forged header", SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 15001)),
        ("port 15001 by its own address, forged header", SocketAddr::new(client.addresses[0], 15001)),
        ("port 15006 of its sidecar, forged header", SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 15006)),
        ("port 15006 by its own address, forged header", SocketAddr::new(client.addresses[0], 15006)),
    ] {
        ways.add(name, None, |to| plain(client, at, with_header(to)));
    }
    for (name, port) in [("port 15001 of another pod's sidecar", 15001), ("port 15006 of another pod's sidecar", 15006)]
    {
        let at = SocketAddr::new(client.addresses[0], port);
        ways.add(name, None, |to| plain(&pods.bare, at, with_header(to)));
    }
    let other = &pods.other_account;
    ways.add("sidecar of a pod with another service account", None, |to| plain(other, to, hello.clone()));
    ways.add("uid 1337, to the destination", None, |to| as_1337(client, to, hello.clone()));
    let excluded = ways.address(25);
    ways.add_to("port that its manifest excludes", None, excluded, |to| plain(&pods.manifest, to, hello.clone()));
    let excluded = SocketAddr::new(EXCLUDED.into(), 5432);
    ways.add_to("address that its manifest excludes", None, excluded, |to| plain(&pods.manifest, to, hello.clone()));
    for (name, pod) in [
        ("pod without a sidecar and without the label", &pods.bare),
        ("pod without a sidecar, with the label", &pods.labelled),
        ("pod without a sidecar, with a router's label", &pods.squatter),
    ] {
        ways.add(name, None, |to| plain(pod, to, hello.clone()));
    }
    let datagrams: SocketAddr = "198.51.100.7:4433".parse().expect("an address");
    ways.add_to("UDP", None, datagrams, |to| {
        Box::new(move || {
            client.host.run(|| {
                let socket = UdpSocket::bind("0.0.0.0:0")?;
                socket.set_read_timeout(Some(Duration::from_secs(2)))?;
                socket.send_to(b"hello", to)?;
                Ok(format!("{} bytes", socket.recv(&mut [0; 512])?))
            })
        })
    });
}

/// Adds ways in which pods with a router's label, in the tenant's namespace and in a foreign one, listen while all clients connect.
pub fn squatters<'a>(ways: &mut Ways<'a>, cluster: &'a Cluster, pods: &'a Pods) -> Result<()> {
    for (name, squatter) in [
        ("pod with a router's label, own namespace: receives a connection", &pods.squatter),
        ("pod with a router's label, other namespace: receives a connection", &pods.foreign),
    ] {
        for port in [8080, 8081, 8090, 8091, 8100, 8101] {
            server::start(&squatter.host, port, Protocol::ServerFirst)?;
        }
        ways.add_to(name, None, SocketAddr::new(squatter.addresses[0], 0), |_| {
            Box::new(|| {
                for _ in 0..10 {
                    for client in cluster.clients.iter().chain([&pods.client, &pods.other_tenant]) {
                        server::ask(&client.host, "198.51.100.7:443".parse()?, b"hello")?;
                    }
                }
                Ok("the clients were routed".into())
            })
        });
    }
    let slices = cluster.get(&["--namespace", ROUTERS_NAMESPACE, "endpointslices"])?.to_string();
    for squatter in [&pods.squatter, &pods.foreign] {
        let listed = squatter.addresses.iter().any(|address| slices.contains(&format!("\"{address}\"")));
        ensure!(!listed, "{} is an endpoint of a router: {slices}", squatter.name);
    }
    ensure!(!list(&serde_json::from_str(&slices)?, "/items").is_empty(), "no endpoints: {slices}");
    Ok(())
}
