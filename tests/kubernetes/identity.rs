//! Genuine and forged certificates, and connections to a router with any PROXY header and certificate.

use crate::{cluster::Cluster, pod::text, tls::Authority};
use anyhow::{Context, Result, ensure};
use rcgen::{DistinguishedName, DnType, KeyPair};
use rustls::{ClientConfig, ClientConnection, StreamOwned, pki_types::ServerName};
use std::{
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpStream},
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

/// The timeout for establishing a connection, which applies if a NetworkPolicy drops packets.
const CONNECT: Duration = Duration::from_secs(2);
/// The timeout for an answer, which is longer than a router waits for a handshake.
const ANSWER: Duration = Duration::from_secs(6);

/// The mesh's own authority, whose key only an administrator can read.
pub fn mesh_authority(cluster: &Cluster) -> Result<Authority> {
    let secret = cluster.get(&["--namespace", "istio-system", "secret", "istio-ca-secret"])?;
    let key = text(&secret, "/data/ca-key.pem")?;
    // istiod writes PKCS #1, ring reads PKCS #8.
    let convert = "base64 -d | openssl pkcs8 -topk8 -nocrypt";
    let mut openssl = Command::new("sh").args(["-c", convert]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    openssl.stdin.take().context("openssl has no pipe")?.write_all(key.as_bytes())?;
    let converted = openssl.wait_with_output()?;
    ensure!(converted.status.success(), "openssl pkcs8: {}", converted.status);
    Ok(authority(KeyPair::from_pem(&String::from_utf8(converted.stdout)?)?))
}

/// An authority that nobody trusts, with the name of the mesh's.
pub fn foreign_authority() -> Result<Authority> {
    Ok(authority(KeyPair::generate()?))
}

fn authority(key: KeyPair) -> Authority {
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, "cluster.local");
    Authority::new(name, key)
}

/// Encodes a PROXY header with this source and destination, which must be of the same address family.
pub fn proxy_header(source: IpAddr, to: SocketAddr) -> Vec<u8> {
    let addresses = match (source, to.ip()) {
        (IpAddr::V4(source), IpAddr::V4(to)) => [&[0x21, 0x11, 0, 12][..], &source.octets(), &to.octets()].concat(),
        (IpAddr::V6(source), IpAddr::V6(to)) => [&[0x21, 0x21, 0, 36][..], &source.octets(), &to.octets()].concat(),
        _ => panic!("{source} and {to} are of different address families"),
    };
    [b"\r\n\r\n\0\r\nQUIT\n", &addresses[..], &1234_u16.to_be_bytes(), &to.port().to_be_bytes()].concat()
}

/// Connects, with the timeouts of an attempt.
pub fn connect(to: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&to, CONNECT)?;
    stream.set_read_timeout(Some(ANSWER))?;
    stream.set_write_timeout(Some(ANSWER))?;
    Ok(stream)
}

/// Connects to a router, sends this header in plaintext and completes the handshake.
pub fn authenticate(
    router: SocketAddr,
    header: &[u8],
    tls: &Arc<ClientConfig>,
) -> Result<StreamOwned<ClientConnection, TcpStream>> {
    let mut stream = connect(router)?;
    stream.write_all(header)?;
    let mut session = ClientConnection::new(Arc::clone(tls), ServerName::from(router.ip()))?;
    while session.is_handshaking() {
        session.complete_io(&mut stream)?;
    }
    Ok(StreamOwned::new(session, stream))
}

/// Sends bytes and returns the answer.
pub fn hear(mut stream: impl Read + Write, say: &[u8]) -> Result<String> {
    stream.write_all(say)?;
    stream.flush()?;
    let mut answer = [0; 512];
    let length = stream.read(&mut answer)?;
    ensure!(length > 0, "the connection was closed");
    Ok(String::from_utf8_lossy(&answer[..length]).into_owned())
}
