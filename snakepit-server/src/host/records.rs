//! Creates the record of each call, and passes it to the readers of the program and to the debug log.
//!
//! Without readers and without a debug log, calls have no timeline and no record.

use std::{
    fmt,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
};

use futures_core::Stream;
use snakepit_registry::{
    CallRecord, CallTimeline, Chunk, ChunkStream, ReplyBody, ToolCall, ToolError, ToolReply, guard::catch,
};
use snakepit_session::error_chain;
use tracing::Level;

/// A reader of records.
pub(crate) type CallReader = Box<dyn Fn(&CallRecord) + Send + Sync>;

/// The readers of records.
#[derive(Default)]
pub(crate) struct CallRecords {
    readers: Vec<CallReader>,
    /// The number of reader panics.
    panics: AtomicU64,
}

impl CallRecords {
    pub(crate) const fn new(readers: Vec<CallReader>) -> Self {
        Self { readers, panics: AtomicU64::new(0) }
    }

    pub(crate) fn panics(&self) -> u64 {
        self.panics.load(Ordering::Relaxed)
    }

    /// Begins a call record, if there is a reader or a debug log.
    #[inline]
    pub(crate) fn begin(self: &Arc<Self>, call: &mut ToolCall) -> CallRecorder {
        if self.readers.is_empty() && !tracing::enabled!(Level::DEBUG) {
            return CallRecorder(None);
        }
        CallRecorder(Some(self.open(call)))
    }

    #[cold]
    fn open(self: &Arc<Self>, call: &mut ToolCall) -> Box<OpenRecord> {
        let (timeline, records) = (CallTimeline::attach(call), Arc::clone(self));
        Box::new(OpenRecord { records, timeline, record: CallRecord::begin(call) })
    }

    fn publish(&self, record: &CallRecord) {
        for reader in &self.readers {
            // A reader runs in the task of the call, even while the call is dropped.
            if catch(|| reader(record)).is_err() {
                self.panics.fetch_add(1, Ordering::Relaxed);
                tracing::error!(tool = %record.tool, call = %record.call, "a reader of call records panicked");
            }
        }
        // The pool logs its own calls.
        if record.queued.is_none() {
            log(record);
        }
    }
}

/// Logs a call that did not enter the pool: a call to a host tool, or a rejected one.
fn log(record: &CallRecord) {
    let CallRecord { tool, call, outcome, error, .. } = record;
    let session = record.session.as_ref().map(|session| session.as_str());
    match error {
        Some(error) => {
            tracing::debug!(%tool, %call, session, error = %error_chain(error), "call failed");
        }
        None => tracing::debug!(%tool, %call, session, "call {}", outcome.as_str()),
    }
}

impl fmt::Debug for CallRecords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CallRecords").field("readers", &self.readers.len()).finish_non_exhaustive()
    }
}

/// The record of a running call. Dropping it before the end records that the caller dropped the call. `None` if the record is not
/// needed.
#[derive(Debug)]
pub(crate) struct CallRecorder(Option<Box<OpenRecord>>);

#[derive(Debug)]
struct OpenRecord {
    records: Arc<CallRecords>,
    timeline: CallTimeline,
    record: CallRecord,
}

impl CallRecorder {
    /// Ends the record with this result. For a stream, the record ends with the stream.
    pub(crate) fn ended(mut self, result: Result<ToolReply, ToolError>) -> Result<ToolReply, ToolError> {
        let Some(open) = &mut self.0 else { return result };
        match result {
            Err(error) => {
                open.record.end(Some(&error));
                Err(error)
            }
            Ok(mut reply) => {
                open.record.worker = reply.worker.clone();
                open.record.execution_time = reply.execution_time;
                open.record.response_bytes =
                    reply.metadata.iter().map(|(key, value)| key.len() + value.len()).sum();
                match reply.body {
                    ReplyBody::Value(ref value) => {
                        open.record.response_bytes += value.size();
                        open.record.end(None);
                    }
                    ReplyBody::Stream(chunks) => {
                        reply.body = ReplyBody::Stream(Box::pin(RecordedStream { chunks, recorder: self }));
                    }
                }
                Ok(reply)
            }
        }
    }

    /// Counts an item of a stream. The first error ends the record.
    fn count(&mut self, item: Option<&Result<Chunk, ToolError>>) {
        let Some(open) = &mut self.0 else { return };
        match item {
            Some(Ok(chunk)) => {
                open.record.chunks += 1;
                let metadata = chunk.metadata.iter().map(|(key, value)| key.len() + value.len());
                open.record.response_bytes += chunk.data.len() + metadata.sum::<usize>();
                if open.record.first_chunk.is_none() {
                    open.record.first_chunk = Some(open.timeline.elapsed());
                }
            }
            Some(Err(error)) => {
                open.record.end(Some(error));
                self.0 = None;
            }
            None => {
                open.record.end(None);
                self.0 = None;
            }
        }
    }
}

impl Drop for OpenRecord {
    fn drop(&mut self) {
        self.timeline.complete(&mut self.record);
        self.records.publish(&self.record);
    }
}

/// The stream of a reply, with the record of its call.
struct RecordedStream {
    chunks: ChunkStream,
    recorder: CallRecorder,
}

impl Stream for RecordedStream {
    type Item = Result<Chunk, ToolError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let item = ready!(self.chunks.as_mut().poll_next(cx));
        self.recorder.count(item.as_ref());
        Poll::Ready(item)
    }
}
