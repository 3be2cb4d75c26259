//! `cargo bench -p snakepit-tests`: timings of hot functions, with plain maps as baselines.

#[allow(dead_code, reason = "each benchmark uses some of the functions")]
#[path = "functions.rs"]
mod functions;

fn main() {
    divan::main();
}

/// Encoding and decoding of values and messages.
mod codec {
    use divan::Bencher;

    use super::functions;

    #[divan::bench(sample_size = 1000)]
    fn any_round_trip(bencher: Bencher<'_, '_>) {
        bencher.with_inputs(functions::payload).bench_values(functions::any_round_trip);
    }

    #[divan::bench(sample_size = 1000)]
    fn value_round_trip(bencher: Bencher<'_, '_>) {
        bencher.with_inputs(functions::payload).bench_values(functions::value_round_trip);
    }

    #[divan::bench(sample_size = 1000)]
    fn batch_round_trip(bencher: Bencher<'_, '_>) {
        let batch = functions::call_batch();
        bencher.bench_local(|| functions::batch_round_trip(&batch));
    }
}

/// A call through the pool's layers and scheduler to a fake worker.
mod pool {
    use divan::Bencher;

    use super::functions::FakePool;

    #[divan::bench(sample_size = 200)]
    fn call(bencher: Bencher<'_, '_>) {
        let pool = FakePool::start();
        bencher.bench_local(|| pool.call());
    }
}

/// The memory backend and a plain map, with one and two threads.
mod sessions {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    use dashmap::DashMap;
    use divan::{Bencher, black_box};
    use snakepit_session::{MemoryBackend, NewSession, SessionBackend, SessionId, SessionLimits};

    use super::functions::{Sessions, complete, ids};

    const SESSIONS: usize = 10_000;

    /// Returns the index of the next session. Counters are per thread to avoid contention.
    fn next() -> usize {
        thread_local!(static NEXT: std::cell::Cell<usize> = std::cell::Cell::new({
            static THREADS: AtomicUsize = AtomicUsize::new(0);
            THREADS.fetch_add(1, Ordering::Relaxed) * 7919
        }));
        NEXT.with(|next| next.replace(next.get().wrapping_add(1)))
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

    /// Returns a new id.
    fn new_id() -> SessionId {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        SessionId::try_new(format!("session-{number:012}")).unwrap()
    }

    #[divan::bench(threads = [1, 2], sample_size = 1000)]
    fn create(bencher: Bencher<'_, '_>) {
        let backend = MemoryBackend::new(SessionLimits::default());
        bencher
            .with_inputs(new_id)
            .bench_values(|id| complete(backend.create(&id, NewSession::default())).unwrap());
    }

    #[divan::bench(threads = [1, 2], sample_size = 1000)]
    fn create_bare_map(bencher: Bencher<'_, '_>) {
        let map = DashMap::<SessionId, Arc<str>>::new();
        bencher
            .with_inputs(|| (new_id(), Arc::from("worker-1")))
            .bench_values(|(id, worker)| map.insert(id, worker));
    }
}
