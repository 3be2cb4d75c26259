//! How our HTTP/2 connections are set up: flow control, and how long headers may be.

use snakepit_proto::{
    flow::{CALLER_CONNECTION_WINDOW, CONNECTION_WINDOW, FRAME, STREAM_WINDOW},
    status::HEADER_LIST_BYTES,
};
use tonic::transport::{Endpoint, Server};

pub(crate) fn of_client(endpoint: Endpoint) -> Endpoint {
    endpoint
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CALLER_CONNECTION_WINDOW)
        .max_frame_size(FRAME)
        .http2_max_header_list_size(HEADER_LIST_BYTES)
        .tcp_nodelay(true)
}

pub(crate) fn of_server(server: Server) -> Server {
    server
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME)
        .http2_max_header_list_size(HEADER_LIST_BYTES)
        .tcp_nodelay(true)
}
