//! The host: sessions, registry and pool as one thing that runs calls. Both the gRPC services and the embedding API
//! go through here, so they behave the same.

mod affinity;
mod bounds;
mod keeper;

use std::{
    future::Future,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use snakepit_pool::{Pool, PoolStatus};
use snakepit_registry::{CallId, CallStage, Registry, ResolvedTool, ToolCall, ToolError, ToolReply};
use snakepit_session::{SessionBackend, SessionId};
use snakepit_worker::process::Launches;
use tokio::{runtime::Handle, sync::SetOnce, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{
    affinity::Affinity,
    bounds::Bounds,
    keeper::{InUse, Keeper},
};
use crate::{grpc::EncodedAnswer, telemetry::Telemetry};

tokio::task_local! {
    /// While a host tool runs on behalf of a worker: the calls that wait for it.
    pub(crate) static ANCESTORS: Option<Arc<[CallId]>>;
}

/// When to ask again a host whose first workers are starting.
const STARTING_RETRY: Duration = Duration::from_millis(500);

#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) sessions: Arc<dyn SessionBackend>,
    pub(crate) registry: Registry,
    /// The answer to clients that open a session.
    pub(crate) opened: EncodedAnswer,
    /// The workers that may register tools.
    pub(crate) launches: Arc<Launches>,
    pub(crate) telemetry: Telemetry,
    /// Cancelled when the host stops serving: streams that would never end by themselves end then.
    pub(crate) stop: CancellationToken,
    /// The deadline of calls that name none. The pool gives the same to calls of its workers.
    pub(crate) default_timeout: Option<Duration>,
    affinity: Affinity,
    keeper: Arc<Keeper>,
    /// Counts the calls of host tools that did not come from a worker; closed when the host takes no more.
    local: TaskTracker,
    /// Cancelled at the end of the drain: calls that run in the host are cut off then.
    cut: CancellationToken,
    /// Set when the runtime that started the host has shut down.
    is_orphaned: AtomicBool,
    runtime: Handle,
    /// Set once the host serves: workers call back while they are being launched. Weak, because sessions and
    /// connections hold the host, and must not keep its workers alive.
    pool: SetOnce<Weak<Pool>>,
}

impl Host {
    /// A host of this runtime, whose background tasks belong to `tasks`.
    pub(crate) fn new(
        sessions: Arc<dyn SessionBackend>,
        registry: Registry,
        launches: Arc<Launches>,
        default_timeout: Option<Duration>,
        tasks: &TaskTracker,
        stop: CancellationToken,
    ) -> Self {
        let runtime = Handle::current();
        let affinity = Affinity::new(Arc::clone(&sessions), tasks.clone(), runtime.clone(), stop.clone());
        Self {
            sessions,
            registry,
            opened: EncodedAnswer::default(),
            launches,
            telemetry: Telemetry::default(),
            cut: stop.child_token(),
            stop,
            default_timeout,
            affinity,
            keeper: Arc::default(),
            local: TaskTracker::new(),
            is_orphaned: AtomicBool::new(false),
            runtime,
            pool: SetOnce::new(),
        }
    }

    /// Keeps sessions in use alive until the stop. Dropped before that, with its runtime, it marks the host as orphaned.
    pub(crate) fn keep(self: &Arc<Self>) -> impl Future<Output = ()> + Send + use<> {
        let guard = OrphanGuard(Arc::downgrade(self));
        let keeping = Arc::clone(&self.keeper).run(Arc::clone(&self.sessions), self.stop.clone());
        async move {
            let _guard = guard;
            keeping.await;
        }
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
        let id = call.session.clone();
        // No async fn, which would keep a second place for the call.
        async move {
            let session = match id {
                Some(id) => Some(self.enter(id, &mut call).await?),
                None => None,
            };
            let watch = self.telemetry.watch(&call);
            let result = match self.registry.resolve(&call.tool) {
                // The pool keeps the deadline, and knows how far the call has come.
                Ok(tool) if tool.keeps_deadlines() => match tool.begin(call) {
                    Ok(running) => running.await,
                    Err(refusal) => Err(refusal),
                },
                Ok(tool) => self.call_here(&tool, call).await,
                Err(unknown) => Err(self.unknown(unknown)),
            };
            let reply = watch.ended(result)?;
            Ok(match session {
                Some(session) => session.answered(reply, &self.affinity),
                None => reply,
            })
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

    /// Runs a call of a host tool on behalf of a worker, whose own call keeps the drain waiting.
    pub(crate) async fn call_host_tool(&self, mut call: ToolCall) -> Result<ToolReply, ToolError> {
        let session = match call.session.clone() {
            Some(id) => Some(self.enter(id, &mut call).await?),
            None => None,
        };
        let bounds = self.bounds(&mut call)?;
        let ancestors = call.ancestors.clone();
        let running = ANCESTORS.scope(ancestors, self.registry.call_host_tool(call));
        let reply = bounds.within(CallStage::Running, running).await?;
        let reply = bounds.bound(reply, None);
        Ok(match session {
            Some(session) => session.answered(reply, &self.affinity),
            None => reply,
        })
    }

    /// Runs a call of a tool that keeps no deadline itself.
    async fn call_here(&self, tool: &ResolvedTool, mut call: ToolCall) -> Result<ToolReply, ToolError> {
        let bounds = self.bounds(&mut call)?;
        let in_flight = self.local.token();
        // Counted first, so that a drain either waits for the call or refuses it.
        if self.local.is_closed() || self.cut.is_cancelled() {
            return Err(ToolError::ShuttingDown { delivered: false });
        }
        let reply = bounds.within(CallStage::Running, tool.begin(call)?).await?;
        Ok(bounds.bound(reply, Some(in_flight)))
    }

    /// Renews the session of a call, and keeps it for as long as the call may need it.
    async fn enter(&self, id: SessionId, call: &mut ToolCall) -> Result<CallSession, ToolError> {
        let bounds = self.bounds(call)?;
        let lookup = async { Ok(self.sessions.get(&id).await?) };
        let session = bounds.within(CallStage::Queued, lookup).await?;
        call.preferred_worker = session.last_worker.clone();
        let in_use = self.keeper.hold(&id, session.ttl, call.deadline);
        Ok(CallSession { id, preferred: session.last_worker, in_use })
    }

    /// What bounds the parts of a call that the host runs itself. Gives the call its deadline, if it has none.
    fn bounds(&self, call: &mut ToolCall) -> Result<Bounds, ToolError> {
        if self.is_orphaned() {
            return Err(ToolError::runtime_ended());
        }
        // A timeout too long for the clock is none.
        let by_default = || Instant::now().checked_add(self.default_timeout?);
        call.deadline = call.deadline.or_else(by_default);
        Ok(Bounds::of(call, &self.cut))
    }

    /// Whether the runtime that started the host has shut down.
    pub(crate) fn is_orphaned(&self) -> bool {
        self.is_orphaned.load(Ordering::Relaxed)
    }

    /// Refuses new calls of host tools, and waits for those in flight. Cancel safe.
    pub(crate) async fn drained(&self) {
        self.local.close();
        self.local.wait().await;
    }

    /// Sleeps by the clock of the host's own runtime, whatever runtime the caller has.
    pub(crate) fn sleep(&self, time: Duration) -> tokio::time::Sleep {
        let _inside = self.runtime.enter();
        tokio::time::sleep(time)
    }

    /// Cuts off the calls that run in the host.
    pub(crate) fn cut_off(&self) {
        self.cut.cancel();
    }
}

/// The session of a call.
struct CallSession {
    id: SessionId,
    /// The worker that served it last.
    preferred: Option<Arc<str>>,
    in_use: Option<InUse>,
}

impl CallSession {
    fn answered(self, reply: ToolReply, affinity: &Affinity) -> ToolReply {
        let Self { id, preferred, in_use } = self;
        if let Some(worker) = &reply.worker
            && preferred.as_ref() != Some(worker)
        {
            affinity.remember(id, Arc::clone(worker));
        }
        match in_use {
            Some(in_use) => in_use.until_complete(reply),
            None => reply,
        }
    }
}

/// Marks the host as orphaned when the task that it belongs to is dropped before the stop.
struct OrphanGuard(Weak<Host>);

impl Drop for OrphanGuard {
    fn drop(&mut self) {
        if let Some(host) = self.0.upgrade()
            && !host.stop.is_cancelled()
        {
            host.is_orphaned.store(true, Ordering::Relaxed);
        }
    }
}
