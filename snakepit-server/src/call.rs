//! Calls as an embedding program makes them: arguments by serde, answers by serde, options by a builder.

use std::{
    collections::BTreeMap,
    fmt,
    marker::PhantomData,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_core::Stream;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::value::RawValue;
use snakepit_proto::headers::MAX_TIMEOUT;
use snakepit_registry::{
    Arguments, CallMode, ChunkStream, ReplyBody, ToolCall, ToolError, ToolReply, TraceContext,
};
use snakepit_session::{Payload, PayloadError, SessionId, ValueType};
use tokio::time::Instant;

use crate::{
    Error,
    client::Remote,
    host::{ANCESTORS, Host},
};

/// A call being prepared: [`Snakepit::call`](crate::Snakepit::call), [`Client::call`](crate::Client::call).
#[derive(Debug)]
#[must_use = "a call does nothing until `unary` or `stream` is awaited"]
pub struct CallBuilder {
    target: Target,
    /// Boxed, like the mistake, because a builder is moved with each step.
    call: Box<ToolCall>,
    timeout: Option<Duration>,
    /// The first mistake made while preparing; reported when the call is made.
    mistake: Option<Box<Error>>,
}

/// Where calls and the state of sessions are.
#[derive(Debug, Clone)]
pub(crate) enum Target {
    /// To the host of this process.
    Host(Arc<Host>),
    /// To a host over the network.
    Remote(Arc<Remote>),
}

/// The answer of a unary call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply<T> {
    /// What the tool returned.
    pub value: T,
    /// The worker that ran it; `None` for a tool of the host.
    pub worker: Option<Arc<str>>,
    /// How long the tool itself took, where known.
    pub execution_time: Option<Duration>,
}

impl CallBuilder {
    pub(crate) fn new(target: Target, tool: &str) -> Self {
        Self { target, call: Box::new(ToolCall::new(tool)), timeout: None, mistake: None }
    }

    /// Adds arguments: a struct, or a map from parameter names to values. One that was set before, here or by
    /// [`payload`](Self::payload), is a mistake: the call fails with [`ToolError::InvalidArgument`].
    pub fn args(mut self, args: impl Serialize) -> Self {
        match arguments_of(&self.call.tool, &args) {
            Ok(arguments) if self.call.arguments.is_empty() => {
                self.call.arguments = arguments;
                self
            }
            Ok(arguments) => {
                arguments.into_iter().fold(self, |call, (name, value)| call.argument(name, value))
            }
            Err(mistake) => {
                self.mistake.get_or_insert(Box::new(mistake));
                self
            }
        }
    }

    /// Adds one argument that is a payload: raw bytes, or a tensor with its buffer. As for [`args`](Self::args), it must not
    /// be set already.
    pub fn payload(self, name: impl Into<String>, value: Payload) -> Self {
        self.argument(name.into(), value)
    }

    fn argument(mut self, name: String, value: Payload) -> Self {
        if self.call.arguments.get(&name).is_some() {
            let tool = self.call.tool.to_string();
            let problem = "is set twice; pass it by either `args` or `payload`, once".to_owned();
            self.mistake
                .get_or_insert(Box::new(ToolError::InvalidArgument { tool, argument: name, problem }.into()));
        } else {
            self.call.arguments.insert(name, value);
        }
        self
    }

    /// Runs the call in a session, which must exist.
    pub fn session(mut self, id: SessionId) -> Self {
        self.call.session = Some(id);
        self
    }

    /// Bounds looking up the session, queueing, all attempts and, for a streaming call, the whole stream, at most
    /// [`MAX_TIMEOUT`]. The default is the host's. Outside a tokio runtime, a call that needs a timer fails with
    /// [`ToolError::NoRuntime`].
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout.min(MAX_TIMEOUT));
        self
    }

    /// Says that running the call twice does no harm: it is retried when its worker is lost.
    pub fn idempotent(mut self) -> Self {
        self.call.idempotent = true;
        self
    }

    /// Attaches an entry that the tool can read.
    pub fn metadata(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.call.metadata.insert(key.into(), value.into());
        self
    }

    /// Attaches the trace that the call belongs to.
    pub fn trace(mut self, trace: TraceContext) -> Self {
        self.call.trace = Some(trace);
        self
    }

    /// Makes the call and waits for its value.
    ///
    /// # Errors
    /// [`Error::Tool`] when the call fails, [`Error::Payload`] when the value does not fit `T`.
    ///
    /// # Cancel safety
    /// Dropping the future cancels the call.
    pub async fn unary<T: DeserializeOwned>(self) -> Result<Reply<T>, Error> {
        let Reply { value, worker, execution_time } = value_of(self.send(CallMode::Unary).await?)?;
        Ok(Reply { value: value.to_serde()?, worker, execution_time })
    }

    /// Makes the call and waits for its value, unparsed: for `bytes` and numpy arrays of Python, whose buffer is the
    /// payload's [`binary`](Payload::binary).
    ///
    /// # Errors
    /// [`Error::Tool`] when the call fails.
    ///
    /// # Cancel safety
    /// Dropping the future cancels the call.
    pub async fn payload_reply(self) -> Result<Reply<Payload>, Error> {
        value_of(self.send(CallMode::Unary).await?)
    }

    /// Makes the call and returns its chunks as they come.
    ///
    /// # Errors
    /// [`Error::Tool`] when the call cannot be started. Later failures are the stream's last item.
    ///
    /// # Cancel safety
    /// Dropping the future, or the stream before its end, cancels the call.
    pub async fn stream<T: DeserializeOwned>(self) -> Result<ReplyStream<T>, Error> {
        let ToolReply { body, worker, .. } = self.send(CallMode::Streaming).await?;
        match body {
            ReplyBody::Stream(chunks) => Ok(ReplyStream { chunks, worker, item: PhantomData }),
            ReplyBody::Value(_) => Err(mode_broken("a value", "a stream").into()),
        }
    }

    fn send(self, mode: CallMode) -> impl Future<Output = Result<ToolReply, Error>> + Send {
        let Self { target, mut call, timeout, mistake } = self;
        // No async fn, which would keep a second place for all this.
        async move {
            if let Some(mistake) = mistake {
                return Err(*mistake);
            }
            call.mode = mode;
            call.deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
            let answer = match target {
                Target::Host(host) => {
                    call.ancestors = ANCESTORS.try_with(Clone::clone).unwrap_or_default();
                    host.call(*call).await
                }
                // Boxed, because it is much larger than what a call of this process's own host needs.
                Target::Remote(remote) => Box::pin(remote.call(*call)).await,
            };
            Ok(answer.map_err(|error| in_this_api(mode, error))?)
        }
    }
}

/// The items of a streaming call. Dropping it before its end cancels the call.
pub struct ReplyStream<T> {
    chunks: ChunkStream,
    worker: Option<Arc<str>>,
    item: PhantomData<fn() -> T>,
}

impl<T> ReplyStream<T> {
    /// The worker that runs the call; `None` for a tool of the host.
    #[must_use]
    pub const fn worker(&self) -> Option<&Arc<str>> {
        self.worker.as_ref()
    }
}

impl<T: DeserializeOwned> Stream for ReplyStream<T> {
    type Item = Result<T, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.chunks
            .as_mut()
            .poll_next(cx)
            .map(|item| item.map(|chunk| Ok(Payload::from_json(ValueType::Map, chunk?.data).to_serde()?)))
    }
}

impl<T> fmt::Debug for ReplyStream<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReplyStream").field("worker", &self.worker).finish_non_exhaustive()
    }
}

/// Says in the words of this API what the gRPC name of an RPC would not tell its caller: that the tool streams.
fn in_this_api(mode: CallMode, error: ToolError) -> ToolError {
    match error {
        // A tool refuses to be called for a value only if it streams.
        ToolError::Unsupported { tool, .. } if mode == CallMode::Unary => ToolError::Unsupported {
            tool,
            problem: "streams its results; call it with `execute_stream`, or `call(..).stream()`".to_owned(),
        },
        error => error,
    }
}

fn value_of(reply: ToolReply) -> Result<Reply<Payload>, Error> {
    let ToolReply { body, worker, execution_time, .. } = reply;
    match body {
        ReplyBody::Value(value) => Ok(Reply { value, worker, execution_time }),
        ReplyBody::Stream(_) => Err(mode_broken("a stream", "a value").into()),
    }
}

fn mode_broken(got: &str, expected: &str) -> ToolError {
    ToolError::Internal { problem: format!("the handler answered with {got} instead of {expected}") }
}

/// Splits an object into arguments, each still JSON.
pub(crate) fn arguments_of(tool: &str, args: &impl Serialize) -> Result<Arguments, Error> {
    let json = serde_json::to_vec(args).map_err(|e| PayloadError::Serialize { problem: e.to_string() })?;
    if json == b"null" {
        return Ok(Arguments::new());
    }
    let json = Bytes::from(json);
    let fields: BTreeMap<String, &RawValue> =
        serde_json::from_slice(&json).map_err(|_| Error::NotAnObject { tool: tool.to_owned() })?;
    // All share the one buffer.
    let payload = |text: &RawValue| Payload::of_json(json.slice_ref(text.get().as_bytes()));
    Ok(fields.into_iter().map(|(name, text)| (name, payload(text))).collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn arguments_keep_their_types() {
        let arguments = arguments_of("t", &json!({"a": 1, "b": 2.0, "c": "x", "d": [1], "e": null})).unwrap();
        let types: Vec<_> = arguments.iter().map(|(name, value)| (name, value.ty().as_str())).collect();
        assert_eq!(types, [("a", "integer"), ("b", "float"), ("c", "string"), ("d", "list"), ("e", "null")]);
        assert_eq!(arguments_of("t", &()).unwrap(), Arguments::new());
    }

    #[tokio::test]
    async fn arguments_and_payloads_are_kept_together_and_none_is_lost() {
        let host = || async {
            let registry = snakepit_registry::Registry::new();
            let tool = |args: BTreeMap<String, serde_json::Value>| async move {
                Ok::<_, std::convert::Infallible>(args)
            };
            registry.register_host_tool(snakepit_registry::FnTool::typed("echo", tool)).unwrap();
            let sessions = snakepit_session::MemoryBackend::new(snakepit_session::SessionLimits::default());
            let stop = tokio_util::sync::CancellationToken::new();
            let tasks = tokio_util::task::TaskTracker::new();
            Target::Host(Arc::new(Host::new(
                Arc::new(sessions),
                registry,
                Arc::default(),
                None,
                &tasks,
                stop,
            )))
        };
        let one = || Payload::try_from_serde(&1).unwrap();
        let call = CallBuilder::new(host().await, "echo").payload("x", one()).args(json!({"y": 2}));
        let reply = call.args(json!({"z": 3})).unary::<serde_json::Value>().await.unwrap();
        assert_eq!(reply.value, json!({"x": 1, "y": 2, "z": 3}));
        for twice in [
            CallBuilder::new(host().await, "echo").payload("x", one()).args(json!({"x": 2})),
            CallBuilder::new(host().await, "echo").args(json!({"x": 2})).payload("x", one()),
        ] {
            let error = twice.unary::<serde_json::Value>().await.unwrap_err().to_string();
            assert_eq!(
                error,
                "argument `x` of tool `echo` is set twice; pass it by either `args` or `payload`, once"
            );
        }
    }

    #[test]
    fn anything_but_an_object_is_refused() {
        let error = arguments_of("add", &[1, 2]).unwrap_err().to_string();
        assert!(error.contains("`add`") && error.contains("not an object"), "{error}");
    }
}
