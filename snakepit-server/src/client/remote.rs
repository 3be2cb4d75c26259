//! The host at the other end: calls by frames on one stream, or by plain RPCs.

mod state;
mod timed;

use std::{
    error::Error as _,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
};

use async_trait::async_trait;
use futures_util::{StreamExt, TryStreamExt};
use snakepit_proto::{
    headers,
    mux::Multiplexer,
    pb::{self, bridge_service_client::BridgeServiceClient},
    status::{caused_by, root_cause},
};
use snakepit_registry::{CallMode, Chunk, ReplyBody, ToolCall, ToolError, ToolFailure, ToolReply};
use snakepit_wire::{
    WireError, check_size, failure_from_wire,
    mux::{self, Asked, Callee, Failed, Lost},
    payload_from_wire, request_to_wire,
};
use tokio::{
    sync::{Mutex, Semaphore},
    task::JoinSet,
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Response, Status, metadata::MetadataMap, transport::Channel};

pub(crate) use self::state::Patience;
use self::timed::Timed;
use super::CONNECT_WITHIN;
use crate::status::{HOST, to_tool_error};

/// How many watches a connection may have. Each is a stream, of which a host takes twice as many before it lets more wait.
const MAX_WATCHES: usize = 1000;

/// How often a call is sent, or a stream opened, while connections break under it.
const ATTEMPTS: usize = 3;

/// A host at the other end of a connection. The channel below connects anew by itself; the stream that calls share is
/// opened anew here, by the first call that finds it broken.
#[derive(Debug)]
pub(crate) struct Remote {
    client: BridgeServiceClient<Channel>,
    patience: Patience,
    line: RwLock<Arc<Line>>,
    /// Held while a broken line is replaced, so that one call does it and the others wait. Holds why that failed last.
    reopening: Mutex<String>,
    /// How often that failed.
    failures: AtomicU64,
    /// Places for watches.
    watches: Arc<Semaphore>,
}

/// The way that calls take.
#[derive(Debug)]
struct Line {
    /// The stream that calls share, where the host serves one.
    multiplexer: Option<Multiplexer>,
    /// Cancelled once that is of no use any more.
    broken: CancellationToken,
    /// Brings the answers; ends with this.
    _incoming: JoinSet<()>,
}

impl Line {
    async fn open(client: BridgeServiceClient<Channel>) -> Result<Self, Status> {
        let (mut tasks, broken) = (JoinSet::new(), CancellationToken::new());
        let mut attempts = 1;
        let opened = loop {
            match Multiplexer::open(client.clone()).await {
                // The channel had not yet noticed that its connection broke.
                Err(status) if attempts < ATTEMPTS && broke(&status) => attempts += 1,
                opened => break opened,
            }
        };
        let multiplexer = match opened {
            Ok((multiplexer, incoming)) => {
                let ended = broken.clone().drop_guard();
                tasks.spawn(async move {
                    incoming.await;
                    drop(ended);
                });
                Some(multiplexer)
            }
            Err(status) if status.code() == Code::Unimplemented => None,
            Err(status) => return Err(status),
        };
        Ok(Self { multiplexer, broken, _incoming: tasks })
    }
}

impl Remote {
    pub(crate) async fn open(
        client: BridgeServiceClient<Channel>,
        patience: Patience,
    ) -> Result<Self, Status> {
        let line = RwLock::new(Arc::new(Line::open(client.clone()).await?));
        Ok(Self {
            client,
            patience,
            line,
            reopening: Mutex::default(),
            failures: AtomicU64::new(0),
            watches: Arc::new(Semaphore::new(MAX_WATCHES)),
        })
    }

    /// A client for everything but calls; made to be cloned.
    pub(crate) fn client(&self) -> BridgeServiceClient<Channel> {
        self.client.clone()
    }

    /// Runs a call. The host keeps its deadline; a host that has gone silent cannot, so it is kept here too.
    pub(crate) async fn call(&self, call: ToolCall) -> Result<ToolReply, ToolError> {
        let (asked, streams) = (Asked::by(&call), call.mode == CallMode::Streaming);
        let answer = async {
            // What does no harm when it runs twice is repeated once when the connection breaks.
            let copy = call.idempotent.then(|| call.clone());
            match (self.attempt(&asked, call).await, copy) {
                (Err(ToolError::ConnectionLost { .. }), Some(copy)) => self.attempt(&asked, copy).await,
                (answer, _) => answer,
            }
        };
        let (reply, line) = timed::within(&asked, answer).await?;
        Ok(match reply {
            ToolReply { body: ReplyBody::Stream(chunks), .. } if streams => {
                ToolReply { body: ReplyBody::Stream(Timed::new(chunks, asked, line).boxed()), ..reply }
            }
            reply => reply,
        })
    }

    /// Sends a call, anew if its line breaks before it is sent, or the host says that it did not begin it.
    async fn attempt(&self, asked: &Asked, call: ToolCall) -> Result<(ToolReply, Arc<Line>), ToolError> {
        let mut line = self.line().await?;
        if line.multiplexer.is_none() || !mux::fits(&call) {
            return Ok((self.call_plainly(call).await?, line));
        }
        let mut start = mux::call_to_wire(call, asked.time_left()?);
        let mut attempts = 1;
        loop {
            let host = Host { line: line.broken.clone() };
            let Some(multiplexer) = &line.multiplexer else {
                let reason = format!("{HOST} no longer serves calls as before; repeat this one");
                return Err(ToolError::Unavailable { reason, retry_after: None });
            };
            // A host that closes an idle line may cross with this call. To repeat it then, a copy is kept: few small allocations.
            let copy = start.clone();
            match mux::send(multiplexer, &host, asked, start).await {
                Ok(reply) => return Ok((reply, line)),
                Err(Failed::Unsent(unsent, _)) if attempts < ATTEMPTS => {
                    start = *unsent;
                    attempts += 1;
                }
                // Not begun, on a line that has ended.
                Err(Failed::Error(ToolError::Unavailable { .. }))
                    if attempts < ATTEMPTS && line.broken.is_cancelled() =>
                {
                    start = copy;
                    attempts += 1;
                }
                Err(Failed::Unsent(_, status)) => return Err(host.unsent(asked, status).await),
                Err(Failed::Error(error)) => return Err(error),
            }
            line.broken.cancel();
            line = self.line().await?;
        }
    }

    fn current(&self) -> Arc<Line> {
        Arc::clone(&self.line.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// A line that is not known to be broken. Nothing of a call was sent when this fails.
    async fn line(&self) -> Result<Arc<Line>, ToolError> {
        let usable = || Some(self.current()).filter(|line| !line.broken.is_cancelled());
        if let Some(line) = usable() {
            return Ok(line);
        }
        let seen = self.failures.load(Ordering::Acquire);
        let mut failure = self.reopening.lock().await;
        if let Some(line) = usable() {
            return Ok(line);
        }
        let unreachable = |reason: String| ToolError::Unavailable { reason, retry_after: None };
        if self.failures.load(Ordering::Acquire) != seen {
            // It failed while this call waited for it: to try again for each that waited would make the last wait long.
            return Err(unreachable(failure.clone()));
        }
        let problem = match timeout(CONNECT_WITHIN, Line::open(self.client())).await {
            Ok(Ok(line)) => {
                let line = Arc::new(line);
                *self.line.write().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&line);
                return Ok(line);
            }
            Ok(Err(status)) => problem_of(&status),
            Err(_) => format!("it did not answer within {CONNECT_WITHIN:?}"),
        };
        *failure = format!("the host cannot be reached: {problem}");
        self.failures.fetch_add(1, Ordering::Release);
        Err(unreachable(failure.clone()))
    }

    async fn call_plainly(&self, call: ToolCall) -> Result<ToolReply, ToolError> {
        let (mode, asked) = (call.mode, Asked::by(&call));
        let request = request_to_wire(call, asked.time_left()?);
        check_size(request.get_ref())?;
        let refused = |status: Status| to_tool_error(&asked.tool, &status);
        match mode {
            CallMode::Unary => {
                let response = self.client().execute_tool(request).await.map_err(refused)?;
                read_response(&asked, response)
            }
            CallMode::Streaming => {
                let response = self.client().execute_streaming_tool(request).await.map_err(refused)?;
                let worker = worker_of(response.metadata());
                let tool = Arc::clone(&asked.tool);
                let chunks = response
                    .into_inner()
                    .map_err(move |status| to_tool_error(&tool, &status))
                    // A final chunk without data only says that the stream is complete.
                    .try_filter(|chunk| std::future::ready(!(chunk.is_final && chunk.data.is_empty())))
                    .map_ok(|chunk| Chunk { data: chunk.data, metadata: chunk.metadata });
                Ok(ToolReply { worker, ..ToolReply::stream(chunks.boxed()) })
            }
        }
    }
}

fn read_response(asked: &Asked, response: Response<pb::ExecuteToolResponse>) -> Result<ToolReply, ToolError> {
    let worker = worker_of(response.metadata());
    let pb::ExecuteToolResponse {
        success,
        result,
        error_message,
        metadata,
        execution_time_ms,
        binary_result,
        failure,
    } = response.into_inner();
    let host = Host { line: CancellationToken::new() };
    if !success {
        // A host of the original says no more than the text.
        let failure = failure.map_or_else(
            || ToolFailure { message: error_message, ..ToolFailure::default() },
            failure_from_wire,
        );
        return Err(host.failed(asked, failure));
    }
    let buffer = (!binary_result.is_empty()).then_some(binary_result);
    let value =
        payload_from_wire(result.unwrap_or_default(), buffer).map_err(|error| host.bad_value(&error))?;
    let execution_time = u64::try_from(execution_time_ms).ok().map(std::time::Duration::from_millis);
    Ok(ToolReply { body: ReplyBody::Value(value), metadata, worker, execution_time })
}

/// What is wrong with a connection: a status made on this side has its cause behind it.
fn problem_of(status: &Status) -> String {
    status.source().map_or_else(|| status.message().to_owned(), |source| root_cause(source).to_string())
}

/// Whether the connection broke under a request. `false` if there is no new one to be had.
fn broke(status: &Status) -> bool {
    status.source().is_some()
        && !caused_by::<tonic::ConnectError>(status)
        && !caused_by::<tonic::TimeoutExpired>(status)
}

fn worker_of(headers: &MetadataMap) -> Option<Arc<str>> {
    headers.get(headers::WORKER_ID)?.to_str().ok().map(Arc::from)
}

/// What the answers of a host mean.
#[derive(Debug, Clone)]
struct Host {
    line: CancellationToken,
}

#[async_trait]
impl Callee for Host {
    async fn refused(&self, asked: &Asked, status: Status) -> ToolError {
        to_tool_error(&asked.tool, &status)
    }

    async fn broken(&self, asked: &Asked, _: u64, status: Status) -> Lost {
        // Whoever learns of it from this call must not find the same line with its next.
        self.line.cancel();
        // A host that shuts down, or closes an idle connection, says so as the last thing on the stream.
        let error = match to_tool_error(&asked.tool, &status) {
            error @ (ToolError::ShuttingDown { .. } | ToolError::Unavailable { .. }) => error,
            _ => ToolError::ConnectionLost { peer: HOST.to_owned(), problem: problem_of(&status) },
        };
        Lost { answer: None, error }
    }

    async fn unsent(&self, _: &Asked, status: Status) -> ToolError {
        self.line.cancel();
        let reason =
            format!("the connection to the host broke before the call was sent: {}", problem_of(&status));
        ToolError::Unavailable { reason, retry_after: None }
    }

    fn failed(&self, asked: &Asked, failure: ToolFailure) -> ToolError {
        ToolError::Failed(Box::new(ToolFailure { tool: asked.tool.to_string(), ..failure }))
    }

    fn bad_value(&self, error: &WireError) -> ToolError {
        ToolError::Internal { problem: format!("the host answered with a bad value: {error}") }
    }

    fn incoherent(&self, what: &str) -> ToolError {
        ToolError::Internal { problem: format!("the host {what}") }
    }

    fn worker(&self, told: &str) -> Option<Arc<str>> {
        (!told.is_empty()).then(|| told.into())
    }
}
