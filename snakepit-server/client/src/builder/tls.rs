//! The TLS options of a client.

use std::sync::Arc;

use tokio_rustls::rustls::{
    self, InconsistentKeys,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
    sign::CertifiedKey,
};

use super::ClientBuilder;
use crate::transport::tls::provider;

impl ClientBuilder {
    /// Trusts servers whose certificates this CA signed, instead of the system's CAs. `pem` contains one or more
    /// certificates in the PEM format. Call this method again to trust several CAs.
    ///
    /// Applies to addresses with `https://`. Without this option, the client trusts the system's CAs, which the variables
    /// `SSL_CERT_FILE` and `SSL_CERT_DIR` can replace.
    ///
    /// ```no_run
    /// # async fn connect() -> Result<(), Box<dyn std::error::Error>> {
    /// use snakepit_client::Client;
    ///
    /// let client = Client::builder()
    ///     .ca_certificate(std::fs::read("ca.pem")?)
    ///     .client_certificate(std::fs::read("client.pem")?, std::fs::read("client.key")?)
    ///     .connect("https://tools.internal:443")
    ///     .await?;
    /// # Ok(())
    /// # }
    /// ```
    #[cfg_attr(docsrs, doc(cfg(feature = "tls")))]
    pub fn ca_certificate(mut self, pem: impl AsRef<[u8]>) -> Self {
        const OPTION: &str = "ca_certificate";
        let certificates = match certificates(pem.as_ref()) {
            Ok(certificates) => certificates,
            Err(problem) => return self.with_invalid_option(OPTION, &problem),
        };
        for certificate in certificates {
            if let Err(error) = self.tls.roots.add(certificate) {
                return self
                    .with_invalid_option(OPTION, &format!("contains an invalid certificate: {error}"));
            }
        }
        self
    }

    /// Presents this certificate to servers that require one (mutual TLS). Both arguments are text in the PEM format.
    /// `certificate` contains the certificate, followed by those of intermediate CAs. `key` contains its private key, which must
    /// not be encrypted.
    ///
    /// Applies to addresses with `https://`. `Debug` does not show the key.
    #[cfg_attr(docsrs, doc(cfg(feature = "tls")))]
    pub fn client_certificate(mut self, certificate: impl AsRef<[u8]>, key: impl AsRef<[u8]>) -> Self {
        match identity(certificate.as_ref(), key.as_ref()) {
            Ok(identity) => self.tls.identity = Some(Arc::new(identity)),
            Err(problem) => return self.with_invalid_option("client_certificate", &problem),
        }
        self
    }

    /// Sets the name that the certificate of the server must have, a DNS name or an IP address. The default is the host in the
    /// address. The client also sends this name in the handshake (SNI).
    ///
    /// Applies to addresses with `https://`.
    #[cfg_attr(docsrs, doc(cfg(feature = "tls")))]
    pub fn server_name(mut self, name: &str) -> Self {
        match ServerName::try_from(name.to_owned()) {
            Ok(name) => self.tls.server_name = Some(name),
            Err(_) => return self.with_invalid_option("server_name", "is not a DNS name or IP address"),
        }
        self
    }
}

/// Reads certificates in the PEM format.
fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|error| format!("is not valid PEM: {error}"))?;
    if certificates.is_empty() {
        return Err("contains no certificate in the PEM format (`-----BEGIN CERTIFICATE-----`)".to_owned());
    }
    Ok(certificates)
}

fn identity(certificate: &[u8], key: &[u8]) -> Result<CertifiedKey, String> {
    let chain = certificates(certificate)?;
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| {
        "contains no private key in the PEM format (`-----BEGIN PRIVATE KEY-----`); decrypt an encrypted key first"
    })?;
    CertifiedKey::from_der(chain, key, &provider()).map_err(|error| match error {
        rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
            "has a key of another certificate".to_owned()
        }
        error => format!("cannot be used: {error}"),
    })
}
