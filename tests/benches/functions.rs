//! Hot functions of the product, prepared to run repeatedly with the same input. `micro.rs` measures their time, and
//! `instructions.rs` their instructions.

use std::{convert::Infallible, hint::black_box, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use prost::Message;
use snakepit_pool::{Pool, PoolConfig, RemoteTool};
use snakepit_proto::pb;
use snakepit_registry::{FnTool, ToolCall, ToolHandler};
use snakepit_session::{MemoryBackend, NewSession, Payload, SessionBackend, SessionId, SessionLimits};
use snakepit_wire::{payload_from_wire, payload_to_wire, value_from_wire, value_to_wire};
use snakepit_worker::{ExitReason, LaunchRequest, Worker, WorkerError, WorkerExit, WorkerLauncher};
use tokio::runtime::Runtime;

/// An integer argument.
pub fn payload() -> Payload {
    Payload::try_from_serde(&1_234_567).unwrap()
}

/// Converts a value to an `Any` and back.
pub fn any_round_trip(payload: Payload) -> Payload {
    let (any, binary) = payload_to_wire(black_box(payload));
    payload_from_wire(black_box(any), binary).unwrap()
}

/// Converts a value to that of a multiplexed call and back.
pub fn value_round_trip(payload: Payload) -> Payload {
    value_from_wire(black_box(value_to_wire(black_box(payload)))).unwrap()
}

/// A message with one multiplexed call.
pub fn call_batch() -> pb::CallBatch {
    let argument =
        |name: &str| pb::CallArgument { name: name.to_owned(), value: Some(value_to_wire(payload())) };
    let call = pb::CallStart {
        id: 1,
        tool_name: "add".to_owned(),
        arguments: vec![argument("a"), argument("b")],
        timeout_us: 60_000_000,
        ..pb::CallStart::default()
    };
    pb::CallBatch { calls: vec![call], ..pb::CallBatch::default() }
}

/// Encodes and decodes a message.
pub fn batch_round_trip(batch: &pb::CallBatch) -> pb::CallBatch {
    let wire = Bytes::from(black_box(batch).encode_to_vec());
    pb::CallBatch::decode(black_box(wire)).unwrap()
}

/// A pool of four fake workers. Their tool returns immediately, so a call measures the layers and the scheduler, which is
/// private to its crate.
pub struct FakePool {
    runtime: Runtime,
    tool: Arc<RemoteTool>,
    _pool: Pool,
}

impl FakePool {
    pub fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let unit = FnTool::typed("unit", |(): ()| async { Ok::<_, Infallible>(()) });
        let launcher = Arc::new(BareLauncher(Arc::new(unit)));
        let pool = runtime.block_on(async {
            let pool = Pool::start(PoolConfig::default(), launcher).unwrap();
            pool.ready().await.unwrap();
            pool
        });
        Self { runtime, tool: pool.tool(), _pool: pool }
    }

    pub fn call(&self) {
        self.runtime.block_on(self.tool.call(ToolCall::new("unit"))).unwrap();
    }
}

/// Launches workers that pass each call to a handler without any other work, so that the benchmark counts the pool alone.
#[derive(Debug)]
struct BareLauncher(Arc<dyn ToolHandler>);

#[async_trait]
impl WorkerLauncher for BareLauncher {
    async fn launch(&self, request: LaunchRequest) -> Result<Worker, WorkerError> {
        let (worker, mut launcher_end) = Worker::new(request.id, None, "in-process", Arc::clone(&self.0));
        tokio::spawn(async move {
            launcher_end.command().await;
            launcher_end.exited(WorkerExit::new(ExitReason::Stopped));
        });
        Ok(worker)
    }
}

/// The memory backend with a number of sessions.
pub struct Sessions {
    pub backend: MemoryBackend,
    pub ids: Vec<SessionId>,
}

impl Sessions {
    pub fn with(count: usize) -> Self {
        let backend = MemoryBackend::new(SessionLimits::default());
        let ids: Vec<SessionId> = ids(count).collect();
        ids.iter().for_each(|id| drop(complete(backend.create(id, NewSession::default())).unwrap()));
        Self { backend, ids }
    }

    pub fn get(&self, at: usize) {
        black_box(complete(self.backend.get(&self.ids[at % self.ids.len()])).unwrap());
    }

    pub fn update(&self, at: usize, worker: &Arc<str>) {
        complete(self.backend.set_last_worker(&self.ids[at % self.ids.len()], Arc::clone(worker))).unwrap();
    }
}

/// Creates session ids.
pub fn ids(count: usize) -> impl Iterator<Item = SessionId> {
    (0..count).map(|number| SessionId::try_new(format!("session-{number:012}")).unwrap())
}

/// Completes an operation of the memory backend, which never waits.
pub fn complete<T>(future: impl Future<Output = T>) -> T {
    futures_util::FutureExt::now_or_never(future).unwrap()
}
