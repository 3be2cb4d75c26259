//! HTTP/2 flow control settings for both ends of all connections. A payload of 16 MiB fits into the window of a stream.

use std::time::Duration;

/// The window of a stream, in bytes.
pub const STREAM_WINDOW: u32 = 16 * 1024 * 1024;
/// The flow-control window of a host tool's result stream, in bytes. It is small, because it limits how many results the tool creates
/// before the worker reads them.
pub const TOOL_STREAM_WINDOW: u32 = 64 * 1024;
/// The receive window of the server for all streams of a connection, in bytes.
pub const SERVER_CONNECTION_WINDOW: u32 = 2 * STREAM_WINDOW;
/// The receive window of the client for all streams of a connection, in bytes. It has room for the full windows of 127
/// streams, so that unread response streams do not block other calls.
pub const CLIENT_CONNECTION_WINDOW: u32 = i32::MAX as u32;
/// The maximum size of a frame, in bytes. Large frames reduce the number of frames of a large payload.
pub const MAX_FRAME_SIZE: u32 = 1024 * 1024;

/// The maximum size of request headers, in bytes. HTTP/2 counts 32 bytes more for each entry. Servers may accept less,
/// and then answer with a status. Larger headers would end the connection and all of its calls, so clients do not send them.
pub const MAX_HEADER_LIST_SIZE: u32 = 1024 * 1024;

/// The maximum number of requests per connection that the client reset before the server accepted them. h2 closes the
/// connection that exceeds this limit. It is high enough for a client with short deadlines while the server is starved of CPU.
pub const PENDING_RESETS: usize = 8 * 1024;
/// The maximum number of locally reset streams that h2 remembers, to ignore frames that still arrive for them. A frame for
/// a forgotten stream counts as an [error](ERROR_RESETS).
pub const MAX_RESET_STREAMS: usize = 16 * 1024;
/// How long h2 remembers a reset stream. Exceeds the time until keepalive ends the connection of a silent peer.
pub const RESET_STREAM_DURATION: Duration = Duration::from_secs(30);
/// The maximum number of streams that a connection resets because of peer errors, over its lifetime. h2 closes the
/// connection above this limit.
pub const ERROR_RESETS: usize = 64 * 1024;
