//! A remote host: its connection, and the stream that calls share.

mod calls;
mod deadline;
mod request_timeout;
mod room;
mod state;

use std::{
    error::Error as _,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
};

use snakepit_proto::{
    mux::Multiplexer,
    pb::bridge_service_client::BridgeServiceClient,
    status::{PROXY, caused_by, details_of, root_cause},
};
use snakepit_registry::ToolError;
use tokio::{
    sync::{Mutex, Semaphore},
    task::JoinSet,
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status, transport::Channel};

pub(crate) use self::request_timeout::RequestTimeout;
use crate::{client::CONNECT_TIMEOUT, status::to_tool_error};

/// The maximum number of watches per client. Each watch is an HTTP/2 stream, and a host accepts twice as many streams on a
/// connection before further requests wait.
const MAX_WATCHES: usize = 1000;

/// The maximum number of attempts to send a request or to open a stream while connections break.
const MAX_ATTEMPTS: usize = 3;

/// A host at the other end of a connection. Cheap to clone. All clones share the connection.
#[derive(Debug, Clone)]
pub struct RemoteHost(Arc<Connection>);

/// The shared state of a [`RemoteHost`]. The channel reconnects automatically. The first call that finds the call stream broken
/// opens a new one.
#[derive(Debug)]
struct Connection {
    client: BridgeServiceClient<Channel>,
    request_timeout: RequestTimeout,
    call_stream: RwLock<Arc<CallStream>>,
    /// Serializes reopening, so that one call opens a new stream while the others wait. Holds the last failure.
    reopening: Mutex<Option<ToolError>>,
    /// The number of failed attempts to reopen the stream.
    failed_reopens: AtomicU64,
    watch_permits: Arc<Semaphore>,
}

/// The stream that calls share.
#[derive(Debug)]
struct CallStream {
    /// `None` if the host does not offer the `Multiplex` RPC.
    multiplexer: Option<Multiplexer>,
    /// Cancelled when the stream can no longer be used.
    broken: CancellationToken,
    /// The task that reads the replies. Dropping the stream ends it.
    _reader: JoinSet<()>,
}

impl CallStream {
    async fn open(client: BridgeServiceClient<Channel>) -> Result<Self, Status> {
        let (mut tasks, broken) = (JoinSet::new(), CancellationToken::new());
        let mut attempts = 1;
        let opened = loop {
            match Multiplexer::open(client.clone()).await {
                // The channel had not yet detected that its connection is broken.
                Err(status) if attempts < MAX_ATTEMPTS && connection_broke(&status) => attempts += 1,
                opened => break opened,
            }
        };
        let multiplexer = match opened {
            Ok((multiplexer, reader)) => {
                let broken_guard = broken.clone().drop_guard();
                tasks.spawn(async move {
                    reader.await;
                    drop(broken_guard);
                });
                Some(multiplexer)
            }
            // Hosts of the original Snakepit do not serve this RPC. The answer of a proxy has the same code.
            Err(status) if status.code() == Code::Unimplemented && !is_of_proxy(&status) => None,
            Err(status) => return Err(status),
        };
        Ok(Self { multiplexer, broken, _reader: tasks })
    }
}

impl RemoteHost {
    pub(crate) async fn open(
        client: BridgeServiceClient<Channel>,
        request_timeout: RequestTimeout,
    ) -> Result<Self, Status> {
        let call_stream = RwLock::new(Arc::new(CallStream::open(client.clone()).await?));
        Ok(Self(Arc::new(Connection {
            client,
            request_timeout,
            call_stream,
            reopening: Mutex::default(),
            failed_reopens: AtomicU64::new(0),
            watch_permits: Arc::new(Semaphore::new(MAX_WATCHES)),
        })))
    }
}

impl Connection {
    /// Returns a client for single RPCs.
    fn client(&self) -> BridgeServiceClient<Channel> {
        self.client.clone()
    }

    /// Returns a call stream that is not known to be broken, and opens a new one if necessary. If this fails, no part of the
    /// call was sent.
    async fn call_stream(&self) -> Result<Arc<CallStream>, ToolError> {
        let current = || Arc::clone(&self.call_stream.read().unwrap_or_else(PoisonError::into_inner));
        let usable = || Some(current()).filter(|stream| !stream.broken.is_cancelled());
        if let Some(stream) = usable() {
            return Ok(stream);
        }
        let failures_before = self.failed_reopens.load(Ordering::Acquire);
        let mut failure = self.reopening.lock().await;
        if let Some(stream) = usable() {
            return Ok(stream);
        }
        if let Some(failure) = &*failure
            && self.failed_reopens.load(Ordering::Acquire) != failures_before
        {
            // Another call failed to reopen the stream while this one waited. If each waiting call retried, the last one would
            // wait for the sum of all timeouts.
            return Err(failure.clone());
        }
        let unreachable = |problem: String| {
            let reason = format!("the host cannot be reached: {problem}");
            ToolError::Unavailable { reason, retry_after: None }
        };
        let error = match timeout(CONNECT_TIMEOUT, CallStream::open(self.client())).await {
            Ok(Ok(stream)) => {
                let stream = Arc::new(stream);
                *self.call_stream.write().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&stream);
                return Ok(stream);
            }
            Ok(Err(status)) => temporary_rejection(&status).unwrap_or_else(|| unreachable(cause_of(&status))),
            Err(_) => unreachable(format!("it did not answer within {CONNECT_TIMEOUT:?}")),
        };
        *failure = Some(error.clone());
        self.failed_reopens.fetch_add(1, Ordering::Release);
        Err(error)
    }
}

/// Returns the error of a host that rejects a connection or a stream, because it is overloaded or shuts down.
pub(crate) fn temporary_rejection(status: &Status) -> Option<ToolError> {
    match to_tool_error("", status) {
        ToolError::ShuttingDown { .. } => Some(ToolError::ShuttingDown { delivered: false }),
        error => error.is_overloaded().then_some(error),
    }
}

/// Returns the root cause of a status that this client created, or the message of a status that the host sent.
fn cause_of(status: &Status) -> String {
    status.source().map_or_else(|| status.message().to_owned(), |source| root_cause(source).to_string())
}

/// Returns whether a proxy answered instead of the host.
fn is_of_proxy(status: &Status) -> bool {
    details_of(status).reason.as_deref() == Some(PROXY)
}

/// Returns whether the connection broke during a request, so that a new connection may succeed.
fn connection_broke(status: &Status) -> bool {
    status.source().is_some()
        && !caused_by::<tonic::ConnectError>(status)
        && !caused_by::<tonic::TimeoutExpired>(status)
}
