//! [`InProcessWorkers`]: workers without processes, for tests of pools, hosts and applications.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use async_trait::async_trait;
use futures_util::{StreamExt, stream};
use snakepit_registry::{
    CallId, CallMode, FnTool, HostState, ReplyBody, ToolCall, ToolError, ToolHandler, ToolReply, ToolSpec,
};
use tokio::{sync::watch, task::JoinSet};

use crate::{
    ExitReason, LaunchRequest, LauncherEnd, Worker, WorkerCommand, WorkerError, WorkerExit, WorkerId,
    WorkerLauncher,
};

/// Launches workers that run their calls in this process, and that fail when a test asks them to.
///
/// Everything uses tokio's clock, so a test can pause it. The workers run calls concurrently, up to the
/// [concurrency](https://docs.rs/snakepit-pool/latest/snakepit_pool/struct.PoolConfig.html) of the pool. They stop as soon as
/// the pool asks them to. Clones share the workers: give one to the pool, and keep one to script failures and to count.
///
/// # Example
/// ```
/// use snakepit_registry::FnTool;
/// use snakepit_worker::{LaunchRequest, WorkerId, WorkerLauncher, testing::InProcessWorkers};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let workers = InProcessWorkers::new().fn_tool(FnTool::typed("now", |(): ()| async { 12 }));
/// workers.fail_launches(1, "no memory");
/// let launch = || workers.launch(LaunchRequest::new(WorkerId::new("w")));
/// assert_eq!(launch().await.unwrap_err().to_string(), "worker cannot start: no memory");
/// launch().await.unwrap();
/// assert_eq!((workers.launches(), workers.calls("now")), (2, 0));
/// # }
/// ```
#[derive(Debug, Clone, Default)]
pub struct InProcessWorkers {
    shared: Arc<LauncherState>,
}

#[derive(Debug, Default)]
struct LauncherState {
    state: Mutex<State>,
    /// The number of successful launches.
    launched: watch::Sender<usize>,
    /// The tasks that supervise the workers. They are aborted when neither a launcher handle nor a handler of a worker exists.
    drivers: Mutex<JoinSet<()>>,
}

#[derive(Debug, Default)]
struct State {
    tools: BTreeMap<String, Tool>,
    /// Runs the calls to all other tools.
    any_tool: Option<Arc<dyn ToolHandler>>,
    /// The outcomes of the next launches. Later ones succeed immediately.
    script: VecDeque<LaunchOutcome>,
    /// The number of next calls that crash their worker, by tool.
    crashes: BTreeMap<String, usize>,
    calls: BTreeMap<String, usize>,
    launches: usize,
    live: BTreeMap<WorkerId, Arc<Lifecycle>>,
}

#[derive(Debug, Clone)]
struct Tool {
    spec: ToolSpec,
    code: ToolCode,
}

/// The Rust code of a tool.
#[derive(Debug, Clone)]
enum ToolCode {
    /// A closure. Receives the state of the host that launched the worker.
    Closure(FnTool),
    Handler(Arc<dyn ToolHandler>),
}

/// The scripted outcome of a launch.
#[derive(Debug)]
enum LaunchOutcome {
    Fail(String),
    Delay(Duration),
}

/// The lifecycle of a worker. `crash` makes its driver end it, and `end` ends its calls. Both hold the reason.
#[derive(Debug, Default)]
struct Lifecycle {
    crash: watch::Sender<Option<ExitReason>>,
    end: watch::Sender<Option<ExitReason>>,
}

impl InProcessWorkers {
    /// Creates a launcher whose workers have no tools.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a tool that each worker announces and runs.
    ///
    /// In a host, the closure may take the same arguments as a host tool: the session of the call, the host, and the values of
    /// the host's state. In a pool without a host, the closure has only the values of [`FnTool::with_state`].
    #[must_use]
    pub fn fn_tool(self, tool: FnTool) -> Self {
        self.add(Tool { spec: tool.spec().clone(), code: ToolCode::Closure(tool) })
    }

    /// Adds a tool with any handler.
    #[must_use]
    pub fn tool(self, spec: ToolSpec, handler: Arc<dyn ToolHandler>) -> Self {
        self.add(Tool { spec, code: ToolCode::Handler(handler) })
    }

    /// Sets the handler of all other tools, which the workers do not announce. Use it for a pool without a host.
    #[must_use]
    pub fn any_tool(self, handler: Arc<dyn ToolHandler>) -> Self {
        self.state().any_tool = Some(handler);
        self
    }

    fn add(self, tool: Tool) -> Self {
        self.state().tools.insert(tool.spec.name.clone(), tool);
        self
    }

    /// Makes the next `count` launches fail with this problem. Launches take the outcomes of this method and of
    /// [`delay_launches`](Self::delay_launches) in the order in which they were added.
    pub fn fail_launches(&self, count: usize, problem: &str) {
        let outcomes = (0..count).map(|_| LaunchOutcome::Fail(problem.to_owned()));
        self.state().script.extend(outcomes);
    }

    /// Makes the next `count` launches take this time.
    pub fn delay_launches(&self, count: usize, time: Duration) {
        let outcomes = (0..count).map(|_| LaunchOutcome::Delay(time));
        self.state().script.extend(outcomes);
    }

    /// Makes the next `count` calls to a tool crash their worker, as a segmentation fault in the tool does. The call has
    /// begun by then.
    pub fn crash_in_calls(&self, tool: &str, count: usize) {
        *self.state().crashes.entry(tool.to_owned()).or_default() += count;
    }

    /// Crashes a worker now. Its calls fail with [`ToolError::WorkerLost`]. Returns whether it was alive.
    pub fn crash(&self, worker: &WorkerId) -> bool {
        let lifecycle = self.state().live.get(worker).cloned();
        lifecycle.is_some_and(|lifecycle| lifecycle.crash())
    }

    /// The number of launches so far, including failed ones.
    #[must_use]
    pub fn launches(&self) -> usize {
        self.state().launches
    }

    /// The number of tool calls that reached a worker. Each attempt counts.
    #[must_use]
    pub fn calls(&self, tool: &str) -> usize {
        self.state().calls.get(tool).copied().unwrap_or_default()
    }

    /// The live workers, ordered by their ids.
    #[must_use]
    pub fn workers(&self) -> Vec<WorkerId> {
        self.state().live.keys().cloned().collect()
    }

    /// Waits until `count` launches have succeeded in total. Cancel safe.
    pub async fn launched(&self, count: usize) {
        let mut launched = self.shared.launched.subscribe();
        // The sender lives as long as `self`.
        let _ = launched.wait_for(|launched| *launched >= count).await;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state()
    }
}

#[async_trait]
impl WorkerLauncher for InProcessWorkers {
    async fn launch(&self, request: LaunchRequest) -> Result<Worker, WorkerError> {
        let outcome = {
            let mut state = self.state();
            state.launches += 1;
            state.script.pop_front()
        };
        match outcome {
            Some(LaunchOutcome::Fail(problem)) => return Err(WorkerError::start_failed(problem)),
            Some(LaunchOutcome::Delay(time)) => tokio::time::sleep(time).await,
            None => {}
        }
        let (id, lifecycle) = (request.id, Arc::<Lifecycle>::default());
        let handler = Handler {
            worker: id.clone(),
            shared: Arc::clone(&self.shared),
            lifecycle: Arc::clone(&lifecycle),
            host_state: request.host_state,
        };
        let (worker, launcher_end) = Worker::new(id.clone(), None, "in-process", Arc::new(handler));
        let tools: Vec<_> = {
            let mut state = self.state();
            state.live.insert(id.clone(), Arc::clone(&lifecycle));
            state.tools.values().map(|tool| tool.spec.clone()).collect()
        };
        let drive = drive(launcher_end, id, EndGuard(lifecycle), Arc::downgrade(&self.shared));
        let mut drivers = self.shared.drivers.lock().unwrap_or_else(PoisonError::into_inner);
        // Removes the tasks that have ended.
        while drivers.try_join_next().is_some() {}
        drivers.spawn(drive);
        drop(drivers);
        self.shared.launched.send_modify(|launched| *launched += 1);
        Ok(worker.with_tools(tools))
    }
}

/// Executes the pool's commands until the worker ends.
async fn drive(mut launcher_end: LauncherEnd, id: WorkerId, guard: EndGuard, shared: Weak<LauncherState>) {
    let lifecycle = &guard.0;
    let mut crash = lifecycle.crash.subscribe();
    let reason = tokio::select! {
        biased;
        crash = crash.wait_for(Option::is_some) => crash.ok().and_then(|reason| reason.clone()),
        command = launcher_end.command() => Some(match command {
            WorkerCommand::Stop { .. } => ExitReason::Stopped,
            WorkerCommand::Kill { reason } => ExitReason::Killed { reason },
        }),
    };
    if let Some(shared) = shared.upgrade() {
        shared.state().live.remove(&id);
    }
    // `lifecycle` holds the sender, so there is a reason.
    if let Some(reason) = reason {
        launcher_end.exited(WorkerExit { reason: reason.clone(), output_lines: Vec::new() });
        lifecycle.end.send_replace(Some(reason));
    }
}

/// Ends the calls of a worker whose driver is aborted.
#[derive(Debug)]
struct EndGuard(Arc<Lifecycle>);

impl Drop for EndGuard {
    fn drop(&mut self) {
        self.0.end.send_if_modified(|end| {
            let is_aborted = end.is_none();
            end.get_or_insert_with(ExitReason::supervisor_ended);
            is_aborted
        });
    }
}

impl LauncherState {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lifecycle {
    /// Returns whether the worker was alive.
    fn crash(&self) -> bool {
        let reason = ExitReason::Signal { name: "SIGSEGV".to_owned() };
        let is_alive = self.end.borrow().is_none();
        is_alive && self.crash.send_replace(Some(reason)).is_none()
    }

    /// Waits for the end of the worker.
    async fn ended(&self) -> ExitReason {
        let mut end = self.end.subscribe();
        let reason = end.wait_for(Option::is_some).await.ok().and_then(|reason| reason.clone());
        match reason {
            Some(reason) => reason,
            None => std::future::pending().await,
        }
    }
}

/// Runs the calls of one worker.
#[derive(Debug)]
struct Handler {
    worker: WorkerId,
    shared: Arc<LauncherState>,
    lifecycle: Arc<Lifecycle>,
    /// The state of the host that launched the worker.
    host_state: Option<Arc<HostState>>,
}

impl Handler {
    /// Counts the call, and finds its tool. Returns `None` if the call crashes the worker.
    fn begin(&self, call: &ToolCall) -> Result<Option<Arc<dyn ToolHandler>>, ToolError> {
        let mut state = self.shared.state();
        let name = call.tool.to_string();
        let handler = match (state.tools.get(&name).map(|tool| &tool.code), &state.any_tool) {
            (Some(ToolCode::Closure(tool)), _) => {
                if tool.spec().supports_streaming && call.mode == CallMode::Unary {
                    let problem = "streams; call it for a stream of chunks".to_owned();
                    return Err(ToolError::unsupported(name, problem));
                }
                let tool = tool.clone();
                Arc::new(match &self.host_state {
                    Some(host_state) => tool.with_state(Arc::clone(host_state)),
                    None => tool,
                })
            }
            (Some(ToolCode::Handler(handler)), _) | (None, Some(handler)) => Arc::clone(handler),
            (None, None) => return Err(ToolError::not_found(name)),
        };
        *state.calls.entry(name.clone()).or_default() += 1;
        let crashes = state.crashes.get_mut(&name).filter(|crashes| **crashes > 0);
        let crash = crashes.map(|crashes| *crashes -= 1).is_some();
        drop(state);
        if crash {
            self.lifecycle.crash();
        }
        Ok((!crash).then_some(handler))
    }
}

fn lost(worker: &WorkerId, reason: &ExitReason) -> ToolError {
    let (worker, reason) = (worker.to_string(), reason.to_string());
    ToolError::worker_lost(worker, reason)
}

#[async_trait]
impl ToolHandler for Handler {
    async fn call(&self, call: ToolCall) -> Result<ToolReply, ToolError> {
        let Some(handler) = self.begin(&call)? else {
            return Err(lost(&self.worker, &self.lifecycle.ended().await));
        };
        let mut reply = tokio::select! {
            biased;
            reason = self.lifecycle.ended() => return Err(lost(&self.worker, &reason)),
            reply = handler.call(call) => reply?,
        };
        if let ReplyBody::Stream(chunks) = reply.body {
            // The stream ends with its worker.
            let (lifecycle, worker) = (Arc::clone(&self.lifecycle), self.worker.clone());
            let ended = Box::pin(async move { lost(&worker, &lifecycle.ended().await) });
            let bounded = stream::unfold(Some((chunks, ended)), async |open| {
                let (mut chunks, mut ended) = open?;
                tokio::select! {
                    biased;
                    lost = &mut ended => Some((Err(lost), None)),
                    chunk = chunks.next() => {
                        let chunk = chunk?;
                        let open = chunk.is_ok().then_some((chunks, ended));
                        Some((chunk, open))
                    }
                }
            });
            reply.body = ReplyBody::Stream(Box::pin(bounded));
        }
        Ok(reply)
    }

    async fn cancel(&self, call: CallId) -> Result<(), ToolError> {
        let handlers: Vec<_> = {
            let state = self.shared.state();
            // A closure has no separate task to cancel.
            let tools = state.tools.values().filter_map(|tool| match &tool.code {
                ToolCode::Handler(handler) => Some(handler),
                ToolCode::Closure(_) => None,
            });
            tools.chain(&state.any_tool).cloned().collect()
        };
        for handler in handlers {
            handler.cancel(call).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use snakepit_registry::Chunk;

    use super::*;

    fn request(id: &str) -> LaunchRequest {
        LaunchRequest::new(WorkerId::new(id))
    }

    fn workers() -> InProcessWorkers {
        let endless = || stream::iter([1, 2]).chain(stream::pending());
        InProcessWorkers::new()
            .fn_tool(FnTool::typed("unit", |(): ()| async {}))
            .fn_tool(FnTool::typed("hang", |(): ()| std::future::pending::<()>()))
            .fn_tool(FnTool::new("count", || stream::iter([1, 2])))
            .fn_tool(FnTool::new("endless", endless))
    }

    async fn chunks(worker: &Worker, tool: &str) -> snakepit_registry::ChunkStream {
        let reply = worker.handler().call(ToolCall::new(tool).streaming()).await.unwrap();
        let ReplyBody::Stream(chunks) = reply.body else { panic!("a value") };
        chunks
    }

    #[tokio::test]
    async fn the_workers_keep_the_contract() {
        crate::contract::launcher_contract(Arc::new(workers())).await;
    }

    #[tokio::test(start_paused = true)]
    async fn launches_follow_the_script() {
        let workers = workers();
        workers.delay_launches(1, Duration::from_secs(3600));
        workers.fail_launches(1, "no memory");
        let began = tokio::time::Instant::now();
        let worker = workers.launch(request("slow")).await.unwrap();
        assert_eq!(began.elapsed(), Duration::from_secs(3600));
        let names: Vec<_> = worker.tools().unwrap().iter().map(|spec| spec.name.as_str()).collect();
        assert_eq!(names, ["count", "endless", "hang", "unit"]);
        let failed = workers.launch(request("failed")).await.unwrap_err();
        assert!(matches!(failed, WorkerError::StartFailed { .. }), "{failed}");
        workers.launched(1).await;
        assert_eq!((workers.launches(), workers.workers()), (2, vec![WorkerId::new("slow")]));
    }

    #[tokio::test(start_paused = true)]
    async fn a_crash_ends_the_worker_with_its_calls_and_streams() {
        let workers = workers();
        let worker = workers.launch(request("w")).await.unwrap();
        let mut chunks = chunks(&worker, "endless").await;
        assert!(chunks.next().await.unwrap().is_ok() && chunks.next().await.unwrap().is_ok());
        let hanging = worker.handler().call(ToolCall::new("hang"));
        let crash = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            workers.crash(&WorkerId::new("w"))
        };
        let (lost, was_alive) = tokio::join!(hanging, crash);
        let lost = lost.unwrap_err();
        assert!(was_alive && matches!(&lost, ToolError::WorkerLost { may_have_run: true, .. }), "{lost}");
        assert!(matches!(chunks.next().await, Some(Err(ToolError::WorkerLost { .. }))));
        assert!(chunks.next().await.is_none());
        assert_eq!(worker.exited().await.reason, ExitReason::Signal { name: "SIGSEGV".to_owned() });
        assert!(!workers.crash(&WorkerId::new("w")) && workers.workers().is_empty());
    }

    #[tokio::test]
    async fn calls_end_when_the_driver_of_their_worker_is_aborted() {
        let workers = workers();
        let worker = workers.launch(request("w")).await.unwrap();
        workers.shared.drivers.lock().unwrap().abort_all();
        let lost = worker.handler().call(ToolCall::new("hang")).await.unwrap_err();
        assert!(matches!(&lost, ToolError::WorkerLost { .. }), "{lost}");
    }

    #[tokio::test]
    async fn drivers_of_ended_workers_are_removed() {
        let workers = workers();
        for id in ["1", "2", "3", "4"] {
            let worker = workers.launch(request(id)).await.unwrap();
            assert!(workers.crash(worker.id()));
            worker.exited().await;
            // The exit is reported before the task ends.
            tokio::task::yield_now().await;
        }
        assert!(workers.shared.drivers.lock().unwrap().len() <= 2);
    }

    #[tokio::test]
    async fn a_call_crashes_its_worker_as_often_as_the_script_says() {
        let workers = workers();
        workers.crash_in_calls("unit", 1);
        let [first, second] = [request("1"), request("2")].map(|request| workers.launch(request));
        let (first, second) = (first.await.unwrap(), second.await.unwrap());
        let call = |worker: &Worker| {
            let handler = Arc::clone(worker.handler());
            async move { handler.call(ToolCall::new("unit")).await }
        };
        assert!(matches!(call(&first).await, Err(ToolError::WorkerLost { .. })));
        call(&second).await.unwrap();
        assert_eq!((workers.calls("unit"), workers.calls("hang")), (2, 0));
        let chunks: Vec<Result<Chunk, _>> = chunks(&second, "count").await.collect().await;
        assert!(chunks.len() == 2 && chunks.iter().all(Result::is_ok), "{chunks:?}");
        let unary = second.handler().call(ToolCall::new("count")).await.unwrap_err();
        assert!(matches!(unary, ToolError::Unsupported { .. }), "{unary}");
        let unknown = second.handler().call(ToolCall::new("other")).await.unwrap_err();
        assert!(matches!(unknown, ToolError::NotFound { .. }), "{unknown}");
    }
}
