//! How our HTTP/2 connections are set up: flow control, how long headers may be, and how many requests may be given up.

use snakepit_proto::{
    flow::{
        CALLER_CONNECTION_WINDOW, CONNECTION_WINDOW, ERROR_RESETS, FRAME, PENDING_RESETS, REMEMBERED_FOR,
        REMEMBERED_RESETS, STREAM_WINDOW,
    },
    status::HEADER_LIST_BYTES,
};
use tonic::transport::{Endpoint, Server};

pub(crate) fn of_client(endpoint: Endpoint) -> Endpoint {
    endpoint
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CALLER_CONNECTION_WINDOW)
        .max_frame_size(FRAME)
        .http2_max_header_list_size(HEADER_LIST_BYTES)
        .http2_max_concurrent_reset_streams(REMEMBERED_RESETS)
        .http2_reset_stream_duration(REMEMBERED_FOR)
        .http2_max_local_error_reset_streams(ERROR_RESETS)
        .tcp_nodelay(true)
}

pub(crate) fn of_server(server: Server) -> Server {
    server
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME)
        .http2_max_header_list_size(HEADER_LIST_BYTES)
        .http2_max_pending_accept_reset_streams(Some(PENDING_RESETS))
        .http2_max_local_error_reset_streams(Some(ERROR_RESETS))
        .tcp_nodelay(true)
}
