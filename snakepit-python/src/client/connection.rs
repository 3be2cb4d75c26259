//! [`Connection`]: the way to a host that a client and its calls share, and how a broken one is replaced.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use snakepit_proto::{mux::Multiplexer, status::root_cause};
use tokio_util::task::{TaskTracker, task_tracker::TaskTrackerToken};

use crate::{
    caller::ClientEnd,
    driver::Driver,
    host::{self, Host, HostError},
    windows,
};

/// How often a host that says nothing is asked whether it is there, and how long it may take to say so.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(10));
/// How often opening a stream is tried while connections break under it.
const ATTEMPTS: usize = 3;

/// A connection to a host. Its channel reconnects automatically; its stream is opened anew by the first call that finds it
/// broken.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) host: Host,
    pub(super) end: ClientEnd,
    address: String,
    connect_timeout: Duration,
    /// The stream that calls share; `None` once the client is closed.
    stream: Mutex<Option<Multiplexer>>,
    /// The tasks that bring answers. Each belongs to a stream and ends when that is dropped and its last call has ended, so
    /// calls outlive the client that started them.
    answers: TaskTracker,
    /// Held while a broken stream is replaced, so that one call does it and the others wait. Holds the last failure.
    reopening: tokio::sync::Mutex<Option<OpenError>>,
    /// How often replacing it failed.
    failures: AtomicU64,
}

/// Why there is no connection.
#[derive(Debug, Clone)]
pub(super) enum OpenError {
    /// The host did not answer in time.
    Late(String),
    Unreachable(String),
}

impl Connection {
    pub(super) async fn open(
        address: &str,
        connect_timeout: Duration,
        driver: Driver,
    ) -> Result<Self, OpenError> {
        let target = address.strip_prefix("http://").unwrap_or(address).trim_end_matches('/');
        let settings = |endpoint| {
            // Each later attempt to connect is bounded too.
            windows::of_client(endpoint)
                .connect_timeout(connect_timeout)
                .http2_keep_alive_interval(KEEPALIVE.0)
                .keep_alive_timeout(KEEPALIVE.1)
        };
        let (end, answers) = (ClientEnd::default(), TaskTracker::new());
        let opened = async {
            let host = Host::new(host::connect(target, settings).await?, driver);
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

    /// The stream that calls share. `None`: it broke.
    ///
    /// # Errors
    /// [`HostError::Closed`] once the client is closed.
    pub(super) fn usable(&self) -> Result<Option<Multiplexer>, HostError> {
        let stream = self.stream().clone().ok_or(HostError::Closed)?;
        Ok((!stream.is_broken()).then_some(stream))
    }

    /// The stream that calls share, opened anew if it broke: the host may have been restarted. Cancel safe.
    ///
    /// # Errors
    /// When the client is closed, and when the host cannot be reached. Nothing of a call was sent then.
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
            // It failed while this call waited for it: to try again for each that waited would make the last wait long.
            return Err(failure.clone().into());
        }
        match self.open_another().await {
            Ok(fresh) => {
                // It may have been closed meanwhile.
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

    /// A stream for one call whose arguments would keep those of others waiting. It closes once the call has ended. One that was
    /// started before the client was closed gets it all the same.
    ///
    /// # Errors
    /// When the client's calls were ended, and when the host cannot be reached. Nothing of the call was sent then.
    pub(super) async fn own_stream(&self) -> Result<Multiplexer, HostError> {
        tokio::select! {
            biased;
            () = self.end.cut.cancelled() => Err(HostError::Closed),
            opened = self.open_another() => Ok(opened?),
        }
    }

    /// As long as it is held, the client has not settled.
    pub(super) fn token(&self) -> TaskTrackerToken {
        self.answers.token()
    }

    async fn open_another(&self) -> Result<Multiplexer, OpenError> {
        let opened = open_stream(&self.host, &self.answers, &self.end);
        within(&self.address, self.connect_timeout, opened).await
    }

    /// Lets nothing new begin, and ends watches. May be called more than once.
    pub(super) fn close(&self) {
        drop(self.stream().take());
        self.end.closed.cancel();
        self.answers.close();
    }

    /// Waits until the last call has ended, once it is closed. Cancel safe.
    pub(super) async fn settled(&self) {
        self.answers.wait().await;
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if self.host.driver().is_forked() {
            // It is the parent's. Its lock may be held by a thread that does not exist here, and is not needed.
            std::mem::forget(self.host.clone());
            std::mem::forget(self.stream.get_mut().unwrap_or_else(PoisonError::into_inner).take());
        }
    }
}

async fn open_stream(host: &Host, answers: &TaskTracker, end: &ClientEnd) -> Result<Multiplexer, String> {
    let mut attempts = 1;
    loop {
        match Multiplexer::open(host.client()).await {
            Ok((multiplexer, incoming)) => {
                let cut = end.cut.clone();
                let bring = async move {
                    tokio::select! {
                        () = incoming => {}
                        // Breaks the stream, which ends its calls here and cancels them on the host.
                        () = cut.cancelled() => {}
                    }
                };
                answers.spawn_on(bring, host.driver().runtime());
                return Ok(multiplexer);
            }
            // The channel had not yet noticed that its connection broke.
            Err(status) if attempts < ATTEMPTS && host::broke(&status) => attempts += 1,
            Err(status) => {
                let source = std::error::Error::source(&status);
                return Err(source.map_or_else(|| status.message().to_owned(), |e| root_cause(e).to_string()));
            }
        }
    }
}

async fn within<T>(
    address: &str,
    bound: Duration,
    opened: impl Future<Output = Result<T, String>>,
) -> Result<T, OpenError> {
    let problem = |problem: &str| {
        format!("cannot reach a host at {address}: {problem}; start one with `snakepit serve`")
    };
    match tokio::time::timeout(bound, opened).await {
        Ok(opened) => opened.map_err(|error| OpenError::Unreachable(problem(&error))),
        Err(_) => {
            Err(OpenError::Late(problem(&format!("it did not answer within {} s", bound.as_secs_f64()))))
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
    use crate::background::Background;

    #[test]
    #[allow(unsafe_code)]
    fn a_fork_drops_a_connection_that_a_thread_of_its_parent_uses() {
        let driver = Driver::Background(Background::get().unwrap());
        let channel = {
            let _runtime = driver.runtime().enter();
            Endpoint::from_static("http://127.0.0.1:1").connect_lazy()
        };
        let connection = Connection {
            host: Host::new(channel, driver),
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
            // SAFETY: the child touches nothing but the connection, and ends.
            let child = match unsafe { fork() }.unwrap() {
                ForkResult::Child => {
                    // SAFETY: nobody else has it in this process, which ends before it would be dropped again.
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
