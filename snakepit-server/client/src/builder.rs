//! [`ClientBuilder`]: the options of a client.

#[cfg(feature = "tls")]
mod tls;

use std::{fmt, sync::Arc, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, header::AUTHORIZATION};
use snakepit_proto::{
    address::{Address, AddressError, https_authority},
    headers::{MAX_TIMEOUT, is_reserved},
};
use tower::{BoxError, Layer, Service};

use crate::{
    Client, Error,
    remote::{HostOptions, RemoteHost, RequestTimeout, Target},
    transport::{Body, ChannelOptions, HttpLayer, HttpService, boxed, channel_to, client_over},
};

/// The address that errors show for a client from [`connect_over`](ClientBuilder::connect_over).
const SERVICE_ADDRESS: &str = "the service of this program";

/// Options of a [`Client`].
///
/// ```no_run
/// # async fn connect() -> Result<(), snakepit_client::Error> {
/// use std::time::Duration;
///
/// use snakepit_client::Client;
///
/// let client = Client::builder()
///     .bearer_token("secret")
///     .default_timeout(Duration::from_secs(5))
///     .fallback("10.0.0.2:50051")
///     .connect("10.0.0.1:50051")
///     .await?;
/// # Ok(())
/// # }
/// ```
///
/// A request passes these parts, outermost first:
///
/// ```text
/// client > metadata and token > layers > connection to the current address
/// ```
#[derive(Clone, Default)]
#[must_use = "a builder does nothing until you connect"]
pub struct ClientBuilder {
    fallbacks: Vec<String>,
    request_timeout: RequestTimeout,
    default_timeout: Option<Duration>,
    channel: ChannelOptions,
    headers: HeaderMap,
    layers: Vec<HttpLayer>,
    #[cfg(feature = "tls")]
    tls: crate::transport::tls::TlsOptions,
    /// The first invalid option and its problem.
    invalid_option: Option<(&'static str, String)>,
}

impl ClientBuilder {
    /// Adds the address of another host for failover, in order of preference. If a host cannot be reached, or rejects calls
    /// because it shuts down, the client uses the next address, and after the last one the first. Each address gets an equal
    /// share of the [`connect_timeout`](Self::connect_timeout).
    ///
    /// A host that shuts down finishes its running calls. If a host is lost, the client repeats its calls in flight only if they
    /// are idempotent or had not begun. The others fail. Sessions move only if the hosts share a session backend.
    pub fn fallback(mut self, address: impl Into<String>) -> Self {
        self.fallbacks.push(address.into());
        self
    }

    /// Sets the time limit for requests other than calls: opening a session, reading and writing its variables and programs,
    /// starting a watch. The default is 30 seconds. After this time, a request fails with [`Error::TimedOut`].
    ///
    /// A call has its own deadline: [`CallBuilder::timeout`](crate::CallBuilder::timeout).
    pub const fn request_timeout(mut self, timeout: Duration) -> Self {
        self.request_timeout = RequestTimeout(timeout);
        self
    }

    /// Sets the timeout of calls without one. The default is that of the host.
    pub fn default_timeout(mut self, timeout: Duration) -> Self {
        self.default_timeout = Some(timeout.min(MAX_TIMEOUT));
        self
    }

    /// Sets the time limit for connecting, including the first requests and each later reconnect. The default is 10 seconds.
    pub const fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.channel.connect_timeout = timeout;
        self
    }

    /// Sets the interval of HTTP/2 pings on a silent connection, and the time limit for the response to a ping. After that time,
    /// the connection counts as lost. The defaults are 30 and 10 seconds.
    pub const fn keepalive(mut self, interval: Duration, timeout: Duration) -> Self {
        self.channel.keepalive_interval = interval;
        self.channel.keepalive_timeout = timeout;
        self
    }

    /// Sends this token with each request, in the header `authorization`. Hosts do not check tokens themselves; a proxy or the
    /// server that [mounts](https://github.com/snakepit-rs/snakepit/blob/main/docs/embedding/web-service.md) the host
    /// does.
    ///
    /// Only connections to `https://` addresses encrypt the token. They need the feature `tls`. Use such an address, or a Unix
    /// socket.
    pub fn bearer_token(self, token: &str) -> Self {
        match HeaderValue::try_from(format!("Bearer {token}")) {
            Ok(mut value) => {
                value.set_sensitive(true);
                self.with_header(AUTHORIZATION, value)
            }
            Err(_) => {
                self.with_invalid_option("bearer_token", "contains characters that a header cannot contain")
            }
        }
    }

    /// Sends this metadata entry, an HTTP header, with each request. A later value replaces an earlier one of the same key. The
    /// keys of the protocol are reserved: `grpc-*`, `snakepit-*`, `content-*`, `te`, `host`, `user-agent`, the trace context and
    /// the headers of HTTP/1 connections. Values are text, so keys that end in `-bin` are invalid. `Debug` does not show the
    /// values.
    pub fn metadata(self, key: &str, value: &str) -> Self {
        match (HeaderName::try_from(key), HeaderValue::try_from(value)) {
            (Ok(name), _) if is_reserved(name.as_str()) => {
                self.with_invalid_option("metadata", &format!("has the reserved key `{name}`"))
            }
            (Ok(name), Ok(mut value)) => {
                // The value may be a secret, which `Debug` must not show.
                value.set_sensitive(true);
                self.with_header(name, value)
            }
            (Ok(name), Err(_)) => self.with_invalid_option(
                "metadata",
                &format!("has a value with invalid characters for the key `{name}`"),
            ),
            (Err(_), _) => self.with_invalid_option(
                "metadata",
                "has an invalid key; use ASCII letters, digits, `-`, `_` and `.`",
            ),
        }
    }

    /// Puts a [`tower::Layer`](https://docs.rs/tower/0.5/tower/trait.Layer.html) around the HTTP requests of the client,
    /// for example to sign them, to count them, or to inject
    /// faults. A request goes through the layers in the order in which you add them. They see the final headers, with the token and
    /// the metadata, and may change them.
    ///
    /// Most calls share one request, whose body is a stream, so a layer sees them only as parts of that body. To wrap calls, use
    /// the layers of the host. A layer that returns a `tonic::Status` as its error determines the error of the request. Any other
    /// error counts as a lost connection.
    pub fn layer<L, B>(mut self, layer: L) -> Self
    where
        L: Layer<HttpService> + Send + Sync + 'static,
        L::Service: Service<Request<Body>, Response = Response<B>> + Clone + Send + Sync + 'static,
        <L::Service as Service<Request<Body>>>::Future: Send + 'static,
        <L::Service as Service<Request<Body>>>::Error: Into<BoxError>,
        B: http_body::Body<Data = bytes::Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        self.layers.push(Arc::new(move |inner| boxed(layer.layer(inner))));
        self
    }

    fn with_header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.insert(name, value);
        self
    }

    fn with_invalid_option(mut self, option: &'static str, problem: &str) -> Self {
        self.invalid_option.get_or_insert_with(|| (option, problem.to_owned()));
        self
    }

    /// Connects to the first address that answers: this one, or a [`fallback`](Self::fallback).
    ///
    /// # Errors
    /// As for [`Client::connect`], and [`Error::InvalidOption`]. [`Error::Tool`] with
    /// [`AccessDenied`](crate::ToolError::AccessDenied) if the host, or a proxy, does not accept the token.
    ///
    /// # Cancel safety
    /// Dropping the future closes the connection.
    pub async fn connect(self, address: &str) -> Result<Client, Error> {
        let host = self.with_system_roots(address).await?.host_at(address)?;
        host.open().await?;
        Ok(Client::new(host))
    }

    /// Creates a client that connects with its first request. Until then, the addresses need not be reachable. If an address
    /// begins with `https://` and you set no CA, this function reads the system's CAs on the calling thread, which takes
    /// several milliseconds.
    ///
    /// # Errors
    /// [`Error::Connect`] if an address is invalid, [`Error::InvalidOption`], or [`Error::NoRuntime`] outside a tokio runtime.
    pub fn connect_lazily(self, address: &str) -> Result<Client, Error> {
        self.host_at(address).map(Client::new)
    }

    /// Connects over a service of the program: a `tonic` channel with its own connector, or the routes of a host in this
    /// process. Connection options, such as [`keepalive`](Self::keepalive), have no effect.
    ///
    /// # Errors
    /// As for [`connect`](Self::connect).
    ///
    /// # Cancel safety
    /// Dropping the future drops the service.
    pub async fn connect_over<S, B>(self, service: S) -> Result<Client, Error>
    where
        S: Service<Request<Body>, Response = Response<B>> + Clone + Send + Sync + 'static,
        S::Future: Send + 'static,
        S::Error: Into<BoxError>,
        B: http_body::Body<Data = bytes::Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        self.check()?;
        if !self.fallbacks.is_empty() {
            let problem =
                "has no effect on a service of the program; let the service choose the host".to_owned();
            return Err(Error::InvalidOption { option: "fallback", problem });
        }
        if let Some(option) = self.tls_option() {
            let problem = "has no effect on a service of the program; set it there".to_owned();
            return Err(Error::InvalidOption { option, problem });
        }
        let client = client_over(boxed(service), &self.layers, &self.headers);
        let target = Target::new(SERVICE_ADDRESS.to_owned(), None, client);
        let host = RemoteHost::new(vec![target], self.host_options());
        host.open().await?;
        Ok(Client::new(host))
    }

    fn host_at(&self, address: &str) -> Result<RemoteHost, Error> {
        self.check()?;
        let addresses: Vec<&str> =
            std::iter::once(address).chain(self.fallbacks.iter().map(String::as_str)).collect();
        let share = self.channel.connect_timeout / u32::try_from(addresses.len()).unwrap_or(u32::MAX);
        let tls_channel_to = self.tls_channels(share);
        let target = |address: &str| {
            let invalid = |problem| Error::Connect { address: address.to_owned(), problem, source: None };
            let (channel, peer) = match https_authority(address) {
                Some(authority) => {
                    (authority.and_then(|authority| tls_channel_to(&authority)).map_err(invalid)?, None)
                }
                None => {
                    let parsed: Address =
                        address.parse().map_err(|error: AddressError| invalid(error.problem().to_owned()))?;
                    if let (Some(option), Address::Tcp(authority)) = (self.tls_option(), &parsed) {
                        let problem =
                            format!("needs TLS; write the address as https://{authority}, not {address}");
                        return Err(Error::InvalidOption { option, problem });
                    }
                    (channel_to(&parsed, &self.channel, share).map_err(invalid)?, Some(parsed))
                }
            };
            let client = client_over(channel, &self.layers, &self.headers);
            Ok::<_, Error>(Target::new(address.to_owned(), peer, client))
        };
        let targets = addresses.into_iter().map(target).collect::<Result<_, _>>()?;
        Ok(RemoteHost::new(targets, self.host_options()))
    }

    /// Loads the system's CAs if an address needs them. Does not block the thread.
    #[cfg(feature = "tls")]
    async fn with_system_roots(mut self, address: &str) -> Result<Self, Error> {
        self.check()?;
        let mut addresses = std::iter::once(address).chain(self.fallbacks.iter().map(String::as_str));
        if addresses.any(|address| https_authority(address).is_some()) {
            self.tls.load_system_roots().await;
        }
        Ok(self)
    }

    #[cfg(not(feature = "tls"))]
    #[allow(clippy::unused_async, reason = "the other function with this name awaits")]
    async fn with_system_roots(self, _: &str) -> Result<Self, Error> {
        Ok(self)
    }

    /// Returns a function that creates a channel to an `https://` address.
    #[cfg(feature = "tls")]
    fn tls_channels(&self, connect_timeout: Duration) -> impl Fn(&str) -> Result<HttpService, String> {
        // Reading the system's CAs takes several milliseconds.
        let connector = std::cell::LazyCell::new(|| self.tls.connector());
        move |authority| {
            let connector = (*connector).clone()?;
            connector.channel_to(authority, self.tls.server_name.as_ref(), &self.channel, connect_timeout)
        }
    }

    #[cfg(not(feature = "tls"))]
    #[allow(clippy::unused_self, reason = "the other function with this name uses it")]
    fn tls_channels(&self, _: Duration) -> impl Fn(&str) -> Result<HttpService, String> {
        |_| {
            let problem =
                "`https://` needs the feature `tls` of the crate `snakepit-client`, or of `snakepit-server`";
            Err(problem.to_owned())
        }
    }

    /// The name of the first TLS option that is set.
    #[cfg(feature = "tls")]
    fn tls_option(&self) -> Option<&'static str> {
        self.tls.first_set()
    }

    #[cfg(not(feature = "tls"))]
    #[allow(clippy::unused_self, reason = "the other function with this name uses it")]
    const fn tls_option(&self) -> Option<&'static str> {
        None
    }

    /// # Errors
    /// If an option is invalid, or outside of a tokio runtime, which channels need.
    fn check(&self) -> Result<(), Error> {
        if let Some((option, problem)) = &self.invalid_option {
            return Err(Error::InvalidOption { option, problem: problem.clone() });
        }
        tokio::runtime::Handle::try_current().map(drop).map_err(|_| Error::NoRuntime)
    }

    const fn host_options(&self) -> HostOptions {
        HostOptions {
            connect_timeout: self.channel.connect_timeout,
            request_timeout: self.request_timeout,
            default_timeout: self.default_timeout,
        }
    }
}

impl fmt::Debug for ClientBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("ClientBuilder");
        #[cfg(feature = "tls")]
        shown.field("tls", &self.tls);
        shown
            .field("fallbacks", &self.fallbacks)
            .field("request_timeout", &self.request_timeout)
            .field("default_timeout", &self.default_timeout)
            .field("channel", &self.channel)
            .field("headers", &self.headers)
            .field("layers", &self.layers.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn invalid_options_are_named() {
        for (builder, needle) in [
            (Client::builder().bearer_token("a\nb"), "client option `bearer_token` contains"),
            (Client::builder().metadata("grpc-timeout", "1S"), "the reserved key `grpc-timeout`"),
            (Client::builder().metadata("blob-bin", "x"), "the reserved key `blob-bin`"),
            (Client::builder().metadata("Transfer-Encoding", "x"), "the reserved key `transfer-encoding`"),
            (Client::builder().metadata("traceparent", "x"), "the reserved key `traceparent`"),
            (Client::builder().metadata("a b", "x"), "an invalid key"),
            (Client::builder().metadata("a", "x\0"), "for the key `a`"),
        ] {
            let error = builder.clone().connect("127.0.0.1:1").await.unwrap_err();
            assert!(error.to_string().contains(needle) && !error.is_retryable(), "{error}");
            assert!(builder.connect_lazily("127.0.0.1:1").is_err());
        }
    }

    #[test]
    fn tokens_and_metadata_are_not_printed() {
        let builder = Client::builder().bearer_token("secret-token").metadata("tenant", "acme");
        let shown = format!("{builder:?}");
        assert!(shown.contains("tenant"), "{shown}");
        assert!(!shown.contains("secret-token") && !shown.contains("acme"), "{shown}");
    }

    #[cfg(not(feature = "tls"))]
    #[tokio::test]
    async fn an_address_with_https_names_the_missing_feature() {
        for builder in [
            Client::builder().connect_lazily("https://localhost:1"),
            Client::builder().fallback("https://h:1").connect_lazily("localhost:1"),
        ] {
            let error = builder.unwrap_err();
            assert!(
                error.to_string().contains("needs the feature `tls` of the crate `snakepit-client`"),
                "{error}"
            );
            assert!(!error.is_retryable(), "{error:?}");
        }
    }

    #[test]
    fn a_client_needs_a_runtime() {
        let error = Client::builder().connect_lazily("127.0.0.1:1").unwrap_err();
        assert!(matches!(error, Error::NoRuntime), "{error}");
    }
}
