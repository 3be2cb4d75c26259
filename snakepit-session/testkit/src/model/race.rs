//! Concurrent clients. Their answers must be possible in some sequential order that respects real time: an operation that was
//! answered before another one began comes first (linearizability).
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
    generate::{self, RACED},
    operation::{Act, Answer, Operation, UpdateSeen, without_texts},
    state::Model,
    watching,
};

/// The number of runs of each case, because interleavings are random.
const ROUNDS: usize = 4;

#[derive(Clone)]
pub(super) struct Case {
    /// The sequential operations before the race, in addition to the registrations.
    setup: Vec<Act>,
    /// The operations of the concurrent clients.
    clients: Vec<Vec<Act>>,
}

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.setup.iter().try_for_each(|act| write!(f, "\nat first {act:?}"))?;
        let clients = self.clients.iter().enumerate();
        let mut acts = clients.flat_map(|(n, acts)| acts.iter().map(move |act| (n, act)));
        acts.try_for_each(|(n, act)| write!(f, "\nclient {n} {act:?}"))
    }
}

pub(super) fn case() -> impl Strategy<Value = (SessionLimits, Case)> {
    // Clients pick from a pool of operations. It may be so small that all of them do the same.
    let pool = vec(generate::racing(), 1..12);
    let turns = || vec(any::<Index>(), 1..8);
    (any::<bool>(), vec(generate::racing(), 0..4), pool, vec(turns(), 2..4)).prop_map(
        |(short, setup, pool, clients)| {
            let act = |turn: &Index| turn.get(&pool).clone();
            let clients = clients.iter().map(|turns| turns.iter().map(act).collect()).collect();
            let max_history = if short { 1 } else { 20 };
            (SessionLimits { max_history, ..SessionLimits::default() }, Case { setup, clients })
        },
    )
}

/// An operation with its answer, begin and end.
#[derive(Debug)]
struct Call {
    operation: Operation,
    answer: Result<Answer, SessionError>,
    began: u64,
    answered: u64,
}

/// A logical clock.
#[derive(Debug, Default)]
struct Clock(AtomicU64);

impl Clock {
    fn now(&self) -> u64 {
        self.0.fetch_add(1, SeqCst)
    }

    async fn time(&self, backend: &impl SessionBackend, act: Act) -> Call {
        let operation = Operation { session: generate::session(), act };
        let began = self.now();
        let answer = operation.run(backend, &mut Vec::new()).await;
        let answered = self.now();
        Call { operation, answer: without_texts(answer), began, answered }
    }
}

/// A spinning barrier. Waking a sleeping thread would take longer than an operation.
struct Gate {
    /// The number of clients, and how many have arrived.
    turns: Vec<(usize, AtomicUsize)>,
    /// Whether a client panicked and will not arrive.
    broken: AtomicBool,
}

/// Releases the other clients when a client panics.
struct Guest<'a>(&'a Gate);

impl Drop for Guest<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.broken.store(true, SeqCst);
        }
    }
}

impl Gate {
    /// Before every operation, or only before the first.
    fn new(clients: &[Vec<Act>], always: bool) -> Self {
        let turns = if always { clients.iter().map(Vec::len).max().unwrap_or(0) } else { 1 };
        let comers = |turn| clients.iter().filter(|acts| acts.len() > turn).count();
        let turns = (0..turns).map(|turn| (comers(turn), AtomicUsize::new(0))).collect();
        Self { turns, broken: AtomicBool::new(false) }
    }

    fn pass(&self, turn: usize) {
        let Some((comers, came)) = self.turns.get(turn) else { return };
        came.fetch_add(1, SeqCst);
        // Yielding delays a client, but is necessary with fewer CPUs than clients.
        let mut patience = 1000;
        while came.load(SeqCst) < *comers && !self.broken.load(SeqCst) {
            if patience > 0 {
                patience -= 1;
                std::hint::spin_loop();
            } else {
                std::thread::yield_now();
            }
        }
    }
}

/// Runs the case and searches for an order.
pub(super) fn check<B: SessionBackend>(
    on: &Handle,
    backend: &B,
    limits: &SessionLimits,
    case: &Case,
) -> Result<(), String> {
    (0..ROUNDS).try_for_each(|round| {
        let gate = Gate::new(&case.clients, round % 2 == 0);
        let race = race(on, backend, limits, case, &gate)?;
        if race.has_order() { Ok(()) } else { Err(race.report()) }
    })
}

/// Runs the case once.
fn race<B: SessionBackend>(
    on: &Handle,
    backend: &B,
    limits: &SessionLimits,
    case: &Case,
    gate: &Gate,
) -> Result<Race, String> {
    let clock = Clock::default();
    let (mut model, mut ids, mut watches) = (Model::new(limits.clone()), Vec::new(), Vec::new());
    let create = || Act::Create(Default::default());
    let mut setup = vec![create()];
    setup.extend(RACED.map(|name| generate::raced(name, 0)));
    setup.extend(case.setup.iter().cloned());
    // The operations may have deleted the session.
    setup.extend([create(), Act::Watch { identifiers: Vec::new(), initial: true }]);
    for mut act in setup {
        act.name_ids(&ids);
        let operation = Operation { session: generate::session(), act };
        let seen = on.block_on(operation.run(backend, &mut watches));
        if let (Act::Register { .. }, Ok(Answer::Variable(variable))) = (&operation.act, &seen) {
            ids.push(variable.id.clone());
        }
        let (expected, seen) = (without_texts(model.apply(&operation, &seen)), without_texts(seen));
        if seen != expected {
            return Err(format!("{operation:?}\nanswered {seen:?}\nand not  {expected:?}"));
        }
    }
    let watch = watches.pop().ok_or("there is no watch")?;

    let run = |acts: &[Act]| {
        let mut acts = acts.to_vec();
        acts.iter_mut().for_each(|act| act.name_ids(&ids));
        let _guest = Guest(gate);
        on.block_on(async {
            let mut calls = Vec::new();
            for (turn, act) in acts.into_iter().enumerate() {
                gate.pass(turn);
                calls.push(clock.time(backend, act).await);
            }
            calls
        })
    };
    std::thread::scope(|scope| {
        let notified = scope.spawn(|| on.block_on(collect(watch)));
        let clients: Vec<_> = case.clients.iter().map(|acts| scope.spawn(|| run(acts))).collect();
        let mut clients: Vec<_> = clients.into_iter().map(joined).collect();
        // The final state and the end of the watch come last.
        let mut last = vec![create(), Act::Get, Act::List(String::new())];
        last.extend(RACED.map(|name| Act::History { identifier: name.to_owned(), limit: 0 }));
        last.push(Act::Delete);
        let mut calls = Vec::new();
        for act in last {
            calls.push(on.block_on(clock.time(backend, act)));
        }
        clients.push(calls);
        Ok(Race { before: model, clients, notified: joined(notified)? })
    })
}

fn joined<T>(thread: std::thread::ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Collects the updates of a watch until its session ends.
async fn collect(mut watch: VariableWatch) -> Result<Vec<UpdateSeen>, String> {
    let mut notified = Vec::new();
    loop {
        match watching::next(&mut watch).await? {
            Some(Ok(WatchEvent::Update(update))) => notified.push(update.into()),
            Some(Err(SessionError::NotFound { .. })) => return Ok(notified),
            other => return Err(format!("the watch returned {other:?}")),
        }
    }
}

/// The history of a run.
struct Race {
    /// The model before the race.
    before: Model,
    clients: Vec<Vec<Call>>,
    /// The updates of a watch on all variables.
    notified: Vec<UpdateSeen>,
}

impl Race {
    /// Whether some order makes the model give the same answers and the same updates.
    fn has_order(&self) -> bool {
        let mut known: HashMap<Vec<usize>, Vec<Arc<Model>>> = HashMap::new();
        // Visited states: the number of applied calls of each client, and the resulting model.
        let mut open = vec![(vec![0; self.clients.len()], Arc::new(self.before.clone()))];
        while let Some((made, model)) = open.pop() {
            let next = || self.clients.iter().zip(&made).map(|(calls, made)| calls.get(*made));
            // A call that began after the end of a remaining call must come later.
            let Some(until) = next().flatten().map(|call| call.answered).min() else {
                if model.watches[0].notified == self.notified {
                    return true;
                }
                continue;
            };
            for (client, call) in next().enumerate() {
                let Some(call) = call.filter(|call| call.began < until) else { continue };
                let mut model = (*model).clone();
                let answer = model.apply(&call.operation, &call.answer);
                if without_texts(answer) != call.answer
                    || !self.notified.starts_with(&model.watches[0].notified)
                {
                    continue;
                }
                let mut made = made.clone();
                made[client] += 1;
                let known = known.entry(made.clone()).or_default();
                if known.iter().all(|known| **known != model) {
                    let model = Arc::new(model);
                    known.push(Arc::clone(&model));
                    open.push((made, model));
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
        let mut report = "no order of these calls explains their answers:".to_owned();
        for (client, Call { operation, answer, began, answered }) in calls {
            let act = &operation.act;
            let _ = write!(report, "\n{began:3} to {answered:3}, client {client}: {act:?} -> {answer:?}");
        }
        for update in &self.notified {
            let _ = write!(report, "\nthe watch returned {update:?}");
        }
        report
    }
}
