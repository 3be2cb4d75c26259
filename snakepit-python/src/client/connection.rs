//! [`Connection`]: the connection that a client and its calls share, and its recovery.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use snakepit_proto::{mux::Multiplexer, status::root_cause};
use tokio_util::task::{TaskTracker, task_tracker::TaskTrackerToken};
use tonic::Status;

use crate::{
    caller::ClientEnd,
    errors::{self, HostError},
    host::{Host, Target},
    http2::configure_client,
    runtime::RuntimeHandle,
};

/// The keepalive of HTTP/2: the interval of pings, and the time within which the host must answer one.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(10));
/// The number of attempts to open a stream while connections break.
const ATTEMPTS: usize = 3;

/// A connection to a host. Its channel reconnects automatically. The first call that finds the stream broken opens
/// another.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) host: Host,
    pub(super) end: ClientEnd,
    address: String,
    connect_timeout: Duration,
    /// The stream that calls share. `None` once the client is closed.
    stream: Mutex<Option<Multiplexer>>,
    /// The tasks that receive answers. Each belongs to a stream, and ends when the stream is dropped and its last call
    /// has ended. So calls outlive the client that started them.
    answers: TaskTracker,
    /// Locked while one call replaces a broken stream and others wait. Holds the last failure.
    reopening: tokio::sync::Mutex<Option<OpenError>>,
    /// The number of failed replacements.
    failures: AtomicU64,
}

/// The reason why connecting failed.
#[derive(Debug, Clone)]
pub(super) enum OpenError {
    /// The host did not answer in time.
    Timeout(String),
    Unreachable(String),
    /// The host rejected the stream with this status because it is overloaded or shutting down.
    Rejected(Status),
}

impl Connection {
    pub(super) async fn open(
        address: &str,
        target: &Target,
        connect_timeout: Duration,
        runtime: RuntimeHandle,
    ) -> Result<Self, OpenError> {
        let settings = |endpoint| {
            // Also limits later attempts to reconnect.
            configure_client(endpoint)
                .connect_timeout(connect_timeout)
                .http2_keep_alive_interval(KEEPALIVE.0)
                .keep_alive_timeout(KEEPALIVE.1)
        };
        let (end, answers) = (ClientEnd::default(), TaskTracker::new());
        let opened = async {
            let channel = target.connect(settings).await.map_err(OpenError::Unreachable)?;
            let host = Host::new(channel, runtime);
            let stream = open_stream(&host, &answers, &end).await?;
            Ok((host, stream))
        };
        let (host, stream) = within(address, connect_timeout, opened).await?;
        Ok(Self {
            host,
            end,
            address: address.to_owned(),
            connect_timeout,
            stream: Mutex::new(Some(stream)),
            answers,
            reopening: tokio::sync::Mutex::default(),
            failures: AtomicU64::new(0),
        })
    }

    fn stream(&self) -> MutexGuard<'_, Option<Multiplexer>> {
        self.stream.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the stream that calls share, or `None` if it broke.
    ///
    /// # Errors
    /// [`HostError::Closed`] once the client is closed.
    pub(super) fn usable(&self) -> Result<Option<Multiplexer>, HostError> {
        let stream = self.stream().clone().ok_or(HostError::Closed)?;
        Ok((!stream.is_broken()).then_some(stream))
    }

    /// Returns the stream that calls share. Opens another one if it broke, as after a restart of the host. Cancel safe.
    ///
    /// # Errors
    /// If the client is closed or the host cannot be reached. In both cases, nothing of the call was sent.
    pub(super) async fn shared_stream(&self) -> Result<Multiplexer, HostError> {
        if let Some(stream) = self.usable()? {
            return Ok(stream);
        }
        let seen = self.failures.load(Ordering::Acquire);
        let mut failure = self.reopening.lock().await;
        if let Some(stream) = self.usable()? {
            return Ok(stream);
        }
        if let Some(failure) = &*failure
            && self.failures.load(Ordering::Acquire) != seen
        {
            // Another call failed to reconnect while this one waited. If each waiting call tried again, the last one
            // would wait for all of them.
            return Err(failure.clone().into());
        }
        match self.open_another().await {
            Ok(fresh) => {
                // The client may have been closed meanwhile.
                *self.stream().as_mut().ok_or(HostError::Closed)? = fresh.clone();
                Ok(fresh)
            }
            Err(error) => {
                *failure = Some(error.clone());
                self.failures.fetch_add(1, Ordering::Release);
                Err(error.into())
            }
        }
    }

    /// Opens a stream for one call whose arguments would delay others. The stream closes when the call has ended. A
    /// call that was started before the client was closed still gets its stream.
    ///
    /// # Errors
    /// If closing the client aborted its calls, or the host cannot be reached. In both cases, nothing of the call was
    /// sent.
    pub(super) async fn own_stream(&self) -> Result<Multiplexer, HostError> {
        tokio::select! {
            biased;
            () = self.end.abort.cancelled() => Err(HostError::Closed),
            opened = self.open_another() => Ok(opened?),
        }
    }

    /// Returns a token that keeps [`settled`](Self::settled) waiting.
    pub(super) fn token(&self) -> TaskTrackerToken {
        self.answers.token()
    }

    async fn open_another(&self) -> Result<Multiplexer, OpenError> {
        let opened = open_stream(&self.host, &self.answers, &self.end);
        within(&self.address, self.connect_timeout, opened).await
    }

    /// Rejects further calls and ends watches. Idempotent.
    pub(super) fn close(&self) {
        drop(self.stream().take());
        self.end.closed.cancel();
        self.answers.close();
    }

    /// Waits until the last call of a closed client has ended. Cancel safe.
    pub(super) async fn settled(&self) {
        self.answers.wait().await;
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if self.host.runtime().is_forked() {
            // The connection belongs to the parent. Its lock may have been held by a thread that does not exist here;
            // `get_mut` does not need it.
            std::mem::forget(self.host.clone());
            std::mem::forget(self.stream.get_mut().unwrap_or_else(PoisonError::into_inner).take());
        }
    }
}

async fn open_stream(host: &Host, answers: &TaskTracker, end: &ClientEnd) -> Result<Multiplexer, OpenError> {
    let mut attempts = 1;
    loop {
        match Multiplexer::open(host.client()).await {
            Ok((multiplexer, incoming)) => {
                let abort = end.abort.clone();
                let receive = async move {
                    tokio::select! {
                        () = incoming => {}
                        // Breaks the stream, which ends its calls here and cancels them on the host.
                        () = abort.cancelled() => {}
                    }
                };
                answers.spawn_on(receive, host.runtime().tokio());
                return Ok(multiplexer);
            }
            // The channel had not noticed yet that its connection broke.
            Err(status) if attempts < ATTEMPTS && errors::broke(&status) => attempts += 1,
            Err(status) if errors::is_stream_rejected(&status) => return Err(OpenError::Rejected(status)),
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
async fn within<T>(
    address: &str,
    bound: Duration,
    opened: impl Future<Output = Result<T, OpenError>>,
) -> Result<T, OpenError> {
    let problem = |problem: &str| {
        format!("cannot reach a host at {address}: {problem}; start one with `snakepit serve`")
    };
    match tokio::time::timeout(bound, opened).await {
        Ok(opened) => opened.map_err(|error| match error {
            OpenError::Unreachable(cause) => OpenError::Unreachable(problem(&cause)),
            error => error,
        }),
        Err(_) => {
            Err(OpenError::Timeout(problem(&format!("it did not answer within {} s", bound.as_secs_f64()))))
        }
    }
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
    fn a_fork_drops_a_connection_that_a_thread_of_its_parent_uses() {
        let runtime = RuntimeHandle::Background(BackgroundRuntime::get().unwrap());
        let channel = {
            let _runtime = runtime.tokio().enter();
            Endpoint::from_static("http://127.0.0.1:1").connect_lazy()
        };
        let connection = Connection {
            host: Host::new(channel, runtime),
            end: ClientEnd::default(),
            address: String::new(),
            connect_timeout: Duration::ZERO,
            stream: Mutex::new(None),
            answers: TaskTracker::new(),
            reopening: tokio::sync::Mutex::default(),
            failures: AtomicU64::new(0),
        };
        let (held, is_held) = mpsc::channel();
        let (release, is_released) = mpsc::channel::<()>();
        thread::scope(|scope| {
            let connection = &connection;
            scope.spawn(move || {
                let _stream = connection.stream();
                held.send(()).unwrap();
                let _ = is_released.recv();
            });
            is_held.recv().unwrap();
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
            drop(release);
            assert_eq!(status, WaitStatus::Exited(child, 0));
        });
    }
}
