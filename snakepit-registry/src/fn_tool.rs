//! A host tool made from an async Rust closure.

mod context;
mod derive;
mod extract;
mod tool_fn;

#[cfg(test)]
mod tests;

use std::{fmt, future::Future, pin::Pin, sync::Arc};

use async_trait::async_trait;
use futures_core::Stream;
use futures_util::{FutureExt, StreamExt};
use serde::de::DeserializeOwned;
use tracing::{Instrument, Span};

pub use self::{
    context::ToolContext,
    extract::{Args, CallScope, Extension, Extractor, HostState, OptionalExtractor, Requirements, State},
    tool_fn::ToolFn,
};
use crate::{
    CallMode, Chunk, ChunkStream, IntoAnswer, ToolCall, ToolError, ToolFailure, ToolHandler, ToolReply,
    ToolSpec,
    arguments::from_arguments,
    error::PANIC,
    guard::{Guarded, catch},
    meter::Meter,
};

/// The future of the reply to a call.
type ReplyFuture = Pin<Box<dyn Future<Output = Result<ToolReply, ToolError>> + Send>>;

type BoxedTool = dyn Fn(ToolCall, &HostState) -> ReplyFuture + Send + Sync;

/// A host tool: an async closure that clients and Python can call.
///
/// [`new`](Self::new) takes a closure of up to eight arguments. One of them is the type of the tool's own arguments, a struct or
/// a map. The others are [extractors](Extractor), such as [`State`] and [`ToolContext`]. [`ToolFn`] lists them.
///
/// The spec of the tool follows from the argument type, which implements
/// [`JsonSchema`](https://docs.rs/schemars/1/schemars/trait.JsonSchema.html):
///
/// | in the type | in the [`ToolSpec`] |
/// | --- | --- |
/// | a field | a required parameter, with its type, and with its doc comment as description |
/// | an `Option`, or a field with `#[serde(default)]` | an optional parameter, with its default |
/// | `#[serde(alias = "..")]` | another accepted name |
/// | a struct | a [closed](ToolSpec::deny_unknown_arguments) spec: unknown arguments are errors |
/// | a map, an enum, a struct with `#[serde(flatten)]` | an open spec |
///
/// The host checks a call against the spec before the closure runs, and reports all missing and unknown arguments together.
/// Arguments and results are converted with serde. Binary arguments deserialize into `bytes::Bytes` and other types
/// that read bytes. A whole float, such as 5.0, is a valid integer, and an integer is a valid float. A panic in the
/// closure fails only its call.
///
/// The closure returns a future of any [`IntoAnswer`], or a stream of them.
///
/// # Example
/// ```
/// use futures_util::stream;
/// use schemars::JsonSchema;
/// use serde::Deserialize;
/// use snakepit_registry::{Args, FnTool, ToolContext};
///
/// #[derive(Deserialize, JsonSchema)]
/// struct Division {
///     /// The number to divide.
///     dividend: i64,
///     #[serde(default)]
///     divisor: Option<i64>,
/// }
///
/// let tool = FnTool::new("divide", |args: Division| async move {
///     args.dividend.checked_div(args.divisor.unwrap_or(1)).ok_or("division by zero")
/// });
/// let [dividend, divisor] = &tool.spec().parameters[..] else { panic!("two parameters") };
/// assert_eq!((dividend.description.as_str(), dividend.required), ("The number to divide.", true));
/// assert_eq!((divisor.type_name.as_str(), divisor.required), ("integer", false));
///
/// // `Args` marks the arguments. It is optional, and unpacks in the parameter list.
/// let _ = FnTool::new("describe", |Args(args): Args<Division>, context: ToolContext| async move {
///     format!("call {} divides {}", context.call, args.dividend)
/// });
///
/// // A closure that returns a stream makes a streaming tool.
/// let digits = FnTool::new("digits", |args: Division| stream::iter(0..args.dividend));
/// assert!(digits.spec().supports_streaming);
/// ```
#[derive(Clone)]
pub struct FnTool {
    spec: ToolSpec,
    requirements: Arc<Requirements>,
    state: Arc<HostState>,
    run: Arc<BoxedTool>,
    /// Counts the calls. `None` before the registration as a host tool.
    meter: Option<Arc<Meter>>,
}

impl FnTool {
    /// Creates a tool from a closure or function. [`ToolFn`] describes its arguments and results.
    ///
    /// A host does not start with a closure that it cannot call: one whose argument type is a string, a number or a list, because
    /// these have no named fields, or one that takes a [`State`] that the host does not have.
    pub fn new<M>(name: &str, tool: impl ToolFn<M>) -> Self {
        Self::create(name, tool)
    }

    fn create<M, F: ToolFn<M>>(name: &str, tool: F) -> Self {
        let requirements = F::requirements();
        let mut spec = ToolSpec::new(name);
        spec.supports_streaming = F::STREAMS;
        requirements.describe(&mut spec);
        let run = move |call: ToolCall, state: &HostState| tool.run(call, state);
        Self {
            spec,
            requirements: Arc::new(requirements),
            state: Arc::default(),
            run: Arc::new(run),
            meter: None,
        }
    }

    /// Creates a tool from a closure whose argument type has no JSON Schema. Its spec is open and has no parameters, unless
    /// [`describe`](Self::describe) adds them. The closure returns any [`IntoAnswer`].
    pub fn typed<A, R, F, Fut>(name: &str, tool: F) -> Self
    where
        A: DeserializeOwned + Send + 'static,
        R: IntoAnswer + Send + 'static,
        F: Fn(A) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = R> + Send + 'static,
    {
        let run = move |call: ToolCall, _: &HostState| -> ReplyFuture {
            match from_arguments(&call.tool, &call.arguments) {
                Ok(arguments) => reply(call.tool, call.mode, tool(arguments)),
                Err(error) => std::future::ready(Err(error)).boxed(),
            }
        };
        Self::open(name, run)
    }

    fn open(name: &str, run: impl Fn(ToolCall, &HostState) -> ReplyFuture + Send + Sync + 'static) -> Self {
        Self {
            spec: ToolSpec::new(name),
            requirements: Arc::default(),
            state: Arc::default(),
            run: Arc::new(run),
            meter: None,
        }
    }

    /// Like [`typed`](Self::typed), for a closure that also takes the context of the call.
    #[deprecated(note = "use `FnTool::new`, whose closures take a `ToolContext` too")]
    pub fn with_context<A, R, F, Fut>(name: &str, tool: F) -> Self
    where
        A: DeserializeOwned + Send + 'static,
        R: IntoAnswer + Send + 'static,
        F: Fn(A, ToolContext) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = R> + Send + 'static,
    {
        let run = move |call: ToolCall, _: &HostState| -> ReplyFuture {
            match from_arguments(&call.tool, &call.arguments) {
                Ok(arguments) => {
                    let context = ToolContext::of(&call);
                    reply(call.tool, call.mode, tool(arguments, context))
                }
                Err(error) => std::future::ready(Err(error)).boxed(),
            }
        };
        Self::open(name, run)
    }

    /// Creates a tool that answers with a stream, from a closure whose argument type has no JSON Schema.
    #[deprecated(note = "use `FnTool::new`, whose closures may return a stream")]
    pub fn stream<A, R, F, S>(name: &str, tool: F) -> Self
    where
        A: DeserializeOwned + Send + 'static,
        R: IntoAnswer + Send + 'static,
        F: Fn(A, ToolContext) -> S + Send + Sync + 'static,
        S: Stream<Item = R> + Send + 'static,
    {
        let run = move |call: ToolCall, _: &HostState| -> ReplyFuture {
            let result = from_arguments(&call.tool, &call.arguments).map(|arguments| {
                let context = ToolContext::of(&call);
                stream_reply(call.tool, tool(arguments, context))
            });
            std::future::ready(result).boxed()
        };
        let mut tool = Self::open(name, run);
        tool.spec.supports_streaming = true;
        tool
    }

    /// Changes the spec of the tool, except its name and whether it streams.
    #[must_use]
    pub fn describe(mut self, describe: impl FnOnce(ToolSpec) -> ToolSpec) -> Self {
        let (name, supports_streaming) = (self.spec.name.clone(), self.spec.supports_streaming);
        self.spec = ToolSpec { name, supports_streaming, ..describe(self.spec) };
        self
    }

    /// Sets whether Python tools can list and call the tool. The default is `true`.
    ///
    /// For a Python tool, a hidden tool does not exist, even if the Python tool connects to the host's socket as a client. The
    /// program itself, its other host tools, and clients that are not workers can call it.
    #[must_use]
    pub fn exposed(mut self, exposed: bool) -> Self {
        self.spec = self.spec.exposed(exposed);
        self
    }

    /// The spec of the tool.
    #[must_use]
    pub const fn spec(&self) -> &ToolSpec {
        &self.spec
    }

    /// Sets the values for the [`State`] arguments of the closure. A host calls this with the values of `Builder::state`.
    #[must_use]
    pub fn with_state(mut self, state: Arc<HostState>) -> Self {
        self.state = state;
        self
    }

    /// Checks that the closure can run with its state.
    ///
    /// # Errors
    /// The problem, as a sentence without the name of the tool.
    pub(crate) fn check(&self) -> Result<(), String> {
        self.requirements.check(&self.state)
    }

    /// Sets the meter that counts the calls.
    pub(crate) fn with_meter(mut self, meter: Arc<Meter>) -> Self {
        self.meter = Some(meter);
        self
    }
}

#[async_trait]
impl ToolHandler for FnTool {
    async fn call(&self, call: ToolCall) -> Result<ToolReply, ToolError> {
        let name = Arc::clone(&call.tool);
        let measured = self.meter.as_ref().map(|meter| meter.begin(&call));
        let span = measured.as_ref().map_or_else(Span::none, |measured| measured.span().clone());
        // The closure can panic before it returns its future.
        let result = match span.in_scope(|| catch(|| (self.run)(call, &self.state))) {
            Ok(running) => Guarded::new(running).instrument(span).await,
            Err(message) => Err(message),
        };
        let result = result.unwrap_or_else(|message| Err(panic_failure(&name, &message)));
        match measured {
            Some(measured) => measured.finish(result),
            None => result,
        }
    }
}

impl fmt::Debug for FnTool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FnTool").field("spec", &self.spec).finish_non_exhaustive()
    }
}

/// Waits for an answer and converts it to the reply. A streaming call to a tool that does not stream gets one chunk.
fn reply<R: IntoAnswer + 'static>(
    tool: Arc<str>,
    mode: CallMode,
    answering: impl Future<Output = R> + Send + 'static,
) -> ReplyFuture {
    async move {
        let answer = answering.await.into_answer();
        let value = answer.map_err(|failure| tool_failed(&tool, failure))?;
        Ok(match mode {
            CallMode::Unary => ToolReply::value(value),
            CallMode::Streaming => ToolReply::stream(single_chunk(Chunk::of(value))),
        })
    }
    .boxed()
}

/// Converts a stream of answers to the reply. An error or a panic ends the stream.
fn stream_reply<R: IntoAnswer + 'static>(
    tool: Arc<str>,
    items: impl Stream<Item = R> + Send + 'static,
) -> ToolReply {
    let items = Guarded::new(Box::pin(items.map(R::into_answer)));
    let chunks = items.map(move |item| match item {
        Ok(Ok(value)) => Ok(Chunk::of(value)),
        Ok(Err(failure)) => Err(tool_failed(&tool, failure)),
        Err(message) => Err(panic_failure(&tool, &message)),
    });
    ToolReply::stream(Box::pin(chunks))
}

fn single_chunk(chunk: Chunk) -> ChunkStream {
    Box::pin(futures_util::stream::once(async move { Ok(chunk) }))
}

fn tool_failed(tool: &str, mut failure: Box<ToolFailure>) -> ToolError {
    tool.clone_into(&mut failure.tool);
    ToolError::Failed(failure)
}

/// Returns the failure of a call whose tool panicked with this message.
pub(crate) fn panic_failure(tool: &str, message: &str) -> ToolError {
    failure(tool, PANIC, format!("panicked: {message}"))
}

fn failure(tool: &str, error_type: &str, message: String) -> ToolError {
    let failure = ToolFailure { error_type: error_type.to_owned(), message, ..ToolFailure::default() };
    tool_failed(tool, Box::new(failure))
}
