//! Tests of restarts.

use super::*;
use crate::scheduler::restart::MAX_REPLACED;

const FIRST: WorkerKey = worker(0, 1);
const SECOND: WorkerKey = worker(0, 2);

fn restart(harness: &mut SchedulerHarness, number: u64) -> Vec<Effect> {
    harness.on(Event::Restart { number })
}

const fn ended(number: u64, outcome: RestartOutcome) -> Effect {
    Effect::RestartEnded { number, outcome }
}

const fn failed(worker: WorkerKey, replaced: usize) -> RestartOutcome {
    RestartOutcome::Failed { worker, replaced }
}

#[test]
fn each_new_worker_is_up_before_the_old_one_stops() {
    let mut harness = SchedulerHarness::up(2, 1, 10);
    assert_eq!(restart(&mut harness, 1), [Effect::Launch(SECOND)]);
    let (a, effects) = harness.submit();
    assert_eq!(effects, assign(a, FIRST), "the old worker serves meanwhile");
    harness.on(Event::Finished(FIRST, Load::LONG));
    assert_eq!(harness.on(launched(SECOND)), [Effect::Stop(FIRST), Effect::Launch(worker(1, 2))]);
    let done = [Effect::Stop(worker(1, 1)), ended(1, RestartOutcome::Replaced)];
    assert_eq!(harness.on(launched(worker(1, 2))), done);
    assert_eq!(harness.on(Event::Exited(FIRST)), []);
    assert_eq!(harness.on(Event::Exited(worker(1, 1))), [], "the exits launch no other workers");
}

#[test]
fn an_old_worker_finishes_its_calls() {
    let mut harness = SchedulerHarness::up(1, 1, 10);
    harness.submit();
    restart(&mut harness, 1);
    assert_eq!(harness.on(launched(SECOND)), [ended(1, RestartOutcome::Replaced)]);
    let (b, effects) = harness.submit();
    assert_eq!(effects, assign(b, SECOND));
    // A call without a deadline may take longer than the limit for workers that retire without a restart.
    assert_eq!(harness.advance(3_600_000), []);
    assert_eq!(harness.on(Event::Finished(FIRST, Load::LONG)), [Effect::Stop(FIRST)]);
    assert_eq!(harness.on(Event::Finished(SECOND, Load::LONG)), []);
}

#[test]
fn old_workers_stay_if_a_new_one_does_not_start() {
    let mut harness = SchedulerHarness::up(2, 1, 10);
    restart(&mut harness, 1);
    assert_eq!(harness.on(Event::LaunchFailed(SECOND)), [ended(1, failed(SECOND, 0))]);
    assert_eq!(harness.advance(60_000), [], "the scheduler does not repeat the launch");
    let (a, effects) = harness.submit();
    assert_eq!(effects, assign(a, FIRST));
    assert_eq!(restart(&mut harness, 2), [Effect::Launch(worker(0, 3))], "ids are never reused");
}

#[test]
fn a_failed_restart_reports_the_number_of_replaced_workers() {
    let mut harness = SchedulerHarness::up(2, 1, 10);
    restart(&mut harness, 1);
    harness.on(launched(SECOND));
    let last = worker(1, 2);
    assert_eq!(harness.on(Event::LaunchFailed(last)), [ended(1, failed(last, 1))]);
    // The next one counts from zero.
    restart(&mut harness, 2);
    assert_eq!(harness.on(Event::LaunchFailed(worker(0, 3))), [ended(2, failed(worker(0, 3), 0))]);
}

#[test]
fn a_restart_replaces_a_worker_that_could_not_start_without_its_backoff() {
    let mut harness = SchedulerHarness::new(1, 1, 10);
    harness.on(Event::Tick);
    harness.on(Event::LaunchFailed(FIRST));
    assert_eq!(restart(&mut harness, 1), [Effect::Launch(SECOND)]);
    assert_eq!(harness.on(Event::LaunchFailed(SECOND)), [ended(1, failed(SECOND, 0))]);
    assert_eq!(restart(&mut harness, 2), [Effect::Launch(worker(0, 3))]);
    assert_eq!(harness.on(launched(worker(0, 3))), [ended(2, RestartOutcome::Replaced)]);
}

#[test]
fn a_later_restart_supersedes_the_one_in_progress() {
    let mut harness = SchedulerHarness::up(1, 1, 10);
    restart(&mut harness, 1);
    assert_eq!(restart(&mut harness, 2), [Effect::AbortLaunch(SECOND)]);
    let third = worker(0, 3);
    assert_eq!(harness.on(Event::LaunchFailed(SECOND)), [Effect::Launch(third)]);
    assert_eq!(harness.on(launched(third)), [Effect::Stop(FIRST), ended(2, RestartOutcome::Replaced)]);
    // The abort may come too late.
    restart(&mut harness, 3);
    let (fourth, fifth) = (worker(0, 4), worker(0, 5));
    assert_eq!(restart(&mut harness, 4), [Effect::AbortLaunch(fourth)]);
    assert_eq!(harness.on(launched(fourth)), [Effect::Stop(third), Effect::Launch(fifth)]);
    assert_eq!(harness.on(launched(fifth)), [Effect::Stop(fourth), ended(4, RestartOutcome::Replaced)]);
}

#[test]
fn an_old_worker_that_exits_meanwhile_is_replaced_by_the_worker_in_launch() {
    let mut harness = SchedulerHarness::up(1, 1, 10);
    restart(&mut harness, 1);
    assert_eq!(harness.on(Event::Exited(FIRST)), []);
    let (a, effects) = harness.submit();
    assert_eq!(effects, []);
    let expected = [assign(a, SECOND), vec![ended(1, RestartOutcome::Replaced)]].concat();
    assert_eq!(harness.on(launched(SECOND)), expected);
}

#[test]
fn a_shutdown_ends_a_restart_and_stops_its_new_workers() {
    let mut harness = SchedulerHarness::up(1, 1, 10);
    harness.submit();
    restart(&mut harness, 1);
    let until = harness.now + Duration::from_secs(1);
    let effects = harness.on(Event::Drain { until });
    assert_eq!(effects, [Effect::AbortLaunch(SECOND), ended(1, RestartOutcome::ShutDown)]);
    assert_eq!(harness.on(launched(SECOND)), [Effect::Stop(SECOND)]);
    assert_eq!(harness.on(Event::Finished(FIRST, Load::LONG)), [Effect::Stop(FIRST)]);
    assert_eq!(harness.on(Event::Exited(FIRST)), []);
    assert_eq!(harness.on(Event::Exited(SECOND)), [Effect::Stopped]);
    assert_eq!(restart(&mut harness, 2), [ended(2, RestartOutcome::ShutDown)]);
}

#[test]
fn large_pools_replace_a_quarter_of_the_slots_at_once_after_the_first() {
    let mut harness = SchedulerHarness::up(8, 1, 10);
    assert_eq!(restart(&mut harness, 1), [Effect::Launch(worker(0, 2))]);
    let effects = harness.on(launched(worker(0, 2)));
    let launches = [1, 2].map(|slot| Effect::Launch(worker(slot, 2)));
    assert_eq!(effects, [vec![Effect::Stop(FIRST)], launches.to_vec()].concat());
}

#[test]
fn restarts_wait_if_too_many_old_workers_of_a_slot_run_calls() {
    let mut harness = SchedulerHarness::up(1, 1, 10);
    for number in 1..=MAX_REPLACED as u64 {
        harness.submit();
        restart(&mut harness, number);
        harness.on(launched(worker(0, number as u32 + 1)));
    }
    assert_eq!(
        restart(&mut harness, 9),
        [Effect::RestartWaits { slot: 0 }],
        "it would run too many processes"
    );
    harness.submit();
    assert_eq!(harness.on(Event::Finished(FIRST, Load::LONG)), [Effect::Stop(FIRST)]);
    assert_eq!(harness.on(Event::Exited(FIRST)), [Effect::Launch(worker(0, 6))]);
}
