//! TLS connections with rustls, and errors that name the option that fixes them.
//!
//! The client connects itself instead of using the TLS of `tonic`, because a server that requires a client certificate reports a
//! missing one only after the handshake. `tonic` would show a broken pipe.

use std::{
    fmt, io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use hyper_util::{client::legacy::connect::HttpConnector, rt::TokioIo};
use rustls_native_certs::{CertificateResult, load_native_certs};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{
        self, AlertDescription, CertificateError, ClientConfig, RootCertStore,
        client::ResolvesClientCert,
        crypto::{CryptoProvider, ring},
        pki_types::ServerName,
        sign::{CertifiedKey, SingleCertAndKey},
    },
};
use tonic::transport::{Endpoint, Uri};
use tower::{BoxError, Service, service_fn};

use super::{ChannelOptions, HttpService, boxed, configure};

/// The name of HTTP/2 in ALPN.
const HTTP2: &[u8] = b"h2";

/// The TLS options of a client.
#[derive(Clone)]
pub(crate) struct TlsOptions {
    /// The CAs that the program set. Empty to trust the system's CAs.
    pub(crate) roots: RootCertStore,
    /// The system's CAs, or the problem, after [`load_system_roots`](Self::load_system_roots).
    system_roots: Option<Result<RootCertStore, String>>,
    /// The certificate of this client, and its key.
    pub(crate) identity: Option<Arc<CertifiedKey>>,
    /// The name to verify. The default is the host in the address.
    pub(crate) server_name: Option<ServerName<'static>>,
}

impl Default for TlsOptions {
    fn default() -> Self {
        Self { roots: RootCertStore::empty(), system_roots: None, identity: None, server_name: None }
    }
}

impl TlsOptions {
    /// The name of the first option that is set.
    pub(crate) fn first_set(&self) -> Option<&'static str> {
        [
            ("ca_certificate", !self.roots.is_empty()),
            ("client_certificate", self.identity.is_some()),
            ("server_name", self.server_name.is_some()),
        ]
        .into_iter()
        .find_map(|(option, is_set)| is_set.then_some(option))
    }

    /// Reads the system's CAs, unless the program has set CAs. Reads on another thread, because the file system may be slow.
    pub(crate) async fn load_system_roots(&mut self) {
        if self.roots.is_empty() {
            let loaded = tokio::task::spawn_blocking(system_roots).await;
            let failed = |error| Err(format!("the CA certificates of this system cannot be read: {error}"));
            self.system_roots = Some(loaded.unwrap_or_else(failed));
        }
    }

    /// Creates the connector. Reads the system's CAs if nothing else has loaded or set CAs.
    ///
    /// # Errors
    /// The problem, as a clause.
    pub(crate) fn connector(&self) -> Result<Connector, String> {
        let roots = if self.roots.is_empty() {
            self.system_roots.clone().unwrap_or_else(system_roots)?
        } else {
            self.roots.clone()
        };
        let config = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|error| format!("TLS cannot be used: {error}"))?
            .with_root_certificates(roots);
        let mut config = match &self.identity {
            Some(identity) => {
                let resolver: Arc<dyn ResolvesClientCert> =
                    Arc::new(SingleCertAndKey::from(Arc::clone(identity)));
                config.with_client_cert_resolver(resolver)
            }
            None => config.with_no_client_auth(),
        };
        config.alpn_protocols.push(HTTP2.to_owned());
        let has_ca = !self.roots.is_empty();
        Ok(Connector { config: Arc::new(config), has_ca, has_identity: self.identity.is_some() })
    }
}

impl fmt::Debug for TlsOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsOptions")
            .field("ca_certificates", &self.roots.len())
            .field("has_client_certificate", &self.identity.is_some())
            .field("server_name", &self.server_name)
            .finish()
    }
}

/// Returns the cryptography provider: the default of the program, or ring.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    CryptoProvider::get_default().cloned().unwrap_or_else(|| Arc::new(ring::default_provider()))
}

fn system_roots() -> Result<RootCertStore, String> {
    roots_of(load_native_certs())
}

fn roots_of(loaded: CertificateResult) -> Result<RootCertStore, String> {
    /// The maximum number of errors in a message.
    const MAX_ERRORS: usize = 3;
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(loaded.certs);
    if !roots.is_empty() {
        return Ok(roots);
    }
    if loaded.errors.is_empty() {
        return Err("this system has no CA certificates; install its package `ca-certificates`, or pass the certificate of the \
                    CA to `ClientBuilder::ca_certificate`"
            .to_owned());
    }
    let errors: Vec<_> = loaded.errors.iter().take(MAX_ERRORS).map(ToString::to_string).collect();
    Err(format!(
        "the CA certificates of this system cannot be read: {}; correct SSL_CERT_FILE and SSL_CERT_DIR if they are set, or pass \
         the certificate of the CA to `ClientBuilder::ca_certificate`",
        errors.join(", ")
    ))
}

/// Connects with TLS.
#[derive(Debug, Clone)]
pub(crate) struct Connector {
    config: Arc<ClientConfig>,
    /// Whether the program has set the CAs.
    has_ca: bool,
    has_identity: bool,
}

impl Connector {
    /// Creates a channel to `host:port`, which connects with its first request.
    ///
    /// # Errors
    /// The problem, as a clause.
    pub(crate) fn channel_to(
        self,
        authority: &str,
        server_name: Option<&ServerName<'static>>,
        options: &ChannelOptions,
        connect_timeout: Duration,
    ) -> Result<HttpService, String> {
        let server_name = match server_name {
            Some(name) => name.clone(),
            None => host_name(authority)?,
        };
        let invalid = |error: &dyn fmt::Display| error.to_string();
        // With `https`, the endpoint would reject a connector that has TLS already.
        let endpoint =
            Endpoint::from_shared(format!("http://{authority}")).map_err(|error| invalid(&error))?;
        let origin: Uri = format!("https://{authority}").parse().map_err(|error| invalid(&error))?;
        let mut tcp = HttpConnector::new();
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(connect_timeout));
        let connector = service_fn(move |uri: Uri| {
            let (connecting, this, server_name) = (tcp.call(uri), self.clone(), server_name.clone());
            async move {
                let stream = this.connect(server_name, connecting.await?.into_inner()).await?;
                Ok::<_, BoxError>(TokioIo::new(stream))
            }
        });
        let endpoint = configure(endpoint.origin(origin), options, connect_timeout);
        Ok(boxed(endpoint.connect_with_connector_lazy(connector)))
    }

    async fn connect(self, server_name: ServerName<'static>, tcp: TcpStream) -> io::Result<TlsIo> {
        let connector = TlsConnector::from(Arc::clone(&self.config));
        match connector.connect(server_name.clone(), tcp).await {
            Ok(stream) => Ok(TlsIo { stream: Box::new(stream), connector: self }),
            Err(error) => Err(self.explain_handshake(&error, &server_name)),
        }
    }

    /// Replaces the error of a handshake with a description.
    fn explain_handshake(&self, error: &io::Error, server_name: &ServerName<'_>) -> io::Error {
        const PLAIN: &str = "if it has no TLS, write `http://` instead of `https://`";
        let problem = match tls_error(error) {
            Some(rustls::Error::InvalidCertificate(invalid)) => {
                self.explain_certificate(invalid, server_name)
            }
            Some(rustls::Error::InvalidMessage(_) | rustls::Error::InappropriateMessage { .. }) => {
                "it does not speak TLS; write `http://` instead of `https://`".to_owned()
            }
            Some(rustls::Error::AlertReceived(alert)) => self.explain_alert(*alert),
            Some(error) => format!("the TLS handshake failed: {error}"),
            None => format!("it broke off the TLS handshake ({error}); {PLAIN}"),
        };
        io::Error::new(error.kind(), problem)
    }

    fn explain_certificate(&self, invalid: &CertificateError, server_name: &ServerName<'_>) -> String {
        match invalid {
            // The signature is bad if a trusted CA has the name of the issuer but another key.
            CertificateError::UnknownIssuer | CertificateError::BadSignature if self.has_ca => {
                "its certificate is not signed by a CA of `ClientBuilder::ca_certificate`; pass the certificate of the CA that \
                 signed it"
                    .to_owned()
            }
            CertificateError::UnknownIssuer => {
                "its certificate is signed by a CA that this system does not trust; pass the certificate of that CA to \
                 `ClientBuilder::ca_certificate`"
                    .to_owned()
            }
            CertificateError::NotValidForName => not_valid_for_name(server_name, &[]),
            CertificateError::NotValidForNameContext { presented, .. } => {
                not_valid_for_name(server_name, presented)
            }
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                "its certificate has expired; renew it on the server, or correct the clock of this machine".to_owned()
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                "its certificate is not valid yet; correct the clock of this machine, or of the one that made the certificate"
                    .to_owned()
            }
            other => format!("its certificate is invalid: {other}"),
        }
    }

    fn explain_alert(&self, alert: AlertDescription) -> String {
        const ADVICE: &str = "pass a certificate and its key to `ClientBuilder::client_certificate`";
        match alert {
            AlertDescription::CertificateRequired => format!("it requires a client certificate; {ADVICE}"),
            // Before TLS 1.3, servers report a missing certificate like this.
            AlertDescription::HandshakeFailure | AlertDescription::BadCertificate if !self.has_identity => {
                format!(
                    "it rejected the TLS handshake ({alert:?}) and may require a client certificate; {ADVICE}"
                )
            }
            AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied
            | AlertDescription::DecryptError
                if self.has_identity =>
            {
                format!(
                    "it rejected the certificate of `ClientBuilder::client_certificate` ({alert:?}); pass one that its CA signed"
                )
            }
            AlertDescription::NoApplicationProtocol => {
                "it does not serve HTTP/2; is this the port for gRPC?".to_owned()
            }
            other => format!("it ended the TLS connection ({other:?})"),
        }
    }
}

fn not_valid_for_name(server_name: &ServerName<'_>, presented: &[String]) -> String {
    // rustls shows names as `DnsName("host")` and `IpAddress(127.0.0.1)`.
    let inner = |name: &String| {
        let text = name.split_once('(').map_or(name.as_str(), |(_, rest)| rest);
        format!("`{}`", text.trim_end_matches(')').trim_matches('"'))
    };
    let names: Vec<_> = presented.iter().map(inner).collect();
    let names = if names.is_empty() { "another one".to_owned() } else { names.join(", ") };
    format!(
        "its certificate is not for the name `{}` but for {names}; use such a name in the address, or set \
         `ClientBuilder::server_name`",
        server_name.to_str()
    )
}

fn host_name(authority: &str) -> Result<ServerName<'static>, String> {
    let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    ServerName::try_from(host.to_owned()).map_err(|_| {
        format!(
            "certificates cannot contain the name `{host}`; use another, or set `ClientBuilder::server_name`"
        )
    })
}

fn tls_error(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

/// A TLS connection, whose errors describe the problem.
struct TlsIo {
    stream: Box<TlsStream<TcpStream>>,
    connector: Connector,
}

impl TlsIo {
    /// Replaces the error of TLS with a description.
    fn explain(&self, error: io::Error) -> io::Error {
        let problem = match tls_error(&error) {
            Some(rustls::Error::AlertReceived(alert)) => self.connector.explain_alert(*alert),
            Some(error) => format!("the TLS connection broke: {error}"),
            None => return error,
        };
        io::Error::new(error.kind(), problem)
    }

    /// Replaces the error of a write with the alert that the server sent before it closed the connection.
    fn explain_write(&mut self, error: io::Error, cx: &mut Context<'_>) -> io::Error {
        let mut byte = [0];
        // Nothing else reads the data of this broken connection.
        match Pin::new(&mut self.stream).poll_read(cx, &mut ReadBuf::new(&mut byte)) {
            Poll::Ready(Err(alert)) if tls_error(&alert).is_some() => self.explain(alert),
            _ => error,
        }
    }
}

impl AsyncRead for TlsIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let result = ready!(Pin::new(&mut self.stream).poll_read(cx, buffer));
        Poll::Ready(result.map_err(|error| self.explain(error)))
    }
}

impl AsyncWrite for TlsIo {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let result = ready!(Pin::new(&mut self.stream).poll_write(cx, data));
        Poll::Ready(result.map_err(|error| self.explain_write(error, cx)))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, data));
        Poll::Ready(result.map_err(|error| self.explain_write(error, cx)))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = ready!(Pin::new(&mut self.stream).poll_flush(cx));
        Poll::Ready(result.map_err(|error| self.explain_write(error, cx)))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_server_is_the_host_of_its_address() {
        for (authority, name) in [
            ("localhost:1", "localhost"),
            ("10.0.0.1:443", "10.0.0.1"),
            ("[::1]:443", "::1"),
            ("a.example:443", "a.example"),
        ] {
            assert_eq!(host_name(authority).unwrap().to_str(), name);
        }
        let problem = host_name("a..b:1").unwrap_err();
        assert!(problem.contains("ClientBuilder::server_name"), "{problem}");
    }

    #[test]
    fn unreadable_certificates_are_named() {
        let missing = std::path::Path::new("/missing/ca.pem");
        let problem = roots_of(rustls_native_certs::load_certs_from_paths(Some(missing), None)).unwrap_err();
        assert!(problem.contains("/missing/ca.pem") && problem.contains("SSL_CERT_FILE"), "{problem}");
        let problem = roots_of(CertificateResult::default()).unwrap_err();
        assert!(problem.contains("install its package `ca-certificates`"), "{problem}");
    }

    #[tokio::test]
    async fn connectors_use_the_roots_that_were_loaded() {
        let mut options = TlsOptions::default();
        options.load_system_roots().await;
        assert!(options.system_roots.is_some());
        options.system_roots = Some(Err("the disk is slow".to_owned()));
        assert_eq!(options.connector().unwrap_err(), "the disk is slow");
    }

    #[test]
    fn alerts_name_the_option() {
        let config =
            ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions().unwrap();
        let config = config.with_root_certificates(RootCertStore::empty()).with_no_client_auth();
        let connector =
            |has_identity| Connector { config: Arc::new(config.clone()), has_ca: false, has_identity };
        for (alert, has_identity, needle) in [
            (AlertDescription::CertificateRequired, false, "requires a client certificate"),
            (AlertDescription::HandshakeFailure, false, "may require a client certificate"),
            (
                AlertDescription::UnknownCA,
                true,
                "rejected the certificate of `ClientBuilder::client_certificate`",
            ),
            (AlertDescription::NoApplicationProtocol, false, "HTTP/2"),
            (AlertDescription::InternalError, false, "InternalError"),
        ] {
            let problem = connector(has_identity).explain_alert(alert);
            assert!(problem.contains(needle), "{problem}");
        }
    }
}
