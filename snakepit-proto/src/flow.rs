//! HTTP/2's flow control, as every connection of this project sets it on both ends: wide enough that a payload of 16 MiB
//! flows without waiting for the reader.

use std::time::Duration;

/// How much of one stream may be under way, in bytes.
pub const STREAM_WINDOW: u32 = 16 * 1024 * 1024;
/// How much of all streams of a connection may be under way, in bytes.
pub const CONNECTION_WINDOW: u32 = 2 * STREAM_WINDOW;
/// The same towards whoever made the connection. It is so wide that streams of answers which the program leaves unread do not
/// hold up its other calls: each of them occupies one stream's window, as far as it was filled, and there is room for 127.
pub const CALLER_CONNECTION_WINDOW: u32 = i32::MAX as u32;
/// The largest frame, in bytes. Larger ones mean fewer of them for a large payload; small messages are not affected.
pub const FRAME: u32 = 1024 * 1024;

/// How many requests that their client gave up before the server accepted them may wait on one connection. More end the
/// connection, so the bound must hold what a client with short deadlines gives up while the server gets no CPU time. A request that
/// was accepted does not count.
pub const PENDING_RESETS: usize = 8 * 1024;
/// How many requests that were given up at this end HTTP/2 remembers, so that it ignores parts of their answers which
/// still arrive. A part for a forgotten one counts as an [error](ERROR_RESETS).
pub const REMEMBERED_RESETS: usize = 16 * 1024;
/// How long it remembers them: longer than a peer may be silent before keepalive ends the connection.
pub const REMEMBERED_FOR: Duration = Duration::from_secs(30);
/// How many streams one connection may reset because of errors of the other end, as long as it lives. More end the connection.
pub const ERROR_RESETS: usize = 64 * 1024;
