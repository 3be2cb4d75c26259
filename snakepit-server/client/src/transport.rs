//! The HTTP services under a client: a channel to each address, or a service of the program. The layers of the program wrap them.

#[cfg(feature = "tls")]
pub(crate) mod tls;

use std::{
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::{HeaderMap, HeaderValue, Request, Response};
use hyper_util::rt::TokioIo;
use snakepit_proto::{
    MAX_MESSAGE_BYTES,
    address::Address,
    flow::{
        CLIENT_CONNECTION_WINDOW, ERROR_RESETS, MAX_FRAME_SIZE, MAX_HEADER_LIST_SIZE, MAX_RESET_STREAMS,
        RESET_STREAM_DURATION, STREAM_WINDOW,
    },
    pb::bridge_service_client::BridgeServiceClient,
    status::{REQUEST_TOO_LARGE, error_status},
};
use tokio::net::UnixStream;
use tonic::{
    Code, Status,
    transport::{Endpoint, Uri},
};
use tower::{BoxError, Service, ServiceExt, service_fn, util::BoxCloneSyncService};

/// The body of requests and responses.
pub use tonic::body::Body;
/// The crate whose traits layers and services implement.
pub use tower;

/// A service of HTTP requests, which the layers of [`ClientBuilder::layer`](crate::ClientBuilder::layer) wrap. Its error is the
/// status of the request. If the connection fails, the status has that error as its source.
pub type HttpService = BoxCloneSyncService<Request<Body>, Response<Body>, Status>;

/// The generated client, over any such service.
pub(crate) type BridgeClient = BridgeServiceClient<HttpService>;

/// A layer of the program.
pub(crate) type HttpLayer = Arc<dyn Fn(HttpService) -> HttpService + Send + Sync>;

/// The settings of channels.
#[derive(Debug, Clone)]
pub(crate) struct ChannelOptions {
    /// The time limit for connecting to all addresses together.
    pub(crate) connect_timeout: Duration,
    /// The interval of keepalive pings on a silent connection.
    pub(crate) keepalive_interval: Duration,
    /// The time limit for the response to a ping.
    pub(crate) keepalive_timeout: Duration,
}

impl Default for ChannelOptions {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(10),
            keepalive_interval: Duration::from_secs(30),
            keepalive_timeout: Duration::from_secs(10),
        }
    }
}

/// Creates a channel to an address, which connects with its first request.
///
/// # Errors
/// The problem, as a clause.
pub(crate) fn channel_to(
    address: &Address,
    options: &ChannelOptions,
    connect_timeout: Duration,
) -> Result<HttpService, String> {
    let configure = |endpoint: Endpoint| configure(endpoint, options, connect_timeout);
    Ok(boxed(match address {
        Address::Unix(path) => {
            let path = path.clone();
            let connector = service_fn(move |_: Uri| {
                let path = path.clone();
                async move { UnixStream::connect(path).await.map(TokioIo::new) }
            });
            // The host in this URL only becomes the HTTP/2 authority.
            configure(Endpoint::from_static("http://localhost")).connect_with_connector_lazy(connector)
        }
        Address::Tcp(_) => {
            let endpoint = Endpoint::from_shared(address.to_string()).map_err(|error| error.to_string())?;
            configure(endpoint).connect_lazy()
        }
    }))
}

fn configure(endpoint: Endpoint, options: &ChannelOptions, connect_timeout: Duration) -> Endpoint {
    endpoint
        .tcp_nodelay(true)
        .connect_timeout(connect_timeout)
        .http2_keep_alive_interval(options.keepalive_interval)
        .keep_alive_timeout(options.keepalive_timeout)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CLIENT_CONNECTION_WINDOW)
        .max_frame_size(MAX_FRAME_SIZE)
        .http2_max_concurrent_reset_streams(MAX_RESET_STREAMS)
        .http2_reset_stream_duration(RESET_STREAM_DURATION)
        .http2_max_local_error_reset_streams(ERROR_RESETS)
}

/// Boxes a service, and its errors and bodies.
pub(crate) fn boxed<S, B>(service: S) -> HttpService
where
    S: Service<Request<Body>, Response = Response<B>> + Clone + Send + Sync + 'static,
    S::Future: Send + 'static,
    S::Error: Into<BoxError>,
    B: http_body::Body<Data = bytes::Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let service = service.map_response(|response: Response<B>| response.map(Body::new));
    HttpService::new(service.map_err(|error: S::Error| Status::from_error(error.into())))
}

/// Creates the generated client over a service. Requests get the headers first, so that the layers see them. They announce that the
/// client reads nested values.
pub(crate) fn client_over(service: HttpService, layers: &[HttpLayer], headers: &HeaderMap) -> BridgeClient {
    // This is the innermost service, because layers may add headers.
    let service = HttpService::new(BoundedHeaders(service));
    let service = layers.iter().rev().fold(service, |inner, layer| layer(inner));
    let mut headers = headers.clone();
    headers.insert(snakepit_proto::headers::TAKES_BUFFERS, HeaderValue::from_static("true"));
    let service = HttpService::new(WithHeaders { inner: service, headers: Arc::new(headers) });
    BridgeServiceClient::new(service)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES)
}

/// Rejects requests whose headers would end the connection.
#[derive(Debug, Clone)]
struct BoundedHeaders(HttpService);

impl Service<Request<Body>> for BoundedHeaders {
    type Response = Response<Body>;
    type Error = Status;
    type Future = <HttpService as Service<Request<Body>>>::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Status>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let sizes = request.headers().iter().map(|(name, value)| name.as_str().len() + value.len() + 32);
        let size: usize = sizes.sum();
        if size <= MAX_HEADER_LIST_SIZE as usize {
            return self.0.call(request);
        }
        let problem = format!(
            "the metadata of the request has {size} bytes, counting 32 for each entry, the limit is {MAX_HEADER_LIST_SIZE}; \
             send values as arguments instead"
        );
        let status = error_status(Code::ResourceExhausted, REQUEST_TOO_LARGE, problem);
        Box::pin(std::future::ready(Err(status)))
    }
}

/// Sets headers on each request.
#[derive(Debug, Clone)]
struct WithHeaders {
    inner: HttpService,
    headers: Arc<HeaderMap>,
}

impl Service<Request<Body>> for WithHeaders {
    type Response = Response<Body>;
    type Error = Status;
    type Future = <HttpService as Service<Request<Body>>>::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Status>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        for (name, value) in &*self.headers {
            request.headers_mut().insert(name.clone(), value.clone());
        }
        self.inner.call(request)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use http::HeaderValue;
    use snakepit_proto::pb;

    use super::*;

    #[tokio::test]
    async fn headers_that_would_end_the_connection_are_not_sent() {
        let sent = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&sent);
        let service = HttpService::new(service_fn(move |_| {
            count.fetch_add(1, Ordering::Relaxed);
            std::future::ready(Err::<Response<Body>, _>(Status::unavailable("sent")))
        }));
        let with_header = |bytes: usize| -> HttpLayer {
            Arc::new(move |inner| {
                HttpService::new(inner.map_request(move |mut request: Request<Body>| {
                    let value = HeaderValue::from_str(&"x".repeat(bytes)).unwrap();
                    request.headers_mut().insert("x-large", value);
                    request
                }))
            })
        };
        for (bytes, message) in [(1000, "sent"), (1 << 20, "the metadata of the request has 1048")] {
            let mut client = client_over(service.clone(), &[with_header(bytes)], &HeaderMap::new());
            let status = client.ping(pb::PingRequest::default()).await.unwrap_err();
            assert!(status.message().starts_with(message), "{status:?}");
        }
        assert_eq!(sent.load(Ordering::Relaxed), 1);
    }
}
