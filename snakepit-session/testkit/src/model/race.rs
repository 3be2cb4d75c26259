//! Checks linearizability with concurrent clients. Their outputs must be possible in some sequential order that respects real
//! time: an operation that ended before another one began comes first.
//!
//! The checker searches for the order by backtracking and visits each state only once. The search is exponential in the number of
//! clients, so there are few clients with few operations.

use std::{
    collections::HashMap,
    fmt::{self, Write as _},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst},
    },
};

use proptest::{collection::vec, prelude::*, sample::Index};
use snakepit_session::{SessionBackend, SessionError, SessionLimits, VariableWatch, WatchEvent};
use tokio::runtime::Handle;

use super::{
    generate::{self, SHARED_NAMES},
    operation::{Action, Operation, Output, UpdateView, without_problems},
    state::Model,
    watching,
};

/// How often each case runs. The interleavings are random.
const ROUNDS: usize = 4;

#[derive(Clone)]
pub(super) struct Case {
    /// The sequential operations before the race, in addition to the registrations.
    setup: Vec<Action>,
    /// The operations of the concurrent clients.
    clients: Vec<Vec<Action>>,
}

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.setup.iter().try_for_each(|action| write!(f, "\nsetup {action:?}"))?;
        let clients = self.clients.iter().enumerate();
        let mut actions = clients.flat_map(|(n, actions)| actions.iter().map(move |action| (n, action)));
        actions.try_for_each(|(n, action)| write!(f, "\nclient {n} {action:?}"))
    }
}

pub(super) fn case() -> impl Strategy<Value = (SessionLimits, Case)> {
    // Clients pick from a pool of operations. It may be so small that all of them do the same.
    let pool = vec(generate::shared_action(), 1..12);
    let turns = || vec(any::<Index>(), 1..8);
    (any::<bool>(), vec(generate::shared_action(), 0..4), pool, vec(turns(), 2..4)).prop_map(
        |(has_short_history, setup, pool, clients)| {
            let action = |turn: &Index| turn.get(&pool).clone();
            let clients = clients.iter().map(|turns| turns.iter().map(action).collect()).collect();
            let max_history = if has_short_history { 1 } else { 20 };
            (SessionLimits::default().max_history(max_history), Case { setup, clients })
        },
    )
}

/// An operation with its output and the times of its begin and end.
#[derive(Debug)]
struct Call {
    operation: Operation,
    output: Result<Output, SessionError>,
    began: u64,
    ended: u64,
}

/// A logical clock.
#[derive(Debug, Default)]
struct Clock(AtomicU64);

impl Clock {
    fn now(&self) -> u64 {
        self.0.fetch_add(1, SeqCst)
    }

    /// Runs an action and records its times.
    async fn call(&self, backend: &impl SessionBackend, action: Action) -> Call {
        let operation = Operation { session: generate::session(), action };
        let began = self.now();
        let output = operation.run(backend, &mut Vec::new()).await;
        let ended = self.now();
        Call { operation, output: without_problems(output), began, ended }
    }
}

/// A spinning barrier. Waking a sleeping thread would take longer than an operation.
struct SpinBarrier {
    /// For each turn, the number of expected clients and the number that has arrived.
    turns: Vec<(usize, AtomicUsize)>,
    /// Whether a client panicked and will not arrive.
    is_broken: AtomicBool,
}

/// Releases the other clients when a client panics.
struct PanicGuard<'a>(&'a SpinBarrier);

impl Drop for PanicGuard<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.is_broken.store(true, SeqCst);
        }
    }
}

impl SpinBarrier {
    /// Creates a barrier before each action, or only before the first.
    fn new(clients: &[Vec<Action>], before_each_action: bool) -> Self {
        let turns = if before_each_action { clients.iter().map(Vec::len).max().unwrap_or(0) } else { 1 };
        let expected = |turn| clients.iter().filter(|actions| actions.len() > turn).count();
        let turns = (0..turns).map(|turn| (expected(turn), AtomicUsize::new(0))).collect();
        Self { turns, is_broken: AtomicBool::new(false) }
    }

    fn pass(&self, turn: usize) {
        let Some((expected, arrived)) = self.turns.get(turn) else { return };
        arrived.fetch_add(1, SeqCst);
        // Yielding delays a client, but is necessary with fewer CPUs than clients.
        let mut spins = 1000;
        while arrived.load(SeqCst) < *expected && !self.is_broken.load(SeqCst) {
            if spins > 0 {
                spins -= 1;
                std::hint::spin_loop();
            } else {
                std::thread::yield_now();
            }
        }
    }
}

/// Runs the case and searches for an order.
pub(super) fn check<B: SessionBackend>(
    runtime: &Handle,
    backend: &B,
    limits: &SessionLimits,
    case: &Case,
) -> Result<(), String> {
    (0..ROUNDS).try_for_each(|round| {
        let barrier = SpinBarrier::new(&case.clients, round % 2 == 0);
        let race = race(runtime, backend, limits, case, &barrier)?;
        if race.has_order() { Ok(()) } else { Err(race.report()) }
    })
}

/// Runs the case once.
fn race<B: SessionBackend>(
    runtime: &Handle,
    backend: &B,
    limits: &SessionLimits,
    case: &Case,
    barrier: &SpinBarrier,
) -> Result<History, String> {
    let clock = Clock::default();
    let (mut model, mut ids, mut watches) = (Model::new(limits.clone()), Vec::new(), Vec::new());
    let create = || Action::Create(Default::default());
    let mut setup = vec![create()];
    setup.extend(SHARED_NAMES.map(|name| generate::register_shared(name, 0)));
    setup.extend(case.setup.iter().cloned());
    // The operations may have deleted the session.
    setup.extend([create(), Action::Watch { identifiers: Vec::new(), initial: true }]);
    for mut action in setup {
        action.resolve_ids(&ids);
        let operation = Operation { session: generate::session(), action };
        let actual = runtime.block_on(operation.run(backend, &mut watches));
        if let (Action::Register { .. }, Ok(Output::Variable(variable))) = (&operation.action, &actual) {
            ids.push(variable.id.clone());
        }
        let (expected, actual) =
            (without_problems(model.apply(&operation, &actual)), without_problems(actual));
        if actual != expected {
            return Err(format!("{operation:?}\nreturned {actual:?}\nexpected {expected:?}"));
        }
    }
    let watch = watches.pop().ok_or("there is no watch")?;

    let run = |actions: &[Action]| {
        let mut actions = actions.to_vec();
        actions.iter_mut().for_each(|action| action.resolve_ids(&ids));
        let _guard = PanicGuard(barrier);
        runtime.block_on(async {
            let mut calls = Vec::new();
            for (turn, action) in actions.into_iter().enumerate() {
                barrier.pass(turn);
                calls.push(clock.call(backend, action).await);
            }
            calls
        })
    };
    std::thread::scope(|scope| {
        let updates = scope.spawn(|| runtime.block_on(collect(watch)));
        let clients: Vec<_> = case.clients.iter().map(|actions| scope.spawn(|| run(actions))).collect();
        let mut clients: Vec<_> = clients.into_iter().map(join).collect();
        // The final state and the end of the watch come last.
        let mut last = vec![create(), Action::Get, Action::List(String::new())];
        last.extend(SHARED_NAMES.map(|name| Action::History { identifier: name.to_owned(), limit: 0 }));
        last.push(Action::Delete);
        let mut calls = Vec::new();
        for action in last {
            calls.push(runtime.block_on(clock.call(backend, action)));
        }
        clients.push(calls);
        Ok(History { before: model, clients, updates: join(updates)? })
    })
}

fn join<T>(thread: std::thread::ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Collects the updates of a watch until its session ends.
async fn collect(mut watch: VariableWatch) -> Result<Vec<UpdateView>, String> {
    let mut updates = Vec::new();
    loop {
        match watching::next(&mut watch).await? {
            Some(Ok(WatchEvent::Update(update))) => updates.push(update.into()),
            Some(Err(SessionError::NotFound { .. })) => return Ok(updates),
            other => return Err(format!("the watch returned {other:?}")),
        }
    }
}

/// The history of a run.
struct History {
    /// The model before the race.
    before: Model,
    clients: Vec<Vec<Call>>,
    /// The updates of a watch on all variables.
    updates: Vec<UpdateView>,
}

impl History {
    /// Whether some order makes the model return the same outputs and the same updates.
    fn has_order(&self) -> bool {
        let mut visited: HashMap<Vec<usize>, Vec<Arc<Model>>> = HashMap::new();
        // The states to visit: the number of applied calls of each client, and the resulting model.
        let mut pending = vec![(vec![0; self.clients.len()], Arc::new(self.before.clone()))];
        while let Some((applied, model)) = pending.pop() {
            let next = || self.clients.iter().zip(&applied).map(|(calls, applied)| calls.get(*applied));
            // A call that began after the end of a remaining call must come later.
            let Some(earliest_end) = next().flatten().map(|call| call.ended).min() else {
                if model.watches[0].expected_updates == self.updates {
                    return true;
                }
                continue;
            };
            for (client, call) in next().enumerate() {
                let Some(call) = call.filter(|call| call.began < earliest_end) else { continue };
                let mut model = (*model).clone();
                let output = model.apply(&call.operation, &call.output);
                if without_problems(output) != call.output
                    || !self.updates.starts_with(&model.watches[0].expected_updates)
                {
                    continue;
                }
                let mut applied = applied.clone();
                applied[client] += 1;
                let visited = visited.entry(applied.clone()).or_default();
                if visited.iter().all(|visited| **visited != model) {
                    let model = Arc::new(model);
                    visited.push(Arc::clone(&model));
                    pending.push((applied, model));
                }
            }
        }
        false
    }

    fn report(&self) -> String {
        let clients = self.clients.iter().enumerate();
        let mut calls: Vec<_> =
            clients.flat_map(|(client, calls)| calls.iter().map(move |call| (client, call))).collect();
        calls.sort_by_key(|(_, call)| call.began);
        let mut report = "no order of these calls explains their outputs:".to_owned();
        for (client, Call { operation, output, began, ended }) in calls {
            let action = &operation.action;
            let _ = write!(report, "\n{began:3} to {ended:3}, client {client}: {action:?} -> {output:?}");
        }
        for update in &self.updates {
            let _ = write!(report, "\nthe watch returned {update:?}");
        }
        report
    }
}
