//! The embedding API: a running host inside your program.

use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};

use serde::{Serialize, de::DeserializeOwned};
use snakepit_pool::{Pool, PoolStatus};
use snakepit_registry::{Announcer, ToolError, ToolHandler, ToolSpec};
use snakepit_session::{NewSession, SessionBackend, SessionId};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{Builder, CallBuilder, Error, ReplyStream, SessionHandle, call::Target, host::Host};

/// A running host: its workers, its sessions, its gRPC service. Cheap to clone.
///
/// Call [`shutdown`](Snakepit::shutdown) to drain; when the last clone is dropped without it, workers are killed in the
/// background and calls in flight fail, whatever sessions, calls and streams of it are still held.
#[derive(Debug, Clone)]
pub struct Snakepit {
    pub(crate) host: Arc<Host>,
    /// The one place that keeps the pool alive: when the last clone is dropped, so are the workers.
    pub(crate) pool: Arc<Pool>,
    pub(crate) service: Arc<Service>,
}

/// What serves gRPC, and stops serving when dropped.
#[derive(Debug)]
pub(crate) struct Service {
    /// Ends with the host, and with it the tools that the program registered.
    pub(crate) life: Arc<()>,
    /// Cancelled when health checks shall no longer see the server; a child of `stop`.
    pub(crate) hidden: CancellationToken,
    pub(crate) stop: CancellationToken,
    pub(crate) tasks: TaskTracker,
    pub(crate) address: Option<SocketAddr>,
    pub(crate) launcher: Option<Arc<snakepit_worker::ProcessLauncher>>,
    pub(crate) run_dir: Arc<snakepit_worker::process::RunDir>,
}

impl Drop for Service {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// How long [`Snakepit::shutdown`] lets calls in flight finish.
const DRAIN: Duration = Duration::from_secs(10);

/// How long calls that are cut off in the host may take to answer before the connections close.
const LAST_ANSWERS: Duration = Duration::from_millis(100);

impl Snakepit {
    /// Prepares a host.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Calls a tool and returns its value.
    ///
    /// # Errors
    /// See [`CallBuilder::unary`].
    ///
    /// # Cancel safety
    /// Dropping the future cancels the call.
    pub async fn execute<T: DeserializeOwned>(&self, tool: &str, args: impl Serialize) -> Result<T, Error> {
        Ok(self.call(tool).args(args).unary().await?.value)
    }

    /// Calls a tool and returns its chunks as they come.
    ///
    /// # Errors
    /// See [`CallBuilder::stream`].
    ///
    /// # Cancel safety
    /// Dropping the future, or the stream before its end, cancels the call.
    pub async fn execute_stream<T: DeserializeOwned>(
        &self,
        tool: &str,
        args: impl Serialize,
    ) -> Result<ReplyStream<T>, Error> {
        self.call(tool).args(args).stream().await
    }

    /// Prepares a call with options: timeout, raw payloads, metadata.
    pub fn call(&self, tool: &str) -> CallBuilder {
        CallBuilder::new(Target::Host(Arc::clone(&self.host)), tool)
    }

    /// Returns the session of this id, creating it with the default TTL if need be.
    ///
    /// # Errors
    /// [`Error::Session`] when the id is odd or the backend refuses another session.
    pub async fn session(&self, id: &str) -> Result<SessionHandle, Error> {
        self.session_with(id, NewSession::default()).await
    }

    /// Returns the session of this id, creating it with this metadata and TTL if need be.
    ///
    /// # Errors
    /// [`Error::Session`] when the id is odd or the backend refuses another session.
    pub async fn session_with(&self, id: &str, new: NewSession) -> Result<SessionHandle, Error> {
        let id = SessionId::try_new(id)?;
        self.host.sessions.create(&id, new).await?;
        Ok(SessionHandle::new(Target::Host(Arc::clone(&self.host)), id))
    }

    /// Where the sessions live: for their statistics, their events, global programs, and all else that is not about one
    /// session.
    #[must_use]
    pub fn sessions(&self) -> &Arc<dyn SessionBackend> {
        &self.host.sessions
    }

    /// The tools that can be called, each with who provides it: `host`, or a pool's name.
    #[must_use]
    pub fn tools(&self) -> Vec<(ToolSpec, String)> {
        self.host.registry.tools()
    }

    /// Registers tools that the pool's workers serve, in their stead: for a [launcher](Builder::launcher) of your own, whose
    /// workers cannot register themselves. What is registered later adds to what is there.
    ///
    /// # Errors
    /// [`Error::Registry`] when a name is invalid or taken, or a limit is reached. None of the tools is registered then.
    pub fn register_tools(&self, tools: Vec<ToolSpec>) -> Result<(), Error> {
        let announcer = Announcer::new("the program".into(), &self.service.life);
        let handler: Arc<dyn ToolHandler> = self.pool.tool();
        self.host.registry.register_remote(&self.pool.status().name, &announcer, &handler, tools)?;
        Ok(())
    }

    /// The pool and its workers, now.
    #[must_use]
    pub fn status(&self) -> PoolStatus {
        self.pool.status()
    }

    /// The TCP address gRPC is served on, if the builder was told to.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        self.service.address
    }

    /// The Unix socket gRPC is served on, for this user alone.
    #[must_use]
    pub fn socket(&self) -> &Path {
        self.service.run_dir.host_socket()
    }

    /// Reports "not serving" to health checks, while calls are still answered. The first step of a graceful stop
    /// behind a load balancer; [`shutdown`](Self::shutdown) does it too.
    pub fn hide(&self) {
        self.service.hidden.cancel();
    }

    /// Stops: refuses new calls, lets those in flight finish for up to ten seconds, cuts off the rest, stops the workers,
    /// closes the listeners. Calls that are refused or cut off fail with [`ToolError::ShuttingDown`], streams and watches too.
    /// Returns when every worker process is gone and every connection is closed; those whose clients have requests open get up
    /// to two seconds for that, and are cut then. May be called more than once.
    ///
    /// # Errors
    /// [`Error::Tool`] with [`ToolError::NoRuntime`] when the runtime that started the host has shut down: its workers were
    /// killed with it, so that nothing is left to be stopped, and no call in flight could finish.
    ///
    /// # Cancel safety
    /// What was begun goes on when the future is dropped; calling it again waits for the same end.
    pub async fn shutdown(&self) -> Result<(), Error> {
        self.shutdown_within(DRAIN).await
    }

    /// Like [`shutdown`](Self::shutdown), with another bound on how long calls in flight may take.
    ///
    /// # Errors
    /// As for `shutdown`.
    ///
    /// # Cancel safety
    /// As for `shutdown`.
    pub async fn shutdown_within(&self, drain: Duration) -> Result<(), Error> {
        if self.pool.is_orphaned() {
            self.service.stop.cancel();
            return Err(ToolError::runtime_ended().into());
        }
        self.hide();
        // Calls on workers may need host tools, and host tools workers: none is cut off before time is up for all.
        let drained = async { tokio::join!(self.pool.shutdown(drain), self.host.drained()) };
        tokio::select! {
            biased;
            _ = drained => {}
            () = self.host.sleep(drain) => {}
        }
        self.host.cut_off();
        // Those that were cut off take a moment to say so. One whose stream nobody reads never does.
        tokio::select! {
            biased;
            () = self.host.drained() => {}
            () = self.host.sleep(LAST_ANSWERS) => {}
        }
        self.pool.shutdown(drain).await;
        if let Some(launcher) = &self.service.launcher {
            launcher.shutdown().await;
        }
        self.service.stop.cancel();
        self.service.tasks.close();
        self.service.tasks.wait().await;
        // It may have shut down meanwhile: a program can wait on another one.
        if self.pool.is_orphaned() { Err(ToolError::runtime_ended().into()) } else { Ok(()) }
    }
}
