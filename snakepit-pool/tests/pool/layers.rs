//! Tests of the layers that a program puts around attempts, and of the pool as a service.
#![allow(clippy::disallowed_methods, reason = "tests may panic and detach tasks")]

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use snakepit_registry::{
    CallLayers, CallService, CallStage, ReplyBody, ToolCall, ToolError, ToolHandler, ToolReply,
};
use snakepit_worker::ExitReason;
use tokio::time::Instant;
use tower::{Layer, ServiceBuilder, ServiceExt, limit::ConcurrencyLimitLayer, timeout::TimeoutLayer};

use crate::puppet::{PoolHarness, chunk, config, next};

const SECOND: Duration = Duration::from_secs(1);

fn layers<L>(layer: L) -> CallLayers
where
    L: Layer<CallService> + Send + Sync + 'static,
    L::Service: tower::Service<ToolCall, Response = ToolReply, Future: Send + 'static, Error: Into<tower::BoxError>>
        + Clone
        + Send
        + Sync
        + 'static,
{
    let mut layers = CallLayers::default();
    layers.push(layer);
    layers
}

/// A layer that counts attempts.
fn counting_layers(attempts: &Arc<AtomicUsize>) -> CallLayers {
    let attempts = Arc::clone(attempts);
    layers(tower::util::MapRequestLayer::new(move |call: ToolCall| {
        attempts.fetch_add(1, Ordering::Relaxed);
        call
    }))
}

#[tokio::test(start_paused = true)]
async fn attempt_layers_see_each_attempt() {
    let attempts = Arc::new(AtomicUsize::new(0));
    let (mut harness, mut workers) = PoolHarness::up_with_layers(config(2), counting_layers(&attempts)).await;
    let caller = harness.call(ToolCall::new("t").idempotent()).await;
    let call = harness.next_call().await;
    let index = workers.iter().position(|worker| worker.id == call.worker).unwrap();
    workers.remove(index).exit(ExitReason::Killed { reason: "by the test".to_owned() });
    harness.next_call().await.succeed();
    caller.answer().await.unwrap();
    assert_eq!(attempts.load(Ordering::Relaxed), 2);
}

#[tokio::test(start_paused = true)]
async fn a_timeout_of_an_attempt_cancels_its_call_and_reports_whether_it_ran() {
    let timeout = layers(TimeoutLayer::new(SECOND));
    let (mut harness, _workers) = PoolHarness::up_with_layers(config(1), timeout).await;
    let running = harness.call_tool("t").await;
    let call = harness.next_call().await;
    let queued = harness.call_tool("t").await;
    let (running, queued) = (running.error().await, queued.error().await);
    assert!(running.is_timeout() && running.may_have_run(), "{running:?}");
    assert!(queued.is_timeout() && queued.is_retryable(), "{queued:?}");
    assert!(call.answer.is_closed(), "the pool drops the call");
    assert_eq!(harness.next_cancel().await.call, call.call.id);
    assert_eq!(harness.status().calls.retried, 0);
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_waits_in_a_layer_ends_at_the_deadline_when_dropped_and_at_shutdown() {
    let limit = layers(ConcurrencyLimitLayer::new(1));
    let (mut harness, workers) = PoolHarness::up_with_layers(config(2), limit).await;
    let first = harness.call_tool("t").await;
    let call = harness.next_call().await;

    let start = Instant::now();
    let late = harness.pool.service().oneshot(ToolCall::new("t").with_deadline(start + SECOND)).await;
    assert!(matches!(late, Err(ToolError::DeadlineExceeded { stage: CallStage::Queued, .. })), "{late:?}");
    assert_eq!(start.elapsed(), SECOND);

    let dropped = tokio::time::timeout(SECOND, harness.pool.service().oneshot(ToolCall::new("t"))).await;
    assert!(dropped.is_err());
    call.succeed();
    first.answer().await.unwrap();
    // Neither of them kept the permit.
    let third = harness.call_tool("t").await;
    let _running = harness.next_call().await;

    let waiting = tokio::spawn(harness.pool.service().oneshot(ToolCall::new("t")));
    harness.settle().await;
    let shutdown = tokio::join!(harness.pool.shutdown(Duration::ZERO), async {
        for worker in workers {
            worker.exit_on_command().await;
        }
    });
    let ((), ()) = shutdown;
    assert!(matches!(third.error().await, ToolError::ShuttingDown { may_have_run: true, .. }));
    assert!(matches!(waiting.await.unwrap(), Err(ToolError::ShuttingDown { may_have_run: false, .. })));
}

#[tokio::test(start_paused = true)]
async fn a_call_can_be_cancelled_by_its_id_in_an_attempt_layer_and_on_its_worker() {
    let limit = layers(ConcurrencyLimitLayer::new(1));
    let (mut harness, _workers) = PoolHarness::up_with_layers(config(2), limit).await;
    let running = harness.call_tool("t").await;
    let on_worker = harness.next_call().await;

    let call = ToolCall::new("waiting");
    let id = call.id;
    let waiting = tokio::spawn(harness.pool.service().oneshot(call));
    harness.settle().await;
    harness.tool().cancel(id).await.unwrap();
    let error = waiting.await.unwrap().unwrap_err();
    assert_eq!(error.to_string(), "call of tool `waiting` was cancelled");
    harness.tool().cancel(id).await.unwrap();

    let (tool, id) = (harness.tool(), on_worker.call.id);
    let cancelling = tokio::spawn(async move { tool.cancel(id).await });
    assert!(matches!(running.error().await, ToolError::Cancelled { .. }));
    harness.settle().await;
    assert!(!cancelling.is_finished(), "the worker has not confirmed the end of the call");
    let cancel = harness.next_cancel().await;
    assert_eq!(cancel.call, id);
    cancel.answer.send(Ok(())).unwrap();
    cancelling.await.unwrap().unwrap();
    // The permit is free again.
    let last = harness.call_tool("t").await;
    harness.next_call().await.succeed();
    last.answer().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_call_that_a_tool_of_a_worker_makes_does_not_wait_for_the_layers_of_its_caller() {
    for concurrency in [1, 2] {
        let limit = layers(ConcurrencyLimitLayer::new(1));
        let (mut harness, _workers) =
            PoolHarness::up_with_layers(config(2).concurrency(concurrency), limit).await;
        let outer = harness.call_tool("outer").await;
        let one = harness.next_call().await;
        let ancestors = harness.tool().ancestors_on(one.worker.as_str(), None);
        let expected = if concurrency == 1 { &[one.call.id][..] } else { &[] };
        assert_eq!(ancestors.as_deref(), Some(expected));
        let nested = harness.call(ToolCall::new("nested").with_ancestors(ancestors)).await;
        harness.next_call().await.succeed();
        nested.answer().await.unwrap();
        let worker = one.worker.clone();
        one.succeed();
        outer.answer().await.unwrap();
        assert_eq!(harness.tool().ancestors_on(worker.as_str(), None), None);
    }
}

#[tokio::test(start_paused = true)]
async fn streams_pass_attempt_layers_and_end_at_their_deadline() {
    let (mut harness, _workers) =
        PoolHarness::up_with_layers(config(1), layers(TimeoutLayer::new(SECOND))).await;
    let call = ToolCall::new("s").streaming().with_deadline(Instant::now() + 5 * SECOND);
    let running = harness.call(call).await;
    let chunks = harness.next_call().await.stream();
    let mut reply = running.answer().await.unwrap();
    // The layer's timeout covers only the time until the stream starts.
    tokio::time::sleep(3 * SECOND).await;
    chunks.send(chunk()).unwrap();
    assert!(matches!(next(&mut reply).await, Some(Ok(_))));
    let late = next(&mut reply).await.unwrap().unwrap_err();
    assert!(matches!(late, ToolError::DeadlineExceeded { stage: CallStage::Running, .. }), "{late}");
}

#[tokio::test(start_paused = true)]
async fn a_call_that_kills_its_workers_is_not_retried_more_often_with_layers() {
    for attempt_layers in [CallLayers::default(), layers(ConcurrencyLimitLayer::new(4))] {
        let (mut harness, workers) = PoolHarness::up_with_layers(config(4), attempt_layers).await;
        workers.into_iter().for_each(|worker| drop(tokio::spawn(worker.exit_on_command())));
        let caller = harness.call_tool("t").await;
        let lost = |worker: &snakepit_worker::WorkerId| {
            ToolError::worker_lost(worker.to_string(), "it exited").with_may_have_run(false)
        };
        let mut attempts = 0;
        let answer = caller.answer();
        tokio::pin!(answer);
        let error = loop {
            tokio::select! {
                biased;
                answer = &mut answer => break answer.unwrap_err(),
                call = harness.calls.recv() => {
                    attempts += 1;
                    let call = call.unwrap();
                    let error = lost(&call.worker);
                    call.finish(Err(error));
                }
                launch = harness.launches.recv() => drop(tokio::spawn(launch.unwrap().succeed().exit_on_command())),
            }
        };
        assert!(matches!(error, ToolError::WorkerLost { .. }), "{error}");
        assert_eq!(attempts, 5);
    }
}

#[tokio::test(start_paused = true)]
async fn a_pool_is_a_service_that_layers_can_wrap() {
    let (mut harness, _workers) = PoolHarness::up(config(1)).await;
    let service = ServiceBuilder::new().load_shed().concurrency_limit(1).service(harness.pool.service());
    let service = CallService::new(service);
    let running = tokio::spawn(service.run(ToolCall::new("t")));
    let call = harness.next_call().await;
    assert!(service.run(ToolCall::new("t")).await.unwrap_err().is_overloaded());
    call.succeed();
    let reply = running.await.unwrap().unwrap();
    assert!(matches!(reply.body, ReplyBody::Value(_)));
}
