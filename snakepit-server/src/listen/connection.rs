//! Serves one connection until its client disconnects, it is without requests for too long, the host evicts it, or the host
//! stops.

use std::{convert::Infallible, pin::pin, sync::Arc, time::Duration};

use hyper::{server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use snakepit_proto::{
    flow::{ERROR_RESETS, MAX_FRAME_SIZE, PENDING_RESETS, SERVER_CONNECTION_WINDOW, STREAM_WINDOW},
    status::root_cause,
};
use snakepit_session::error_chain;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tonic::body::Body;

use super::{
    connection_clock::ConnectionClock,
    connections::{Connection, ConnectionPermit},
    request_service::{MAX_TRANSPORT_HEADER_BYTES, RequestService},
    services::Services,
    warning_limit::WarningLimit,
    write_timeout::WriteTimeout,
};
use crate::status::too_many_connections;

/// The time in which a new connection must send its first request.
const FIRST_REQUEST_TIMEOUT: Duration = Duration::from_secs(20);
/// The time that a connection may be without requests after its first request.
const NO_REQUEST_TIMEOUT: Duration = Duration::from_secs(15 * 60);
/// The time that a client has to disconnect after GOAWAY.
const GOAWAY_TIMEOUT: Duration = Duration::from_secs(5);
/// The time that a client without running calls has to read its remaining responses after GOAWAY.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// The interval between HTTP/2 pings to a silent client.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// The time in which a client must answer an HTTP/2 ping. A client that is frozen or whose machine died loses its connection, its
/// calls and its watches after this time and [`KEEPALIVE_INTERVAL`].
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(8);
/// The time in which a client must accept at least one byte. HTTP/2 libraries always read from the socket, even while the program
/// does not read its streams.
const WRITE_TIMEOUT: Duration = Duration::from_secs(18);
/// The maximum number of open requests of one connection. Further requests wait for a free stream. All multiplexed calls share
/// one stream, and each watch needs its own. The budget of the connection bounds the memory of its requests.
pub(super) const MAX_STREAMS: u32 = 2048;

/// The maximum number of open requests on a rejected connection.
const REJECTED_STREAMS: u32 = 8;
/// The time in which the client of a rejected connection must send a request, read the answer and close the connection.
const REJECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Serves a connection. Dropping the future closes it.
pub(super) async fn serve(
    io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    services: Services,
    permit: ConnectionPermit,
    stop: CancellationToken,
    cut: CancellationToken,
) {
    let mut http = http2::Builder::new(TokioExecutor::new());
    let clock = ConnectionClock::new();
    http.timer(clock.clone())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(SERVER_CONNECTION_WINDOW)
        .max_frame_size(MAX_FRAME_SIZE)
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_TRANSPORT_HEADER_BYTES)
        .max_pending_accept_reset_streams(PENDING_RESETS)
        .max_local_error_reset_streams(ERROR_RESETS)
        .keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT);
    let state = permit.connection();
    let warnings = &permit.connections().warnings;
    let io = TokioIo::new(WriteTimeout::new(io, WRITE_TIMEOUT));
    let connection = http.serve_connection(io, RequestService::new(services, Arc::clone(state)));
    let mut connection = pin!(clock.follow(connection));
    tokio::select! {
        biased;
        result = &mut connection => return log_failure(result, warnings),
        () = cut.cancelled() => return,
        () = state.unread().stalled() => {
            if let Some(omitted) = warnings.take() {
                tracing::warn!(
                    omitted,
                    "closed a connection whose client does not read its responses, because unread responses use much memory"
                );
            }
            return;
        }
        () = stop.cancelled() => {
            connection.as_mut().connection().graceful_shutdown();
            tokio::select! {
                result = connection => log_failure(result, warnings),
                () = cut.cancelled() => {}
            }
            return;
        }
        () = state.evicted() => {}
        () = no_request_timeout(state) => {}
    }
    if !state.has_served() {
        // The client may not even speak HTTP/2, so a graceful shutdown is pointless.
        return;
    }
    // The host still answers requests that the client sends before it receives GOAWAY.
    connection.as_mut().connection().graceful_shutdown();
    tokio::select! {
        result = connection => log_failure(result, warnings),
        () = cut.cancelled() => {}
        () = goaway_timeout(state) => {}
    }
}

/// Rejects a connection that exceeds the limit. Answers its requests with an error that suggests a retry, and closes it.
/// Dropping the future closes it, too.
pub(super) async fn reject(
    io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    limit: usize,
    warnings: &WarningLimit,
) {
    let answered = CancellationToken::new();
    let service = service_fn(|_: http::Request<hyper::body::Incoming>| {
        answered.cancel();
        std::future::ready(Ok::<_, Infallible>(too_many_connections(limit).into_http::<Body>()))
    });
    let mut http = http2::Builder::new(TokioExecutor::new());
    http.timer(TokioTimer::new())
        .max_concurrent_streams(REJECTED_STREAMS)
        .max_header_list_size(MAX_TRANSPORT_HEADER_BYTES);
    let mut connection = pin!(http.serve_connection(TokioIo::new(io), service));
    let serve = async {
        tokio::select! {
            biased;
            result = &mut connection => return log_failure(result, warnings),
            () = answered.cancelled() => {}
        }
        connection.as_mut().graceful_shutdown();
        log_failure(connection.await, warnings);
    };
    // A client that is silent or does not close the connection must not keep it open.
    let _ = tokio::time::timeout(REJECT_TIMEOUT, serve).await;
}

/// Logs a failure. Clients choose how often connections fail, so warnings are limited.
fn log_failure(result: hyper::Result<()>, warnings: &WarningLimit) {
    let Err(error) = result else { return };
    let cause = root_cause(&error);
    let reason = cause.downcast_ref().and_then(h2::Error::reason);
    // The client sees only that its connection was closed.
    if reason == Some(h2::Reason::ENHANCE_YOUR_CALM) {
        let Some(omitted) = warnings.take() else { return };
        tracing::warn!(error = %cause, omitted, "closed a connection whose client exceeded a limit of HTTP/2");
    } else {
        tracing::debug!(error = %error_chain(&error), "a connection failed");
    }
}

/// Ready once the connection has been without requests for too long.
async fn no_request_timeout(state: &Connection) {
    loop {
        let now = Instant::now();
        let timeout = if state.has_served() { NO_REQUEST_TIMEOUT } else { FIRST_REQUEST_TIMEOUT };
        // A request that is open now cannot end earlier than now.
        let due = state.without_requests_since().unwrap_or(now) + timeout;
        if due <= now {
            return;
        }
        tokio::time::sleep_until(due).await;
    }
}

/// Ready once the time after GOAWAY is over and the client has no open request. Streams without running calls extend the time to
/// [`READ_TIMEOUT`], so that the client can read their last items.
async fn goaway_timeout(state: &Connection) {
    let start = Instant::now();
    loop {
        tokio::time::sleep(GOAWAY_TIMEOUT).await;
        if state.without_requests_since().is_some() || (start.elapsed() >= READ_TIMEOUT && !state.is_in_use())
        {
            return;
        }
    }
}
