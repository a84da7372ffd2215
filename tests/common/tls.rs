//! Certificates of the tests' own making, and TLS clients that present them.

use anyhow::Result;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType,
};
use rustls::{
    ClientConfig, DigitallySignedStruct, Error, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
};
use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

pub const DAY: Duration = Duration::from_secs(86_400);

/// A certificate authority.
pub struct Authority(Issuer<'static, KeyPair>);

impl Authority {
    /// An authority of this name that signs with this key.
    pub fn new(name: DistinguishedName, key: KeyPair) -> Self {
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name = name;
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(Issuer::new(parameters, key))
    }

    /// Issues a certificate for this SPIFFE ID that is valid for a day from `start` on.
    pub fn issue(&self, id: &str, start: SystemTime) -> Result<Identity> {
        let key = KeyPair::generate()?;
        let mut parameters = parameters(id)?;
        parameters.not_before = start.into();
        parameters.not_after = (start + DAY).into();
        Ok(Identity::new(&parameters.signed_by(&key, &self.0)?, &key))
    }
}

/// A certificate, with the certificates of its issuers if it needs them, and its key.
pub struct Identity {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl Identity {
    fn new(certificate: &rcgen::Certificate, key: &KeyPair) -> Self {
        Self { chain: vec![certificate.der().clone()], key: PrivateKeyDer::Pkcs8(key.serialize_der().into()) }
    }

    /// A self-signed certificate for this SPIFFE ID.
    pub fn self_signed(id: &str) -> Result<Self> {
        let key = KeyPair::generate()?;
        Ok(Self::new(&parameters(id)?.self_signed(&key)?, &key))
    }

    /// Reads a chain of certificates and its key.
    pub fn from_pem(chain: &str, key: &str) -> Result<Self> {
        let chain = CertificateDer::pem_slice_iter(chain.as_bytes()).collect::<Result<_, _>>()?;
        Ok(Self { chain, key: PrivateKeyDer::from_pem_slice(key.as_bytes())? })
    }
}

fn parameters(id: &str) -> Result<CertificateParams> {
    let mut parameters = CertificateParams::default();
    parameters.distinguished_name = DistinguishedName::new();
    parameters.subject_alt_names = vec![SanType::URI(id.try_into()?)];
    parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
    Ok(parameters)
}

/// The TLS settings of a client that presents this certificate and accepts every server, as an attacker does.
pub fn client(identity: Option<&Identity>) -> Result<Arc<ClientConfig>> {
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let builder = builder.with_safe_default_protocol_versions()?;
    let builder = builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyServer));
    Ok(Arc::new(match identity {
        Some(identity) => builder.with_client_auth_cert(identity.chain.clone(), identity.key.clone_key())?,
        None => builder.with_no_client_auth(),
    }))
}

/// Accepts the certificate of every server.
#[derive(Debug)]
struct AnyServer;

impl ServerCertVerifier for AnyServer {
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
