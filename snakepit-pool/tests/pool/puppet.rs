//! A launcher controlled by the test, which receives and answers every launch, call, cancellation and command.

use std::{
    future::poll_fn,
    pin::Pin,
    sync::{Arc, Mutex},
    task::Poll,
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use snakepit_pool::{Pool, PoolConfig, PoolStatus, RemoteTool, WorkerState};
use snakepit_registry::{CallId, CallLayers, Chunk, ReplyBody, ToolCall, ToolError, ToolHandler, ToolReply};
use snakepit_session::Payload;
use snakepit_worker::{
    ExitReason, LaunchRequest, LauncherEnd, Worker, WorkerCommand, WorkerError, WorkerExit, WorkerId,
    WorkerLauncher,
};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinSet,
};
use tokio_stream::wrappers::UnboundedReceiverStream;

pub(crate) type Answer = Result<ToolReply, ToolError>;
pub(crate) type Item = Result<Chunk, ToolError>;

/// A launch that waits for the test's answer.
pub(crate) struct Launch {
    pub(crate) id: WorkerId,
    answer: oneshot::Sender<Result<Worker, WorkerError>>,
    calls: mpsc::UnboundedSender<Call>,
    cancels: mpsc::UnboundedSender<Cancel>,
}

/// A call that waits for the test's answer. `answer` closes when the pool drops the call.
pub(crate) struct Call {
    pub(crate) worker: WorkerId,
    pub(crate) call: ToolCall,
    pub(crate) answer: oneshot::Sender<Answer>,
}

/// A cancellation that waits for the test's answer.
pub(crate) struct Cancel {
    pub(crate) worker: WorkerId,
    pub(crate) call: CallId,
    pub(crate) answer: oneshot::Sender<Result<(), ToolError>>,
}

/// The test's end of a worker that is up.
pub(crate) struct PuppetWorker {
    pub(crate) id: WorkerId,
    launcher_end: LauncherEnd,
}

#[derive(Debug)]
struct PuppetLauncher {
    launches: mpsc::UnboundedSender<Launch>,
    calls: mpsc::UnboundedSender<Call>,
    cancels: mpsc::UnboundedSender<Cancel>,
}

#[derive(Debug)]
struct PuppetHandler {
    worker: WorkerId,
    calls: mpsc::UnboundedSender<Call>,
    cancels: mpsc::UnboundedSender<Cancel>,
}

#[async_trait]
impl WorkerLauncher for PuppetLauncher {
    async fn launch(&self, LaunchRequest { id, .. }: LaunchRequest) -> Result<Worker, WorkerError> {
        let (answer, answer_receiver) = oneshot::channel();
        let (calls, cancels) = (self.calls.clone(), self.cancels.clone());
        self.launches.send(Launch { id, answer, calls, cancels }).expect("the test receives");
        answer_receiver.await.expect("the test answers")
    }
}

#[async_trait]
impl ToolHandler for PuppetHandler {
    async fn call(&self, call: ToolCall) -> Answer {
        let (answer, answer_receiver) = oneshot::channel();
        let request = Call { worker: self.worker.clone(), call, answer };
        self.calls.send(request).expect("the test receives");
        match answer_receiver.await {
            Ok(answer) => answer,
            // The test dropped the call, so it never ends.
            Err(_) => std::future::pending().await,
        }
    }

    async fn cancel(&self, call: CallId) -> Result<(), ToolError> {
        let (answer, answer_receiver) = oneshot::channel();
        let request = Cancel { worker: self.worker.clone(), call, answer };
        self.cancels.send(request).expect("the test receives");
        match answer_receiver.await {
            Ok(answer) => answer,
            Err(_) => std::future::pending().await,
        }
    }
}

impl Launch {
    pub(crate) fn succeed(self) -> PuppetWorker {
        self.succeed_with(|worker| worker)
    }

    pub(crate) fn succeed_with(self, configure: impl FnOnce(Worker) -> Worker) -> PuppetWorker {
        let handler = PuppetHandler {
            worker: self.id.clone(),
            calls: self.calls.clone(),
            cancels: self.cancels.clone(),
        };
        let (worker, launcher_end) = Worker::new(self.id.clone(), Some(42), "puppet", Arc::new(handler));
        assert!(self.answer.send(Ok(configure(worker))).is_ok(), "the pool waits for the launch");
        PuppetWorker { id: self.id, launcher_end }
    }

    pub(crate) fn fail(self) {
        let error = WorkerError::start_failed("no such adapter");
        assert!(self.answer.send(Err(error)).is_ok(), "the pool waits for the launch");
    }

    /// Waits until the pool aborts the launch.
    pub(crate) async fn wait_until_aborted(mut self) {
        self.answer.closed().await;
    }
}

impl Call {
    pub(crate) fn succeed(self) {
        self.finish(Ok(ToolReply::value(Payload::null())));
    }

    pub(crate) fn finish(self, answer: Answer) {
        assert!(self.answer.send(answer).is_ok(), "the pool waits for the answer");
    }

    /// Answers with a stream. Returns the sender of its chunks.
    pub(crate) fn stream(self) -> mpsc::UnboundedSender<Item> {
        let (chunk_sender, items) = mpsc::unbounded_channel();
        self.finish(Ok(ToolReply::stream(Box::pin(UnboundedReceiverStream::new(items)))));
        chunk_sender
    }
}

impl PuppetWorker {
    pub(crate) async fn command(&mut self) -> WorkerCommand {
        self.launcher_end.command().await
    }

    pub(crate) fn exit(self, reason: ExitReason) {
        self.launcher_end.exited(WorkerExit::new(reason).with_output_lines(vec!["last line".to_owned()]));
    }

    /// Waits for a command and exits accordingly.
    pub(crate) async fn exit_on_command(mut self) -> WorkerCommand {
        let command = self.command().await;
        self.exit(match &command {
            WorkerCommand::Stop { .. } => ExitReason::Stopped,
            WorkerCommand::Kill { reason } => ExitReason::Killed { reason: reason.clone() },
        });
        command
    }
}

/// A pool, and the requests to its workers.
pub(crate) struct PoolHarness {
    pub(crate) pool: Pool,
    pub(crate) launches: mpsc::UnboundedReceiver<Launch>,
    pub(crate) calls: mpsc::UnboundedReceiver<Call>,
    pub(crate) cancels: mpsc::UnboundedReceiver<Cancel>,
    tasks: Arc<Mutex<JoinSet<()>>>,
}

pub(crate) fn config(workers: usize) -> PoolConfig {
    PoolConfig::default().workers(workers).name("p")
}

impl PoolHarness {
    pub(crate) fn start(config: PoolConfig) -> Self {
        Self::start_with_layers(config, CallLayers::default())
    }

    pub(crate) fn start_with_layers(config: PoolConfig, layers: CallLayers) -> Self {
        let (launches, received_launches) = mpsc::unbounded_channel();
        let (calls, received_calls) = mpsc::unbounded_channel();
        let (cancels, received_cancels) = mpsc::unbounded_channel();
        let launcher = PuppetLauncher { launches, calls, cancels };
        Self {
            pool: Pool::start_with_layers(config, Arc::new(launcher), layers).unwrap(),
            launches: received_launches,
            calls: received_calls,
            cancels: received_cancels,
            tasks: Arc::default(),
        }
    }

    /// Starts a pool and all its workers.
    pub(crate) async fn up(config: PoolConfig) -> (Self, Vec<PuppetWorker>) {
        Self::up_with_layers(config, CallLayers::default()).await
    }

    pub(crate) async fn up_with_layers(config: PoolConfig, layers: CallLayers) -> (Self, Vec<PuppetWorker>) {
        let count = config.workers;
        let mut harness = Self::start_with_layers(config, layers);
        let mut workers = Vec::new();
        for _ in 0..count {
            workers.push(harness.launch().await.succeed());
        }
        harness.pool.ready().await.unwrap();
        workers.sort_by(|a, b| a.id.cmp(&b.id));
        (harness, workers)
    }

    pub(crate) async fn launch(&mut self) -> Launch {
        self.launches.recv().await.unwrap()
    }

    /// The next call that reaches a worker.
    pub(crate) async fn next_call(&mut self) -> Call {
        self.calls.recv().await.unwrap()
    }

    pub(crate) async fn next_cancel(&mut self) -> Cancel {
        self.cancels.recv().await.unwrap()
    }

    pub(crate) fn tool(&self) -> Arc<RemoteTool> {
        self.pool.tool()
    }

    /// Makes a call in a new task. Returns once the call is queued or assigned.
    pub(crate) async fn call(&self, call: ToolCall) -> Caller {
        let tool = self.tool();
        let before = self.call_counts();
        let (answer, answer_receiver) = oneshot::channel();
        let abort = self.tasks.lock().unwrap().spawn(async move {
            let _ = answer.send(tool.call(call).await);
        });
        while self.call_counts() == before && !abort.is_finished() {
            tokio::task::yield_now().await;
        }
        Caller { answer_receiver, abort }
    }

    pub(crate) async fn call_tool(&self, name: &str) -> Caller {
        self.call(ToolCall::new(name)).await
    }

    /// The numbers of queued and running calls.
    fn call_counts(&self) -> (usize, usize) {
        let status = self.pool.status();
        (status.queued, status.in_flight)
    }

    pub(crate) fn status(&self) -> PoolStatus {
        self.pool.status()
    }

    pub(crate) fn state(&self, slot: usize) -> WorkerState {
        self.pool.status().workers[slot].state
    }

    /// Runs all tasks that can make progress without a timer.
    pub(crate) async fn settle(&self) {
        tokio::time::sleep(Duration::from_nanos(1)).await;
    }
}

/// The task of a call.
pub(crate) struct Caller {
    answer_receiver: oneshot::Receiver<Answer>,
    abort: tokio::task::AbortHandle,
}

impl Caller {
    pub(crate) async fn answer(self) -> Answer {
        self.answer_receiver.await.unwrap()
    }

    pub(crate) async fn error(self) -> ToolError {
        self.answer().await.unwrap_err()
    }

    /// Drops the call.
    pub(crate) async fn drop_call(self) {
        self.abort.abort();
        let Self { mut answer_receiver, .. } = self;
        assert!((&mut answer_receiver).await.is_err(), "it had an answer already");
    }
}

pub(crate) fn chunk() -> Item {
    Ok(Chunk { data: Bytes::from_static(b"1"), ..Chunk::default() })
}

/// The next item of a streamed reply.
pub(crate) async fn next(reply: &mut ToolReply) -> Option<Item> {
    let ReplyBody::Stream(stream) = &mut reply.body else { panic!("not a stream: {reply:?}") };
    poll_fn(|cx| stream.as_mut().poll_next(cx)).await
}

/// Polls a future once.
pub(crate) async fn is_pending(mut future: Pin<&mut impl Future>) -> bool {
    poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx).is_pending())).await
}
