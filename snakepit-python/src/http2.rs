//! HTTP/2 settings of clients and servers: flow control windows, header size and limits on stream resets.

use snakepit_proto::{
    flow::{
        CLIENT_CONNECTION_WINDOW, ERROR_RESETS, MAX_FRAME_SIZE, MAX_RESET_STREAMS, PENDING_RESETS,
        RESET_STREAM_DURATION, SERVER_CONNECTION_WINDOW, STREAM_WINDOW, TOOL_STREAM_WINDOW,
    },
    status::HEADER_LIST_BYTES,
};
use tonic::transport::{Endpoint, Server};

pub(crate) fn configure_client(endpoint: Endpoint) -> Endpoint {
    endpoint
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CLIENT_CONNECTION_WINDOW)
        .max_frame_size(MAX_FRAME_SIZE)
        .http2_max_header_list_size(HEADER_LIST_BYTES)
        .http2_max_concurrent_reset_streams(MAX_RESET_STREAMS)
        .http2_reset_stream_duration(RESET_STREAM_DURATION)
        .http2_max_local_error_reset_streams(ERROR_RESETS)
        .tcp_nodelay(true)
}

/// Like [`configure_client`], for the results of host tools: the host sends at most this many bytes that Python has not read.
pub(crate) fn configure_stream_client(endpoint: Endpoint) -> Endpoint {
    configure_client(endpoint).initial_stream_window_size(TOOL_STREAM_WINDOW)
}

pub(crate) fn configure_server(server: Server) -> Server {
    server
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(SERVER_CONNECTION_WINDOW)
        .max_frame_size(MAX_FRAME_SIZE)
        .http2_max_header_list_size(HEADER_LIST_BYTES)
        .http2_max_pending_accept_reset_streams(Some(PENDING_RESETS))
        .http2_max_local_error_reset_streams(Some(ERROR_RESETS))
        .tcp_nodelay(true)
}
