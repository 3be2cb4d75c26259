//! Tests of workers that run several calls concurrently.

use super::*;

const FIRST: WorkerKey = worker(0, 1);

/// Creates a scheduler with one worker that declares its concurrency, and no queue.
fn declared(concurrency: usize) -> SchedulerHarness {
    let mut harness = SchedulerHarness::new(1, 1, 10);
    harness.on(Event::Tick);
    harness.on(Event::Launched { worker: FIRST, queues_calls: true, concurrency: Some(concurrency) });
    harness
}

fn is_assigned(effects: &[Effect]) -> bool {
    matches!(effects, [Effect::Assign { worker: FIRST, .. }])
}

#[test]
fn a_worker_gets_as_many_calls_as_it_declares() {
    for concurrency in [1, 20, 256] {
        let mut harness = declared(concurrency);
        for _ in 0..concurrency {
            assert!(is_assigned(&harness.submit().1));
        }
        let (queued, effects) = harness.submit();
        assert_eq!(effects, []);
        assert_eq!(harness.on(Event::Finished(FIRST, Load::LONG)), assign(queued, FIRST));
    }
    assert!(is_assigned(&declared(0).submit().1), "at least one");
}

#[test]
fn an_abandoned_call_keeps_its_place_and_the_others_continue() {
    let mut harness = declared(3);
    harness.submit();
    harness.submit();
    let call = CallId::from_u64(7);
    assert_eq!(harness.on(Event::Abandoned(FIRST, call, Load::LONG)), [Effect::Cancel(FIRST, call)]);
    assert!(is_assigned(&harness.submit().1), "two places are free");
    assert_eq!(harness.on(Event::Finished(FIRST, Load::LONG)), []);
    assert!(is_assigned(&harness.submit().1));
    let (queued, effects) = harness.submit();
    assert_eq!(effects, [], "the abandoned call has not ended");
    assert_eq!(harness.on(Event::CancelConfirmed(FIRST, call)), assign(queued, FIRST));
}

#[test]
fn each_abandoned_call_has_its_own_grace_period() {
    let mut harness = declared(4);
    (0..3).for_each(|_| drop(harness.submit()));
    let [stuck, brief, last] = [1, 2, 3].map(CallId::from_u64);
    harness.on(Event::Abandoned(FIRST, stuck, Load::LONG));
    harness.advance(1500);
    harness.on(Event::Abandoned(FIRST, brief, Load::LONG));
    assert_eq!(harness.on(Event::CancelConfirmed(FIRST, brief)), []);
    harness.on(Event::Abandoned(FIRST, last, Load::LONG));
    assert_eq!(harness.advance(499), []);
    let reason = KillReason::CancelIgnored { grace: Duration::from_secs(2) };
    assert_eq!(harness.advance(1), [Effect::Kill(FIRST, reason)]);
}

#[test]
fn a_worker_that_retires_finishes_its_calls_beside_its_replacement() {
    let mut harness = declared(4);
    (0..4).for_each(|_| drop(harness.submit()));
    harness.on(Event::Finished(FIRST, Load::LONG));
    harness.submit();
    let second = worker(0, 2);
    assert_eq!(harness.on(Event::Retired(FIRST, Load::LONG)), [Effect::Launch(second)]);
    let (queued, effects) = harness.submit();
    assert_eq!(effects, [], "a retiring worker does not get calls");
    assert_eq!(harness.on(launched(second)), assign(queued, second));
    assert_eq!(harness.on(Event::Finished(FIRST, Load::LONG)), []);
    let call = CallId::from_u64(7);
    assert_eq!(harness.on(Event::Abandoned(FIRST, call, Load::LONG)), [Effect::Cancel(FIRST, call)]);
    assert_eq!(harness.on(Event::Finished(FIRST, Load::LONG)), []);
    assert_eq!(harness.on(Event::CancelConfirmed(FIRST, call)), [Effect::Stop(FIRST)]);
    assert_eq!(harness.on(Event::Exited(FIRST)), []);
    assert_eq!(harness.on(Event::Finished(second, Load::LONG)), [], "the replacement is not affected");
    assert_eq!(harness.scheduler.in_flight(), 0);
}

/// Retires a worker that runs two calls. Launches its replacement, which runs two calls.
fn retired(harness: &mut SchedulerHarness, first: WorkerKey) -> WorkerKey {
    let second = WorkerKey { generation: first.generation + 1, ..first };
    (0..3).for_each(|_| drop(harness.submit()));
    harness.advance(10_000);
    assert_eq!(harness.on(Event::Retired(first, Load::LONG)), [Effect::Launch(second)]);
    harness.on(Event::Launched { worker: second, queues_calls: true, concurrency: Some(3) });
    second
}

#[test]
fn a_retired_worker_has_limited_time() {
    let mut harness = declared(3);
    let second = retired(&mut harness, FIRST);
    assert_eq!(harness.advance(299_999), []);
    let reason = KillReason::RetiredTooLong { limit: Duration::from_secs(300) };
    assert_eq!(harness.advance(1), [Effect::Kill(FIRST, reason)]);
    // The calls report the loss before and after the exit.
    assert_eq!(harness.on(Event::Lost(FIRST)), []);
    assert_eq!(harness.on(Event::Exited(FIRST)), []);
    assert_eq!(harness.on(Event::Lost(FIRST)), []);
    let (ticket, effects) = harness.submit();
    assert_eq!(effects, assign(ticket, second));
}

#[test]
fn only_one_retired_worker_runs_beside_its_replacement() {
    let mut harness = declared(3);
    let second = retired(&mut harness, FIRST);
    (0..2).for_each(|_| drop(harness.submit()));
    assert_eq!(harness.on(Event::Retired(second, Load::LONG)), [], "the first has not exited");
    assert_eq!(harness.on(Event::Lost(FIRST)), [Effect::Kill(FIRST, KillReason::Lost)]);
    assert_eq!(harness.on(Event::Lost(FIRST)), []);
    harness.advance(10_000);
    assert_eq!(harness.on(Event::Exited(FIRST)), [Effect::Launch(worker(0, 3))]);
    assert_eq!(harness.on(Event::Finished(second, Load::LONG)), [Effect::Stop(second)]);
}

#[test]
fn a_shutdown_waits_for_retired_workers() {
    let mut harness = declared(3);
    let second = retired(&mut harness, FIRST);
    let now = harness.now;
    assert_eq!(
        harness.on(Event::Drain { until: now }),
        [Effect::CutOff, Effect::Stop(second), Effect::Stop(FIRST)]
    );
    assert_eq!(harness.on(Event::Exited(second)), []);
    assert_eq!(harness.on(Event::Exited(FIRST)), [Effect::Stopped]);
}

#[test]
fn a_suspended_worker_gets_no_calls() {
    let mut harness = SchedulerHarness::up(2, 2, 10);
    let [first, second] = [worker(0, 1), worker(1, 1)];
    harness.on(Event::Suspend(first));
    harness.on(Event::Suspend(first));
    for _ in 0..2 {
        let (ticket, effects) = harness.submit_with(Some(first), None);
        assert_eq!(effects, assign(ticket, second));
    }
    let (queued, effects) = harness.submit();
    assert_eq!(effects, []);
    assert_eq!(harness.on(Event::Resume(first)), []);
    assert_eq!(harness.on(Event::Resume(first)), assign(queued, first));
    assert_eq!(harness.on(Event::Suspend(worker(0, 7))), []);
    assert_eq!(harness.on(Event::Resume(worker(0, 7))), [], "an unknown worker");
}

#[test]
fn calls_spread_over_workers_by_the_number_of_their_calls() {
    let mut harness = SchedulerHarness::new(2, 1, 0);
    harness.on(Event::Tick);
    for slot in [0, 1] {
        harness.on(Event::Launched { worker: worker(slot, 1), queues_calls: true, concurrency: Some(100) });
    }
    let mut counts = [0; 2];
    for _ in 0..200 {
        let (_, effects) = harness.submit();
        let [Effect::Assign { worker, .. }] = effects[..] else { panic!("{effects:?}") };
        counts[worker.index()] += 1;
    }
    assert_eq!(counts, [100, 100]);
}
