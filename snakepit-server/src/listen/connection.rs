//! The life of a connection: served until its client leaves, it idles for too long, or the host stops.

use std::{pin::pin, sync::Arc, time::Duration};

use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use snakepit_proto::flow::{CONNECTION_WINDOW, ERROR_RESETS, FRAME, PENDING_RESETS, STREAM_WINDOW};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use super::{
    connections::{Connection, Slot},
    requests::{MOST_HEADER_BYTES, Requests},
    write_timeout::WriteTimeout,
};

/// How long a connection may take to its first request.
const FIRST_REQUEST_WITHIN: Duration = Duration::from_secs(20);
/// How long a connection may be without a request after that.
const IDLE: Duration = Duration::from_secs(15 * 60);
/// How long a client has to hang up once it is asked to.
const LEAVE_WITHIN: Duration = Duration::from_secs(5);
/// How long a client of which no call runs has to read the answers that it has not read.
const READ_WITHIN: Duration = Duration::from_secs(30);
/// How often a client that says nothing is asked whether it is there, and how long it may take to say so. A client that
/// froze, or whose machine died, loses its connection after the sum of both, and with it its calls and watches.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(8));
/// How long a client may take no byte of what is sent to it. One that lives does: HTTP/2 reads, whatever the program does.
const UNREAD: Duration = Duration::from_secs(18);
/// How many requests one connection may have open. A client that wants more waits until one of them ends. Calls share a
/// stream, watches do not. What the requests hold is bounded by the budget of the connection.
const MOST_STREAMS: u32 = 2048;

/// Serves a connection. Dropping the future cuts it.
pub(super) async fn serve(
    io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    routes: Routes,
    slot: Slot,
    stop: CancellationToken,
    cut: CancellationToken,
) {
    let mut http = http2::Builder::new(TokioExecutor::new());
    http.timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME)
        .max_concurrent_streams(MOST_STREAMS)
        .max_header_list_size(MOST_HEADER_BYTES)
        .max_pending_accept_reset_streams(PENDING_RESETS)
        .max_local_error_reset_streams(ERROR_RESETS)
        .keep_alive_interval(KEEPALIVE.0)
        .keep_alive_timeout(KEEPALIVE.1);
    let state = slot.connection();
    let io = TokioIo::new(WriteTimeout::new(io, UNREAD));
    let mut connection = pin!(http.serve_connection(io, Requests::new(routes, Arc::clone(state))));
    tokio::select! {
        biased;
        ended = &mut connection => return note(ended),
        () = cut.cancelled() => return,
        () = state.unread().stalled() => {
            tracing::warn!("closed a connection whose client does not read its answers, because unread answers hold much memory");
            return;
        }
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                ended = connection => note(ended),
                () = cut.cancelled() => {}
            }
            return;
        }
        () = state.evicted() => {}
        () = idled(state) => {}
    }
    if state.idle().is_some_and(|(_, has_served)| !has_served) {
        // It may not even speak HTTP/2.
        return;
    }
    // What the client sends before it learns of this is still answered.
    connection.as_mut().graceful_shutdown();
    tokio::select! {
        ended = connection => note(ended),
        () = cut.cancelled() => {}
        () = overdue(state) => {}
    }
}

fn note(ended: hyper::Result<()>) {
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection failed");
    }
}

/// Ready once the connection had no request for too long.
async fn idled(state: &Connection) {
    loop {
        let now = Instant::now();
        let due = match state.idle() {
            Some((since, has_served)) => since + if has_served { IDLE } else { FIRST_REQUEST_WITHIN },
            None => now + IDLE,
        };
        if due <= now {
            return;
        }
        tokio::time::sleep_until(due).await;
    }
}

/// Ready once a client that was asked to leave has had the time for it, and has no request open, or only streams without calls
/// that it does not read to their end.
async fn overdue(state: &Connection) {
    let asked = Instant::now();
    loop {
        tokio::time::sleep(LEAVE_WITHIN).await;
        if state.idle().is_some() || (asked.elapsed() >= READ_WITHIN && !state.is_in_use()) {
            return;
        }
    }
}
