//! Tests of the fields and the lifetime of a call's span.

use std::{
    io,
    sync::{Arc, Mutex},
    time::Duration,
};

use snakepit_session::SessionId;
use snakepit_worker::testing::InProcessWorkers;
use tower::ServiceExt;
use tracing::subscriber::DefaultGuard;
use tracing_subscriber::fmt::{MakeWriter, format::FmtSpan};

use super::*;
use crate::test_support::{chunk, inner, next, stream, value, worker_lost};
use crate::{Pool, PoolConfig};

/// Collects the log output of this thread.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn start() -> (Self, DefaultGuard) {
        let log = Self::default();
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_max_level(tracing::Level::DEBUG)
            .with_span_events(FmtSpan::CLOSE)
            .with_writer(log.clone())
            .finish();
        (log, tracing::subscriber::set_default(subscriber))
    }

    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

#[tokio::test(start_paused = true)]
async fn the_span_records_the_call_its_worker_and_its_outcome() {
    let (log, _guard) = Log::start();
    let (inner, mut handle) = inner();
    let recording = tower::service_fn(move |call: ToolCall| {
        Span::current().record("worker", "default-0-1");
        inner.clone().oneshot(call)
    });
    let call = ToolCall::new("add").with_session(SessionId::try_new("s1").unwrap());
    let id = call.id;
    let (answer, ()) = tokio::join!(TraceLayer.layer(recording).oneshot(call), async {
        handle.next_request().await.unwrap().1.send_response(value());
    });
    answer.unwrap();
    let text = log.text();
    let closing = text.lines().find(|line| line.contains("close")).expect(&text);
    for field in
        ["tool=add", &format!("call={id}"), "session=\"s1\"", "worker=\"default-0-1\"", "outcome=\"ok\""]
    {
        assert!(closing.contains(field), "{field} is not in {closing}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_lost_worker_is_a_warning_and_a_failing_tool_is_not() {
    for (error, level) in [(worker_lost(true), "WARN"), (ToolError::Failed(Box::default()), "DEBUG")] {
        let (log, _guard) = Log::start();
        let (inner, mut handle) = inner();
        let (answer, ()) = tokio::join!(TraceLayer.layer(inner).oneshot(ToolCall::new("t")), async {
            handle.next_request().await.unwrap().1.send_error(error);
        });
        assert!(answer.is_err());
        let text = log.text();
        let failed = text.lines().find(|line| line.contains("call failed")).expect(&text);
        assert!(failed.contains(level), "{failed}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_log_has_the_causes_of_an_error() {
    let (log, _guard) = Log::start();
    let (inner, mut handle) = inner();
    let (answer, ()) = tokio::join!(TraceLayer.layer(inner).oneshot(ToolCall::new("t")), async {
        let error = ToolError::internal("the answer is malformed").with_source("unexpected end of input");
        handle.next_request().await.unwrap().1.send_error(error);
    });
    assert_eq!(answer.unwrap_err().to_string(), "internal error: the answer is malformed");
    let text = log.text();
    assert!(text.contains("the answer is malformed: unexpected end of input"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn the_span_of_a_stream_ends_with_the_stream() {
    let (log, _guard) = Log::start();
    let (inner, mut handle) = inner();
    let (reply, chunk_sender) = stream();
    let call = ToolCall::new("t").streaming();
    let (answer, ()) = tokio::join!(TraceLayer.layer(inner).oneshot(call), async {
        handle.next_request().await.unwrap().1.send_response(reply);
    });
    let mut reply = answer.unwrap();
    chunk_sender.send(chunk()).unwrap();
    drop(chunk_sender);
    assert!(next(&mut reply).await.is_some());
    assert!(!log.text().contains("close"), "{}", log.text());
    assert!(next(&mut reply).await.is_none());
    drop(reply);
    assert!(log.text().contains("close") && log.text().contains("outcome=\"ok\""), "{}", log.text());
}

#[tokio::test(start_paused = true)]
async fn the_outcome_of_a_failed_stream_is_recorded_once() {
    let (log, _guard) = Log::start();
    let (inner, mut handle) = inner();
    let (reply, chunk_sender) = stream();
    let call = ToolCall::new("t").streaming();
    let (answer, ()) = tokio::join!(TraceLayer.layer(inner).oneshot(call), async {
        handle.next_request().await.unwrap().1.send_response(reply);
    });
    let mut reply = answer.unwrap();
    chunk_sender.send(Err(worker_lost(true))).unwrap();
    drop(chunk_sender);
    assert!(matches!(next(&mut reply).await, Some(Err(_))));
    assert!(next(&mut reply).await.is_none());
    drop(reply);
    let text = log.text();
    assert!(text.contains("call failed") && !text.contains("call succeeded"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn the_first_failed_launch_is_a_warning_unless_a_task_waits_for_the_start() {
    for has_waiter in [false, true] {
        let (log, _guard) = Log::start();
        let workers = InProcessWorkers::new();
        workers.fail_launches(3, "no memory");
        let config = PoolConfig { workers: 3, ..PoolConfig::default() };
        let pool = Pool::start(config, Arc::new(workers.clone())).unwrap();
        if has_waiter {
            pool.ready().await.unwrap_err();
        }
        workers.launched(3).await;
        let text = log.text();
        let warnings: Vec<&str> = text.lines().filter(|line| line.contains("WARN")).collect();
        assert_eq!(warnings.len(), usize::from(!has_waiter), "{text}");
        assert!(
            warnings.iter().all(|line| line.contains("did not start") && line.contains("no memory")),
            "{text}"
        );
        pool.shutdown(Duration::ZERO).await;
    }
}
