//! Tests of calls that wait for room in a full queue.

use super::*;

const WAIT: Duration = Duration::from_secs(1);

impl SchedulerHarness {
    fn submit_waiting(
        &mut self,
        wait: Duration,
        timeout: Option<u64>,
        bytes: usize,
    ) -> (Ticket, Vec<Effect>) {
        let ticket = self.ticket();
        let deadline = timeout.map(|millis| self.now + Duration::from_millis(millis));
        let (preferred, load, wait_for_room) = (None, Load::LONG, Some(wait));
        (
            ticket,
            self.on(Event::Submit {
                is_nested: false,
                ticket,
                preferred,
                deadline,
                load,
                bytes,
                wait_for_room,
            }),
        )
    }

    /// Submits a call that waits for room.
    fn wait_for_room(&mut self) -> Ticket {
        let (ticket, effects) = self.submit_waiting(WAIT, None, 0);
        assert_eq!(effects, []);
        ticket
    }

    fn finish(&mut self) -> Vec<Effect> {
        self.on(Event::Finished(worker(0, 1), Load::LONG))
    }
}

fn is_rejected(effects: &[Effect], rejected: Ticket) -> bool {
    matches!(effects, [Effect::Reject { ticket, rejection: Rejection::Overloaded { .. } }] if *ticket == rejected)
}

#[test]
fn calls_get_room_in_order_and_new_calls_do_not_overtake_them() {
    for queue_limit in [0, 1, 2] {
        let mut harness = SchedulerHarness::up(1, 1, queue_limit);
        let mut expected: Vec<Ticket> = (0..=queue_limit).map(|_| harness.submit().0).collect();
        expected.extend([(); 3].map(|()| harness.wait_for_room()));
        assert_eq!(harness.scheduler.queued(), queue_limit);
        for next in &expected[1..] {
            if harness.scheduler.queued() == queue_limit {
                let (new, effects) = harness.submit();
                assert!(is_rejected(&effects, new), "a call that does not wait is rejected: {effects:?}");
            }
            assert_eq!(harness.finish(), assign(*next, worker(0, 1)));
        }
        assert_eq!(harness.finish(), []);
        let (free, effects) = harness.submit();
        assert_eq!(effects, assign(free, worker(0, 1)), "without waiting calls, new calls run again");
    }
}

#[test]
fn a_wait_ends_after_its_limit_or_at_the_deadline() {
    let mut harness = SchedulerHarness::up(1, 1, 1);
    let _running = harness.submit();
    let _queued = harness.submit();
    let (limited, _) = harness.submit_waiting(WAIT, Some(5000), 0);
    let (late, _) = harness.submit_waiting(2 * WAIT, Some(1500), 0);
    let (unlimited, effects) = harness.submit_waiting(Duration::MAX, Some(9000), 0);
    assert_eq!(effects, []);
    assert_eq!(harness.advance(999), []);
    assert!(is_rejected(&harness.advance(1), limited));
    assert_eq!(harness.advance(500), [Effect::Expire(late)]);
    // The call without a limit moves to the queue and keeps its deadline.
    harness.finish();
    assert_eq!(harness.advance(7500), [Effect::Expire(unlimited)]);
    let (zero, effects) = {
        harness.submit();
        harness.submit_waiting(Duration::ZERO, None, 0)
    };
    assert!(is_rejected(&effects, zero), "{effects:?}");
    let (_, effects) = harness.submit_waiting(Duration::MAX, None, 0);
    assert_eq!(effects, [], "a call without limit and deadline waits");
}

#[test]
fn a_withdrawn_call_does_not_wait_and_a_withdrawn_queued_call_makes_room() {
    let mut harness = SchedulerHarness::up(1, 1, 1);
    let _running = harness.submit();
    let (queued, _) = harness.submit();
    let [first, second] = [(); 2].map(|()| harness.wait_for_room());
    assert_eq!(harness.on(Event::Withdraw(first)), []);
    assert_eq!(harness.on(Event::Withdraw(queued)), []);
    assert_eq!(harness.scheduler.queued(), 1);
    assert_eq!(harness.finish(), assign(second, worker(0, 1)));
}

#[test]
fn a_call_waits_for_bytes_too_and_smaller_calls_do_not_overtake_it() {
    let mut harness = SchedulerHarness::up(1, 1, 10);
    let _running = harness.submit();
    // The limit is 100 bytes.
    let (small, _) = harness.submit_waiting(WAIT, None, 60);
    let (large, effects) = harness.submit_waiting(WAIT, None, 60);
    assert_eq!((effects, harness.scheduler.queued()), (vec![], 1));
    let (new, effects) = harness.submit();
    assert!(is_rejected(&effects, new), "{effects:?}");
    assert_eq!(harness.finish(), assign(small, worker(0, 1)));
    assert_eq!(harness.finish(), assign(large, worker(0, 1)));
}

#[test]
fn a_drain_and_a_pool_without_workers_reject_calls_that_wait_for_room() {
    let mut harness = SchedulerHarness::up(1, 1, 0);
    let _running = harness.submit();
    let waiting = harness.wait_for_room();
    let until = harness.now + WAIT;
    let rejection = Rejection::Draining;
    assert_eq!(harness.on(Event::Drain { until }), [Effect::Reject { ticket: waiting, rejection }]);

    let mut harness = SchedulerHarness::new(1, 1, 0);
    let (waiting, _) = harness.submit_waiting(Duration::MAX, Some(3_600_000), 0);
    let mut effects = harness.on(Event::Tick);
    let rejected = loop {
        match effects[..] {
            [Effect::Launch(worker)] => effects = harness.on(Event::LaunchFailed(worker)),
            [Effect::Reject { ticket, rejection: Rejection::NoWorkers { .. } }] => break ticket,
            [] => effects = harness.advance(100),
            _ => panic!("{effects:?}"),
        }
    };
    assert_eq!(rejected, waiting);
}
