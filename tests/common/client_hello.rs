//! The ClientHello, the first message of a TLS client.

use anyhow::Result;
use std::sync::Arc;

/// Returns a ClientHello that asks for this server name.
pub fn client_hello(name: &str) -> Result<Vec<u8>> {
    // rustls removes a trailing dot, so a letter stands for the dot and is replaced in the encoded message.
    let placeholder = name.strip_suffix('.').map(|name| format!("{name}x"));
    let roots = rustls::RootCertStore::empty();
    let config = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let asked = placeholder.as_deref().unwrap_or(name).to_owned();
    let mut client = rustls::ClientConnection::new(Arc::new(config), asked.clone().try_into()?)?;
    let mut hello = Vec::new();
    client.write_tls(&mut hello)?;
    if let Some(start) = hello.windows(asked.len()).position(|window| window == asked.as_bytes()) {
        hello[start..start + name.len()].copy_from_slice(name.as_bytes());
    }
    Ok(hello)
}
