//! Tests of the error conversion, the bounds of calls in layers, and the adapters.

use std::error::Error;

use futures_util::FutureExt;
use tokio::sync::{Notify, Semaphore};
use tower::{ServiceBuilder, ServiceExt, service_fn, timeout::TimeoutLayer};

use super::*;
use crate::{
    ErrorKind, FnTool,
    contract::{ContractCalls, tool_handler_contract},
};

const SECOND: Duration = Duration::from_secs(1);

/// A service that marks its call as begun and waits for a permit.
fn gated_tool(
    permits: &Arc<Semaphore>,
) -> impl Service<ToolCall, Response = ToolReply, Error = ToolError, Future = CallFuture<'static>> + Clone + use<>
{
    let permits = Arc::clone(permits);
    service_fn(move |call: ToolCall| {
        let permits = Arc::clone(&permits);
        Box::pin(async move {
            if let Some(progress) = CallProgress::of(&call) {
                progress.begin();
            }
            permits.acquire().await.unwrap().forget();
            Ok(ToolReply::value(snakepit_session::Payload::null()))
        }) as CallFuture<'static>
    })
}

fn layered_service(permits: &Arc<Semaphore>, add: impl FnOnce(&mut CallLayers)) -> CallService {
    let mut layers = CallLayers::default();
    add(&mut layers);
    layers.wrap(gated_tool(permits)).unwrap()
}

fn call() -> ToolCall {
    ToolCall::new("t")
}

#[tokio::test(start_paused = true)]
async fn errors_of_towers_layers_have_the_right_kind_and_keep_their_source() {
    let permits = Arc::new(Semaphore::new(0));
    let timeout = layered_service(&permits, |layers| layers.push(TimeoutLayer::new(SECOND)));
    let late = timeout.run_bounded(call(), std::future::pending()).await.unwrap_err();
    assert!(late.is_timeout() && late.may_have_run(), "{late:?}");
    assert!(late.source().unwrap().is::<tower::timeout::error::Elapsed>());
    assert_eq!(late.to_string(), "a layer of the host ended the call: request timed out");

    // The shed call did not begin, so a retry is safe.
    let shed = layered_service(&permits, |layers| {
        layers.push(ServiceBuilder::new().load_shed().concurrency_limit(1));
    });
    let mut first = shed.run(call());
    assert!((&mut first).now_or_never().is_none());
    let overloaded = shed.run_bounded(call(), std::future::pending()).await.unwrap_err();
    assert!(overloaded.is_overloaded() && overloaded.is_retryable(), "{overloaded:?}");
    drop(first);
    permits.add_permits(1);
    shed.run(call()).await.unwrap();
}

#[tokio::test]
async fn other_errors_of_layers_are_rejections_unless_a_tool_error_is_among_their_sources() {
    #[derive(Debug, thiserror::Error)]
    #[error("the tenant has no quota")]
    struct NoQuota(#[source] Option<ToolError>);

    let failing = |source: Option<ToolError>| {
        let fail =
            service_fn(move |_: ToolCall| std::future::ready(Err::<ToolReply, _>(NoQuota(source.clone()))));
        CallService::new(fail).run(call())
    };
    let rejected = failing(None).await.unwrap_err();
    assert_eq!((rejected.kind(), rejected.is_retryable()), (ErrorKind::Rejected, false));
    assert_eq!(rejected.to_string(), "a layer of the host ended the call: the tenant has no quota");
    let inner = ToolError::shutting_down(false);
    assert_eq!(failing(Some(inner)).await.unwrap_err().kind(), ErrorKind::ShuttingDown);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_waits_in_a_layer_ends_at_its_deadline_and_at_the_cut_off() {
    let permits = Arc::new(Semaphore::new(0));
    let limited = layered_service(&permits, |layers| {
        layers.push(ServiceBuilder::new().concurrency_limit(1).into_inner());
    });
    let mut first = limited.run(call());
    assert!((&mut first).now_or_never().is_none());

    let start = Instant::now();
    let late = limited.run_bounded(call().with_deadline(start + SECOND), std::future::pending());
    let late = late.await.unwrap_err();
    assert!(matches!(late, ToolError::DeadlineExceeded { stage: CallStage::Queued, .. }), "{late}");
    assert_eq!(start.elapsed(), SECOND);

    let cut_off = Arc::new(Notify::new());
    let wait = Arc::clone(&cut_off);
    let mut waiting = limited.run_bounded(call(), async move { wait.notified().await });
    assert!((&mut waiting).now_or_never().is_none());
    cut_off.notify_one();
    assert!(matches!(waiting.await, Err(ToolError::ShuttingDown { may_have_run: false, .. })));
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_reports_no_deadline_gets_a_short_grace_period() {
    let permits = Arc::new(Semaphore::new(0));
    let plain = layered_service(&permits, |layers| layers.push(tower::layer::util::Identity::new()));
    let start = Instant::now();
    let late = plain.run_bounded(call().with_deadline(start + SECOND), std::future::pending()).await;
    assert!(matches!(late, Err(ToolError::DeadlineExceeded { stage: CallStage::Running, .. })), "{late:?}");
    assert_eq!(start.elapsed(), SECOND + GRACE);
}

#[tokio::test]
async fn a_layer_that_was_added_first_sees_a_call_first() {
    let permits = Arc::new(Semaphore::new(1));
    let order = Arc::new(std::sync::Mutex::new(Vec::new()));
    let service = layered_service(&permits, |layers| {
        for name in ["outer", "inner"] {
            let order = Arc::clone(&order);
            layers.push(tower::util::MapRequestLayer::new(move |call: ToolCall| {
                order.lock().unwrap().push(name);
                call
            }));
        }
    });
    let mut tracked = call();
    let _progress = CallProgress::track(&mut tracked);
    service.clone().oneshot(tracked).await.unwrap();
    assert_eq!(*order.lock().unwrap(), ["outer", "inner"]);
    assert!(
        CallLayers::default().wrap(gated_tool(&permits)).is_none(),
        "without layers, there is nothing to wrap"
    );
}

/// Runs a call through a layer that repeats it once if it fails. Each pass ends with the next of these results.
async fn run_repeating(
    passes: Vec<Option<Result<ToolReply, ToolError>>>,
    discards_replies: bool,
) -> ToolError {
    let passes = Arc::new(std::sync::Mutex::new(passes.into_iter()));
    let tool = service_fn(move |call: ToolCall| {
        let result = passes.lock().unwrap().next().unwrap();
        Box::pin(async move {
            CallProgress::of(&call).unwrap().begin();
            match result {
                Some(result) => result,
                None => std::future::pending().await,
            }
        }) as CallFuture<'static>
    });
    let mut layers = CallLayers::default();
    layers.push(tower::layer::layer_fn(move |inner: CallService| {
        service_fn(move |call: ToolCall| {
            let inner = inner.clone();
            async move {
                // `None` never completes, so the timeout drops that pass.
                match tokio::time::timeout(SECOND, inner.run(call.clone())).await {
                    Ok(Ok(reply)) if !discards_replies => Ok(reply),
                    _ => inner.run(call).await,
                }
            }
        })
    }));
    layers.wrap(tool).unwrap().run_bounded(call(), std::future::pending()).await.unwrap_err()
}

#[tokio::test(start_paused = true)]
async fn the_error_of_the_last_pass_covers_earlier_passes() {
    let lost = |may_have_run| ToolError::WorkerLost {
        worker: "w".into(),
        reason: "it exited".into(),
        may_have_run,
        was_sent: true,
        output_lines: vec![],
        retry_after: None,
        source: None,
    };
    let overloaded = || Some(Err(ToolError::Overloaded { queued: 1, limit: 1, retry_after: None }));
    let never_ran = run_repeating(vec![Some(Err(lost(false))), overloaded()], false).await;
    assert!(matches!(never_ran, ToolError::Overloaded { .. }) && never_ran.is_retryable(), "{never_ran:?}");
    let may_have_run = run_repeating(vec![Some(Err(lost(true))), overloaded()], false).await;
    assert!(matches!(may_have_run, ToolError::WorkerLost { may_have_run: true, .. }), "{may_have_run:?}");
    let discarded = Some(Ok(ToolReply::value(snakepit_session::Payload::null())));
    for first in [discarded, None] {
        let error = run_repeating(vec![first, overloaded()], true).await;
        assert!(error.is_overloaded() && error.may_have_run() && !error.is_retryable(), "{error:?}");
        assert!(
            error.to_string().contains("an earlier pass through the layers may have run the tool"),
            "{error}"
        );
    }
}

#[tokio::test]
async fn a_panic_of_a_layer_fails_the_call_or_ends_its_stream() {
    let permits = Arc::new(Semaphore::new(1));
    let panicking = layered_service(&permits, |layers| {
        layers.push(tower::util::MapResponseLayer::new(|_: ToolReply| -> ToolReply { panic!("on purpose") }));
    });
    let error = panicking.run_bounded(call(), std::future::pending()).await.unwrap_err();
    assert!(error.may_have_run() && error.kind() == ErrorKind::Rejected, "{error:?}");
    assert_eq!(error.to_string(), "a layer of the host ended the call: it panicked: on purpose");

    permits.add_permits(1);
    let panicking = layered_service(&permits, |layers| {
        layers.push(tower::util::MapResponseLayer::new(|_: ToolReply| {
            let chunks = futures_util::stream::poll_fn(|_| panic!("on purpose"));
            ToolReply::stream(Box::pin(chunks))
        }));
    });
    let reply = panicking.run_bounded(call(), std::future::pending()).await.unwrap();
    let ReplyBody::Stream(chunks) = reply.body else { panic!("not a stream") };
    let items: Vec<_> = chunks.collect().await;
    assert!(matches!(&items[..], [Err(ToolError::Layer { may_have_run: true, .. })]), "{items:?}");
}

#[derive(Debug)]
struct PanickingService {
    panics_in_clone: bool,
}

impl Clone for PanickingService {
    fn clone(&self) -> Self {
        assert!(!self.panics_in_clone, "in a clone");
        Self { panics_in_clone: false }
    }
}

impl Service<ToolCall> for PanickingService {
    type Response = ToolReply;
    type Error = ToolError;
    type Future = CallFuture<'static>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ToolError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: ToolCall) -> Self::Future {
        Box::pin(async {
            let _held = PanicsInDrop;
            std::future::pending().await
        })
    }
}

struct PanicsInDrop;

impl Drop for PanicsInDrop {
    fn drop(&mut self) {
        assert!(std::thread::panicking(), "in a destructor");
    }
}

#[tokio::test(start_paused = true)]
async fn panics_of_clones_and_destructors_of_layers_fail_only_the_call() {
    let mut call = call();
    call.deadline = Some(Instant::now() + Duration::from_secs(1));
    let service = CallService::new(PanickingService { panics_in_clone: false });
    let error = service.run_bounded(call.clone(), std::future::pending()).await.unwrap_err();
    assert!(matches!(error, ToolError::DeadlineExceeded { .. }), "{error:?}");
    let service = CallService::new(PanickingService { panics_in_clone: true });
    let error = service.run_bounded(call, std::future::pending()).await.unwrap_err();
    assert!(error.to_string().contains("it panicked: in a clone") && !error.may_have_run(), "{error}");
}

#[tokio::test]
async fn adapters_keep_the_contract_of_handlers() {
    let tool = FnTool::new("any", |_: serde_json::Value| futures_util::stream::iter([1, 2]));
    let stream = Arc::new(tool) as Arc<dyn ToolHandler>;
    let value = Arc::new(FnTool::typed("any", |args: std::collections::HashMap<String, bool>| async move {
        if args.contains_key("endless") {
            std::future::pending::<()>().await;
        }
        if args.contains_key("fail") { Err("on purpose") } else { Ok(1) }
    })) as Arc<dyn ToolHandler>;
    // Routes by mode, like a handler with both kinds of tools.
    let (values, streams) = (HandlerService::new(value), HandlerService::new(stream));
    let service = service_fn(move |call: ToolCall| {
        let mut service = if call.mode == crate::CallMode::Unary { values.clone() } else { streams.clone() };
        service.call(call)
    });
    let with = |name: &'static str| move || call().try_with_argument(name, &true).unwrap();
    let calls = ContractCalls {
        value: Box::new(call),
        stream: Box::new(|| call().streaming()),
        failure: Box::new(with("fail")),
        endless: Box::new(with("endless")),
    };
    tool_handler_contract(CallService::new(service).into_handler(), &calls).await;
}
