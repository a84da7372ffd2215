//! Genuine and forged certificates, and connections to a router with any PROXY header and certificate.

use crate::{cluster::Cluster, pod::text};
use anyhow::{Context, Result, ensure};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    SanType, date_time_ymd,
};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, Error, SignatureScheme, StreamOwned,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
};
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

/// A certificate authority.
pub struct Authority(Issuer<'static, KeyPair>);

impl Authority {
    /// Creates an authority with the same name as the mesh's, which no proxy trusts.
    pub fn foreign() -> Result<Self> {
        Ok(Self::of(KeyPair::generate()?))
    }

    /// Loads the mesh's own authority. Only an administrator can read its key.
    pub fn mesh(cluster: &Cluster) -> Result<Self> {
        let secret = cluster.get(&["--namespace", "istio-system", "secret", "istio-ca-secret"])?;
        let key = text(&secret, "/data/ca-key.pem")?;
        // istiod writes PKCS #1, but ring reads PKCS #8.
        let convert = "base64 -d | openssl pkcs8 -topk8 -nocrypt";
        let mut openssl =
            Command::new("sh").args(["-c", convert]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        openssl.stdin.take().context("openssl has no pipe")?.write_all(key.as_bytes())?;
        let converted = openssl.wait_with_output()?;
        ensure!(converted.status.success(), "openssl pkcs8: {}", converted.status);
        Ok(Self::of(KeyPair::from_pem(&String::from_utf8(converted.stdout)?)?))
    }

    fn of(key: KeyPair) -> Self {
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name = DistinguishedName::new();
        parameters.distinguished_name.push(DnType::OrganizationName, "cluster.local");
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(Issuer::new(parameters, key))
    }

    /// Issues a certificate for this SPIFFE ID that is valid now.
    pub fn issue(&self, id: &str) -> Result<Identity> {
        Identity::new(id, |parameters, key| parameters.signed_by(key, &self.0))
    }

    /// Issues a certificate that expired at the end of 2025.
    pub fn issue_expired(&self, id: &str) -> Result<Identity> {
        Identity::new(id, |parameters, key| {
            let mut expired = parameters.clone();
            expired.not_after = date_time_ymd(2025, 12, 31);
            expired.signed_by(key, &self.0)
        })
    }
}

/// A certificate with its key.
pub struct Identity {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl Identity {
    fn new(
        id: &str,
        sign: impl FnOnce(&CertificateParams, &KeyPair) -> Result<rcgen::Certificate, rcgen::Error>,
    ) -> Result<Self> {
        let key = KeyPair::generate()?;
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name = DistinguishedName::new();
        parameters.subject_alt_names = vec![SanType::URI(id.try_into()?)];
        parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        let signed = sign(&parameters, &key)?;
        Ok(Self { chain: vec![signed.der().clone()], key: PrivateKeyDer::Pkcs8(key.serialize_der().into()) })
    }

    /// Creates a self-signed certificate.
    pub fn self_signed(id: &str) -> Result<Self> {
        Self::new(id, |parameters, key| parameters.self_signed(key))
    }

    /// Reads a certificate from the files that Istio's agent writes.
    pub fn from_pem(chain: &str, key: &str) -> Result<Self> {
        let chain = CertificateDer::pem_slice_iter(chain.as_bytes()).collect::<Result<_, _>>()?;
        Ok(Self { chain, key: PrivateKeyDer::from_pem_slice(key.as_bytes())? })
    }
}

/// Returns the TLS settings of a client that accepts every server.
pub fn tls(identity: Option<&Identity>) -> Result<Arc<ClientConfig>> {
    let provider = Arc::new(ring::default_provider());
    let anybody = Arc::new(Anybody(Arc::clone(&provider)));
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let builder = builder.dangerous().with_custom_certificate_verifier(anybody);
    Ok(Arc::new(match identity {
        Some(identity) => builder.with_client_auth_cert(identity.chain.clone(), identity.key.clone_key())?,
        None => builder.with_no_client_auth(),
    }))
}

/// Accepts every certificate of a server.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer,
        _: &[CertificateDer],
        _: &ServerName,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
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
    let mut heard = [0; 512];
    let length = stream.read(&mut heard)?;
    ensure!(length > 0, "the connection was closed");
    Ok(String::from_utf8_lossy(&heard[..length]).into_owned())
}
