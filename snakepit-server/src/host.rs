//! The host: sessions, registry and pool as one thing that runs calls. Both the gRPC services and the embedding API
//! go through here, so they behave the same.

use std::{
    future::Future,
    pin::pin,
    sync::{Arc, Weak},
    time::Duration,
};

use snakepit_pool::{Pool, PoolStatus};
use snakepit_registry::{CallStage, Registry, ToolCall, ToolError, ToolReply};
use snakepit_session::{SessionBackend, SessionError, SessionId};
use tokio::{sync::SetOnce, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::telemetry::Telemetry;

/// When to ask again a host whose first workers are starting.
const STARTING_RETRY: Duration = Duration::from_millis(500);

#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) sessions: Arc<dyn SessionBackend>,
    pub(crate) registry: Registry,
    pub(crate) telemetry: Telemetry,
    /// Cancelled when the host stops serving: streams that would never end by themselves end then.
    pub(crate) stop: CancellationToken,
    /// Set once the host serves: workers call back while they are being launched. Weak, because sessions and
    /// connections hold the host, and must not keep its workers alive.
    pool: SetOnce<Weak<Pool>>,
}

impl Host {
    pub(crate) fn new(
        sessions: Arc<dyn SessionBackend>,
        registry: Registry,
        stop: CancellationToken,
    ) -> Self {
        Self { sessions, registry, telemetry: Telemetry::default(), stop, pool: SetOnce::new() }
    }

    /// Tells the host its pool. Only the first call counts.
    pub(crate) fn set_pool(&self, pool: &Arc<Pool>) {
        // A second pool is a bug of the builder, which calls this once.
        let _ = self.pool.set(Arc::downgrade(pool));
    }

    /// The pool, waited for if the host is still starting.
    pub(crate) async fn pool(&self) -> Result<Arc<Pool>, ToolError> {
        self.pool.wait().await.upgrade().ok_or_else(|| ToolError::Unavailable {
            reason: "the host was dropped".to_owned(),
            retry_after: None,
        })
    }

    /// The pool, unless the host is still starting or was dropped.
    pub(crate) fn pool_if_started(&self) -> Option<Arc<Pool>> {
        self.pool.get()?.upgrade()
    }

    pub(crate) fn pool_status(&self) -> Option<PoolStatus> {
        Some(self.pool_if_started()?.status())
    }

    /// Runs a call of any tool: renews its session, prefers the session's last worker, remembers the new one.
    pub(crate) fn call(
        &self,
        mut call: ToolCall,
    ) -> impl Future<Output = Result<ToolReply, ToolError>> + Send {
        let session = call.session.clone();
        // No async fn, which would keep a second place for the call.
        async move {
            if let Some(id) = &session {
                call.preferred_worker = self.sessions.get(id).await?.last_worker;
            }
            let preferred = call.preferred_worker.clone();
            let watch = self.telemetry.watch(&call);
            let limit = Limit::of(&call);
            let result = match self.registry.resolve(&call.tool) {
                Ok(tool) => match tool.begin(call) {
                    Ok(running) => within(limit, running).await,
                    Err(refusal) => Err(refusal),
                },
                Err(unknown) => Err(self.unknown(unknown)),
            };
            let reply = watch.ended(result)?;
            if let (Some(id), Some(worker)) = (session, &reply.worker)
                && preferred.as_ref() != Some(worker)
            {
                self.remember_worker(&id, Arc::clone(worker)).await;
            }
            Ok(reply)
        }
    }

    /// That a tool is unknown, unless that is because no worker has told its tools yet: then the call may be repeated.
    fn unknown(&self, unknown: ToolError) -> ToolError {
        let is_ready = self.pool_if_started().is_some_and(|pool| pool.is_ready());
        if is_ready || self.registry.knows_tools_of_workers() {
            return unknown;
        }
        ToolError::Unavailable {
            reason: "the first workers are starting, and their tools are not known yet".to_owned(),
            retry_after: Some(STARTING_RETRY),
        }
    }

    /// Runs a call of a host tool on behalf of a worker.
    pub(crate) async fn call_host_tool(&self, call: ToolCall) -> Result<ToolReply, ToolError> {
        if let Some(id) = &call.session {
            self.sessions.get(id).await?;
        }
        let limit = Limit::of(&call);
        within(limit, pin!(self.registry.call_host_tool(call))).await
    }

    /// Affinity is a hint: when it cannot be stored, the call is still good.
    async fn remember_worker(&self, id: &SessionId, worker: Arc<str>) {
        match self.sessions.set_last_worker(id, worker).await {
            Ok(()) | Err(SessionError::NotFound { .. }) => {}
            Err(error) => tracing::warn!(session = %id, %error, "failed to remember the session's worker"),
        }
    }
}

/// How long a call may take.
struct Limit {
    tool: Arc<str>,
    deadline: Instant,
}

impl Limit {
    fn of(call: &ToolCall) -> Option<Self> {
        call.deadline.map(|deadline| Self { tool: Arc::clone(&call.tool), deadline })
    }
}

/// Bounds a call by its deadline. The pool does so too, with the exact stage; this covers tools that run in the host.
async fn within(
    limit: Option<Limit>,
    call: impl Future<Output = Result<ToolReply, ToolError>> + Unpin,
) -> Result<ToolReply, ToolError> {
    let Some(Limit { tool, deadline }) = limit else { return call.await };
    tokio::select! {
        // The call first: the pool's own answer at the same instant says more.
        biased;
        result = call => result,
        () = tokio::time::sleep_until(deadline) => {
            Err(ToolError::DeadlineExceeded { tool: tool.to_string(), stage: CallStage::Running })
        }
    }
}
