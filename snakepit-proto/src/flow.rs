//! HTTP/2's flow control, as every connection of this project sets it on both ends: wide enough that a payload of 16 MiB
//! flows without waiting for the reader.

/// How much of one stream may be under way, in bytes.
pub const STREAM_WINDOW: u32 = 16 * 1024 * 1024;
/// How much of all streams of a connection may be under way, in bytes.
pub const CONNECTION_WINDOW: u32 = 2 * STREAM_WINDOW;
/// The same towards whoever made the connection. It is so wide that streams of answers which the program leaves unread do not
/// hold up its other calls: each of them occupies one stream's window, as far as it was filled, and there is room for 127.
pub const CALLER_CONNECTION_WINDOW: u32 = i32::MAX as u32;
/// The largest frame, in bytes. Larger ones mean fewer of them for a large payload; small messages are not affected.
pub const FRAME: u32 = 1024 * 1024;
