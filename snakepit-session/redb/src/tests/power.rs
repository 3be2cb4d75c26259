//! Power failures at any moment: during writes, and while the file is created, opened, repaired or closed. Afterwards the file
//! opens, acknowledged operations are present, and other operations are present completely or not at all.

use std::{ops::RangeInclusive, sync::Arc};

use proptest::{
    prelude::*,
    test_runner::{RngAlgorithm, TestRng},
};
use snakepit_session::{MemoryBackend, NewSession, SessionBackend, SessionLimits};
use tokio::task::JoinSet;

use super::{
    disk::Disk,
    history::older_versions,
    id,
    matches_memory::{Operation, operation, run_operation},
    register, set,
};
use crate::RedbBackend;

/// A host whose disk has a sequence of power failures.
struct Host {
    disk: Disk,
    /// The range of changes and syncs between two power failures.
    changes_until_cut: RangeInclusive<usize>,
    random: TestRng,
}

impl Host {
    fn new(seed: u64, changes_until_cut: RangeInclusive<usize>) -> Self {
        let random = TestRng::from_seed(RngAlgorithm::ChaCha, &seed.to_le_bytes().repeat(4));
        let mut host = Self { disk: Disk::default(), changes_until_cut, random };
        host.schedule_power_failure();
        host
    }

    fn schedule_power_failure(&mut self) {
        self.disk.cut_power_at(self.random.random_range(self.changes_until_cut.clone()));
    }

    /// Opens the file, through as many power failures as necessary.
    async fn open(&mut self) -> RedbBackend {
        loop {
            let opened = self.disk.open(SessionLimits::default()).await;
            if !self.disk.is_off() {
                return opened.unwrap();
            }
            drop(opened);
            self.disk = self.disk.restore_power(&mut self.random);
            self.schedule_power_failure();
        }
    }
}

/// Returns the visible state of the sessions.
async fn visible_state(backend: &dyn SessionBackend) -> String {
    let mut operations = vec![Operation::List { size: 3 }];
    for session in 0..3 {
        operations.push(Operation::ListVariables { session, pattern: "" });
        operations.extend((0..3).map(|name| Operation::History { session, name, limit: 0 }));
    }
    for owner in 0..4 {
        operations.push(Operation::Programs { owner });
        operations.extend((0..3).map(|name| Operation::Program { owner, name }));
    }
    let mut outcomes = String::new();
    for operation in operations {
        outcomes += &run_operation(backend, operation).await;
        outcomes.push('\n');
    }
    let stats = backend.stats().await.unwrap();
    format!("{outcomes}{} {} {} {}", stats.live, stats.variables, stats.programs, stats.bytes)
}

/// Runs operations on a disk with power failures and in memory.
async fn operations_survive_power_failures(seed: u64, operations: Vec<Operation>) {
    let (mut host, model) = (Host::new(seed, 1..=60), MemoryBackend::new(SessionLimits::default()));
    let mut backend = host.open().await;
    for operation in operations {
        match operation {
            // Skip state that a crash may lose, and the clock, which is paused.
            Operation::LastWorker { .. } | Operation::Advance { .. } | Operation::Sweep => continue,
            Operation::Reopen => {
                drop(backend);
                backend = host.open().await;
                assert_eq!(
                    visible_state(&backend).await,
                    visible_state(&model).await,
                    "after the file was reopened"
                );
                continue;
            }
            _ => {}
        }
        loop {
            let found = run_operation(&backend, operation.clone()).await;
            if !host.disk.is_off() || !found.starts_with("Backend {") {
                assert_eq!(found, run_operation(&model, operation.clone()).await, "{operation:?}");
                break;
            }
            drop(backend);
            backend = host.open().await;
            let reopened = visible_state(&backend).await;
            if reopened != visible_state(&model).await {
                run_operation(&model, operation.clone()).await;
                assert_eq!(reopened, visible_state(&model).await, "{operation:?} was applied in part");
                break;
            }
        }
    }
    drop(backend);
    assert_eq!(
        visible_state(&host.open().await).await,
        visible_state(&model).await,
        "after the file was closed"
    );
}

const CLIENTS: u32 = 8;

/// Runs concurrent clients, whose writes share transactions, on a disk with power failures.
async fn groups_survive_power_failures(seed: u64) {
    let mut host = Host::new(seed, 100..=300);
    let backend = host.open().await;
    backend.create(&id("s"), NewSession::default()).await.unwrap();
    for client in 0..CLIENTS {
        register(&backend, "s", &format!("x{client}")).await.unwrap();
    }
    let (mut backend, mut versions) = (Arc::new(backend), [0; CLIENTS as usize]);
    for _ in 0..5 {
        let mut clients = JoinSet::new();
        for (client, version) in versions.into_iter().enumerate() {
            let backend = Arc::clone(&backend);
            clients.spawn(async move {
                let mut version = version;
                while set(&backend, "s", &format!("x{client}"), version + 1).await.is_ok() {
                    version += 1;
                }
                (client, version)
            });
        }
        let acknowledged = clients.join_all().await;
        drop(backend);
        backend = Arc::new(host.open().await);
        let mut older = 0;
        for (client, acknowledged) in acknowledged {
            let history = backend.variable_history(&id("s"), &format!("x{client}"), 0).await.unwrap();
            let version = history[0].version;
            assert!((acknowledged..=acknowledged + 1).contains(&version), "{acknowledged} {version}");
            for (entry, written) in history.iter().zip((0..=version).rev()) {
                assert_eq!((entry.version, entry.value.to_serde::<u32>().unwrap()), (written, written));
            }
            assert_eq!(history.len(), 21.min(version as usize + 1));
            older += history.len() - 1;
            versions[client] = version;
        }
        assert_eq!(older_versions(&backend), older as u64);
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_time().start_paused(true).build().unwrap().block_on(future)
}

proptest! {
    // Set `PROPTEST_CASES=10000` for a longer search.
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]

    #[test]
    fn sequential_operations_survive_power_failures(seed: u64, operations in prop::collection::vec(operation(6000), 200)) {
        block_on(operations_survive_power_failures(seed, operations));
    }

    #[test]
    fn concurrent_operations_survive_power_failures(seed: u64) {
        block_on(groups_survive_power_failures(seed));
    }
}
