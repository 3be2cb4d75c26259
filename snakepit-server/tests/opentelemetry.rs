//! The OpenTelemetry context of a caller becomes the trace context of its calls (feature `opentelemetry`).
#![allow(clippy::unwrap_used, reason = "tests may panic")]

use std::convert::Infallible;

use opentelemetry::{
    Context,
    trace::{
        FutureExt, SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState, Tracer,
        TracerProvider,
    },
};
use opentelemetry_sdk::trace::{InMemorySpanExporter, SdkTracerProvider, SpanData};
use serde_json::{Value, json};
use snakepit_server::{Caller, Client, FnTool, HostHandle, Snakepit, ToolContext, TraceContext};
use tracing::Instrument;
use tracing_subscriber::layer::SubscriberExt;

/// Spans of this process, in memory.
struct Spans {
    provider: SdkTracerProvider,
    exporter: InMemorySpanExporter,
}

impl Spans {
    fn new() -> Self {
        let exporter = InMemorySpanExporter::default();
        let provider = SdkTracerProvider::builder().with_simple_exporter(exporter.clone()).build();
        Self { provider, exporter }
    }

    /// The context of the ended span with this name, in the W3C format.
    fn traceparent(&self, name: &str) -> String {
        let spans = self.exporter.get_finished_spans().unwrap();
        let named: Vec<&SpanData> = spans.iter().filter(|span| span.name == name).collect();
        let [SpanData { span_context, .. }] = named[..] else { panic!("{} spans `{name}`", named.len()) };
        format!("00-{}-{}-01", span_context.trace_id(), span_context.span_id())
    }
}

/// Returns the trace context in a Python tool: its `traceparent`, its `tracestate`, and both of a host tool that it
/// calls.
async fn traces<H: HostHandle>(caller: &Caller<H>) -> Value {
    caller.execute("traces", json!({})).await.unwrap()
}

async fn start(run_dir: &tempfile::TempDir) -> Snakepit {
    let trace = FnTool::new("trace", |context: ToolContext| async move {
        Ok::<_, Infallible>(context.trace.map(|trace| (trace.traceparent, trace.tracestate)))
    });
    Snakepit::builder()
        .adapter("endings:EndingsAdapter")
        .env("PYTHONPATH", concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/adapters"))
        .run_dir(run_dir.path())
        .workers(1)
        .fn_tool(trace)
        .start()
        .await
        .unwrap()
}

async fn check<H: HostHandle>(caller: &Caller<H>) {
    assert_eq!(traces(caller).await, json!([null, null, null]), "without a span");

    // The span of `tracing`.
    let spans = Spans::new();
    let layer = tracing_opentelemetry::layer().with_tracer(spans.provider.tracer("test"));
    let subscriber = tracing::subscriber::set_default(tracing_subscriber::registry().with(layer));
    let found = traces(caller).instrument(tracing::info_span!("request")).await;
    drop(subscriber);
    let expected = spans.traceparent("request");
    assert_eq!(found, json!([expected, null, [expected, null]]));

    // The span of the OpenTelemetry API, without `tracing`.
    let spans = Spans::new();
    let span = spans.provider.tracer("test").start("job");
    let found = traces(caller).with_context(Context::new().with_span(span)).await;
    let expected = spans.traceparent("job");
    assert_eq!(found, json!([expected, null, [expected, null]]));

    // A remote parent, with its state.
    let (trace, span) = (TraceId::from(0xabc), SpanId::from(0xdef));
    let state = TraceState::from_key_value([("vendor", "1")]).unwrap();
    let remote = SpanContext::new(trace, span, TraceFlags::NOT_SAMPLED, true, state);
    let context = Context::new().with_remote_span_context(remote);
    let found = traces(caller).with_context(context.clone()).await;
    let expected = format!("00-{:032x}-{:016x}-00", 0xabc, 0xdef);
    assert_eq!(found, json!([expected, "vendor=1", [expected, "vendor=1"]]));

    // An explicit trace context takes precedence.
    let explicit = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let trace = TraceContext { traceparent: explicit.to_owned(), tracestate: None };
    let found =
        caller.call("traces").trace(trace).unary::<Value>().with_context(context).await.unwrap().value;
    assert_eq!(found, json!([explicit, null, [explicit, null]]));
}

#[tokio::test]
async fn the_current_context_reaches_python_tools_and_their_host_tools() {
    let dir = tempfile::tempdir().unwrap();
    let snakepit = start(&dir).await;
    check(&snakepit).await;
    let client = Client::connect(&format!("unix:{}", snakepit.socket().display())).await.unwrap();
    check(&client).await;
    snakepit.shutdown().await.unwrap();
}
