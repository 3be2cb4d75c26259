//! Tests of recycling.

use super::*;
use crate::scheduler::recycling::{MIN_LIFE, RecycleReason, RecyclingLimits};

const FIRST: WorkerKey = worker(0, 1);
const SECOND: WorkerKey = worker(0, 2);

fn harness(slots: usize, recycling: RecyclingLimits) -> SchedulerHarness {
    SchedulerHarness::up_with(slots, 1, 10, recycling)
}

fn recycle(worker: WorkerKey, reason: RecycleReason, successor: WorkerKey) -> Vec<Effect> {
    vec![Effect::Recycle { worker, reason }, Effect::Launch(successor)]
}

/// Runs one call on the first worker.
fn run_call(harness: &mut SchedulerHarness) -> Vec<Effect> {
    harness.submit();
    harness.on(Event::Finished(FIRST, Load::LONG))
}

#[test]
fn a_worker_serves_after_its_last_call_until_its_replacement_is_up() {
    let mut harness = harness(1, RecyclingLimits { calls: Some(2), ..RecyclingLimits::default() });
    assert_eq!(run_call(&mut harness), []);
    assert_eq!(run_call(&mut harness), recycle(FIRST, RecycleReason::Calls(2), SECOND));
    let (a, effects) = harness.submit();
    assert_eq!(effects, assign(a, FIRST), "the old worker serves meanwhile");
    assert_eq!(harness.on(launched(SECOND)), [], "the old worker finishes its call");
    let (b, effects) = harness.submit();
    assert_eq!(effects, assign(b, SECOND));
    assert_eq!(harness.on(Event::Finished(FIRST, Load::LONG)), [Effect::Stop(FIRST)]);
    assert_eq!(harness.on(Event::Exited(FIRST)), []);
}

#[test]
fn at_most_a_quarter_of_the_workers_is_replaced_at_the_same_time() {
    let mut harness = harness(8, RecyclingLimits::default());
    let recycled: Vec<_> = (0..8).flat_map(|slot| harness.on(Event::Recycle(worker(slot, 1)))).collect();
    let expected = |slot| recycle(worker(slot, 1), RecycleReason::Requested, worker(slot, 2));
    assert_eq!(recycled, [expected(0), expected(1)].concat());
    let next = [vec![Effect::Stop(worker(0, 1))], expected(2)].concat();
    let mut effects = harness.on(launched(worker(0, 2)));
    effects.sort_by_key(|effect| !matches!(effect, Effect::Stop(_)));
    assert_eq!(effects, next);
}

#[test]
fn old_and_idle_workers_are_recycled_by_timers() {
    let age = Duration::from_secs(100);
    let mut by_age = harness(1, RecyclingLimits { age: Some(age), ..RecyclingLimits::default() });
    assert_eq!(by_age.advance(89_000), []);
    let effects = by_age.advance(11_000);
    assert!(matches!(effects[0], Effect::Recycle { reason: RecycleReason::Age(_), .. }), "{effects:?}");

    let idle = Duration::from_secs(60);
    let mut by_idleness = harness(1, RecyclingLimits { idle: Some(idle), ..RecyclingLimits::default() });
    assert_eq!(by_idleness.advance(600_000), [], "a worker without calls has nothing to free");
    run_call(&mut by_idleness);
    assert_eq!(by_idleness.advance(59_000), []);
    run_call(&mut by_idleness);
    assert_eq!(by_idleness.advance(59_999), []);
    assert_eq!(by_idleness.advance(1), recycle(FIRST, RecycleReason::Idle(idle), SECOND));
}

#[test]
fn a_soft_memory_limit_waits_for_calls_and_a_hard_one_kills() {
    let limits = RecyclingLimits { memory: Some(100), hard_memory: Some(200), ..RecyclingLimits::default() };
    let mut harness = harness(1, limits);
    let memory = |used| Event::Memory { worker: FIRST, used };
    run_call(&mut harness);
    assert_eq!(harness.on(memory(150)), [], "it is too young");
    harness.advance(MIN_LIFE.as_millis() as u64);
    assert_eq!(harness.on(memory(100)), []);
    let reason = RecycleReason::Memory { used: 101, limit: 100 };
    assert_eq!(harness.on(memory(101)), recycle(FIRST, reason, SECOND));
    harness.submit();
    let kill = Effect::Kill(FIRST, KillReason::MemoryExceeded { used: 201, limit: 200 });
    assert_eq!(harness.on(memory(201)), [kill]);
    assert_eq!(harness.on(memory(202)), [], "it is killed only once");
}

#[test]
fn a_replaced_worker_is_killed_at_the_hard_memory_limit() {
    let mut harness = harness(1, RecyclingLimits { hard_memory: Some(9), ..RecyclingLimits::default() });
    harness.submit();
    harness.on(Event::Recycle(FIRST));
    harness.on(launched(SECOND));
    let kill = Effect::Kill(FIRST, KillReason::MemoryExceeded { used: 10, limit: 9 });
    assert_eq!(harness.on(Event::Memory { worker: FIRST, used: 10 }), [kill]);
}

#[test]
fn the_launch_of_a_replacement_is_repeated_with_a_backoff() {
    let mut harness = harness(1, RecyclingLimits { calls: Some(1), ..RecyclingLimits::default() });
    assert_eq!(run_call(&mut harness), recycle(FIRST, RecycleReason::Calls(1), SECOND));
    assert_eq!(harness.on(Event::LaunchFailed(SECOND)), []);
    let (a, effects) = harness.submit();
    assert_eq!(effects, assign(a, FIRST), "the old worker remains in service");
    assert_eq!(harness.advance(99), []);
    assert_eq!(harness.advance(1), recycle(FIRST, RecycleReason::Calls(1), worker(0, 3)));
    harness.on(Event::LaunchFailed(worker(0, 3)));
    assert_eq!(harness.advance(199), []);
    assert_eq!(harness.advance(1), recycle(FIRST, RecycleReason::Calls(1), worker(0, 4)));
}

#[test]
fn a_worker_that_dies_before_its_replacement_is_up_is_replaced_once() {
    let mut harness = harness(1, RecyclingLimits::default());
    harness.on(Event::Recycle(FIRST));
    assert_eq!(harness.on(Event::Exited(FIRST)), [], "its successor is being launched");
    assert_eq!(harness.on(launched(SECOND)), []);
    let (a, effects) = harness.submit();
    assert_eq!(effects, assign(a, SECOND));
}

#[test]
fn a_restart_takes_precedence_over_recycling() {
    let mut harness = harness(1, RecyclingLimits::default());
    assert_eq!(harness.on(Event::Restart { number: 1 }), [Effect::Launch(SECOND)]);
    assert_eq!(harness.on(Event::Recycle(FIRST)), []);
    let ended = Effect::RestartEnded { number: 1, outcome: RestartOutcome::Replaced };
    assert_eq!(harness.on(launched(SECOND)), [Effect::Stop(FIRST), ended]);
    assert_eq!(harness.advance(60_000), [], "the worker has been replaced");
}

#[test]
fn the_limits_of_workers_differ_by_up_to_a_tenth() {
    let limits = RecyclingLimits { calls: Some(1000), ..RecyclingLimits::default() };
    let now = Instant::now();
    let of = |slot, calls| limits.of_worker(worker(slot, 1), now).has_run_enough(calls);
    assert!((0..100).all(|slot| of(slot, 1000) && !of(slot, 899)));
    let below_half = (0..100).filter(|slot| of(*slot, 950)).count();
    assert!((30..70).contains(&below_half), "{below_half} of 100 workers");
}
