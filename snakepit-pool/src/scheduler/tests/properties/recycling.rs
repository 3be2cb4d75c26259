//! The model of recycling.

use proptest::sample::Index;

use super::*;
use crate::scheduler::recycling::MIN_LIFE;

/// Random limits, small enough to be reached.
pub(super) fn limits() -> impl Strategy<Value = RecyclingLimits> {
    let seconds = || prop::option::weighted(0.3, (1..60_u64).prop_map(Duration::from_secs));
    let memory = prop::option::weighted(0.3, 100..150_u64);
    let hard_memory = prop::option::weighted(0.3, 150..250_u64);
    (prop::option::weighted(0.3, 1..30_u64), seconds(), seconds(), memory, hard_memory).prop_map(
        |(calls, age, idle, memory, hard_memory)| RecyclingLimits { calls, age, idle, memory, hard_memory },
    )
}

impl Model {
    pub(super) fn measure(&mut self, index: &Index, used: u64) {
        let worker = *index.get(&self.keys(|_| true));
        self.on(Event::Memory { worker, used });
    }

    pub(super) fn request_recycling(&mut self, index: &Index) {
        self.on(Event::Recycle(*index.get(&self.keys(|_| true))));
    }

    /// Checks that a worker may be recycled now, for this reason.
    pub(super) fn on_recycle(&mut self, worker: WorkerKey, reason: RecycleReason) {
        let up = &self.workers[&worker];
        assert!(!up.is_retiring && !up.is_ending, "{worker:?} is not in service");
        assert!(!self.is_draining && !self.restarts.is_running());
        let slots = self.harness.scheduler.slots().len();
        assert!(self.launching.len() < (slots / 4).max(1), "too many workers are replaced at the same time");
        let limits = self.limits.recycling;
        match reason {
            RecycleReason::Calls(calls) => {
                let limit = limits.calls.expect("there is a limit");
                assert!(calls >= limit - limit / 10, "{calls} of {limit} calls");
            }
            RecycleReason::Age(age) => {
                let limit = limits.age.expect("there is a limit");
                assert!(age >= limit - limit / 10, "{age:?} of {limit:?}");
            }
            RecycleReason::Idle(idle) => assert!(idle >= limits.idle.expect("there is a limit")),
            RecycleReason::Memory { used, limit } => {
                assert!(used > limit && limits.memory == Some(limit));
                assert!(self.harness.now >= up.up_since + MIN_LIFE, "a young worker is recycled");
            }
            RecycleReason::Requested => {}
        }
        self.recycled.insert((worker.slot, worker.generation));
    }

    /// Whether a worker of this slot is being recycled.
    pub(super) fn is_recycling(&self, slot: u32) -> bool {
        let is_in_service = |up: &ModelWorker| !up.is_retiring;
        self.recycled
            .range((slot, 0)..=(slot, u32::MAX))
            .any(|&(slot, generation)| self.workers.get(&worker(slot, generation)).is_some_and(is_in_service))
    }

    /// Checks that recycling continues unless it waits for a launch, an exit or a timer.
    pub(super) fn check_recycling(&self) {
        if self.is_draining || self.restarts.is_running() || !self.launching.is_empty() {
            return;
        }
        let scheduler = &self.harness.scheduler;
        for slot in scheduler.slots() {
            let SlotState::Up(up) = slot.state else { continue };
            if up.recycle.is_none() || up.is_retiring {
                continue;
            }
            let in_slot = self.workers.keys().filter(|key| key.slot == slot.key().slot).count();
            let waits_for_timer = slot.retry_at.is_some_and(|at| {
                at > self.harness.now && scheduler.next_tick().is_some_and(|tick| tick <= at)
            });
            assert!(in_slot > MAX_REPLACED || waits_for_timer, "the recycling of {slot:?} does not continue");
        }
    }
}
