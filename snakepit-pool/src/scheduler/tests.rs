//! Tests of single rules of the scheduler. [`properties`] tests all of them under random events.

mod properties;

use std::time::Duration;

use snakepit_registry::CallId;
use tokio::time::Instant;

use super::*;

/// A scheduler with a clock.
struct Bench {
    scheduler: Scheduler,
    now: Instant,
    tickets: u64,
}

impl Bench {
    fn new(slots: usize, concurrency: usize, queue: usize) -> Self {
        let now = Instant::now();
        let limits =
            Limits { slots, concurrency, queue, queue_bytes: 100, cancel_grace: Duration::from_secs(2) };
        Self { scheduler: Scheduler::new(limits, now), now, tickets: 0 }
    }

    /// Creates a scheduler whose workers are all up.
    fn up(slots: usize, concurrency: usize, queue: usize) -> Self {
        let mut bench = Self::new(slots, concurrency, queue);
        for effect in bench.on(Event::Tick) {
            let Effect::Launch(worker) = effect else { panic!("{effect:?}") };
            bench.on(launched(worker));
        }
        bench
    }

    fn on(&mut self, event: Event) -> Vec<Effect> {
        self.scheduler.on(event, self.now).collect()
    }

    fn ticket(&mut self) -> Ticket {
        self.tickets += 1;
        Ticket { number: self.tickets, waiter: 0 }
    }

    fn submit_with(&mut self, preferred: Option<WorkerKey>, timeout: Option<u64>) -> (Ticket, Vec<Effect>) {
        let ticket = self.ticket();
        let deadline = timeout.map(|millis| self.now + Duration::from_millis(millis));
        (ticket, self.on(Event::Submit { ticket, preferred, deadline, load: Load::LONG, bytes: 0 }))
    }

    fn submit(&mut self) -> (Ticket, Vec<Effect>) {
        self.submit_with(None, None)
    }

    fn advance(&mut self, millis: u64) -> Vec<Effect> {
        self.now += Duration::from_millis(millis);
        let due = self.scheduler.next_tick().is_some_and(|at| at <= self.now);
        if due { self.on(Event::Tick) } else { Vec::new() }
    }
}

const fn worker(slot: u32, generation: u32) -> WorkerKey {
    WorkerKey { slot, generation }
}

const fn launched(worker: WorkerKey) -> Event {
    Event::Launched { worker, keeps_calls: true }
}

fn assign(ticket: Ticket, to: WorkerKey) -> Vec<Effect> {
    vec![Effect::Assign { ticket, worker: to }]
}

#[test]
fn all_workers_launch_concurrently_and_calls_wait_for_the_first() {
    let mut bench = Bench::new(3, 1, 10);
    let (first, effects) = bench.submit();
    assert_eq!(effects, []);
    let launches = [0, 1, 2].map(|slot| Effect::Launch(worker(slot, 1)));
    assert_eq!(bench.on(Event::Tick), launches);
    assert_eq!(bench.on(launched(worker(1, 1))), assign(first, worker(1, 1)));
}

#[test]
fn calls_go_to_the_least_recently_used_worker_and_queue_in_order() {
    let mut bench = Bench::up(2, 1, 10);
    let (a, effects) = bench.submit();
    assert_eq!(effects, assign(a, worker(0, 1)));
    let (b, effects) = bench.submit();
    assert_eq!(effects, assign(b, worker(1, 1)));
    let queued = [(); 3].map(|()| bench.submit().0);
    assert_eq!(bench.on(Event::Finished(worker(1, 1), Load::LONG)), assign(queued[0], worker(1, 1)));
    bench.on(Event::Withdraw(queued[1]));
    assert_eq!(bench.on(Event::Finished(worker(0, 1), Load::LONG)), assign(queued[2], worker(0, 1)));
}

#[test]
fn concurrency_fills_the_least_busy_worker_first() {
    let mut bench = Bench::up(2, 2, 0);
    let slots: Vec<Vec<Effect>> = (0..4).map(|_| bench.submit().1).collect();
    let slot_of = |effects: &Vec<Effect>| match effects[..] {
        [Effect::Assign { worker, .. }] => worker.slot,
        _ => panic!("{effects:?}"),
    };
    assert_eq!(slots.iter().map(slot_of).collect::<Vec<_>>(), [0, 1, 0, 1]);
    let (ticket, effects) = bench.submit();
    let rejection = Rejection::Overloaded { queued: 0, oldest: Duration::ZERO };
    assert_eq!(effects, [Effect::Reject { ticket, rejection }]);
}

#[test]
fn a_preferred_worker_is_used_if_it_is_idle_and_ignored_if_it_has_exited() {
    let mut bench = Bench::up(3, 1, 10);
    let (a, effects) = bench.submit_with(Some(worker(2, 1)), None);
    assert_eq!(effects, assign(a, worker(2, 1)));
    let (b, effects) = bench.submit_with(Some(worker(2, 1)), None);
    assert_eq!(effects, assign(b, worker(0, 1)), "it is busy");
    let (c, effects) = bench.submit_with(Some(worker(1, 7)), None);
    assert_eq!(effects, assign(c, worker(1, 1)), "there was no such generation");
}

#[test]
fn a_free_worker_prefers_calls_with_affinity_but_not_twice_in_a_row() {
    let mut bench = Bench::up(1, 1, 10);
    bench.submit();
    let (plain, _) = bench.submit();
    let (first, _) = bench.submit_with(Some(worker(0, 1)), None);
    let (second, _) = bench.submit_with(Some(worker(0, 1)), None);
    let order: Vec<_> = (0..3).flat_map(|_| bench.on(Event::Finished(worker(0, 1), Load::LONG))).collect();
    let expected = [first, plain, second].map(|ticket| Effect::Assign { ticket, worker: worker(0, 1) });
    assert_eq!(order, expected);
}

/// Submits a call with this expected time. Returns the slot that runs it.
fn slot_of_brief(bench: &mut Bench, micros: u64) -> u32 {
    slot_of_preferring(bench, micros, None)
}

fn slot_of_preferring(bench: &mut Bench, micros: u64, preferred: Option<WorkerKey>) -> u32 {
    let (ticket, load) = (bench.ticket(), Load::of(Duration::from_micros(micros)));
    match bench.on(Event::Submit { ticket, preferred, deadline: None, load, bytes: 0 })[..] {
        [Effect::Assign { worker, .. }] => worker.slot,
        ref effects => panic!("{effects:?}"),
    }
}

#[test]
fn short_calls_gather_on_the_worker_of_the_last_one() {
    let mut bench = Bench::up(3, 1, 100);
    let slots: Vec<u32> = (0..39).map(|_| slot_of_brief(&mut bench, 8)).collect();
    let runs: Vec<usize> = slots.chunk_by(|a, b| a == b).map(<[u32]>::len).collect();
    assert_eq!(runs, [13, 13, 13], "a tenth of a millisecond each");
    let mut bench = Bench::up(3, 1, 100);
    assert_eq!(
        [10; 3].map(|micros| slot_of_brief(&mut bench, micros)),
        [2, 1, 0],
        "each goes to an idle one"
    );
}

#[test]
fn calls_do_not_gather_on_a_stalled_worker() {
    let mut bench = Bench::up(2, 1, 10);
    let first = slot_of_brief(&mut bench, 1);
    assert_eq!(slot_of_brief(&mut bench, 1), first);
    bench.now += Duration::from_millis(2);
    assert_ne!(slot_of_brief(&mut bench, 1), first);
}

#[test]
fn a_busy_preferred_worker_gets_a_call_only_if_the_call_gathers_there() {
    let mut bench = Bench::up(3, 1, 10);
    let busy = slot_of_brief(&mut bench, 400);
    let gathering = slot_of_brief(&mut bench, 5);
    assert_ne!(busy, gathering);
    assert_eq!(slot_of_preferring(&mut bench, 5, Some(worker(busy, 1))), gathering, "the third is idle");
    assert_eq!(slot_of_preferring(&mut bench, 5, Some(worker(gathering, 1))), gathering);
}

#[test]
fn calls_do_not_gather_on_a_worker_with_free_concurrency() {
    let mut bench = Bench::up(2, 2, 10);
    let first = slot_of_brief(&mut bench, 1);
    assert_ne!(slot_of_brief(&mut bench, 1), first);
}

#[test]
fn a_full_queue_rejects_calls_and_reports_the_wait_of_its_oldest_call() {
    let mut bench = Bench::up(1, 1, 2);
    bench.submit();
    bench.submit();
    bench.submit();
    bench.advance(700);
    let (ticket, effects) = bench.submit();
    let rejection = Rejection::Overloaded { queued: 2, oldest: Duration::from_millis(700) };
    assert_eq!(effects, [Effect::Reject { ticket, rejection }]);
}

#[test]
fn the_queue_is_bounded_in_bytes_but_one_call_may_always_wait() {
    let mut bench = Bench::up(1, 1, 10);
    let mut submit = |bytes| {
        let ticket = bench.ticket();
        let submit = Event::Submit { ticket, preferred: None, deadline: None, load: Load::LONG, bytes };
        (ticket, bench.on(submit))
    };
    // This call runs, so its bytes do not count.
    assert_eq!(submit(1000).1, assign(Ticket { number: 1, waiter: 0 }, worker(0, 1)));
    let (large, waits) = submit(1000);
    assert_eq!(waits, []);
    let (ticket, effects) = submit(1);
    let rejection = Rejection::TooManyBytes { used: 1000, oldest: Duration::ZERO };
    assert_eq!(effects, [Effect::Reject { ticket, rejection }]);
    assert_eq!(bench.on(Event::Withdraw(large)), []);
    let mut submit = |bytes| {
        let ticket = bench.ticket();
        let submit = Event::Submit { ticket, preferred: None, deadline: None, load: Load::LONG, bytes };
        bench.on(submit)
    };
    assert_eq!((submit(60), submit(40)), (vec![], vec![]));
    assert!(matches!(submit(1)[..], [Effect::Reject { .. }]));
    bench.on(Event::Finished(worker(0, 1), Load::LONG));
    let ticket = bench.ticket();
    let submit = Event::Submit { ticket, preferred: None, deadline: None, load: Load::LONG, bytes: 60 };
    assert_eq!(bench.on(submit), [], "the bytes of the call that left the queue are free");
}

#[test]
fn a_queued_call_leaves_the_queue_at_its_deadline() {
    let mut bench = Bench::up(1, 1, 2);
    bench.submit();
    let (late, _) = bench.submit_with(None, Some(500));
    let (early, _) = bench.submit_with(None, Some(100));
    assert_eq!(bench.advance(99), []);
    assert_eq!(bench.advance(1), [Effect::Expire(early)]);
    assert_eq!(bench.scheduler.queued(), 1);
    assert_eq!(bench.advance(400), [Effect::Expire(late)]);
    let (dead, effects) = bench.submit_with(None, Some(0));
    assert_eq!(effects, [Effect::Expire(dead)], "its deadline has passed");
}

#[test]
fn an_overdue_call_at_the_head_of_the_queue_is_not_assigned() {
    let mut bench = Bench::up(1, 1, 2);
    bench.submit();
    let (dead, _) = bench.submit_with(None, Some(100));
    let (live, _) = bench.submit();
    // The worker becomes free before the timer fires.
    bench.now += Duration::from_millis(100);
    let effects = bench.on(Event::Finished(worker(0, 1), Load::LONG));
    assert_eq!(effects, [Effect::Expire(dead), Effect::Assign { ticket: live, worker: worker(0, 1) }]);
}

#[test]
fn an_abandoned_call_quarantines_its_worker_until_its_end_is_confirmed() {
    let mut bench = Bench::up(1, 1, 10);
    bench.submit();
    let (queued, _) = bench.submit();
    let call = CallId::from_u64(7);
    assert_eq!(
        bench.on(Event::Abandoned(worker(0, 1), call, Load::LONG)),
        [Effect::Cancel(worker(0, 1), call)]
    );
    assert_eq!(bench.scheduler.in_flight(), 0);
    assert_eq!(bench.on(Event::CancelConfirmed(worker(0, 1))), assign(queued, worker(0, 1)));
}

#[test]
fn a_worker_that_does_not_confirm_a_cancellation_is_killed_and_replaced() {
    for event in [None, Some(Event::CancelFailed(worker(0, 1)))] {
        let mut bench = Bench::up(1, 1, 10);
        bench.submit();
        bench.on(Event::Finished(worker(0, 1), Load::LONG));
        bench.submit();
        let (queued, _) = bench.submit();
        bench.on(Event::Abandoned(worker(0, 1), CallId::from_u64(7), Load::LONG));
        let (effects, why) = match event {
            Some(event) => (bench.on(event), KillReason::CancelFailed),
            None => (bench.advance(2000), KillReason::CancelIgnored { grace: Duration::from_secs(2) }),
        };
        assert_eq!(effects, [Effect::Kill(worker(0, 1), why)]);
        assert_eq!(bench.on(Event::CancelConfirmed(worker(0, 1))), [], "the confirmation is too late");
        // It had answered a call, so it is replaced immediately.
        assert_eq!(bench.on(Event::Exited(worker(0, 1))), [Effect::Launch(worker(0, 2))]);
        assert_eq!(bench.on(launched(worker(0, 2))), assign(queued, worker(0, 2)));
    }
}

#[test]
fn a_lost_worker_gets_no_further_call_before_its_exit() {
    let mut bench = Bench::up(1, 1, 10);
    bench.submit();
    bench.submit();
    let effects = bench.on(Event::Lost(worker(0, 1)));
    assert_eq!(effects, [Effect::Kill(worker(0, 1), KillReason::Lost)]);
}

#[test]
fn events_of_a_previous_worker_do_not_affect_the_current_one() {
    let mut bench = Bench::up(1, 1, 10);
    bench.submit();
    bench.on(Event::Exited(worker(0, 1)));
    bench.advance(100);
    bench.on(launched(worker(0, 2)));
    bench.submit();
    assert_eq!(bench.scheduler.in_flight(), 2, "the lease of the lost call has not ended");
    assert_eq!(bench.on(Event::Finished(worker(0, 1), Load::LONG)), []);
    assert_eq!(bench.on(Event::Exited(worker(0, 1))), []);
    assert_eq!(bench.on(Event::CancelConfirmed(worker(0, 1))), []);
    assert_eq!(bench.scheduler.in_flight(), 1);
    bench.submit();
    assert_eq!(bench.scheduler.queued(), 1, "the new worker is still busy");
}

#[test]
fn failed_launches_back_off_until_a_worker_answers_a_call() {
    let mut bench = Bench::new(1, 1, 10);
    bench.on(Event::Tick);
    let mut generation = 1;
    for millis in [100, 200, 400, 800] {
        bench.on(Event::LaunchFailed(worker(0, generation)));
        assert_eq!(bench.advance(millis - 1), []);
        generation += 1;
        assert_eq!(bench.advance(1), [Effect::Launch(worker(0, generation))]);
    }
    // A worker that exits before it answers a call counts as a failure.
    bench.on(launched(worker(0, generation)));
    assert_eq!(bench.on(Event::Exited(worker(0, generation))), []);
    assert_eq!(bench.advance(1599), []);
    generation += 1;
    assert_eq!(bench.advance(1), [Effect::Launch(worker(0, generation))]);
    bench.on(launched(worker(0, generation)));
    bench.submit();
    bench.on(Event::Finished(worker(0, generation), Load::LONG));
    let effects = bench.on(Event::Exited(worker(0, generation)));
    assert_eq!(effects, [Effect::Launch(worker(0, generation + 1))]);
}

#[test]
fn a_worker_that_was_up_for_long_is_replaced_immediately() {
    let mut bench = Bench::up(1, 1, 10);
    bench.advance(10_000);
    assert_eq!(bench.on(Event::Exited(worker(0, 1))), [Effect::Launch(worker(0, 2))]);
}

#[test]
fn calls_fail_instead_of_waiting_after_repeated_failures_of_all_slots() {
    let mut bench = Bench::new(1, 1, 10);
    bench.on(Event::Tick);
    let (queued, _) = bench.submit();
    for generation in [1, 2] {
        assert_eq!(bench.on(Event::LaunchFailed(worker(0, generation))), []);
        bench.advance(200);
    }
    let next_attempt = Some(bench.now + Duration::from_millis(400));
    let rejection = Rejection::NoWorkers { next_attempt };
    let effects = bench.on(Event::LaunchFailed(worker(0, 3)));
    assert_eq!(effects, [Effect::Reject { ticket: queued, rejection }]);
    let (ticket, effects) = bench.submit();
    assert_eq!(effects, [Effect::Reject { ticket, rejection }]);
    bench.advance(400);
    bench.on(launched(worker(0, 4)));
    let (ticket, effects) = bench.submit();
    assert_eq!(effects, assign(ticket, worker(0, 4)));
}

#[test]
fn a_drain_finishes_all_calls_and_then_stops_the_workers() {
    let mut bench = Bench::up(2, 1, 10);
    bench.submit();
    bench.submit();
    let (queued, _) = bench.submit();
    let until = bench.now + Duration::from_secs(10);
    assert_eq!(bench.on(Event::Drain { until }), []);
    let (rejected, effects) = bench.submit();
    assert_eq!(effects, [Effect::Reject { ticket: rejected, rejection: Rejection::Draining }]);
    assert_eq!(bench.on(Event::Finished(worker(0, 1), Load::LONG)), assign(queued, worker(0, 1)));
    assert_eq!(bench.on(Event::Finished(worker(1, 1), Load::LONG)), []);
    let effects = bench.on(Event::Finished(worker(0, 1), Load::LONG));
    assert_eq!(effects, [Effect::Stop(worker(0, 1)), Effect::Stop(worker(1, 1))]);
    assert_eq!(bench.on(Event::Exited(worker(0, 1))), []);
    assert_eq!(bench.on(Event::Exited(worker(1, 1))), [Effect::Stopped]);
}

#[test]
fn a_drain_ends_at_the_earliest_of_several_times() {
    let mut bench = Bench::up(1, 1, 10);
    bench.submit();
    let (queued, _) = bench.submit();
    for seconds in [10, 1, 5] {
        let until = bench.now + Duration::from_secs(seconds);
        assert_eq!(bench.on(Event::Drain { until }), []);
    }
    assert_eq!(bench.advance(999), []);
    let reject = Effect::Reject { ticket: queued, rejection: Rejection::Draining };
    assert_eq!(bench.advance(1), [reject, Effect::CutOff, Effect::Stop(worker(0, 1))]);
}

#[test]
fn a_stop_aborts_launches_and_drops_scheduled_ones() {
    let mut bench = Bench::new(2, 1, 10);
    bench.on(Event::Tick);
    bench.on(Event::LaunchFailed(worker(0, 1)));
    let now = bench.now;
    assert_eq!(bench.on(Event::Drain { until: now }), [Effect::AbortLaunch(worker(1, 1))]);
    // The launch succeeded just before it was aborted.
    assert_eq!(bench.on(launched(worker(1, 1))), [Effect::Stop(worker(1, 1))]);
    assert_eq!(bench.on(Event::Exited(worker(1, 1))), [Effect::Stopped]);
    assert_eq!(bench.advance(60_000), []);
}
