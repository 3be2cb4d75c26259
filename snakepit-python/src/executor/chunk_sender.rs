//! [`ChunkSender`]: sends the chunks of a generator from the thread that runs it.

use std::{task::Waker, time::Duration};

use pyo3::Python;
use tokio::time::Instant;

use crate::{io::Io, sink::Sink};

/// The maximum time between two turns of the IO while a generator yields without a pause. Chunks wait at most that long, and
/// the chunks of that time share a message. A turn costs as much as 30 small chunks.
const MAX_CHUNK_DELAY: Duration = Duration::from_micros(200);

/// The longest time between two chunks of a burst.
const MAX_PAUSE: Duration = Duration::from_micros(50);

/// The number of chunks at the beginning of a burst that are sent one by one. A generator that yields a few values and then
/// computes the next one does not delay them.
const EAGER_CHUNKS: u32 = 4;

/// The number of chunks without a pause after which a burst is long. The executor then takes the IO back from the standby.
const LONG_BURST: u32 = 64;

/// The number of chunks in a long burst between two clock readings, each of which costs a tenth of a chunk.
const CHUNKS_PER_READING: u32 = 16;

/// The size of a chunk in bytes, from which on the standby sends, because it copies and writes while the next chunk is computed.
const LARGE_CHUNK: usize = 64 * 1024;

/// Sends the chunks of one stream.
///
/// The executor drives the IO itself, as between unary calls, so no thread has to be woken for a chunk, and the memory of a
/// chunk is freed by the thread that allocated it. The standby sends large chunks, and those of a generator that takes longer
/// than its interval to compute one.
#[derive(Debug)]
pub(super) struct ChunkSender {
    io: Io,
    /// The time of the last chunk.
    yielded_at: Option<Instant>,
    /// The time of the last turn of the IO.
    sent_at: Option<Instant>,
    /// The number of chunks since the last pause.
    burst: u32,
    /// The number of chunks until the next reading of the clock.
    unread: u32,
    /// Whether the standby sends all further chunks.
    is_handed_over: bool,
}

impl ChunkSender {
    pub(super) const fn new(io: Io) -> Self {
        Self { io, yielded_at: None, sent_at: None, burst: 0, unread: 0, is_handed_over: false }
    }

    /// Sends a chunk that was queued, now or with later ones. `reader` is the waker of the task that reads the queue.
    pub(super) fn chunk_queued(&mut self, size: usize, reader: Option<Waker>) {
        if let Some(reader) = reader {
            self.io.wake_later(reader);
        }
        if self.is_handed_over {
            return;
        }
        if size >= LARGE_CHUNK {
            self.is_handed_over = true;
            return self.io.hand_over();
        }
        self.burst = self.burst.saturating_add(1);
        if self.unread > 0 {
            // If the generator pauses now, the standby sends the chunk.
            self.unread -= 1;
            return;
        }
        let now = Instant::now();
        let pause = self.yielded_at.map(|time| now - time);
        let max_pause = if self.burst > LONG_BURST { MAX_PAUSE * CHUNKS_PER_READING } else { MAX_PAUSE };
        if pause.is_none_or(|pause| pause > max_pause) {
            self.burst = 1;
        }
        self.unread = if self.burst > LONG_BURST { CHUNKS_PER_READING - 1 } else { 0 };
        self.yielded_at = Some(now);
        let is_due =
            self.burst <= EAGER_CHUNKS || self.sent_at.is_none_or(|time| now - time >= MAX_CHUNK_DELAY);
        // While the standby drives, it sends the chunk. Taking the IO back from it costs two switches between threads.
        if is_due && (self.burst > LONG_BURST || !self.io.is_driven_elsewhere()) {
            self.turn();
        }
    }

    /// Waits until the queue has space. Returns `false` if the reader has closed the queue.
    pub(super) fn wait_for_space(&mut self, py: Python<'_>, sink: &Sink) -> bool {
        if self.is_handed_over {
            return py.detach(|| sink.wait_for_space());
        }
        let has_space = py.detach(|| self.io.drive(sink.space()));
        self.record_turn();
        has_space
    }

    fn turn(&mut self) {
        // Holding the GIL cannot cause a deadlock here, because no task of the turn waits for a thread that needs it.
        self.io.turn();
        self.record_turn();
    }

    /// Records the end of a turn, which is not a pause of the generator.
    fn record_turn(&mut self) {
        let now = Instant::now();
        (self.yielded_at, self.sent_at) = (Some(now), Some(now));
    }
}
