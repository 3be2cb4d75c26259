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
    id, register,
    same::{Step, step, take},
    set,
};
use crate::RedbBackend;

/// A disk with a sequence of power failures.
struct Host {
    disk: Disk,
    lasts: RangeInclusive<usize>,
    random: TestRng,
}

impl Host {
    fn new(seed: u64, lasts: RangeInclusive<usize>) -> Self {
        let random = TestRng::from_seed(RngAlgorithm::ChaCha, &seed.to_le_bytes().repeat(4));
        let mut host = Self { disk: Disk::default(), lasts, random };
        host.cut_power_later();
        host
    }

    fn cut_power_later(&mut self) {
        self.disk.cut_power_at(self.random.random_range(self.lasts.clone()));
    }

    /// Opens the file, through as many power failures as necessary.
    async fn open(&mut self) -> RedbBackend {
        loop {
            let opened = self.disk.open(SessionLimits::default()).await;
            if !self.disk.is_off() {
                return opened.unwrap();
            }
            drop(opened);
            self.disk = self.disk.power_is_back(&mut self.random);
            self.cut_power_later();
        }
    }
}

/// The visible state of the sessions.
async fn seen(backend: &dyn SessionBackend) -> String {
    let mut steps = vec![Step::List { size: 3 }];
    for session in 0..3 {
        steps.push(Step::ListVariables { session, pattern: "" });
        steps.extend((0..3).map(|name| Step::History { session, name, limit: 0 }));
    }
    for owner in 0..4 {
        steps.push(Step::Programs { owner });
        steps.extend((0..3).map(|name| Step::Program { owner, name }));
    }
    let mut seen = String::new();
    for step in steps {
        seen += &take(backend, step).await;
        seen.push('\n');
    }
    let stats = backend.stats().await.unwrap();
    format!("{seen}{} {} {} {}", stats.live, stats.variables, stats.programs, stats.bytes)
}

/// Runs steps on a disk with power failures and in memory.
async fn steps_outlive_power_losses(seed: u64, steps: Vec<Step>) {
    let (mut host, model) = (Host::new(seed, 1..=60), MemoryBackend::new(SessionLimits::default()));
    let mut backend = host.open().await;
    for step in steps {
        match step {
            // Skip state that a crash may lose, and the clock, which is paused.
            Step::LastWorker { .. } | Step::Advance { .. } | Step::Sweep => continue,
            Step::Reopen => {
                drop(backend);
                backend = host.open().await;
                assert_eq!(seen(&backend).await, seen(&model).await, "after it was opened again");
                continue;
            }
            _ => {}
        }
        loop {
            let found = take(&backend, step.clone()).await;
            if !host.disk.is_off() || !found.starts_with("Backend {") {
                assert_eq!(found, take(&model, step.clone()).await, "{step:?}");
                break;
            }
            drop(backend);
            backend = host.open().await;
            let now = seen(&backend).await;
            if now != seen(&model).await {
                take(&model, step.clone()).await;
                assert_eq!(now, seen(&model).await, "{step:?} was done by half");
                break;
            }
        }
    }
    drop(backend);
    assert_eq!(seen(&host.open().await).await, seen(&model).await, "after it was closed");
}

const CLIENTS: u32 = 8;

/// Concurrent clients share transactions.
async fn groups_outlive_power_losses(seed: u64) {
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
            for (kept, written) in history.iter().zip((0..=version).rev()) {
                assert_eq!((kept.version, kept.value.to_serde::<u32>().unwrap()), (written, written));
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
    fn steps_outlive_the_power(seed: u64, steps in prop::collection::vec(step(6000), 200)) {
        block_on(steps_outlive_power_losses(seed, steps));
    }

    #[test]
    fn groups_outlive_the_power(seed: u64) {
        block_on(groups_outlive_power_losses(seed));
    }
}
