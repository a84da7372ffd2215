//! A hostile application tries to get past its own router and its own lists. Each row names one attempt. The router's counters and
//! the destination show whether it succeeded.

use crate::{
    destination::{Received, read_until_closed, serve},
    identity::Certificates,
    network::{RouterNetwork, greeting, header, header_for},
    tls::{Authority, DAY, Identity, client},
    topology::{DESTINATION, Topology, redirect, router},
};
use anyhow::{Context, Result};
use rcgen::{DistinguishedName, KeyPair};
use std::{
    fs,
    net::{TcpListener, TcpStream, UdpSocket},
    os::unix::net::UnixStream,
    time::{Duration, SystemTime},
};
use testbed::{Host, Module, Network, for_each_module};

const PUBLIC: &str = "198.51.100.7:25";

/// All attempts come from the address of a listed peer. Each lacks the certificate that the port requires, or asks for a
/// destination that the tenant may not reach.
#[test]
fn a_router_forwards_nothing_without_the_certificate_of_the_tenant() -> Result<()> {
    let network = RouterNetwork::new(&router()?)?;
    let certificates = &network.certificates;
    let own = |name: &str| certificates.identity(name).map(Some);
    let authority = certificates.authority()?;
    let foreign = Authority::new(DistinguishedName::new(), KeyPair::generate()?);
    let sign = |uri: &str, start| authority.issue(uri, start).map(Some);
    let now = SystemTime::now() - Duration::from_secs(60);
    let uri = "spiffe://sluice.example/client";
    type Way = (&'static str, u16, &'static str, Option<Identity>);
    let ways: [Way; 19] = [
        ("TLS without a certificate", 8080, PUBLIC, None),
        ("a self-signed certificate", 8080, PUBLIC, Some(Identity::self_signed(uri)?)),
        ("a certificate of a foreign authority", 8080, PUBLIC, Some(foreign.issue(uri, now)?)),
        ("an expired certificate", 8080, PUBLIC, sign(uri, now - 3 * DAY)?),
        ("a certificate that is not valid yet", 8080, PUBLIC, sign(uri, now + 2 * DAY)?),
        ("another identity", 8080, PUBLIC, sign("spiffe://sluice.example/other", now)?),
        ("an identity that begins with the listed one", 8080, PUBLIC, sign(&format!("{uri}2"), now)?),
        ("another trust domain", 8080, PUBLIC, sign("spiffe://sluice.example.org/client", now)?),
        ("the certificate of a router", 8080, PUBLIC, own("egress-router1")?),
        ("tenant A at the port of the clients", 8080, PUBLIC, own("tenant-a")?),
        ("tenant A at the clients' second port", 8081, PUBLIC, own("tenant-a")?),
        ("tenant A at tenant B's port", 8100, PUBLIC, own("tenant-a")?),
        ("tenant A at tenant B's port, B's private destination", 8100, "10.20.0.1:25", own("tenant-a")?),
        ("tenant B at tenant A's port", 8090, "198.51.100.7:80", own("tenant-b")?),
        ("tenant A at a destination that is not in its list", 8090, "192.168.1.1:80", own("tenant-a")?),
        ("tenant A at a port that is not in its list", 8090, PUBLIC, own("tenant-a")?),
        ("tenant B at a private destination that no list contains", 8100, "192.168.1.1:25", own("tenant-b")?),
        ("tenant B at another port of its private destination", 8100, "10.20.0.1:80", own("tenant-b")?),
        ("tenant B at a metadata service", 8100, "169.254.169.254:25", own("tenant-b")?),
    ];
    for (way, port, destination, identity) in ways {
        let socket = network.send_to(&network.peer, port, &header_for(destination))?;
        assert_eq!(greeting(socket, &client(identity.as_ref())?)?, b"", "{way}");
        assert_eq!(network.connections()?, 0, "{way}");
    }
    for (way, bytes) in [
        ("a forged header without TLS", header_for(PUBLIC)),
        ("a forged header, and a request without TLS", [&header_for(PUBLIC)[..], b"EHLO example.com\r\n"].concat()),
        ("a second header behind the first", [header_for(PUBLIC), header_for(PUBLIC)].concat()),
        ("a header of command LOCAL", header(0x20, 0, b"")),
    ] {
        // The client receives at most a TLS alert of 7 bytes.
        let received = read_until_closed(network.send_to(&network.peer, 8080, &bytes)?)?;
        assert!(received.is_empty() || (received.len() == 7 && received[0] == 21), "{way}: {received:?}");
        assert_eq!(network.connections()?, 0, "{way}");
    }
    // The ports for probes and metrics serve one path each.
    for (port, request) in [
        (8082, "CONNECT 198.51.100.7:25 HTTP/1.1\r\nHost: 198.51.100.7:25"),
        (8082, "GET http://198.51.100.7/ HTTP/1.1\r\nHost: 198.51.100.7"),
        (8083, "CONNECT 198.51.100.7:25 HTTP/1.1\r\nHost: 198.51.100.7:25"),
        (8083, "POST /drain_listeners HTTP/1.1\r\nHost: router"),
        (8083, "POST /stats/prometheus HTTP/1.1\r\nHost: router"),
        (8083, "GET /stats/prometheus/../../config_dump HTTP/1.1\r\nHost: router"),
        (8083, "GET /config_dump HTTP/1.1\r\nHost: router"),
    ] {
        let request = format!("{request}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
        let answer = read_until_closed(network.send_to(&network.peer, port, request.as_bytes())?)?;
        let answer = String::from_utf8(answer)?;
        assert!(answer.starts_with("HTTP/1.1 40"), "{request}: {answer}");
        assert_eq!(network.connections()?, 0, "{request}");
    }
    let metrics = b"GET /stats/prometheus HTTP/1.1\r\nHost: router\r\nConnection: close\r\n\r\n";
    let answer = String::from_utf8(read_until_closed(network.send_to(&network.stranger, 8083, metrics)?)?)?;
    assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.contains("envoy_cluster_upstream_cx_total"), "{answer}");

    // As a control, the same router forwards the connections that the tenants' lists permit.
    let mut delivered = 0;
    for (name, port, destination) in [
        ("client", 8080, PUBLIC),
        ("client", 8081, PUBLIC),
        ("tenant-b", 8100, PUBLIC),
        ("tenant-b", 8100, "10.20.0.1:25"),
    ] {
        let socket = network.send_to(&network.peer, port, &header_for(destination))?;
        assert_eq!(greeting(socket, &client(own(name)?.as_ref())?)?, b"220 ready\r\n", "{name} {destination}");
        delivered += 1;
        assert_eq!(network.connections()?, delivered);
    }
    Ok(())
}

for_each_module! {
    an_application_cannot_bypass_its_sidecar,
}

/// Runs a script in the pod as this user. Returns whether it succeeded.
fn succeeds(pod: &Host, user: u32, script: &str) -> Result<bool> {
    let user = user.to_string();
    let mut command = pod.command("setpriv");
    command.args([
        "--reuid",
        &user,
        "--regid",
        &user,
        "--clear-groups",
        "--bounding-set",
        "-all",
        "--inh-caps",
        "-all",
    ]);
    Ok(command.args(["timeout", "3", "bash", "-c", script]).output()?.status.success())
}

/// Attempts to bypass the sidecar, as name, user and script. Only the rules of the redirection prevent them.
const BYPASSES: [(&str, u32, &str); 8] = [
    ("user 1337 to the destination", 1337, "exec 3<>/dev/tcp/198.51.100.7/25"),
    ("user 1337 to the destination by IPv6", 1337, "exec 3<>/dev/tcp/2001:db8::7/25"),
    ("user 1337 to a router's port that does not belong to a tenant", 1337, "exec 3<>/dev/tcp/10.1.0.21/25"),
    ("user 1337 to the metrics of a router", 1337, "exec 3<>/dev/tcp/10.1.0.21/8083"),
    // The second datagram fails if the first one caused an ICMP error.
    ("UDP", 1000, "exec 3>/dev/udp/198.51.100.7/5353; echo a >&3; sleep 0.1; echo b >&3"),
    ("UDP of user 1337", 1337, "exec 3>/dev/udp/198.51.100.7/5353; echo a >&3; sleep 0.1; echo b >&3"),
    ("QUIC", 1000, "exec 3>/dev/udp/198.51.100.7/443; echo a >&3; sleep 0.1; echo b >&3"),
    ("an echo request", 1000, ECHO_REQUEST),
];

const ECHO_REQUEST: &str = "python3 -c 'import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP)
s.settimeout(1)
s.sendto(bytes([8, 0, 0, 0, 0, 0, 0, 1]), (\"198.51.100.7\", 0))
s.recv(64)'";

/// The destination's sockets for the datagrams of `BYPASSES`.
fn udp_sockets(destination: &Host) -> Result<Vec<UdpSocket>> {
    let bind = |port| -> Result<UdpSocket> {
        let socket = destination.run(|| UdpSocket::bind(("0.0.0.0", port)))?;
        socket.set_read_timeout(Some(Duration::from_millis(300)))?;
        Ok(socket)
    };
    [5353, 443].into_iter().map(bind).collect()
}

/// Lets programs without capabilities send echo requests.
fn allow_echo_requests(pod: &Host) -> Result<()> {
    Ok(pod.run(|| fs::write("/proc/sys/net/ipv4/ping_group_range", "0 2147483647"))?)
}

fn an_application_cannot_bypass_its_sidecar(module: Module) -> Result<()> {
    let topology = Topology::new(module)?;
    let (pod, admin) = (&topology.pod, topology.sidecar.admin().to_owned());
    let key = topology.certificates.of("client").join("identity.pem");
    let key = key.display();
    let sockets = udp_sockets(&topology.destination)?;
    allow_echo_requests(pod)?;
    let ways = [
        ("read the sidecar's key", format!("cat {key}")),
        ("list the folder of the key", format!("ls {}", topology.certificates.of("client").display())),
        ("read the authority's key", format!("cat {}/*", topology.certificates.of("authority").display())),
        ("the usual port of an admin interface", "exec 3<>/dev/tcp/127.0.0.1/9901".to_owned()),
        ("the socket of the admin interface", format!("[ -w {admin} ]")),
    ];
    for (way, script) in &ways {
        assert!(!succeeds(pod, 1000, script)?, "{way}");
    }
    for (way, user, script) in BYPASSES {
        assert!(!succeeds(pod, user, script)?, "{way}");
    }
    for socket in sockets {
        assert!(socket.recv(&mut [0; 16]).is_err(), "a UDP datagram arrived at the destination");
    }
    assert!(topology.received.lock().expect("a server panicked").is_empty());
    // As a control, root can connect to the socket of the admin interface.
    UnixStream::connect(&admin).with_context(|| admin.clone())?;
    // Envoy must not open an abstract socket in the pod.
    let sockets = pod.command("cat").arg("/proc/net/unix").output()?.stdout;
    let sockets = String::from_utf8(sockets)?;
    assert!(!sockets.contains(" @"), "{sockets}");

    // Connections of the application to a router's port are redirected to the sidecar, whose router refuses them.
    for destination in ["10.1.0.21:8080", "10.1.0.22:8100", "10.1.0.21:8082"] {
        let socket = pod.run(|| TcpStream::connect(destination))?;
        assert_eq!(read_until_closed(socket)?, b"", "{destination}");
    }
    for egress in &topology.egress {
        assert_eq!(egress.stat("cluster.clients.upstream_cx_total")?, 0);
    }
    Ok(())
}

/// A control for the test above: without the rules of the redirection, all attempts of `BYPASSES` succeed.
#[test]
fn without_the_redirection_user_1337_and_udp_pass() -> Result<()> {
    let network = Network::new()?;
    let pod = network.host(&["10.1.0.2/16", "fd00:1::2/64"])?;
    let router = network.host(&["10.1.0.21/16"])?;
    let destination = network.host(&DESTINATION)?;
    let (_received, _): (Received, _) = serve(&destination)?;
    let _ports = [25, 8083].map(|port| router.run(|| TcpListener::bind(("0.0.0.0", port))));
    let sockets = udp_sockets(&destination)?;
    allow_echo_requests(&pod)?;
    for (way, user, script) in BYPASSES {
        assert!(succeeds(&pod, user, script)?, "{way}");
    }
    for socket in &sockets {
        socket.recv(&mut [0; 16]).context("no UDP datagram arrived at the destination")?;
    }
    redirect(&pod)?;
    for (way, user, script) in BYPASSES {
        assert!(!succeeds(&pod, user, script)?, "{way}");
    }
    Ok(())
}

/// Only the proxies' user can read the keys.
#[test]
fn keys_are_readable_by_their_owner_only() -> Result<()> {
    use std::os::unix::fs::MetadataExt;
    let certificates = Certificates::new()?;
    for name in ["client", "tenant-a", "tenant-b", "egress-router1", "egress-router2"] {
        for (path, mode) in [(certificates.of(name), 0o500), (certificates.of(name).join("identity.pem"), 0o400)] {
            let metadata = path.metadata()?;
            assert_eq!((metadata.uid(), metadata.mode() & 0o777), (1337, mode), "{}", path.display());
        }
    }
    assert_eq!(certificates.of("authority").metadata()?.mode() & 0o777, 0o700);
    Ok(())
}
