//! The proxies' certificates, made with `envoy-docker/certificates.sh`, and the certificates of an attacker.

use anyhow::{Result, ensure};
use rcgen::{CertificateParams, DistinguishedName, Issuer, KeyPair, SanType};
use rustls::{
    ClientConfig, DigitallySignedStruct, Error, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
};
use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    process::Command,
    sync::Arc,
    time::{Duration, SystemTime},
};
use tempfile::TempDir;

/// The proxies that get certificates, as in `compose.yaml`.
const NAMES: [&str; 5] = ["client", "tenant-a", "tenant-b", "egress-router1", "egress-router2"];

/// The folders of the authority and of all proxies.
pub struct Certificates {
    folder: TempDir,
}

/// A certificate with its key.
pub struct Identity {
    certificate: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
}

impl Certificates {
    /// Creates an authority and a certificate for each proxy.
    pub fn new() -> Result<Self> {
        let certificates = Self { folder: TempDir::new()? };
        // The parent folder must not be what protects the keys.
        fs::set_permissions(certificates.folder.path(), fs::Permissions::from_mode(0o755))?;
        certificates.run(&[])?;
        Ok(certificates)
    }

    /// Runs the shipped script with these options.
    pub fn run(&self, options: &[&str]) -> Result<()> {
        let script = testbed::root().join("envoy-docker/certificates.sh");
        let mut command = Command::new("sh");
        command.arg(script).args(options).arg(self.folder.path()).args(NAMES).env("AT", "");
        let output = command.output()?;
        ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    /// Returns the folder of a proxy.
    pub fn of(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Returns the certificate of a proxy.
    pub fn identity(&self, name: &str) -> Result<Identity> {
        let pem = fs::read(self.of(name).join("identity.pem"))?;
        Ok(Identity { certificate: CertificateDer::from_pem_slice(&pem)?, key: PrivateKeyDer::from_pem_slice(&pem)? })
    }

    /// Signs a certificate for this SPIFFE identity with the key of the authority, valid for `days` from `start`.
    pub fn sign(&self, uri: &str, start: SystemTime, days: u64) -> Result<Identity> {
        let authority = self.of("authority");
        let name = fs::read_to_string(authority.join("newest"))?;
        let name = name.trim();
        let mut issuer = CertificateParams::default();
        issuer.distinguished_name = DistinguishedName::new();
        issuer
            .distinguished_name
            .push(rcgen::DnType::OrganizationName, rcgen::DnValue::Utf8String("sluice.example".into()));
        issuer.distinguished_name.push(rcgen::DnType::CommonName, rcgen::DnValue::Utf8String(name.into()));
        let key = KeyPair::from_pem(&fs::read_to_string(authority.join(format!("{name}.key")))?)?;
        sign(uri, start, days, &Issuer::new(issuer, key))
    }
}

/// Signs a certificate for this SPIFFE identity with the key of another authority.
pub fn foreign(uri: &str) -> Result<Identity> {
    let mut issuer = CertificateParams::default();
    issuer.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    sign(uri, SystemTime::now(), 1, &Issuer::new(issuer, KeyPair::generate()?))
}

/// Creates a self-signed certificate for this SPIFFE identity.
pub fn self_signed(uri: &str) -> Result<Identity> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI(uri.try_into()?)];
    let certificate = params.self_signed(&key)?.der().clone();
    Ok(Identity { certificate, key: PrivateKeyDer::try_from(key.serialize_der()).map_err(anyhow::Error::msg)? })
}

fn sign(uri: &str, start: SystemTime, days: u64, issuer: &Issuer<'_, KeyPair>) -> Result<Identity> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI(uri.try_into()?)];
    params.not_before = start.into();
    params.not_after = (start + Duration::from_secs(days * 86_400)).into();
    let certificate = params.signed_by(&key, issuer)?.der().clone();
    Ok(Identity { certificate, key: PrivateKeyDer::try_from(key.serialize_der()).map_err(anyhow::Error::msg)? })
}

/// Returns the TLS settings of a client with this certificate that accepts every router.
pub fn client(identity: Option<Identity>) -> Result<Arc<ClientConfig>> {
    let builder = ClientConfig::builder().dangerous().with_custom_certificate_verifier(Arc::new(Anybody));
    Ok(Arc::new(match identity {
        Some(Identity { certificate, key }) => builder.with_client_auth_cert(vec![certificate], key)?,
        None => builder.with_no_client_auth(),
    }))
}

/// Accepts every certificate of a server, as an attacker does.
#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        ring::default_provider().signature_verification_algorithms.supported_schemes()
    }
}
