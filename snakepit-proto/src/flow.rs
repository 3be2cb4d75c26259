//! HTTP/2's flow control, as every connection of this project sets it on both ends: wide enough that a payload of 16 MiB
//! flows without waiting for the reader.

/// How much of one stream may be under way, in bytes.
pub const STREAM_WINDOW: u32 = 16 * 1024 * 1024;
/// How much of all streams of a connection may be under way, in bytes.
pub const CONNECTION_WINDOW: u32 = 2 * STREAM_WINDOW;
/// The largest frame, in bytes. Larger ones mean fewer of them for a large payload; small messages are not affected.
pub const FRAME: u32 = 1024 * 1024;
