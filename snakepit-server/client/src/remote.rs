//! A remote host: its addresses, its connection, and the stream that calls share.

mod addresses;
mod calls;
mod closing;
mod deadline;
mod operations;
mod request_timeout;
mod state;
mod wait_for_room;

use std::{
    error::Error as _,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use snakepit_proto::{
    mux::Multiplexer,
    status::{PROXY, caused_by, details_of, root_cause},
};
use snakepit_registry::ToolError;
use snakepit_wire::BacklogBudget;
use tokio::{
    sync::{Mutex, Semaphore},
    task::JoinSet,
};
use tokio_util::{sync::CancellationToken, task::task_tracker::TaskTrackerToken};
use tonic::{Code, Status};

use self::closing::{CloseState, closed};
pub(crate) use self::{addresses::Target, request_timeout::RequestTimeout};
use crate::{
    Error,
    status::{is_unreachable, to_tool_error},
    transport::BridgeClient,
};

/// The maximum number of watches per client. Each watch is an HTTP/2 stream, and a host accepts twice as many streams on a
/// connection before further requests wait.
const MAX_WATCHES: usize = 1000;

/// The maximum number of attempts to send a request or to open a stream while connections break.
const MAX_ATTEMPTS: usize = 3;

/// A host at the other end of a connection. Cheap to clone. All clones share the connection.
#[derive(Debug, Clone)]
pub struct RemoteHost(Arc<Connection>);

/// The options of a [`RemoteHost`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct HostOptions {
    /// The time limit for connecting to all addresses together.
    pub(crate) connect_timeout: Duration,
    pub(crate) request_timeout: RequestTimeout,
    /// The timeout of calls without one.
    pub(crate) default_timeout: Option<Duration>,
}

/// The shared state of a [`RemoteHost`]. The channel to each address reconnects automatically. The first call that finds the call
/// stream broken opens a new one.
#[derive(Debug)]
struct Connection {
    /// The addresses. There is at least one.
    targets: Vec<Target>,
    /// The index of the address in use.
    current: AtomicUsize,
    options: HostOptions,
    call_stream: RwLock<Arc<CallStream>>,
    /// Serializes reopening, so that one call opens a new stream while the others wait. Holds the last failure.
    reopening: Mutex<Option<ToolError>>,
    /// The number of failed attempts to reopen the stream.
    failed_reopens: AtomicU64,
    watch_permits: Arc<Semaphore>,
    backlogs: BacklogBudget,
    close: CloseState,
}

/// The stream that calls share.
#[derive(Debug)]
struct CallStream {
    /// The index of the address.
    target: usize,
    /// `None` if the host does not offer the `Multiplex` RPC.
    multiplexer: Option<Multiplexer>,
    /// Cancelled when the stream can no longer be used.
    broken: CancellationToken,
    /// Cancelled when a closed client aborts its calls.
    cut: CancellationToken,
    /// The task that reads the replies. Dropping the stream ends it.
    _reader: JoinSet<()>,
    /// Counts the stream until its last call has ended, because each call holds the stream.
    _in_use: Option<TaskTrackerToken>,
}

impl CallStream {
    /// Returns a stream that cannot be used, so that the next call opens one.
    fn unusable(close: &CloseState) -> Self {
        let broken = CancellationToken::new();
        broken.cancel();
        let cut = close.cut.clone();
        Self { target: 0, multiplexer: None, broken, cut, _reader: JoinSet::new(), _in_use: None }
    }

    async fn open(client: BridgeClient, target: usize, close: &CloseState) -> Result<Self, Status> {
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
                let (broken_guard, cut) = (broken.clone().drop_guard(), close.cut.clone());
                tasks.spawn(async move {
                    // If the reader is dropped, its calls end.
                    let _ = cut.run_until_cancelled(reader).await;
                    drop(broken_guard);
                });
                Some(multiplexer)
            }
            // Hosts of the original Snakepit do not serve this RPC. The answer of a proxy has the same code.
            Err(status) if status.code() == Code::Unimplemented && !is_of_proxy(&status) => None,
            Err(status) => return Err(status),
        };
        let (cut, in_use) = (close.cut.clone(), Some(close.in_flight.token()));
        Ok(Self { target, multiplexer, broken, cut, _reader: tasks, _in_use: in_use })
    }
}

impl RemoteHost {
    /// Creates a host that connects with its first request. There must be at least one target.
    pub(crate) fn new(targets: Vec<Target>, options: HostOptions) -> Self {
        let close = CloseState::default();
        Self(Arc::new(Connection {
            targets,
            current: AtomicUsize::new(0),
            options,
            call_stream: RwLock::new(Arc::new(CallStream::unusable(&close))),
            reopening: Mutex::default(),
            failed_reopens: AtomicU64::new(0),
            watch_permits: Arc::new(Semaphore::new(MAX_WATCHES)),
            backlogs: BacklogBudget::default(),
            close,
        }))
    }

    /// Connects to the first address that answers.
    pub(crate) async fn open(&self) -> Result<(), Error> {
        let start = tokio::time::Instant::now();
        match self.0.open_call_stream().await {
            Ok(stream) => {
                self.0.replace_call_stream(stream);
                Ok(())
            }
            Err(failures) => Err(self.0.connect_error(failures, start).await),
        }
    }

    /// Closes the client: [`Client::close`](crate::Client::close).
    pub(crate) async fn close(&self, limit: Duration) -> bool {
        self.0.close.closing.cancel();
        // Calls in flight keep their stream until they have ended.
        let open = self.0.replace_call_stream(CallStream::unusable(&self.0.close));
        open.broken.cancel();
        drop(open);
        self.0.close.drain(limit).await
    }
}

impl Connection {
    /// Stores a call stream, and returns the one before.
    fn replace_call_stream(&self, stream: CallStream) -> Arc<CallStream> {
        let mut current = self.call_stream.write().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *current, Arc::new(stream))
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
        let reopen = async {
            let mut failure = self.reopening.lock().await;
            if let Some(stream) = usable() {
                return Ok(stream);
            }
            if let Some(failure) = &*failure
                && self.failed_reopens.load(Ordering::Acquire) != failures_before
            {
                // Another call failed to reopen the stream while this one waited. If each waiting call retried, the last one
                // would wait for the sum of all timeouts.
                return Err(failure.clone());
            }
            match self.open_call_stream().await {
                Ok(stream) => {
                    let stream = Arc::new(stream);
                    let mut current = self.call_stream.write().unwrap_or_else(PoisonError::into_inner);
                    // If a close begins now, it either finds the new stream or is visible here.
                    if self.close.closing.is_cancelled() {
                        return Err(closed(false));
                    }
                    *current = Arc::clone(&stream);
                    Ok(stream)
                }
                Err(failures) => {
                    let error = self.reopen_error(&failures);
                    *failure = Some(error.clone());
                    self.failed_reopens.fetch_add(1, Ordering::Release);
                    Err(error)
                }
            }
        };
        self.close.closing.run_until_cancelled(reopen).await.unwrap_or_else(|| Err(closed(false)))
    }
}

/// Returns the error of a host or proxy that rejects a connection or a stream, because it is overloaded, shuts down or denies
/// access.
fn rejection(status: &Status) -> Option<ToolError> {
    match to_tool_error("", status) {
        ToolError::ShuttingDown { .. } => Some(ToolError::shutting_down(false).of_remote_host()),
        error @ ToolError::AccessDenied { .. } => Some(error),
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
    status.source().is_some() && !is_unreachable(status) && !caused_by::<tonic::TimeoutExpired>(status)
}
