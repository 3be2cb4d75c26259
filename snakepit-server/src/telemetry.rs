//! The telemetry of a host. This module publishes the events of calls, and
//! [`Subscription`](crate::grpc::telemetry::Subscription) merges them with those of workers. Without subscribers, a call costs
//! one comparison.

mod event;

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, SystemTime},
};

use futures_core::Stream;
use pin_project_lite::pin_project;
use snakepit_registry::{Chunk, ReplyBody, ToolCall, ToolError, ToolReply};
use snakepit_session::error_chain;
use tokio::{sync::broadcast, time::Instant};

pub use self::event::{TelemetryEvent, TelemetryEvents, TelemetryValue};

/// The maximum number of events that a slow subscriber may fall behind before it loses the oldest.
const BACKLOG: usize = 1024;

/// The channel for events of calls.
#[derive(Debug, Clone)]
pub(crate) struct Telemetry {
    events: broadcast::Sender<Arc<CallEvent>>,
}

/// The kind of a call event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CallEventKind {
    Start,
    Stop,
    Exception,
}

/// One event of a call.
#[derive(Debug, Clone)]
pub(crate) struct CallEvent {
    pub(crate) kind: CallEventKind,
    /// The id of the call.
    pub(crate) call: u64,
    pub(crate) tool: Arc<str>,
    pub(crate) session: String,
    /// The worker's id. Empty before a worker is known, and for host tools.
    pub(crate) worker: String,
    /// The time since the call began. Zero for [`CallEventKind::Start`].
    pub(crate) duration: Duration,
    /// The error message. Empty unless the call failed.
    pub(crate) error: String,
    /// The error message for subscribers that must not see tracebacks and output of workers, if it differs.
    pub(crate) redacted_error: Option<String>,
    pub(crate) at: SystemTime,
}

impl Default for Telemetry {
    fn default() -> Self {
        Self { events: broadcast::channel(BACKLOG).0 }
    }
}

impl Telemetry {
    pub(crate) fn subscribe(&self) -> broadcast::Receiver<Arc<CallEvent>> {
        self.events.subscribe()
    }

    /// The number of open subscriptions, with those of the program itself.
    pub(crate) fn subscribers(&self) -> usize {
        self.events.receiver_count()
    }

    /// Publishes the start of a call, and returns a guard that publishes its end.
    pub(crate) fn begin(&self, call: &ToolCall) -> EndPublisher {
        if self.events.receiver_count() == 0 {
            return EndPublisher(None);
        }
        let start = CallEvent {
            kind: CallEventKind::Start,
            call: call.id.as_u64(),
            tool: Arc::clone(&call.tool),
            session: call.session.as_ref().map(ToString::to_string).unwrap_or_default(),
            worker: String::new(),
            duration: Duration::ZERO,
            error: String::new(),
            redacted_error: None,
            at: SystemTime::now(),
        };
        let _ = self.events.send(Arc::new(start.clone()));
        let (events, began) = (self.events.clone(), Instant::now());
        EndPublisher(Some(Box::new(OpenCall { events, event: start, began })))
    }
}

/// Publishes the end of a call. If it is dropped before the call has ended, it reports the call as cancelled.
#[derive(Debug)]
pub(crate) struct EndPublisher(Option<Box<OpenCall>>);

#[derive(Debug)]
struct OpenCall {
    events: broadcast::Sender<Arc<CallEvent>>,
    event: CallEvent,
    began: Instant,
}

impl EndPublisher {
    /// Publishes the end of the call. For a stream, defers that to the end of the stream.
    pub(crate) fn ended(mut self, result: Result<ToolReply, ToolError>) -> Result<ToolReply, ToolError> {
        let Some(open) = &mut self.0 else { return result };
        match result {
            Err(error) => {
                self.publish_error(&error);
                Err(error)
            }
            Ok(reply) => {
                open.event.worker = reply.worker.as_deref().unwrap_or_default().to_owned();
                let body = match reply.body {
                    ReplyBody::Stream(chunks) => {
                        ReplyBody::Stream(Box::pin(PublishingStream { chunks, publisher: self }))
                    }
                    value @ ReplyBody::Value(_) => {
                        self.publish(CallEventKind::Stop, String::new(), None);
                        value
                    }
                };
                Ok(ToolReply { body, ..reply })
            }
        }
    }

    fn publish_error(&mut self, error: &ToolError) {
        if self.0.is_some() {
            let text = error_chain(error).to_string();
            let redacted = error_chain(&error.clone().without_traceback()).to_string();
            let redacted = (redacted != text).then_some(redacted);
            self.publish(CallEventKind::Exception, text, redacted);
        }
    }

    fn publish(&mut self, kind: CallEventKind, error: String, redacted_error: Option<String>) {
        if let Some(open) = self.0.take() {
            let OpenCall { events, event, began } = *open;
            let (duration, at) = (began.elapsed(), SystemTime::now());
            let event = CallEvent { kind, duration, error, redacted_error, at, ..event };
            // An error means that there are no subscribers.
            let _ = events.send(Arc::new(event));
        }
    }
}

impl Drop for EndPublisher {
    fn drop(&mut self) {
        self.publish(CallEventKind::Exception, "cancelled".to_owned(), None);
    }
}

pin_project! {
    /// The stream of a reply. When it ends, it publishes the end of its call.
    struct PublishingStream<S> {
        #[pin]
        chunks: S,
        publisher: EndPublisher,
    }
}

impl<S: Stream<Item = Result<Chunk, ToolError>>> Stream for PublishingStream<S> {
    type Item = Result<Chunk, ToolError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.project();
        let item = this.chunks.poll_next(cx);
        match &item {
            Poll::Ready(None) => this.publisher.publish(CallEventKind::Stop, String::new(), None),
            Poll::Ready(Some(Err(error))) => this.publisher.publish_error(error),
            Poll::Ready(Some(Ok(_))) | Poll::Pending => {}
        }
        item
    }
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt;
    use snakepit_session::Payload;

    use super::*;

    fn kinds(events: &mut broadcast::Receiver<Arc<CallEvent>>) -> Vec<CallEventKind> {
        std::iter::from_fn(|| events.try_recv().ok()).map(|event| event.kind).collect()
    }

    #[tokio::test]
    async fn every_call_ends_exactly_once() {
        let telemetry = Telemetry::default();
        let mut events = telemetry.subscribe();
        let call = ToolCall::new("add");

        drop(telemetry.begin(&call).ended(Ok(ToolReply::value(Payload::null()))));
        assert_eq!(kinds(&mut events), [CallEventKind::Start, CallEventKind::Stop]);

        drop(telemetry.begin(&call));
        assert_eq!(kinds(&mut events), [CallEventKind::Start, CallEventKind::Exception]);

        let chunks = || Box::pin(futures_util::stream::empty());
        let reply = telemetry.begin(&call).ended(Ok(ToolReply::stream(chunks()))).unwrap();
        assert_eq!(kinds(&mut events), [CallEventKind::Start], "a stream's call ends with the stream");
        let ReplyBody::Stream(stream) = reply.body else { panic!("not a stream") };
        assert_eq!(stream.count().await, 0);
        assert_eq!(kinds(&mut events), [CallEventKind::Stop]);
    }
}
