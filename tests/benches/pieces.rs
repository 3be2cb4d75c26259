//! Hot pieces of the product, each as something to run again and again on the same input: timed by `micro.rs`, counted
//! in instructions by `instructions.rs`.

use std::{convert::Infallible, hint::black_box, sync::Arc};

use bytes::Bytes;
use prost::Message;
use snakepit_pool::{Pool, PoolConfig, RemoteTool};
use snakepit_proto::pb;
use snakepit_registry::{FnTool, ToolCall, ToolHandler};
use snakepit_session::{MemoryBackend, NewSession, Payload, SessionBackend, SessionId, SessionLimits};
use snakepit_wire::{payload_from_wire, payload_to_wire, value_from_wire, value_to_wire};
use snakepit_worker::fake::FakeLauncher;
use tokio::runtime::Runtime;

/// A whole number, as a tool's argument.
pub fn payload() -> Payload {
    Payload::try_from_serde(&1_234_567).unwrap()
}

/// A value into an `Any` and back.
pub fn any_round_trip(payload: Payload) -> Payload {
    let (any, binary) = payload_to_wire(black_box(payload));
    payload_from_wire(black_box(any), binary).unwrap()
}

/// A value into that of a multiplexed call and back.
pub fn value_round_trip(payload: Payload) -> Payload {
    value_from_wire(black_box(value_to_wire(black_box(payload)))).unwrap()
}

/// A message with one multiplexed call, as it goes over the wire.
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

/// Such a message encoded and decoded.
pub fn batch_round_trip(batch: &pb::CallBatch) -> pb::CallBatch {
    let wire = Bytes::from(black_box(batch).encode_to_vec());
    pb::CallBatch::decode(black_box(wire)).unwrap()
}

/// A pool of four workers in this process, whose tool answers at once: what a call costs in the scheduler and in the
/// layers. The scheduler itself is private to its crate.
pub struct FakePool {
    runtime: Runtime,
    tool: Arc<RemoteTool>,
    _pool: Pool,
}

impl FakePool {
    pub fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let unit = FnTool::typed("unit", |(): ()| async { Ok::<_, Infallible>(()) });
        let launcher = Arc::new(FakeLauncher::new(Arc::new(unit)));
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

/// The memory backend with some sessions.
pub struct Sessions {
    pub backend: MemoryBackend,
    pub ids: Vec<SessionId>,
}

impl Sessions {
    pub fn with(count: usize) -> Self {
        let backend = MemoryBackend::new(SessionLimits::default());
        let ids: Vec<SessionId> = ids(count).collect();
        ids.iter().for_each(|id| drop(now(backend.create(id, NewSession::default())).unwrap()));
        Self { backend, ids }
    }

    pub fn get(&self, at: usize) {
        black_box(now(self.backend.get(&self.ids[at % self.ids.len()])).unwrap());
    }

    pub fn update(&self, at: usize, worker: &Arc<str>) {
        now(self.backend.set_last_worker(&self.ids[at % self.ids.len()], Arc::clone(worker))).unwrap();
    }
}

/// Ids of sessions, as hosts make them.
pub fn ids(count: usize) -> impl Iterator<Item = SessionId> {
    (0..count).map(|number| SessionId::try_new(format!("session-{number:012}")).unwrap())
}

/// The memory backend never waits, so its futures are ready at once.
pub fn now<T>(future: impl Future<Output = T>) -> T {
    futures_util::FutureExt::now_or_never(future).unwrap()
}
