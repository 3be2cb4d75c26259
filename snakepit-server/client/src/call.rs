//! Builds calls: serde types for arguments and results, and a builder for options.

use std::{
    collections::BTreeMap,
    fmt,
    marker::PhantomData,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures_core::Stream;
use futures_util::FutureExt;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::value::RawValue;
use snakepit_proto::headers::MAX_TIMEOUT;
use snakepit_registry::{
    Arguments, CallMode, ChunkStream, LogLine, Principal, ProgressReport, ReplyBody, TimeLimit, ToolCall,
    ToolError, ToolReply, TraceContext,
};
use snakepit_session::{Payload, SessionError, SessionId, ValueType};
use tokio::time::Instant;

use crate::{Error, HostHandle, InProcessHandle, RemoteHost};

/// Prepares one call: [`Caller::call`](crate::Caller::call).
///
/// The builder reports the first error, such as arguments that do not serialize, when the call is made.
#[derive(Debug)]
#[must_use = "a call does nothing until `unary` or `stream` is awaited"]
pub struct CallBuilder<H = RemoteHost> {
    host: H,
    /// Boxed, like the error, because each builder method moves the builder.
    call: Box<ToolCall>,
    timeout: Option<Duration>,
    deadline: Option<Instant>,
    first_error: Option<Box<Error>>,
}

/// The reply to a unary call.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Reply<T> {
    /// The value that the tool returned.
    pub value: T,
    /// The worker that ran the tool; `None` for a host tool.
    pub worker: Option<Arc<str>>,
    /// The run time of the tool itself, if known.
    pub execution_time: Option<Duration>,
    metadata: BTreeMap<String, String>,
}

impl<T> Reply<T> {
    /// The metadata entries that the tool attached to its answer.
    #[must_use]
    pub const fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }
}

impl<H: HostHandle> CallBuilder<H> {
    pub(crate) fn new(host: H, tool: &str) -> Self {
        Self { host, call: Box::new(ToolCall::new(tool)), timeout: None, deadline: None, first_error: None }
    }

    /// Adds arguments: a struct, or a map from parameter names to values. Each argument may be set once, here or with
    /// [`arg`](Self::arg) or [`payload`](Self::payload). Otherwise the call fails with [`ToolError::InvalidArguments`].
    pub fn args(mut self, args: impl Serialize) -> Self {
        match arguments_of(&self.call.tool, &args) {
            Ok(arguments) if self.call.arguments.is_empty() => {
                self.call.arguments = arguments;
                self
            }
            Ok(arguments) => {
                arguments.into_iter().fold(self, |call, (name, value)| call.payload(name, value))
            }
            Err(error) => self.with_error(error),
        }
    }

    /// Adds one argument. Text, numbers, structs and collections become JSON. `bytes::Bytes` and [`Payload`] stay raw buffers at
    /// any depth. A `Vec<u8>` becomes a list of numbers.
    pub fn arg(self, name: impl Into<String>, value: impl Serialize) -> Self {
        match Payload::try_from_serde(&value) {
            Ok(value) => self.payload(name, value),
            Err(error) => self.with_error(error.into()),
        }
    }

    /// Adds one argument that is a payload: raw bytes, or a tensor with its buffer.
    pub fn payload(mut self, name: impl Into<String>, value: Payload) -> Self {
        let name = name.into();
        if self.call.arguments.get(&name).is_some() {
            let tool = self.call.tool.to_string();
            let problem = "is set twice; pass it once, by `arg`, `args` or `payload`".to_owned();
            return self.with_error(ToolError::invalid_argument(tool, name, problem).into());
        }
        self.call.arguments.insert(name, value);
        self
    }

    /// Stores the first error.
    fn with_error(mut self, error: Error) -> Self {
        self.first_error.get_or_insert_with(|| Box::new(error));
        self
    }

    /// Runs the call in an existing session. Accepts a [`SessionId`], a reference to one, or text. With an invalid id, the call
    /// fails with [`SessionError::InvalidId`](snakepit_session::SessionError::InvalidId).
    pub fn session<S>(mut self, id: S) -> Self
    where
        S: TryInto<SessionId>,
        SessionError: From<S::Error>,
    {
        match id.try_into() {
            Ok(id) => {
                self.call.session = Some(id);
                self
            }
            Err(error) => self.with_error(SessionError::from(error).into()),
        }
    }

    /// Limits the whole call: the session lookup, the wait in the queue, all attempts and, for a streaming call, the stream.
    /// The default is the host's. The maximum is [`MAX_TIMEOUT`](crate::MAX_TIMEOUT), more than 11,000 years, so a call with
    /// `Duration::MAX` has no limit in practice. Use that for a stream without an end. Outside a tokio runtime, a call that needs
    /// a timer fails with [`ToolError::NoRuntime`].
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout.min(MAX_TIMEOUT));
        self
    }

    /// Like [`timeout`](Self::timeout), with a point in time, for several calls that share one deadline. If both are set, the
    /// earlier one applies.
    pub fn deadline(mut self, deadline: Instant) -> Self {
        self.deadline = Some(deadline);
        self
    }

    /// Waits for up to this time if the queue of the host is full, instead of failing with [`ToolError::Overloaded`] immediately.
    /// The [`timeout`](Self::timeout) of the call includes the wait. If the queue stays full, the call fails with `Overloaded`.
    ///
    /// - On a host in this process, calls get room in the order in which they were made. A call that does not wait cannot
    ///   overtake them.
    /// - On a remote host, the client repeats a rejected call after the delay that the host suggests, extended by a random
    ///   part of up to half (jitter). Calls of several clients therefore have no order. The last attempt is at the end of the
    ///   limit, or shortly before the deadline. A call that may have run is not repeated.
    ///
    /// Dropping the call ends the wait.
    pub fn wait_for_room(mut self, limit: Duration) -> Self {
        *self.call = self.call.with_wait_for_room(limit);
        self
    }

    /// Declares that the call may run more than once. The host then retries the call if it loses the worker, and a client retries
    /// it if the connection breaks.
    pub fn idempotent(mut self) -> Self {
        if self.call.is_at_most_once() {
            *self.call = self.call.at_most_once(false);
        }
        self.call.idempotent = true;
        self
    }

    /// Forbids a second run of the call, even if its tool is declared idempotent. The host and the client then never
    /// repeat a call that may have begun, but still repeat one that had not begun. This is the default for tools that are not
    /// declared idempotent. If you call this method and [`idempotent`](Self::idempotent), the last one applies.
    pub fn at_most_once(mut self) -> Self {
        *self.call = self.call.at_most_once(true);
        self
    }

    /// Passes the progress that the tool reports to a function. The host sends at most about twenty reports per second, and always
    /// sends the last report before the value. The function runs on the task that waits for the call, or on one that serves other
    /// calls, so it must not block.
    ///
    /// Workers of other runtimes and hosts of earlier versions do not report progress.
    ///
    /// ```no_run
    /// # async fn example(client: snakepit_client::Client) -> Result<(), snakepit_client::Error> {
    /// let call = client
    ///     .call("train")
    ///     .on_progress(|report| println!("{:?} {}", report.fraction(), report.message))
    ///     .on_log(|line| println!("{}", line.text));
    /// let loss: f64 = call.unary().await?.value;
    /// # Ok(())
    /// # }
    /// ```
    pub fn on_progress(mut self, receiver: impl Fn(ProgressReport) + Send + Sync + 'static) -> Self {
        *self.call = self.call.on_progress(receiver);
        self
    }

    /// Passes the output of the tool to a function, line by line: prints, log records, warnings, and the output of subprocesses
    /// that the tool starts. All lines arrive before the value. If the client reads lines too slowly, a warning of the logger
    /// `snakepit` replaces some of them. The function must not block.
    ///
    /// The output of calls that the tool makes to other tools is included.
    ///
    /// A remote host passes on output only to principals that also see
    /// [tracebacks](https://docs.rs/snakepit-server/latest/snakepit_server/struct.TracebackPolicy.html).
    pub fn on_log(mut self, receiver: impl Fn(LogLine) + Send + Sync + 'static) -> Self {
        *self.call = self.call.on_log(receiver);
        self
    }

    /// Attaches a metadata entry that the tool can read.
    pub fn metadata(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.call.metadata.insert(key.into(), value.into());
        self
    }

    /// Attaches the trace context of the call, which the tool and its host tools receive.
    ///
    /// With the feature `opentelemetry`, a call without one gets the context of the current `tracing` span, if
    /// `tracing-opentelemetry` records it, or else the current OpenTelemetry context.
    pub fn trace(mut self, trace: TraceContext) -> Self {
        self.call.trace = Some(trace);
        self
    }

    /// Makes the call and waits for its value. `T` is the type of the value:
    /// `call.unary::<serde_json::Value>()` for any value that JSON can express.
    ///
    /// # Errors
    /// [`Error::Tool`] if the call fails, [`Error::WrongResult`] if the value does not fit `T`.
    ///
    /// # Cancel safety
    /// Dropping the future cancels the call.
    pub fn unary<T: DeserializeOwned>(self) -> impl Future<Output = Result<Reply<T>, Error>> + Send {
        let tool = Arc::clone(&self.call.tool);
        self.send(CallMode::Unary).map(|sent| {
            let Reply { value, worker, execution_time, metadata } = value_of(sent?.0)?;
            let value = value.to_serde().map_err(|source| Error::WrongResult { tool, source })?;
            Ok(Reply { value, worker, execution_time, metadata })
        })
    }

    /// Makes the call and waits for its raw value. Use it for Python's `bytes` and numpy arrays, whose buffer is
    /// [`Payload::binary`].
    ///
    /// # Errors
    /// [`Error::Tool`] if the call fails.
    ///
    /// # Cancel safety
    /// Dropping the future cancels the call.
    pub fn payload_reply(self) -> impl Future<Output = Result<Reply<Payload>, Error>> + Send {
        self.send(CallMode::Unary).map(|sent| value_of(sent?.0))
    }

    /// Makes the call and returns its chunks as they arrive. `T` is the type of a chunk:
    /// `call.stream::<serde_json::Value>()` for any chunk that JSON can express, `call.stream::<Payload>()` for raw buffers. See
    /// [`Caller::execute_stream`](crate::Caller::execute_stream).
    ///
    /// # Errors
    /// [`Error::Tool`] if the call cannot start. A later failure is the last item of the stream. A chunk that does not fit `T` is
    /// an item with [`Error::WrongResult`].
    ///
    /// The [timeout](Self::timeout) of the call, or else the default one of the host, ends the stream too.
    ///
    /// # Cancel safety
    /// Dropping the future, or the stream before its end, cancels the call.
    pub fn stream<T: DeserializeOwned>(self) -> impl Future<Output = Result<ReplyStream<T>, Error>> + Send {
        let tool = Arc::clone(&self.call.tool);
        self.send(CallMode::Streaming).map(|sent| {
            let (ToolReply { body, worker, .. }, limit) = sent?;
            match body {
                ReplyBody::Stream(chunks) => {
                    Ok(ReplyStream { chunks, tool, worker, limit, item: PhantomData })
                }
                ReplyBody::Value(_) => Err(wrong_reply("a value", "a stream").into()),
            }
        })
    }

    /// Returns the reply, and the time limit that this call set. The callers map this future, because an `async fn` would store
    /// its arguments in addition to the future that it awaits, and each waiting call of an overloaded host holds that memory.
    fn send(
        self,
        mode: CallMode,
    ) -> impl Future<Output = Result<(ToolReply, Option<TimeLimit>), Error>> + Send {
        let Self { host, mut call, timeout, deadline, first_error } = self;
        async move {
            if let Some(error) = first_error {
                return Err(*error);
            }
            call.mode = mode;
            let now = Instant::now();
            let after_timeout = timeout.and_then(|timeout| now.checked_add(timeout));
            call.deadline = after_timeout.into_iter().chain(deadline).min();
            let limit = call.deadline.map(|at| TimeLimit::Caller(at.saturating_duration_since(now)));
            let called = host.call(call).await;
            let reply = called.map_err(|error| suggest_stream(mode, error).with_time_limit(limit))?;
            Ok((reply, limit))
        }
    }
}

impl<H: InProcessHandle> CallBuilder<H> {
    /// Makes the call for this principal, such as the user of a request, instead of the program. If the program set
    /// `Builder::authorize`, the host asks it whether the principal may make the call. Denied calls fail with
    /// [`ToolError::AccessDenied`].
    ///
    /// Python tools act for the principal of their call, and host tools read it from their context.
    pub fn principal(mut self, principal: Principal) -> Self {
        self.call.principal = principal;
        self
    }
}

/// The chunks of a streaming call. Dropping the stream before its end cancels the call.
pub struct ReplyStream<T> {
    chunks: ChunkStream,
    tool: Arc<str>,
    worker: Option<Arc<str>>,
    limit: Option<TimeLimit>,
    item: PhantomData<fn() -> T>,
}

impl<T> ReplyStream<T> {
    /// The worker that runs the call; `None` for a host tool.
    #[must_use]
    pub const fn worker(&self) -> Option<&Arc<str>> {
        self.worker.as_ref()
    }
}

impl<T: DeserializeOwned> Stream for ReplyStream<T> {
    type Item = Result<T, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        let (limit, tool) = (this.limit, &this.tool);
        this.chunks.as_mut().poll_next(cx).map(|item| {
            item.map(|chunk| {
                let chunk = chunk.map_err(|error| error.with_time_limit(limit))?;
                let value = chunk.into_value().to_serde();
                value.map_err(|source| Error::WrongResult { tool: Arc::clone(tool), source })
            })
        })
    }
}

impl<T> fmt::Debug for ReplyStream<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReplyStream").field("worker", &self.worker).finish_non_exhaustive()
    }
}

/// Replaces the hint of an error, which names a gRPC method, with the method of this API that calls a streaming tool.
fn suggest_stream(mode: CallMode, error: ToolError) -> ToolError {
    match error {
        // Only a streaming tool rejects a unary call.
        ToolError::Unsupported { tool, may_have_run, .. } if mode == CallMode::Unary => {
            ToolError::unsupported(
                tool,
                "streams its results; call it with `execute_stream`, or `call(..).stream()`",
            )
            .with_may_have_run(may_have_run)
        }
        error => error,
    }
}

fn value_of(reply: ToolReply) -> Result<Reply<Payload>, Error> {
    let ToolReply { body, worker, execution_time, metadata } = reply;
    match body {
        ReplyBody::Value(value) => Ok(Reply { value, worker, execution_time, metadata }),
        ReplyBody::Stream(_) => Err(wrong_reply("a stream", "a value").into()),
    }
}

fn wrong_reply(got: &str, expected: &str) -> ToolError {
    ToolError::internal(format!("the handler answered with {got} instead of {expected}"))
}

/// Splits an object into arguments, which stay JSON.
fn arguments_of(tool: &str, args: &impl Serialize) -> Result<Arguments, Error> {
    let whole = Payload::try_from_serde(args)?;
    if whole.ty() == ValueType::Null {
        return Ok(Arguments::new());
    }
    if whole.binary().is_some() {
        let fields = whole.to_serde::<BTreeMap<String, Payload>>();
        let fields = fields.map_err(|_| Error::NotAnObject { tool: tool.to_owned() })?;
        return Ok(fields.into_iter().collect());
    }
    let (_, json, _) = whole.into_parts();
    let fields: BTreeMap<String, &RawValue> =
        serde_json::from_slice(&json).map_err(|_| Error::NotAnObject { tool: tool.to_owned() })?;
    // All payloads share one buffer.
    let payload = |text: &RawValue| Payload::of_json(json.slice_ref(text.get().as_bytes()));
    Ok(fields.into_iter().map(|(name, text)| (name, payload(text))).collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn keeps_the_types_of_arguments() {
        let arguments = arguments_of("t", &json!({"a": 1, "b": 2.0, "c": "x", "d": [1], "e": null})).unwrap();
        let types: Vec<_> = arguments.iter().map(|(name, value)| (name, value.ty().as_str())).collect();
        assert_eq!(types, [("a", "integer"), ("b", "float"), ("c", "string"), ("d", "list"), ("e", "null")]);
        assert_eq!(arguments_of("t", &()).unwrap(), Arguments::new());
    }

    #[test]
    fn each_argument_has_only_its_buffers() {
        #[derive(Serialize)]
        struct Images {
            first: bytes::Bytes,
            others: Vec<bytes::Bytes>,
            count: u8,
        }
        let images = Images { first: "12345".into(), others: vec!["678".into(), "9".into()], count: 3 };
        let arguments = arguments_of("t", &images).unwrap();
        let sizes = |name: &str| arguments.get(name).unwrap().binary().map(bytes::Bytes::len);
        assert_eq!([sizes("first"), sizes("others"), sizes("count")], [Some(5), Some(4), None]);
        let others: Vec<bytes::Bytes> = arguments.get("others").unwrap().to_serde().unwrap();
        assert_eq!(others, images.others);
    }

    #[test]
    fn rejects_arguments_that_are_not_an_object() {
        let error = arguments_of("add", &[1, 2]).unwrap_err().to_string();
        assert!(error.contains("`add`") && error.contains("not an object"), "{error}");
    }
}
