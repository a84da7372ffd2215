//! Renewals of certificates and a change of the authority, under load.

use crate::{load::under_load, topology::Topology};
use anyhow::{Context, Result};
use std::{fs, thread, time::Duration};
use testbed::{Envoy, Module};

/// Returns the certificates and authorities that an Envoy has loaded.
fn loaded(envoy: &Envoy) -> Result<String> {
    envoy.get("/certs")
}

#[test]
fn renewals_and_a_change_of_the_authority_lose_no_connection() -> Result<()> {
    let topology = Topology::new(Module::Wasm)?;
    let newest = || fs::read_to_string(topology.certificates.of("authority").join("newest")).context("newest");
    let authority = newest()?;
    let before = [loaded(&topology.sidecar)?, loaded(&topology.egress[0])?];
    let ledger = under_load(&topology, "10.1.0.2", || {
        for step in [&[][..], &[], &["--trust-new"], &[], &["--trust-only"], &[]] {
            topology.certificates.run(step)?;
            // The kernel notifies Envoy of changed files. This is the time that all proxies have to read them.
            thread::sleep(Duration::from_secs(2));
        }
        Ok(())
    })?;
    println!("{} answered, {} lost", ledger.answered, ledger.lost.len());
    assert!(ledger.answered > 100 && ledger.lost.is_empty(), "{} answered, {:?}", ledger.answered, ledger.lost);
    assert_ne!(newest()?, authority, "the authority must have changed");
    let old = fs::read_dir(topology.certificates.of("authority"))?.flatten();
    let old = old.filter(|file| file.file_name().to_string_lossy().starts_with(authority.trim())).count();
    assert_eq!(old, 0, "files of the old authority are left");
    for (envoy, before) in [&topology.sidecar, &topology.egress[0]].into_iter().zip(before) {
        let now = loaded(envoy)?;
        assert_ne!(now, before, "the proxy must have loaded its new certificate");
    }
    assert_eq!(topology.sidecar.stat("cluster.egress1.ssl.fail_verify_error")?, 0);
    Ok(())
}
