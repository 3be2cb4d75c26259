//! A host tool made from a typed async Rust closure.

use std::{any::Any, fmt, future::Future, panic::AssertUnwindSafe, pin::Pin, sync::Arc};

use async_trait::async_trait;
use futures_core::Stream;
use futures_util::{FutureExt, StreamExt};
use serde::de::DeserializeOwned;
use snakepit_session::{Payload, SessionId};
use tokio::time::Instant;

use crate::{
    CallId, CallMode, Chunk, ChunkStream, IntoAnswer, ToolCall, ToolError, ToolFailure, ToolHandler,
    ToolReply, ToolSpec, TraceContext, arguments::from_arguments,
};

/// The context of a call of a host tool: the call without its arguments.
#[derive(Debug, Clone)]
pub struct ToolContext {
    /// The id of the call.
    pub call: CallId,
    /// The session of the call.
    pub session: Option<SessionId>,
    /// Key-value pairs from the caller.
    pub metadata: std::collections::BTreeMap<String, String>,
    /// The time at which the call fails.
    pub deadline: Option<Instant>,
    /// The trace of the call.
    pub trace: Option<TraceContext>,
}

type BoxedTool =
    dyn Fn(ToolCall) -> Pin<Box<dyn Future<Output = Result<ToolReply, ToolError>> + Send>> + Send + Sync;

/// A host tool: a typed async closure that clients and Python can call.
///
/// Arguments and results are converted with serde. Binary arguments deserialize into `bytes::Bytes` and other types
/// that read bytes. A whole float, such as 5.0, is a valid integer, and an integer is a valid float. A panic in the
/// closure fails only its call.
///
/// The closure returns any [`IntoAnswer`].
///
/// # Example
/// ```
/// use serde::Deserialize;
/// use snakepit_registry::FnTool;
///
/// #[derive(Deserialize)]
/// struct Division {
///     dividend: i64,
///     divisor: i64,
/// }
///
/// let tool = FnTool::typed("divide", |args: Division| async move {
///     args.dividend.checked_div(args.divisor).ok_or("division by zero")
/// });
/// # assert_eq!(tool.spec().name, "divide");
///
/// let is_divisible =
///     FnTool::typed("is_divisible", |args: Division| async move { args.dividend % args.divisor == 0 });
/// # assert_eq!(is_divisible.spec().name, "is_divisible");
/// ```
#[derive(Clone)]
pub struct FnTool {
    spec: ToolSpec,
    run: Arc<BoxedTool>,
}

impl FnTool {
    /// Creates a tool from a closure that takes all arguments as one value, such as a struct or a map.
    /// The closure returns any [`IntoAnswer`]: a number, text or collection, [`Json`](crate::Json) of a struct, a [`Payload`],
    /// or a `Result`.
    pub fn typed<A, R, F, Fut>(name: &str, tool: F) -> Self
    where
        A: DeserializeOwned + Send + 'static,
        R: IntoAnswer + Send + 'static,
        F: Fn(A) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = R> + Send + 'static,
    {
        Self::with_context(name, move |arguments, _| tool(arguments))
    }

    /// Like [`typed`](Self::typed), for a closure that also takes the context of the call.
    pub fn with_context<A, R, F, Fut>(name: &str, tool: F) -> Self
    where
        A: DeserializeOwned + Send + 'static,
        R: IntoAnswer + Send + 'static,
        F: Fn(A, ToolContext) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = R> + Send + 'static,
    {
        let tool = Arc::new(tool);
        let run = move |call: ToolCall| {
            let tool = Arc::clone(&tool);
            async move {
                let (name, mode, arguments, context) = parse_call(call)?;
                let answer = tool(arguments, context).await.into_answer();
                let value = answer.map_err(|failure| tool_failed(&name, failure))?;
                Ok(match mode {
                    CallMode::Unary => ToolReply::value(value),
                    CallMode::Streaming => ToolReply::stream(single_chunk(chunk(&name, &value)?)),
                })
            }
            .boxed()
        };
        Self { spec: ToolSpec::new(name), run: Arc::new(run) }
    }

    /// Creates a tool that answers with a stream. It supports only streaming calls. Items implement [`IntoAnswer`]; payloads with
    /// a buffer are errors. An error ends the stream.
    pub fn stream<A, R, F, S>(name: &str, tool: F) -> Self
    where
        A: DeserializeOwned + Send + 'static,
        R: IntoAnswer + Send + 'static,
        F: Fn(A, ToolContext) -> S + Send + Sync + 'static,
        S: Stream<Item = R> + Send + 'static,
    {
        let tool = Arc::new(tool);
        let run = move |call: ToolCall| {
            let tool = Arc::clone(&tool);
            async move {
                let (name, _, arguments, context) = parse_call(call)?;
                let items = tool(arguments, context).map(R::into_answer);
                let chunks = AssertUnwindSafe(items).catch_unwind().map(move |item| match item {
                    Ok(Ok(value)) => chunk(&name, &value),
                    Ok(Err(failure)) => Err(tool_failed(&name, failure)),
                    Err(panic) => Err(panic_failure(&name, panic.as_ref())),
                });
                Ok(ToolReply::stream(Box::pin(chunks)))
            }
            .boxed()
        };
        let mut spec = ToolSpec::new(name);
        spec.supports_streaming = true;
        Self { spec, run: Arc::new(run) }
    }

    /// Changes the spec of the tool, except its name and whether it streams.
    #[must_use]
    pub fn describe(mut self, describe: impl FnOnce(ToolSpec) -> ToolSpec) -> Self {
        let (name, supports_streaming) = (self.spec.name.clone(), self.spec.supports_streaming);
        self.spec = ToolSpec { name, supports_streaming, ..describe(self.spec) };
        self
    }

    /// The spec of the tool.
    #[must_use]
    pub const fn spec(&self) -> &ToolSpec {
        &self.spec
    }
}

#[async_trait]
impl ToolHandler for FnTool {
    async fn call(&self, call: ToolCall) -> Result<ToolReply, ToolError> {
        let name = Arc::clone(&call.tool);
        let run = async { (self.run)(call).await };
        AssertUnwindSafe(run)
            .catch_unwind()
            .await
            .unwrap_or_else(|panic| Err(panic_failure(&name, panic.as_ref())))
    }
}

impl fmt::Debug for FnTool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FnTool").field("spec", &self.spec).finish_non_exhaustive()
    }
}

fn parse_call<A: DeserializeOwned>(call: ToolCall) -> Result<(String, CallMode, A, ToolContext), ToolError> {
    let ToolCall { id, tool, session, arguments, metadata, mode, deadline, trace, .. } = call;
    let arguments = from_arguments(&tool, &arguments)?;
    let context = ToolContext { call: id, session, metadata, deadline, trace };
    Ok((tool.to_string(), mode, arguments, context))
}

/// Converts an item of a stream to a chunk, which carries only JSON.
fn chunk(tool: &str, value: &Payload) -> Result<Chunk, ToolError> {
    if value.binary().is_some() {
        let message = "a stream item is a payload with a buffer, which streams do not support; return it from a tool \
                       that does not stream";
        return Err(failure(tool, "PayloadError", message.to_owned()));
    }
    Ok(Chunk { data: value.json().clone(), metadata: std::collections::BTreeMap::new() })
}

fn single_chunk(chunk: Chunk) -> ChunkStream {
    Box::pin(futures_util::stream::once(async move { Ok(chunk) }))
}

fn tool_failed(tool: &str, mut failure: Box<ToolFailure>) -> ToolError {
    tool.clone_into(&mut failure.tool);
    ToolError::Failed(failure)
}

pub(crate) fn panic_failure(tool: &str, panic: &(dyn Any + Send)) -> ToolError {
    failure(tool, "panic", format!("panicked: {}", panic_text(panic)))
}

/// The message of a panic; empty if it has none.
pub(crate) fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or_default()
}

fn failure(tool: &str, error_type: &str, message: String) -> ToolError {
    let failure = ToolFailure { error_type: error_type.to_owned(), message, ..ToolFailure::default() };
    tool_failed(tool, Box::new(failure))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use bytes::Bytes;
    use serde::{Deserialize, Serialize};
    use serde_json::{Value, json};

    use super::*;
    use crate::{Json, ReplyBody};

    #[derive(Deserialize)]
    struct Scale {
        values: Vec<f64>,
        #[serde(default)]
        factor: Option<f64>,
    }

    fn scale() -> FnTool {
        FnTool::typed("scale", |s: Scale| async move {
            let factor = s.factor.unwrap_or(2.0);
            if factor == 0.0 {
                return Err("factor is zero");
            }
            assert!(factor > 0.0, "negative factor");
            Ok(s.values.iter().map(|v| v * factor).collect::<Vec<_>>())
        })
    }

    async fn call(tool: &FnTool, args: Value) -> Result<Value, ToolError> {
        let mut call = ToolCall::new(tool.spec().name.as_str());
        let Value::Object(args) = args else { panic!("not an object") };
        call.arguments = args.into_iter().map(|(k, v)| (k, Payload::try_from_serde(&v).unwrap())).collect();
        match tool.call(call).await?.body {
            ReplyBody::Value(value) => Ok(value.to_serde().unwrap()),
            ReplyBody::Stream(_) => panic!("a stream"),
        }
    }

    #[tokio::test]
    async fn arguments_and_results_are_converted_with_serde() {
        assert_eq!(call(&scale(), json!({"values": [1, 2.5]})).await.unwrap(), json!([2.0, 5.0]));
        assert_eq!(call(&scale(), json!({"values": [1], "factor": 3})).await.unwrap(), json!([3.0]));
        assert_eq!(call(&scale(), json!({"values": [1], "factor": null})).await.unwrap(), json!([2.0]));
    }

    #[tokio::test]
    async fn errors_panics_and_invalid_arguments_are_reported_as_different_errors() {
        let failed = call(&scale(), json!({"values": [1], "factor": 0})).await.unwrap_err();
        assert!(matches!(&failed, ToolError::Failed(f) if f.message == "factor is zero"), "{failed}");
        let panicked = call(&scale(), json!({"values": [1], "factor": -1})).await.unwrap_err();
        assert!(panicked.to_string().contains("panicked: negative factor"), "{panicked}");
        let missing = call(&scale(), json!({"factor": 1})).await.unwrap_err();
        assert!(matches!(&missing, ToolError::InvalidArgument { .. }), "{missing}");
        assert!(missing.to_string().contains("`values`"), "{missing}");
        let wrong = call(&scale(), json!({"values": "x"})).await.unwrap_err();
        assert!(wrong.to_string().contains("argument `values` of tool `scale`"), "{wrong}");
    }

    #[derive(Serialize)]
    struct Score {
        value: f64,
    }

    #[derive(Debug, thiserror::Error)]
    #[error("the shelf is empty")]
    struct OutOfStock;

    #[tokio::test]
    async fn tools_return_values_with_and_without_a_result() {
        let answer = async |tool: FnTool| call(&tool, json!({})).await.unwrap();
        assert_eq!(answer(FnTool::typed("t", |(): ()| async { 1 })).await, json!(1));
        assert_eq!(answer(FnTool::typed("t", |(): ()| async { "text" })).await, json!("text"));
        assert_eq!(answer(FnTool::typed("t", |(): ()| async {})).await, json!(null));
        assert_eq!(
            answer(FnTool::typed("t", |(): ()| async { vec![Some(1), None] })).await,
            json!([1, null])
        );
        assert_eq!(answer(FnTool::typed("t", |(): ()| async { json!({"a": 1}) })).await, json!({"a": 1}));
        let score = || Score { value: 0.5 };
        assert_eq!(
            answer(FnTool::typed("t", move |(): ()| async move { Json(score()) })).await,
            json!({"value": 0.5})
        );
        let checked = move |(): ()| async move { Ok::<_, OutOfStock>(score()) };
        assert_eq!(answer(FnTool::typed("t", checked)).await, json!({"value": 0.5}));
    }

    #[tokio::test]
    async fn tools_return_payloads_with_their_buffer() {
        let bytes = || Payload::bytes(Bytes::from_static(&[1, 2]));
        let plain = FnTool::typed("t", move |(): ()| async move { bytes() });
        let checked = FnTool::typed("t", move |(): ()| async move { Ok::<_, OutOfStock>(bytes()) });
        for tool in [plain, checked] {
            let reply = tool.call(ToolCall::new("t")).await.unwrap();
            assert!(matches!(reply.body, ReplyBody::Value(value) if value == bytes()));
            let error = tool.call(ToolCall::new("t").streaming()).await.unwrap_err();
            assert!(error.to_string().contains("a payload with a buffer"), "{error}");
        }
    }

    #[tokio::test]
    async fn errors_have_the_name_of_their_type() {
        let failure_fields = async |tool: FnTool| {
            let error = call(&tool, json!({})).await.unwrap_err();
            error.failure().map(|f| (f.tool.clone(), f.error_type.clone(), f.message.clone())).unwrap()
        };
        let expected = |ty: &str, text: &str| ("t".to_owned(), ty.to_owned(), text.to_owned());
        let custom = FnTool::typed("t", |(): ()| async { Err::<Score, _>(OutOfStock) });
        assert_eq!(failure_fields(custom).await, expected("OutOfStock", "the shelf is empty"));
        // The types of these errors serialize, but an error never becomes an answer.
        let text = FnTool::typed("t", |(): ()| async { Err::<i64, _>("no".to_owned()) });
        assert_eq!(failure_fields(text).await, expected("HostToolError", "no"));
        let value = FnTool::typed("t", |(): ()| async { Err::<Payload, _>(json!("no")) });
        assert_eq!(failure_fields(value).await, expected("Value", "\"no\""));
    }

    #[tokio::test]
    async fn binary_arguments_deserialize_into_bytes() {
        #[derive(Deserialize)]
        struct Image {
            data: Bytes,
            name: String,
        }
        let tool =
            FnTool::typed(
                "size",
                |image: Image| async move { format!("{}:{}", image.name, image.data.len()) },
            );
        let mut call = ToolCall::new("size").try_with_argument("name", "cat").unwrap();
        call.arguments.insert("data".into(), Payload::bytes(Bytes::from_static(&[0, 1, 2])));
        let ReplyBody::Value(value) = tool.call(call).await.unwrap().body else { panic!("a stream") };
        assert_eq!(value.to_serde::<String>().unwrap(), "cat:3");
    }

    #[tokio::test]
    async fn arrays_deserialize_into_lists_of_numbers() {
        let mut call = ToolCall::new("scale");
        call.arguments.insert("values".into(), Payload::tensor(&[2], &[1.0_f32, 2.5]).unwrap());
        let ReplyBody::Value(value) = scale().call(call).await.unwrap().body else { panic!("a stream") };
        assert_eq!(value.to_serde::<Vec<f64>>().unwrap(), [2.0, 5.0]);
        let mut call = ToolCall::new("scale");
        call.arguments.insert("values".into(), Payload::tensor(&[1, 1], &[1.0]).unwrap());
        let rejected = scale().call(call).await.unwrap_err().to_string();
        assert!(rejected.contains("argument `values` of tool `scale`"), "{rejected}");
    }

    #[tokio::test]
    async fn whole_floats_are_valid_integers_at_any_depth() {
        #[derive(Deserialize, Serialize)]
        struct Page {
            #[serde(flatten)]
            size: Size,
            first: Option<u8>,
            offsets: Vec<i64>,
            by_number: HashMap<u32, i32>,
            scale: f64,
            wide: i128,
            #[serde(default)]
            any: Value,
        }
        #[derive(Deserialize, Serialize)]
        struct Size {
            rows: u64,
            columns: i64,
        }
        #[derive(Deserialize, Serialize)]
        struct Pages {
            pages: Vec<Page>,
            count: usize,
        }
        let tool = FnTool::typed("pages", |pages: Pages| async move { Json(pages) });
        let page = |first: Value, scale: Value| {
            json!({"rows": 5.0, "columns": -7.0, "first": first, "offsets": [1, 2.0, -0.0, 9_007_199_254_740_992.0],
                   "by_number": {"7": 8.0}, "scale": scale, "wide": 9.0, "any": [0.5, "5.0"]})
        };
        let arguments =
            json!({"pages": [page(json!(200.0), json!(-0.0)), page(json!(null), json!(5))], "count": 2.0});
        let pages: Pages = serde_json::from_value(call(&tool, arguments).await.unwrap()).unwrap();
        let [first, second] = &pages.pages[..] else { panic!("two pages") };
        assert_eq!((first.size.rows, first.size.columns, first.first, first.wide), (5, -7, Some(200), 9));
        assert_eq!((&first.offsets[..], first.by_number[&7]), (&[1, 2, 0, 1 << 53][..], 8));
        assert!(first.scale == 0.0 && first.scale.is_sign_negative());
        assert_eq!((second.first, second.scale, &second.any), (None, 5.0, &json!([0.5, "5.0"])));

        // Rejects fractions, floats beyond the exact integers, and values out of the type's range.
        for (argument, bad) in [
            ("count", json!(5.5)),
            ("count", json!(-1.0)),
            ("count", json!(1e300)),
            ("count", json!(9_007_199_254_740_994.0)),
            ("count", json!("NaN")),
            ("pages", json!([page(json!(256.0), json!(0))])),
            ("pages", json!([page(json!(0.5), json!(0))])),
        ] {
            let mut arguments = json!({"pages": [], "count": 1});
            arguments[argument] = bad;
            let rejected = call(&tool, arguments.clone()).await.unwrap_err();
            assert!(matches!(rejected, ToolError::InvalidArgument { .. }), "{arguments}: {rejected}");
            let prefix = format!("argument `{argument}` of tool `pages`");
            assert!(rejected.to_string().contains(&prefix), "{arguments}: {rejected}");
        }
    }

    #[tokio::test]
    async fn arrays_of_whole_floats_deserialize_into_lists_of_integers() {
        let tool = FnTool::typed("sum", |args: HashMap<String, Vec<i64>>| async move {
            args["items"].iter().sum::<i64>()
        });
        let sum = async |items: &[f64]| {
            let mut call = ToolCall::new("sum");
            call.arguments.insert("items".into(), Payload::tensor(&[items.len()], items).unwrap());
            tool.call(call).await.map(|reply| match reply.body {
                ReplyBody::Value(value) => value.to_serde::<i64>().unwrap(),
                ReplyBody::Stream(_) => panic!("a stream"),
            })
        };
        assert_eq!(sum(&[5.0, -1.0]).await.unwrap(), 4);
        for bad in [5.5, f64::NAN, f64::INFINITY] {
            assert!(sum(&[bad]).await.unwrap_err().to_string().contains("argument `items` of tool `sum`"));
        }
    }

    #[tokio::test]
    async fn an_error_ends_a_stream() {
        let tool = FnTool::stream("count", |n: Value, _| {
            let n = n["n"].as_u64().unwrap_or_default();
            futures_util::stream::iter(0..=n).map(move |i| if i < n { Ok(i) } else { Err("enough") })
        });
        let call = ToolCall::new("count").try_with_argument("n", &2).unwrap().streaming();
        let ReplyBody::Stream(chunks) = tool.call(call).await.unwrap().body else { panic!("a value") };
        let items: Vec<_> = chunks.map(|chunk| chunk.map(|chunk| chunk.data)).collect().await;
        assert_eq!(items.len(), 3);
        assert_eq!(items[1].as_ref().unwrap(), "1");
        assert!(items[2].as_ref().unwrap_err().to_string().contains("enough"));
    }
}
