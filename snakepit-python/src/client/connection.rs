//! [`Connection`]: the connection that a client and its calls share, and its recovery.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use snakepit_proto::{
    identify::identify, mux::Multiplexer, pb::bridge_service_client::BridgeServiceClient, status::root_cause,
};
use tokio::time::{Instant, timeout_at};
use tokio_util::task::{TaskTracker, task_tracker::TaskTrackerToken};
use tonic::{
    Request, Status,
    metadata::{KeyAndValueRef, MetadataMap},
};

use crate::{
    caller::CloseSignals,
    errors::{self, HostError},
    host::{Host, Target, limited},
    http2::configure_client,
    runtime::RuntimeHandle,
};

/// The interval of HTTP/2 pings.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// The time within which the host must answer a ping.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// The advice for a server that requires TLS.
const TLS_ADVICE: &str = "this client does not support TLS";
/// The maximum number of attempts to open a stream while connections break.
const MAX_ATTEMPTS: usize = 3;

/// A connection to a host. Its channel reconnects automatically. The first call that finds the stream broken opens
/// another.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(super) host: Host,
    pub(crate) close_signals: CloseSignals,
    /// The headers of each request.
    pub(crate) headers: MetadataMap,
    address: String,
    connect_timeout: Duration,
    /// The stream that calls share.
    stream: Mutex<SharedStream>,
    /// The tasks that receive answers. Each belongs to a stream, and ends when the stream is dropped and its last call
    /// has ended. So calls outlive the client that started them.
    receivers: TaskTracker,
    /// Locked while one call replaces a broken stream and others wait. Holds the last failure.
    reconnect_lock: tokio::sync::Mutex<Option<OpenError>>,
    /// The number of failed replacements.
    reconnect_failures: AtomicU64,
}

/// The stream that calls share.
#[derive(Debug)]
enum SharedStream {
    /// The first call opens the stream.
    Unopened,
    Open(Multiplexer),
    /// The client is closed.
    Closed,
}

/// The reason why connecting failed.
#[derive(Debug, Clone)]
pub(super) enum OpenError {
    /// The host did not answer in time.
    Timeout(String),
    Unreachable(String),
    /// The host, or a proxy in front of it, rejected the stream with this status: it is overloaded or shutting down, or it denies
    /// access.
    Rejected(Status),
}

impl Connection {
    /// Creates a connection, which the first request opens.
    pub(super) fn new(
        address: &str,
        target: &Target,
        connect_timeout: Duration,
        headers: MetadataMap,
        runtime: RuntimeHandle,
    ) -> Self {
        let settings = |endpoint| {
            configure_client(endpoint)
                .connect_timeout(connect_timeout)
                .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
                .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        };
        let _runtime = runtime.tokio().enter();
        Self {
            host: Host::new(target.connect_lazy(settings), runtime),
            close_signals: CloseSignals::default(),
            headers,
            address: address.to_owned(),
            connect_timeout,
            stream: Mutex::new(SharedStream::Unopened),
            receivers: TaskTracker::new(),
            reconnect_lock: tokio::sync::Mutex::default(),
            reconnect_failures: AtomicU64::new(0),
        }
    }

    fn stream(&self) -> MutexGuard<'_, SharedStream> {
        self.stream.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the stream that calls share, or `None` if it broke or was not opened yet.
    ///
    /// # Errors
    /// [`HostError::Closed`] once the client is closed.
    pub(crate) fn usable_stream(&self) -> Result<Option<Multiplexer>, HostError> {
        match &*self.stream() {
            SharedStream::Open(stream) => Ok((!stream.is_broken()).then(|| stream.clone())),
            SharedStream::Unopened => Ok(None),
            SharedStream::Closed => Err(HostError::Closed),
        }
    }

    /// Connects, unless the connection is open. Waits no longer than `timeout`.
    ///
    /// # Errors
    /// As [`shared_stream`](Self::shared_stream).
    pub(super) async fn connect(self: Arc<Self>, timeout: Option<Duration>) -> Result<(), HostError> {
        let Some(timeout) = timeout else { return self.shared_stream().await.map(drop) };
        match tokio::time::timeout(timeout, self.shared_stream()).await {
            Ok(opened) => opened.map(drop),
            Err(_) => {
                let seconds = timeout.as_secs_f64();
                let address = &self.address;
                let problem =
                    format!("cannot reach a host at {address}: it did not answer within {seconds} s");
                Err(HostError::ConnectTimeout(problem))
            }
        }
    }

    /// Returns the stream that calls share. Opens another one if it broke, for example because the host
    /// restarted. Cancel safe.
    ///
    /// # Errors
    /// If the client is closed or the host cannot be reached. In both cases, no part of the call was sent.
    pub(crate) async fn shared_stream(&self) -> Result<Multiplexer, HostError> {
        if let Some(stream) = self.usable_stream()? {
            return Ok(stream);
        }
        let failures_before = self.reconnect_failures.load(Ordering::Acquire);
        let mut failure = self.reconnect_lock.lock().await;
        if let Some(stream) = self.usable_stream()? {
            return Ok(stream);
        }
        if let Some(failure) = &*failure
            && self.reconnect_failures.load(Ordering::Acquire) != failures_before
        {
            // Another call failed to reconnect while this one waited. If each waiting call tried again, the last one
            // would wait for all of them.
            return Err(failure.clone().into());
        }
        match self.open_another().await {
            Ok(opened) => match &mut *self.stream() {
                // The client was closed meanwhile.
                SharedStream::Closed => Err(HostError::Closed),
                stream => {
                    *stream = SharedStream::Open(opened.clone());
                    Ok(opened)
                }
            },
            Err(error) => {
                *failure = Some(error.clone());
                self.reconnect_failures.fetch_add(1, Ordering::Release);
                Err(error.into())
            }
        }
    }

    /// Opens a stream for one call whose arguments would delay others. The stream closes when the call has ended. A
    /// call that was started before the client was closed still gets its stream.
    ///
    /// # Errors
    /// If closing the client aborted its calls, or the host cannot be reached. In both cases, no part of the call was
    /// sent.
    pub(super) async fn own_stream(&self) -> Result<Multiplexer, HostError> {
        tokio::select! {
            biased;
            () = self.close_signals.abort.cancelled() => Err(HostError::Closed),
            opened = self.open_another() => Ok(opened?),
        }
    }

    /// The error of a request that found no connection, because of this problem.
    pub(crate) async fn unreachable(&self, problem: &str) -> HostError {
        HostError::Unreachable(describe(&self.address, problem, Instant::now() + self.connect_timeout).await)
    }

    /// Returns a token that keeps [`drain`](Self::drain) waiting.
    pub(super) fn drain_token(&self) -> TaskTrackerToken {
        self.receivers.token()
    }

    async fn open_another(&self) -> Result<Multiplexer, OpenError> {
        let opened = open_stream(&self.host, &self.headers, &self.receivers, &self.close_signals);
        with_timeout(&self.address, self.connect_timeout, opened).await
    }

    /// Rejects further calls and ends watches. The connection ends with the last running call. Idempotent.
    pub(super) fn close(self: &Arc<Self>) {
        let was_open = std::mem::replace(&mut *self.stream(), SharedStream::Closed);
        self.close_signals.closed.cancel();
        self.receivers.close();
        if !matches!(was_open, SharedStream::Closed) {
            let connection = Arc::clone(self);
            self.host.runtime().tokio().spawn(async move {
                connection.receivers.wait().await;
                connection.host.disconnect();
            });
        }
    }

    /// Waits until the last call of a closed client has ended, and ends the remaining ones after `limit`.
    pub(super) async fn drain(self: Arc<Self>, limit: Duration) {
        if tokio::time::timeout(limit, self.receivers.wait()).await.is_err() {
            self.close_signals.abort.cancel();
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if self.host.runtime().is_forked() {
            // The connection belongs to the parent. Its lock may have been held by a thread that does not exist here;
            // `get_mut` does not need it.
            std::mem::forget(self.host.clone());
            let stream = self.stream.get_mut().unwrap_or_else(PoisonError::into_inner);
            std::mem::forget(std::mem::replace(stream, SharedStream::Closed));
        }
    }
}

/// Adds headers to those of a request.
pub(crate) fn add_to(metadata: &mut MetadataMap, headers: &MetadataMap) {
    for header in headers.iter() {
        if let KeyAndValueRef::Ascii(name, value) = header {
            metadata.insert(name.clone(), value.clone());
        }
    }
}

async fn open_stream(
    host: &Host,
    headers: &MetadataMap,
    receivers: &TaskTracker,
    close_signals: &CloseSignals,
) -> Result<Multiplexer, OpenError> {
    let mut attempts = 1;
    loop {
        let Ok(channel) = host.channel() else {
            return Err(OpenError::Unreachable("the client is closed".to_owned()));
        };
        let add_headers = |mut request: Request<()>| {
            add_to(request.metadata_mut(), headers);
            Ok(request)
        };
        let client = limited(BridgeServiceClient::with_interceptor(channel, add_headers));
        match Multiplexer::open(client).await {
            Ok((multiplexer, incoming)) => {
                let abort = close_signals.abort.clone();
                let receive = async move {
                    tokio::select! {
                        () = incoming => {}
                        // Breaks the stream, which ends its calls here and cancels them on the host.
                        () = abort.cancelled() => {}
                    }
                };
                receivers.spawn_on(receive, host.runtime().tokio());
                return Ok(multiplexer);
            }
            // The channel had not noticed yet that its connection broke.
            Err(status) if attempts < MAX_ATTEMPTS && errors::is_connection_broken(&status) => attempts += 1,
            Err(status) if errors::is_stream_rejected(&status) || errors::is_denied(&status) => {
                return Err(OpenError::Rejected(status));
            }
            Err(status) => {
                let source = std::error::Error::source(&status);
                let problem =
                    source.map_or_else(|| status.message().to_owned(), |e| root_cause(e).to_string());
                return Err(OpenError::Unreachable(problem));
            }
        }
    }
}

/// Applies a timeout to a connection attempt and adds the address to its error.
async fn with_timeout<T>(
    address: &str,
    bound: Duration,
    opened: impl Future<Output = Result<T, OpenError>>,
) -> Result<T, OpenError> {
    let until = Instant::now() + bound;
    match timeout_at(until, opened).await {
        Ok(Err(OpenError::Unreachable(problem))) => {
            Err(OpenError::Unreachable(describe(address, &problem, until).await))
        }
        Ok(opened) => opened,
        Err(_) => {
            let problem = format!("it did not answer within {} s", bound.as_secs_f64());
            Err(OpenError::Timeout(unreachable_message(address, &problem)))
        }
    }
}

/// Returns the message for an address at which no host can be reached. If another program answers there, the message describes that
/// program.
async fn describe(address: &str, problem: &str, until: Instant) -> String {
    let described = async { identify(&address.parse().ok()?, TLS_ADVICE).await };
    match timeout_at(until, described).await {
        Ok(Some(peer)) => format!("cannot reach a host at {address}: {peer}"),
        _ => unreachable_message(address, problem),
    }
}

fn unreachable_message(address: &str, problem: &str) -> String {
    format!("cannot reach a host at {address}: {problem}; start one with `snakepit serve`")
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, thread};

    use nix::{
        sys::{
            signal::{Signal, kill},
            wait::{WaitPidFlag, WaitStatus, waitpid},
        },
        unistd::{ForkResult, fork},
    };
    use tonic::transport::Endpoint;

    use super::*;
    use crate::background::BackgroundRuntime;

    #[test]
    #[allow(unsafe_code)]
    fn a_fork_can_drop_a_connection_whose_lock_a_thread_of_its_parent_holds() {
        let runtime = RuntimeHandle::Background(BackgroundRuntime::get().unwrap());
        let channel = {
            let _runtime = runtime.tokio().enter();
            Endpoint::from_static("http://127.0.0.1:1").connect_lazy()
        };
        let connection = Connection {
            host: Host::new(channel, runtime),
            close_signals: CloseSignals::default(),
            headers: MetadataMap::new(),
            address: String::new(),
            connect_timeout: Duration::ZERO,
            stream: Mutex::new(SharedStream::Unopened),
            receivers: TaskTracker::new(),
            reconnect_lock: tokio::sync::Mutex::default(),
            reconnect_failures: AtomicU64::new(0),
        };
        let (lock_sender, locked) = mpsc::channel();
        let (release_sender, released) = mpsc::channel::<()>();
        thread::scope(|scope| {
            let connection = &connection;
            scope.spawn(move || {
                let _stream = connection.stream();
                lock_sender.send(()).unwrap();
                let _ = released.recv();
            });
            locked.recv().unwrap();
            // SAFETY: the child only uses the connection, and exits.
            let child = match unsafe { fork() }.unwrap() {
                ForkResult::Child => {
                    // SAFETY: no other code in this process uses the connection, and the process exits before it would
                    // be dropped again.
                    unsafe {
                        std::ptr::drop_in_place(std::ptr::from_ref(connection).cast_mut());
                        nix::libc::_exit(0);
                    }
                }
                ForkResult::Parent { child } => child,
            };
            let mut status = WaitStatus::StillAlive;
            for _ in 0..2000 {
                status = waitpid(child, Some(WaitPidFlag::WNOHANG)).unwrap();
                if status != WaitStatus::StillAlive {
                    break;
                }
                thread::sleep(Duration::from_millis(5));
            }
            if status == WaitStatus::StillAlive {
                kill(child, Signal::SIGKILL).unwrap();
                waitpid(child, None).unwrap();
            }
            drop(release_sender);
            assert_eq!(status, WaitStatus::Exited(child, 0));
        });
    }
}
