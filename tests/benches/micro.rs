//! `cargo bench -p snakepit-tests`: how long hot pieces take, beside what is beneath them.

#[allow(dead_code, reason = "each user of the pieces needs some of them")]
#[path = "pieces.rs"]
mod pieces;

fn main() {
    divan::main();
}

/// Values and messages of the wire.
mod codec {
    use divan::Bencher;

    use super::pieces;

    #[divan::bench(sample_size = 1000)]
    fn any_round_trip(bencher: Bencher<'_, '_>) {
        bencher.with_inputs(pieces::payload).bench_values(pieces::any_round_trip);
    }

    #[divan::bench(sample_size = 1000)]
    fn value_round_trip(bencher: Bencher<'_, '_>) {
        bencher.with_inputs(pieces::payload).bench_values(pieces::value_round_trip);
    }

    #[divan::bench(sample_size = 1000)]
    fn batch_round_trip(bencher: Bencher<'_, '_>) {
        let batch = pieces::call_batch();
        bencher.bench_local(|| pieces::batch_round_trip(&batch));
    }
}

/// A call through the pool's layers and its scheduler, to a worker that answers at once.
mod pool {
    use divan::Bencher;

    use super::pieces::FakePool;

    #[divan::bench(sample_size = 200)]
    fn call(bencher: Bencher<'_, '_>) {
        let pool = FakePool::start();
        bencher.bench_local(|| pool.call());
    }
}

/// The memory backend beside a bare map, by one thread and by two.
mod sessions {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    use dashmap::DashMap;
    use divan::{Bencher, black_box};
    use snakepit_session::{MemoryBackend, NewSession, SessionBackend, SessionId, SessionLimits};

    use super::pieces::{Sessions, ids, now};

    const SESSIONS: usize = 10_000;

    /// Which session is next: each thread goes its own way, without a counter that both would fight over.
    fn next() -> usize {
        thread_local!(static AT: std::cell::Cell<usize> = std::cell::Cell::new({
            static THREADS: AtomicUsize = AtomicUsize::new(0);
            THREADS.fetch_add(1, Ordering::Relaxed) * 7919
        }));
        AT.with(|at| at.replace(at.get().wrapping_add(1)))
    }

    fn map() -> (DashMap<SessionId, Arc<str>>, Vec<SessionId>) {
        let ids: Vec<SessionId> = ids(SESSIONS).collect();
        (ids.iter().map(|id| (id.clone(), Arc::from("worker-1"))).collect(), ids)
    }

    #[divan::bench(threads = [1, 2], sample_size = 2000)]
    fn get(bencher: Bencher<'_, '_>) {
        let sessions = Sessions::with(SESSIONS);
        bencher.bench(|| sessions.get(next()));
    }

    #[divan::bench(threads = [1, 2], sample_size = 2000)]
    fn get_bare_map(bencher: Bencher<'_, '_>) {
        let (map, ids) = map();
        bencher.bench(|| black_box(map.get(&ids[next() % SESSIONS]).map(|worker| Arc::clone(&worker))));
    }

    #[divan::bench(threads = [1, 2], sample_size = 2000)]
    fn update(bencher: Bencher<'_, '_>) {
        let (sessions, worker) = (Sessions::with(SESSIONS), Arc::from("worker-2"));
        bencher.bench(|| sessions.update(next(), &worker));
    }

    #[divan::bench(threads = [1, 2], sample_size = 2000)]
    fn update_bare_map(bencher: Bencher<'_, '_>) {
        let ((map, ids), worker) = (map(), Arc::from("worker-2"));
        bencher.bench(|| map.alter(&ids[next() % SESSIONS], |_, _| Arc::clone(&worker)));
    }

    /// The n-th id that nobody used before.
    fn fresh() -> SessionId {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        SessionId::try_new(format!("session-{number:012}")).unwrap()
    }

    #[divan::bench(threads = [1, 2], sample_size = 1000)]
    fn create(bencher: Bencher<'_, '_>) {
        let backend = MemoryBackend::new(SessionLimits::default());
        bencher
            .with_inputs(fresh)
            .bench_values(|id| now(backend.create(&id, NewSession::default())).unwrap());
    }

    #[divan::bench(threads = [1, 2], sample_size = 1000)]
    fn create_bare_map(bencher: Bencher<'_, '_>) {
        let map = DashMap::<SessionId, Arc<str>>::new();
        bencher
            .with_inputs(|| (fresh(), Arc::from("worker-1")))
            .bench_values(|(id, worker)| map.insert(id, worker));
    }
}
