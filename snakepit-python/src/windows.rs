//! Flow-control windows of our HTTP/2 connections: wide enough that a payload of 16 MiB flows without waiting. And how
//! long their headers may be.

use snakepit_proto::status::HEADER_LIST_BYTES;
use tonic::transport::{Endpoint, Server};

const STREAM: u32 = 16 * 1024 * 1024;
const CONNECTION: u32 = 2 * STREAM;
/// Larger frames mean fewer of them for a large payload.
const FRAME: u32 = 1024 * 1024;

pub(crate) fn of_client(endpoint: Endpoint) -> Endpoint {
    endpoint
        .initial_stream_window_size(STREAM)
        .initial_connection_window_size(CONNECTION)
        .http2_max_header_list_size(HEADER_LIST_BYTES)
        .tcp_nodelay(true)
}

pub(crate) fn of_server(server: Server) -> Server {
    server
        .initial_stream_window_size(STREAM)
        .initial_connection_window_size(CONNECTION)
        .max_frame_size(FRAME)
        .http2_max_header_list_size(HEADER_LIST_BYTES)
        .tcp_nodelay(true)
}
