//! A client of a host behind a server with TLS, which requires a client certificate.
//!
//! Run it with the address of the server, the certificate of its CA, and the client's own certificate and key, as PEM files:
//! `cargo run -p snakepit-server --example tls_client -- https://localhost:8443 ca.pem client.pem client.key`
#![allow(clippy::print_stdout, reason = "an example prints its results")]

use std::{error::Error, fs, path::Path};

use serde_json::json;
use snakepit_server::Client;

/// Connects, and calls a tool.
pub async fn add(
    address: &str,
    ca: &Path,
    certificate: &Path,
    key: &Path,
) -> Result<i64, Box<dyn Error + Send + Sync>> {
    let client = Client::builder()
        .ca_certificate(fs::read(ca)?)
        .client_certificate(fs::read(certificate)?, fs::read(key)?)
        .connect(address)
        .await?;
    Ok(client.execute("add", json!({"a": 1, "b": 2})).await?)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [address, ca, certificate, key] = arguments.as_slice() else {
        return Err("usage: tls_client ADDRESS CA CERTIFICATE KEY".into());
    };
    println!("{}", add(address, ca.as_ref(), certificate.as_ref(), key.as_ref()).await?);
    Ok(())
}
