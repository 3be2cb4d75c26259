//! The host: runs calls with the sessions, the registry and the pool. The gRPC services and the embedding API both use it, so
//! they behave the same.

mod affinity;
mod call_bounds;
mod call_session;
mod layers;
mod records;
mod renewal;
mod reply;
mod response_cache;
mod restart;

use std::{
    future::{Future, ready},
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use snakepit_pool::Pool;
use snakepit_registry::{
    CallFuture, CallId, CallLayers, CallProgress, CallService, CallStage, CallTimeline, Principal, Registry,
    ResolvedTool, TimeLimit, ToolCall, ToolError, ToolReply,
};
use snakepit_session::{Payload, SessionBackend, SessionId};
use snakepit_worker::{WorkerId, process::Launches};
use tokio::{runtime::Handle, sync::SetOnce, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{
    affinity::AffinityWriter,
    call_bounds::CallBounds,
    call_session::CallSession,
    layers::HostLayers,
    renewal::SessionRenewer,
    reply::{accounted, with_time_limit},
};
pub(crate) use self::{
    records::{CallReader, CallRecords},
    response_cache::ResponseCache,
};
use crate::{
    Operation, authorization::Authorizer, host_launcher::Rejections, telemetry::Telemetry,
    traceback_policy::TracebackPolicy,
};

tokio::task_local! {
    /// Set in tasks that run a host tool, or a call that has passed the layers. Contains the calls that wait for the host tool,
    /// if a worker called it.
    pub(crate) static ANCESTORS: Option<Arc<[CallId]>>;
}

/// The future of a call that failed before it began.
fn failed<'a>(error: ToolError) -> CallFuture<'a> {
    Box::pin(ready(Err(error)))
}

/// The retry delay while the first workers start.
const STARTING_RETRY: Duration = Duration::from_millis(500);

#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) sessions: Arc<dyn SessionBackend>,
    pub(crate) registry: Registry,
    /// The cached response to clients that open a session.
    pub(crate) initialize_response: ResponseCache,
    /// The workers that may register tools.
    pub(crate) launches: Arc<Launches>,
    pub(crate) rejections: Arc<Rejections>,
    pub(crate) telemetry: Telemetry,
    /// Cancelled when the host stops serving, which ends open-ended streams.
    pub(crate) stop: CancellationToken,
    /// The timeout of calls without a deadline. The pool applies the same timeout to calls of its workers.
    pub(crate) default_timeout: Option<Duration>,
    pub(crate) tracebacks: TracebackPolicy,
    layers: HostLayers,
    records: Arc<CallRecords>,
    authorizer: Option<Authorizer>,
    affinity: AffinityWriter,
    renewer: Arc<SessionRenewer>,
    /// The running calls to host tools that do not come from a worker. Closed when the drain begins.
    host_tool_calls: TaskTracker,
    /// Cancelled at the end of the drain, which aborts the calls that run in the host.
    cut: CancellationToken,
    /// Set when the runtime that started the host has shut down.
    runtime_has_ended: AtomicBool,
    runtime: Handle,
    /// Set after the host has begun to serve, because workers call back while they start. Weak, because sessions and connections
    /// own the host and must not keep its workers alive.
    pool: SetOnce<Weak<Pool>>,
}

impl Host {
    /// Creates a host on the current runtime. Its background tasks belong to `tasks`.
    pub(crate) fn new(
        sessions: Arc<dyn SessionBackend>,
        registry: Registry,
        launches: Arc<Launches>,
        default_timeout: Option<Duration>,
        tasks: &TaskTracker,
        stop: CancellationToken,
    ) -> Self {
        let runtime = Handle::current();
        let affinity =
            AffinityWriter::new(Arc::clone(&sessions), tasks.clone(), runtime.clone(), stop.clone());
        Self {
            sessions,
            registry,
            initialize_response: ResponseCache::default(),
            launches,
            rejections: Arc::default(),
            telemetry: Telemetry::default(),
            cut: stop.child_token(),
            stop,
            default_timeout,
            layers: HostLayers::default(),
            records: Arc::default(),
            authorizer: None,
            tracebacks: TracebackPolicy::default(),
            affinity,
            renewer: Arc::default(),
            host_tool_calls: TaskTracker::new(),
            runtime_has_ended: AtomicBool::new(false),
            runtime,
            pool: SetOnce::new(),
        }
    }

    /// Passes the record of each call to these readers.
    pub(crate) fn with_call_readers(mut self, readers: Vec<CallReader>) -> Self {
        self.records = Arc::new(CallRecords::new(readers));
        self
    }

    /// Sets the function that authorizes operations.
    pub(crate) fn with_authorizer(mut self, authorizer: Option<Authorizer>) -> Self {
        self.authorizer = authorizer;
        self
    }

    /// The function that authorizes operations, if the program has set one.
    pub(crate) const fn authorizer(&self) -> Option<&Authorizer> {
        self.authorizer.as_ref()
    }

    /// Checks that the principal of a call may make it and use its session. The program itself may make all calls.
    #[inline]
    fn authorize(&self, call: &ToolCall) -> Result<(), ToolError> {
        match &self.authorizer {
            Some(authorizer) if !call.principal.is_program() => {
                let session = call.session.as_ref().map(|session| session.as_str());
                authorizer.authorize(&call.principal, &Operation::Call { tool: &call.tool, session })?;
                session.map_or(Ok(()), |session| {
                    authorizer.authorize(&call.principal, &Operation::WriteSession { session })
                })
            }
            _ => Ok(()),
        }
    }

    /// The call records.
    pub(crate) const fn records(&self) -> &Arc<CallRecords> {
        &self.records
    }

    /// Renews sessions in use until the host stops. If the runtime shuts down and drops the future earlier, the host records that
    /// [its runtime has ended](Self::runtime_has_ended).
    pub(crate) fn renew_sessions(self: &Arc<Self>) -> impl Future<Output = ()> + Send + use<> {
        let guard = RuntimeEndGuard(Arc::downgrade(self));
        let renewing = Arc::clone(&self.renewer).run(Arc::clone(&self.sessions), self.stop.clone());
        async move {
            let _guard = guard;
            renewing.await;
        }
    }

    /// Puts layers around calls. Only the first call has an effect.
    pub(crate) fn set_layers(self: &Arc<Self>, layers: CallLayers) {
        self.layers.set(layers, Arc::downgrade(self));
    }

    /// Sets the host's pool. Only the first call has an effect.
    pub(crate) fn set_pool(&self, pool: &Arc<Pool>) {
        // The builder calls this once.
        let _ = self.pool.set(Arc::downgrade(pool));
    }

    /// Returns the pool. Waits for it while the host starts.
    pub(crate) async fn pool(&self) -> Result<Arc<Pool>, ToolError> {
        self.pool.wait().await.upgrade().ok_or_else(|| ToolError::unavailable("the host was dropped"))
    }

    /// Returns the pool unless the host is still starting or was dropped.
    pub(crate) fn pool_if_started(&self) -> Option<Arc<Pool>> {
        self.pool.get()?.upgrade()
    }

    /// Returns the principal as which a tool in this worker acts: the principal of the call that the worker runs, or the worker
    /// itself if the host does not know the call. A worker that runs several calls reports the one that it means.
    pub(crate) fn acting_principal(&self, worker: &WorkerId, reported: Option<u64>) -> Principal {
        let pool = self.pool_if_started();
        let running = pool.and_then(|pool| pool.tool().acting_principal(worker.as_str(), reported));
        running.unwrap_or_else(Principal::unset).in_worker(worker.shared())
    }

    /// Whether the host needs to know which local clients are processes of workers.
    pub(crate) fn distinguishes_workers(&self) -> bool {
        self.authorizer.is_some() || self.registry.has_hidden_tools()
    }

    /// Runs a call to any tool, if its principal may make it. `account` counts the value of the reply before the call is recorded
    /// as succeeded.
    pub(crate) fn call<F>(
        &self,
        call: ToolCall,
        account: impl FnOnce(Payload) -> F + Send,
    ) -> impl Future<Output = Result<ToolReply, ToolError>> + Send
    where
        F: Future<Output = Result<Payload, ToolError>> + Send,
    {
        self.run(Box::new(call), Permission::Required, account)
    }

    /// Runs a call that code in this process makes, of any tool.
    pub(crate) fn call_local(
        &self,
        call: Box<ToolCall>,
        permission: Permission,
    ) -> impl Future<Output = Result<ToolReply, ToolError>> + Send {
        self.run(call, permission, |value| ready(Ok(value)))
    }

    /// Runs a call. Renews its session, prefers the session's last worker, and stores the worker that ran the call.
    ///
    /// Each call that waits for a worker holds this future. Therefore the call, and the futures that few calls need, are boxed.
    async fn run<F>(
        &self,
        mut call: Box<ToolCall>,
        permission: Permission,
        account: impl FnOnce(Payload) -> F + Send,
    ) -> Result<ToolReply, ToolError>
    where
        F: Future<Output = Result<Payload, ToolError>> + Send,
    {
        let recorder = self.records.begin(&mut call);
        if permission == Permission::Required
            && let Err(error) = self.authorize(&call)
        {
            return recorder.ended(Err(error));
        }
        // Errors name only the default timeout, because the caller knows its own limit.
        let limit = self.default_timeout.filter(|_| call.deadline.is_none()).map(TimeLimit::Host);
        let session = match call.session.clone() {
            Some(id) => match Box::pin(self.use_session(id, &mut call)).await {
                Ok(session) => Some(session),
                Err(error) => return recorder.ended(Err(error.with_time_limit(limit))),
            },
            None => None,
        };
        let publisher = self.telemetry.begin(&call);
        let tool;
        let running = match self.layers.service_for(&call) {
            Some(layers) => self.begin_in(layers, *call).unwrap_or_else(failed),
            None => match self.resolve(&call) {
                Ok(resolved) => {
                    tool = resolved;
                    self.begin(&tool, *call)
                }
                Err(unknown) => failed(self.unknown_tool_error(unknown)),
            },
        };
        let result = accounted(with_time_limit(running.await, limit), account).await;
        let reply = recorder.ended(publisher.ended(result))?;
        Ok(match session {
            Some(session) => session.finish(reply, &self.affinity),
            None => reply,
        })
    }

    /// Begins a call of a resolved tool. The pool enforces the deadline of its calls itself, because it can report how far a call
    /// got.
    fn begin<'a>(&'a self, tool: &'a ResolvedTool, call: ToolCall) -> CallFuture<'a> {
        if tool.enforces_deadlines() {
            tool.begin(call).unwrap_or_else(failed)
        } else {
            Box::pin(self.call_here(tool, call))
        }
    }

    /// Runs a call through the layers of the program. While the call waits in a layer, ends it at its deadline, or when the
    /// host aborts running calls.
    fn begin_in(&self, layers: &CallService, mut call: ToolCall) -> Result<CallFuture<'static>, ToolError> {
        // Sets the default deadline.
        self.bounds(&mut call)?;
        if self.host_tool_calls.is_closed() || self.cut.is_cancelled() {
            return Err(ToolError::shutting_down(false));
        }
        Ok(layers.run_bounded(call, self.cut.clone().cancelled_owned()))
    }

    /// Resolves and runs a call that has passed the layers of the program.
    async fn resolve_and_call(&self, call: ToolCall) -> Result<ToolReply, ToolError> {
        let tool = if call.extensions.get::<HostToolOnly>().is_some() {
            self.registry.resolve_host_tool(&call.tool)?
        } else {
            self.resolve(&call).map_err(|unknown| self.unknown_tool_error(unknown))?
        };
        // The pool records when a call begins on a worker.
        if tool.is_host_tool()
            && let Some(progress) = CallProgress::of(&call)
        {
            progress.begin();
        }
        self.begin(&tool, call).await
    }

    /// Finds the tool of a call. Hidden host tools do not exist for a worker.
    fn resolve(&self, call: &ToolCall) -> Result<Arc<ResolvedTool>, ToolError> {
        match call.extensions.get::<FromWorker>() {
            None => self.registry.resolve(&call.tool),
            Some(FromWorker) => self.registry.resolve_exposed(&call.tool),
        }
    }

    /// The error for an unknown tool. Before the first worker has registered its tools, the call may be repeated instead.
    fn unknown_tool_error(&self, unknown: ToolError) -> ToolError {
        let is_ready = self.pool_if_started().is_some_and(|pool| pool.is_ready());
        if is_ready || self.registry.has_worker_tools() {
            return unknown;
        }
        ToolError::unavailable("the first workers are starting, and their tools are not known yet")
            .with_retry_after(STARTING_RETRY)
    }

    /// Runs a call to a host tool for a worker. The drain already waits for the worker's own call. A call of a client, or of a
    /// worker that runs no call, is not nested, so it goes through the layers of the program.
    pub(crate) async fn call_host_tool<F>(
        &self,
        mut call: ToolCall,
        account: impl FnOnce(Payload) -> F + Send,
    ) -> Result<ToolReply, ToolError>
    where
        F: Future<Output = Result<Payload, ToolError>> + Send,
    {
        let recorder = self.records.begin(&mut call);
        if let Err(error) = self.authorize(&call) {
            return recorder.ended(Err(error));
        }
        let session = match call.session.clone() {
            Some(id) => match self.use_session(id, &mut call).await {
                Ok(session) => Some(session),
                Err(error) => return recorder.ended(Err(error)),
            },
            None => None,
        };
        let result = if let Some(layers) = self.layers.service_for(&call) {
            call.extensions.insert(HostToolOnly);
            match self.begin_in(layers, call) {
                Ok(running) => running.await,
                Err(error) => Err(error),
            }
        } else {
            self.call_nested(call).await
        };
        let reply = recorder.ended(accounted(result, account).await)?;
        Ok(match session {
            Some(session) => session.finish(reply, &self.affinity),
            None => reply,
        })
    }

    /// Runs a nested call to a host tool, and enforces its deadline.
    async fn call_nested(&self, mut call: ToolCall) -> Result<ToolReply, ToolError> {
        let bounds = self.bounds(&mut call)?;
        let (ancestors, timeline) = (call.ancestors.clone(), CallTimeline::of(&call).cloned());
        let running = ANCESTORS.scope(ancestors, async {
            let tool = self.registry.resolve_host_tool(&call.tool)?;
            let running = tool.begin(call)?;
            if let Some(timeline) = timeline {
                timeline.host_tool_began();
            }
            running.await
        });
        let reply = bounds.within(CallStage::Running, running).await?;
        Ok(bounds.bound(reply, None))
    }

    /// Runs a call to a host tool, and enforces its deadline.
    async fn call_here(&self, tool: &ResolvedTool, mut call: ToolCall) -> Result<ToolReply, ToolError> {
        let bounds = self.bounds(&mut call)?;
        let in_flight = self.host_tool_calls.token();
        // The call is counted before the check, so that a drain either waits for it or rejects it.
        if self.host_tool_calls.is_closed() || self.cut.is_cancelled() {
            return Err(ToolError::shutting_down(false));
        }
        let timeline = CallTimeline::of(&call).cloned();
        let running = tool.begin(call)?;
        if let Some(timeline) = timeline {
            timeline.host_tool_began();
        }
        let reply = bounds.within(CallStage::Running, running).await?;
        Ok(bounds.bound(reply, Some(in_flight)))
    }

    /// Renews the session of a call, and keeps renewing it while the call runs.
    async fn use_session(&self, id: SessionId, call: &mut ToolCall) -> Result<CallSession, ToolError> {
        let bounds = self.bounds(call)?;
        let lookup = async { Ok(self.sessions.get(&id).await?) };
        let session = bounds.within(CallStage::Queued, lookup).await?;
        call.preferred_worker = session.last_worker.clone();
        let session_use = self.renewer.begin_use(&id, session.ttl, call.deadline);
        Ok(CallSession { id, last_worker: session.last_worker, session_use })
    }

    /// The bounds for the parts of a call that the host runs itself. Sets the default deadline if the call has none.
    fn bounds(&self, call: &mut ToolCall) -> Result<CallBounds, ToolError> {
        if self.runtime_has_ended() {
            return Err(ToolError::runtime_ended(false));
        }
        // A timeout that overflows the clock sets no deadline.
        let default_deadline = || Instant::now().checked_add(self.default_timeout?);
        call.deadline = call.deadline.or_else(default_deadline);
        Ok(CallBounds::new(call, &self.cut))
    }

    /// Whether the runtime that started the host has shut down.
    pub(crate) fn runtime_has_ended(&self) -> bool {
        self.runtime_has_ended.load(Ordering::Relaxed)
    }

    /// Rejects new calls to host tools, and waits for those in flight. Cancel safe.
    pub(crate) async fn drain(&self) {
        self.host_tool_calls.close();
        self.host_tool_calls.wait().await;
    }

    /// Sleeps on the timer of the host's runtime, even for callers on another runtime.
    pub(crate) fn sleep(&self, time: Duration) -> tokio::time::Sleep {
        let _inside = self.runtime.enter();
        tokio::time::sleep(time)
    }

    /// Cuts off the calls that run in the host.
    pub(crate) fn cut_off(&self) {
        self.cut.cancel();
    }
}

/// The extension of a call that may run a host tool only.
struct HostToolOnly;

/// Whether the program must permit a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Permission {
    Required,
    /// The program itself makes the call.
    Implied,
}

/// The extension of a call that a process of a worker makes as a client.
pub(crate) struct FromWorker;

/// The extension of a call that a host tool without ancestors makes through its handle to the host.
pub(crate) struct NestedCall;

/// Records the end of the runtime when its task is dropped before the host stops.
struct RuntimeEndGuard(Weak<Host>);

impl Drop for RuntimeEndGuard {
    fn drop(&mut self) {
        if let Some(host) = self.0.upgrade()
            && !host.stop.is_cancelled()
        {
            host.runtime_has_ended.store(true, Ordering::Relaxed);
        }
    }
}
