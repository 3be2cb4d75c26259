//! Tests of individual scheduler rules. [`properties`] tests all of them under random events.

mod concurrency;
mod properties;
mod recycling;
mod restarts;
mod wait_for_room;

use std::time::Duration;

use snakepit_registry::CallId;
use tokio::time::Instant;

use super::*;

/// A scheduler with a clock.
struct SchedulerHarness {
    scheduler: Scheduler,
    now: Instant,
    tickets: u64,
}

impl SchedulerHarness {
    fn new(slots: usize, concurrency: usize, queue: usize) -> Self {
        Self::with_recycling(slots, concurrency, queue, RecyclingLimits::default())
    }

    fn with_recycling(slots: usize, concurrency: usize, queue: usize, recycling: RecyclingLimits) -> Self {
        let now = Instant::now();
        let limits = Limits {
            slots,
            concurrency,
            queue,
            queue_bytes: 100,
            cancel_grace: Duration::from_secs(2),
            recycling,
        };
        Self { scheduler: Scheduler::new(limits, now), now, tickets: 0 }
    }

    /// Creates a scheduler whose workers are all up.
    fn up(slots: usize, concurrency: usize, queue: usize) -> Self {
        Self::up_with(slots, concurrency, queue, RecyclingLimits::default())
    }

    fn up_with(slots: usize, concurrency: usize, queue: usize, recycling: RecyclingLimits) -> Self {
        let mut harness = Self::with_recycling(slots, concurrency, queue, recycling);
        for effect in harness.on(Event::Tick) {
            let Effect::Launch(worker) = effect else { panic!("{effect:?}") };
            harness.on(launched(worker));
        }
        harness
    }

    fn on(&mut self, event: Event) -> Vec<Effect> {
        self.scheduler.handle_event(event, self.now).collect()
    }

    fn ticket(&mut self) -> Ticket {
        self.tickets += 1;
        Ticket { number: self.tickets, waiter: 0 }
    }

    fn submit_with(&mut self, preferred: Option<WorkerKey>, timeout: Option<u64>) -> (Ticket, Vec<Effect>) {
        let ticket = self.ticket();
        let deadline = timeout.map(|millis| self.now + Duration::from_millis(millis));
        (
            ticket,
            self.on(Event::Submit {
                is_nested: false,
                ticket,
                preferred,
                deadline,
                load: Load::LONG,
                bytes: 0,
                wait_for_room: None,
            }),
        )
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
    Event::Launched { worker, queues_calls: true, concurrency: None }
}

fn assign(ticket: Ticket, to: WorkerKey) -> Vec<Effect> {
    vec![Effect::Assign { ticket, worker: to }]
}

#[test]
fn all_workers_launch_concurrently_and_calls_wait_for_the_first() {
    let mut harness = SchedulerHarness::new(3, 1, 10);
    let (first, effects) = harness.submit();
    assert_eq!(effects, []);
    let launches = [0, 1, 2].map(|slot| Effect::Launch(worker(slot, 1)));
    assert_eq!(harness.on(Event::Tick), launches);
    assert_eq!(harness.on(launched(worker(1, 1))), assign(first, worker(1, 1)));
}

#[test]
fn calls_go_to_the_least_recently_used_worker_and_queue_in_order() {
    let mut harness = SchedulerHarness::up(2, 1, 10);
    let (a, effects) = harness.submit();
    assert_eq!(effects, assign(a, worker(0, 1)));
    let (b, effects) = harness.submit();
    assert_eq!(effects, assign(b, worker(1, 1)));
    let queued = [(); 3].map(|()| harness.submit().0);
    assert_eq!(harness.on(Event::Finished(worker(1, 1), Load::LONG)), assign(queued[0], worker(1, 1)));
    harness.on(Event::Withdraw(queued[1]));
    assert_eq!(harness.on(Event::Finished(worker(0, 1), Load::LONG)), assign(queued[2], worker(0, 1)));
}

#[test]
fn concurrency_fills_the_least_busy_worker_first() {
    let mut harness = SchedulerHarness::up(2, 2, 0);
    let slots: Vec<Vec<Effect>> = (0..4).map(|_| harness.submit().1).collect();
    let slot_of = |effects: &Vec<Effect>| match effects[..] {
        [Effect::Assign { worker, .. }] => worker.slot,
        _ => panic!("{effects:?}"),
    };
    assert_eq!(slots.iter().map(slot_of).collect::<Vec<_>>(), [0, 1, 0, 1]);
    let (ticket, effects) = harness.submit();
    let rejection = Rejection::Overloaded { queued: 0, oldest: Duration::ZERO };
    assert_eq!(effects, [Effect::Reject { ticket, rejection }]);
}

#[test]
fn a_preferred_worker_is_used_if_it_is_idle_and_ignored_if_it_has_exited() {
    let mut harness = SchedulerHarness::up(3, 1, 10);
    let (a, effects) = harness.submit_with(Some(worker(2, 1)), None);
    assert_eq!(effects, assign(a, worker(2, 1)));
    let (b, effects) = harness.submit_with(Some(worker(2, 1)), None);
    assert_eq!(effects, assign(b, worker(0, 1)), "it is busy");
    let (c, effects) = harness.submit_with(Some(worker(1, 7)), None);
    assert_eq!(effects, assign(c, worker(1, 1)), "there was no such generation");
}

#[test]
fn a_free_worker_prefers_calls_with_affinity_but_not_twice_in_a_row() {
    let mut harness = SchedulerHarness::up(1, 1, 10);
    harness.submit();
    let (plain, _) = harness.submit();
    let (first, _) = harness.submit_with(Some(worker(0, 1)), None);
    let (second, _) = harness.submit_with(Some(worker(0, 1)), None);
    let order: Vec<_> = (0..3).flat_map(|_| harness.on(Event::Finished(worker(0, 1), Load::LONG))).collect();
    let expected = [first, plain, second].map(|ticket| Effect::Assign { ticket, worker: worker(0, 1) });
    assert_eq!(order, expected);
}

/// Submits a call with this expected duration. Returns the slot to which the scheduler assigns the call.
fn submit_short(harness: &mut SchedulerHarness, micros: u64) -> u32 {
    submit_short_preferring(harness, micros, None)
}

fn submit_short_preferring(harness: &mut SchedulerHarness, micros: u64, preferred: Option<WorkerKey>) -> u32 {
    let (ticket, load) = (harness.ticket(), Load::of(Duration::from_micros(micros)));
    match harness.on(Event::Submit {
        is_nested: false,
        ticket,
        preferred,
        deadline: None,
        load,
        bytes: 0,
        wait_for_room: None,
    })[..]
    {
        [Effect::Assign { worker, .. }] => worker.slot,
        ref effects => panic!("{effects:?}"),
    }
}

#[test]
fn short_calls_wait_for_the_worker_of_the_last_one() {
    let mut harness = SchedulerHarness::up(3, 1, 100);
    let slots: Vec<u32> = (0..57).map(|_| submit_short(&mut harness, 8)).collect();
    let runs: Vec<usize> = slots.chunk_by(|a, b| a == b).map(<[u32]>::len).collect();
    assert_eq!(runs, [19, 19, 19], "each worker gets calls up to a backlog of 150 us");
    let mut harness = SchedulerHarness::up(3, 1, 100);
    assert_eq!(
        [10; 3].map(|micros| submit_short(&mut harness, micros)),
        [2, 1, 0],
        "each call goes to an idle worker"
    );
}

#[test]
fn calls_do_not_wait_for_a_stalled_worker() {
    let mut harness = SchedulerHarness::up(2, 1, 10);
    let first = submit_short(&mut harness, 1);
    assert_eq!(submit_short(&mut harness, 1), first);
    harness.now += Duration::from_millis(2);
    assert_ne!(submit_short(&mut harness, 1), first);
}

#[test]
fn a_busy_preferred_worker_is_skipped_if_its_backlog_is_long() {
    let mut harness = SchedulerHarness::up(3, 1, 10);
    let busy = submit_short(&mut harness, 400);
    let last_short = submit_short(&mut harness, 5);
    assert_ne!(busy, last_short);
    assert_eq!(
        submit_short_preferring(&mut harness, 5, Some(worker(busy, 1))),
        last_short,
        "the third worker is idle"
    );
    assert_eq!(submit_short_preferring(&mut harness, 5, Some(worker(last_short, 1))), last_short);
}

#[test]
fn calls_do_not_wait_for_a_worker_with_free_concurrency() {
    let mut harness = SchedulerHarness::up(2, 2, 10);
    let first = submit_short(&mut harness, 1);
    assert_ne!(submit_short(&mut harness, 1), first);
}

#[test]
fn a_full_queue_rejects_calls_and_reports_the_wait_of_its_oldest_call() {
    let mut harness = SchedulerHarness::up(1, 1, 2);
    harness.submit();
    harness.submit();
    harness.submit();
    harness.advance(700);
    let (ticket, effects) = harness.submit();
    let rejection = Rejection::Overloaded { queued: 2, oldest: Duration::from_millis(700) };
    assert_eq!(effects, [Effect::Reject { ticket, rejection }]);
}

#[test]
fn the_queue_is_bounded_in_bytes_but_one_call_may_always_wait() {
    let mut harness = SchedulerHarness::up(1, 1, 10);
    let mut submit = |bytes| {
        let ticket = harness.ticket();
        let submit = Event::Submit {
            is_nested: false,
            ticket,
            preferred: None,
            deadline: None,
            load: Load::LONG,
            bytes,
            wait_for_room: None,
        };
        (ticket, harness.on(submit))
    };
    // This call runs, so its bytes do not count.
    assert_eq!(submit(1000).1, assign(Ticket { number: 1, waiter: 0 }, worker(0, 1)));
    let (large, effects) = submit(1000);
    assert_eq!(effects, []);
    let (ticket, effects) = submit(1);
    let rejection = Rejection::TooManyBytes { used: 1000, oldest: Duration::ZERO };
    assert_eq!(effects, [Effect::Reject { ticket, rejection }]);
    assert_eq!(harness.on(Event::Withdraw(large)), []);
    let mut submit = |bytes| {
        let ticket = harness.ticket();
        let submit = Event::Submit {
            is_nested: false,
            ticket,
            preferred: None,
            deadline: None,
            load: Load::LONG,
            bytes,
            wait_for_room: None,
        };
        harness.on(submit)
    };
    assert_eq!((submit(60), submit(40)), (vec![], vec![]));
    assert!(matches!(submit(1)[..], [Effect::Reject { .. }]));
    harness.on(Event::Finished(worker(0, 1), Load::LONG));
    let ticket = harness.ticket();
    let submit = Event::Submit {
        is_nested: false,
        ticket,
        preferred: None,
        deadline: None,
        load: Load::LONG,
        bytes: 60,
        wait_for_room: None,
    };
    assert_eq!(harness.on(submit), [], "the bytes of the call that left the queue are free");
}

#[test]
fn a_queued_call_leaves_the_queue_at_its_deadline() {
    let mut harness = SchedulerHarness::up(1, 1, 2);
    harness.submit();
    let (late, _) = harness.submit_with(None, Some(500));
    let (early, _) = harness.submit_with(None, Some(100));
    assert_eq!(harness.advance(99), []);
    assert_eq!(harness.advance(1), [Effect::Expire(early)]);
    assert_eq!(harness.scheduler.queued(), 1);
    assert_eq!(harness.advance(400), [Effect::Expire(late)]);
    let (overdue, effects) = harness.submit_with(None, Some(0));
    assert_eq!(effects, [Effect::Expire(overdue)], "its deadline has passed");
}

#[test]
fn an_overdue_call_at_the_head_of_the_queue_is_not_assigned() {
    let mut harness = SchedulerHarness::up(1, 1, 2);
    harness.submit();
    let (overdue, _) = harness.submit_with(None, Some(100));
    let (next, _) = harness.submit();
    // The worker becomes free before the timer fires.
    harness.now += Duration::from_millis(100);
    let effects = harness.on(Event::Finished(worker(0, 1), Load::LONG));
    assert_eq!(effects, [Effect::Expire(overdue), Effect::Assign { ticket: next, worker: worker(0, 1) }]);
}

#[test]
fn an_abandoned_call_quarantines_its_worker_until_its_end_is_confirmed() {
    let mut harness = SchedulerHarness::up(1, 1, 10);
    harness.submit();
    let (queued, _) = harness.submit();
    let call = CallId::from_u64(7);
    assert_eq!(
        harness.on(Event::Abandoned(worker(0, 1), call, Load::LONG)),
        [Effect::Cancel(worker(0, 1), call)]
    );
    assert_eq!(harness.scheduler.in_flight(), 0);
    assert_eq!(harness.on(Event::CancelConfirmed(worker(0, 1), call)), assign(queued, worker(0, 1)));
}

#[test]
fn a_worker_that_does_not_confirm_a_cancellation_is_killed_and_replaced() {
    for event in [None, Some(Event::CancelFailed(worker(0, 1)))] {
        let mut harness = SchedulerHarness::up(1, 1, 10);
        harness.submit();
        harness.on(Event::Finished(worker(0, 1), Load::LONG));
        harness.submit();
        let (queued, _) = harness.submit();
        harness.on(Event::Abandoned(worker(0, 1), CallId::from_u64(7), Load::LONG));
        let (effects, reason) = match event {
            Some(event) => (harness.on(event), KillReason::CancelFailed),
            None => (harness.advance(2000), KillReason::CancelIgnored { grace: Duration::from_secs(2) }),
        };
        assert_eq!(effects, [Effect::Kill(worker(0, 1), reason)]);
        let confirmed = Event::CancelConfirmed(worker(0, 1), CallId::from_u64(7));
        assert_eq!(harness.on(confirmed), [], "the confirmation is too late");
        // It had answered a call, so it is replaced immediately.
        assert_eq!(harness.on(Event::Exited(worker(0, 1))), [Effect::Launch(worker(0, 2))]);
        assert_eq!(harness.on(launched(worker(0, 2))), assign(queued, worker(0, 2)));
    }
}

#[test]
fn a_lost_worker_gets_no_further_call_before_its_exit() {
    let mut harness = SchedulerHarness::up(1, 1, 10);
    harness.submit();
    harness.submit();
    let effects = harness.on(Event::Lost(worker(0, 1)));
    assert_eq!(effects, [Effect::Kill(worker(0, 1), KillReason::Lost)]);
}

#[test]
fn events_of_a_previous_worker_do_not_affect_the_current_one() {
    let mut harness = SchedulerHarness::up(1, 1, 10);
    harness.submit();
    harness.on(Event::Exited(worker(0, 1)));
    harness.advance(100);
    harness.on(launched(worker(0, 2)));
    harness.submit();
    assert_eq!(harness.scheduler.in_flight(), 2, "the lease of the lost call has not ended");
    assert_eq!(harness.on(Event::Finished(worker(0, 1), Load::LONG)), []);
    assert_eq!(harness.on(Event::Exited(worker(0, 1))), []);
    assert_eq!(harness.on(Event::CancelConfirmed(worker(0, 1), CallId::from_u64(7))), []);
    assert_eq!(harness.scheduler.in_flight(), 1);
    harness.submit();
    assert_eq!(harness.scheduler.queued(), 1, "the new worker is still busy");
}

#[test]
fn failed_launches_back_off_until_a_worker_answers_a_call() {
    let mut harness = SchedulerHarness::new(1, 1, 10);
    harness.on(Event::Tick);
    let mut generation = 1;
    for millis in [100, 200, 400, 800] {
        harness.on(Event::LaunchFailed(worker(0, generation)));
        assert_eq!(harness.advance(millis - 1), []);
        generation += 1;
        assert_eq!(harness.advance(1), [Effect::Launch(worker(0, generation))]);
    }
    // A worker that exits before it answers a call counts as a failure.
    harness.on(launched(worker(0, generation)));
    assert_eq!(harness.on(Event::Exited(worker(0, generation))), []);
    assert_eq!(harness.advance(1599), []);
    generation += 1;
    assert_eq!(harness.advance(1), [Effect::Launch(worker(0, generation))]);
    harness.on(launched(worker(0, generation)));
    harness.submit();
    harness.on(Event::Finished(worker(0, generation), Load::LONG));
    let effects = harness.on(Event::Exited(worker(0, generation)));
    assert_eq!(effects, [Effect::Launch(worker(0, generation + 1))]);
}

#[test]
fn a_worker_that_was_up_for_a_long_time_is_replaced_immediately() {
    let mut harness = SchedulerHarness::up(1, 1, 10);
    harness.advance(10_000);
    assert_eq!(harness.on(Event::Exited(worker(0, 1))), [Effect::Launch(worker(0, 2))]);
}

#[test]
fn calls_fail_instead_of_waiting_after_repeated_failures_of_all_slots() {
    let mut harness = SchedulerHarness::new(1, 1, 10);
    harness.on(Event::Tick);
    let (queued, _) = harness.submit();
    for generation in [1, 2] {
        assert_eq!(harness.on(Event::LaunchFailed(worker(0, generation))), []);
        harness.advance(200);
    }
    let next_attempt = Some(harness.now + Duration::from_millis(400));
    let rejection = Rejection::NoWorkers { next_attempt };
    let effects = harness.on(Event::LaunchFailed(worker(0, 3)));
    assert_eq!(effects, [Effect::Reject { ticket: queued, rejection }]);
    let (ticket, effects) = harness.submit();
    assert_eq!(effects, [Effect::Reject { ticket, rejection }]);
    harness.advance(400);
    harness.on(launched(worker(0, 4)));
    let (ticket, effects) = harness.submit();
    assert_eq!(effects, assign(ticket, worker(0, 4)));
}

#[test]
fn a_drain_finishes_all_calls_and_then_stops_the_workers() {
    let mut harness = SchedulerHarness::up(2, 1, 10);
    harness.submit();
    harness.submit();
    let (queued, _) = harness.submit();
    let until = harness.now + Duration::from_secs(10);
    assert_eq!(harness.on(Event::Drain { until }), []);
    let (rejected, effects) = harness.submit();
    assert_eq!(effects, [Effect::Reject { ticket: rejected, rejection: Rejection::Draining }]);
    assert_eq!(harness.on(Event::Finished(worker(0, 1), Load::LONG)), assign(queued, worker(0, 1)));
    assert_eq!(harness.on(Event::Finished(worker(1, 1), Load::LONG)), []);
    let effects = harness.on(Event::Finished(worker(0, 1), Load::LONG));
    assert_eq!(effects, [Effect::Stop(worker(0, 1)), Effect::Stop(worker(1, 1))]);
    assert_eq!(harness.on(Event::Exited(worker(0, 1))), []);
    assert_eq!(harness.on(Event::Exited(worker(1, 1))), [Effect::Stopped]);
}

#[test]
fn a_drain_includes_calls_that_running_calls_wait_for() {
    let mut harness = SchedulerHarness::up(1, 1, 10);
    harness.submit();
    let until = harness.now + Duration::from_secs(10);
    assert_eq!(harness.on(Event::Drain { until }), []);
    let submit_awaited = |harness: &mut SchedulerHarness| {
        let ticket = harness.ticket();
        let (preferred, deadline, wait_for_room, is_nested) = (None, None, None, true);
        let (load, bytes) = (Load::LONG, 0);
        let submit = Event::Submit { ticket, preferred, deadline, load, bytes, wait_for_room, is_nested };
        (ticket, harness.on(submit))
    };
    let (nested, effects) = submit_awaited(&mut harness);
    assert_eq!(effects, [], "it is queued");
    let finished = Event::Finished(worker(0, 1), Load::LONG);
    assert_eq!(harness.on(finished), assign(nested, worker(0, 1)));
    assert_eq!(harness.on(finished), [Effect::Stop(worker(0, 1))]);
    let (late, effects) = submit_awaited(&mut harness);
    assert_eq!(effects, [Effect::Reject { ticket: late, rejection: Rejection::Draining }]);
}

#[test]
fn a_drain_ends_at_the_earliest_of_several_times() {
    let mut harness = SchedulerHarness::up(1, 1, 10);
    harness.submit();
    let (queued, _) = harness.submit();
    for seconds in [10, 1, 5] {
        let until = harness.now + Duration::from_secs(seconds);
        assert_eq!(harness.on(Event::Drain { until }), []);
    }
    assert_eq!(harness.advance(999), []);
    let reject = Effect::Reject { ticket: queued, rejection: Rejection::Draining };
    assert_eq!(harness.advance(1), [reject, Effect::CutOff, Effect::Stop(worker(0, 1))]);
}

#[test]
fn a_stop_aborts_launches_and_drops_scheduled_ones() {
    let mut harness = SchedulerHarness::new(2, 1, 10);
    harness.on(Event::Tick);
    harness.on(Event::LaunchFailed(worker(0, 1)));
    let now = harness.now;
    assert_eq!(harness.on(Event::Drain { until: now }), [Effect::AbortLaunch(worker(1, 1))]);
    // The launch succeeded just before it was aborted.
    assert_eq!(harness.on(launched(worker(1, 1))), [Effect::Stop(worker(1, 1))]);
    assert_eq!(harness.on(Event::Exited(worker(1, 1))), [Effect::Stopped]);
    assert_eq!(harness.advance(60_000), []);
}
