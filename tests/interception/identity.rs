//! The certificates of the proxies, as `envoy-docker/certificates.sh` makes them.

use crate::tls::{Authority, Identity};
use anyhow::{Result, ensure};
use rcgen::{DistinguishedName, DnType, DnValue, KeyPair};
use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf, process::Command};
use tempfile::TempDir;

/// The proxies that get certificates, as in `compose.yaml`.
const NAMES: [&str; 5] = ["client", "tenant-a", "tenant-b", "egress-router1", "egress-router2"];

/// The folders of the authority and of all proxies.
pub struct Certificates {
    folder: TempDir,
}

impl Certificates {
    /// Makes an authority and a certificate for each proxy.
    pub fn new() -> Result<Self> {
        let certificates = Self { folder: TempDir::new()? };
        // The script protects the keys, whatever the mode of this folder is.
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
        let pem = fs::read_to_string(self.of(name).join("identity.pem"))?;
        Identity::from_pem(&pem, &pem)
    }

    /// Returns the authority that signs the certificates of the proxies.
    pub fn authority(&self) -> Result<Authority> {
        let folder = self.of("authority");
        let newest = fs::read_to_string(folder.join("newest"))?;
        let mut name = DistinguishedName::new();
        name.push(DnType::OrganizationName, DnValue::Utf8String("sluice.example".into()));
        name.push(DnType::CommonName, DnValue::Utf8String(newest.trim().into()));
        let key = fs::read_to_string(folder.join(format!("{}.key", newest.trim())))?;
        Ok(Authority::new(name, KeyPair::from_pem(&key)?))
    }
}
