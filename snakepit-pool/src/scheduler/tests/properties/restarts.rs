//! The model of launches, exits and restarts.

use super::*;

/// The last restart.
#[derive(Debug, Default)]
pub(super) struct Restarts {
    /// Its number. 0 before the first one.
    last: u64,
    /// The generations of the last workers in all slots before it.
    last_old_generations: Vec<u32>,
    /// The number of the last one that ended.
    ended: u64,
}

impl Restarts {
    pub(super) const fn is_running(&self) -> bool {
        self.ended < self.last
    }
}

impl Model {
    pub(super) fn launch(&mut self, index: usize, up: Option<(bool, Option<usize>)>) {
        let worker = self.launching.swap_remove(index);
        if up.is_some() && !self.is_draining {
            self.retire_others(worker);
        }
        let Some((queues_calls, concurrency)) = up else { return self.on(Event::LaunchFailed(worker)) };
        let up = ModelWorker {
            running: Vec::new(),
            queues_calls,
            concurrency: concurrency.unwrap_or(self.limits.concurrency),
            up_since: self.harness.now,
            last_progress: self.harness.now,
            cancelling: 0,
            suspensions: 0,
            is_retiring: self.is_stopped_successor(worker),
            is_ending: false,
        };
        self.workers.insert(worker, up);
        self.on(Event::Launched { worker, queues_calls, concurrency });
    }

    pub(super) fn exit(&mut self, worker: WorkerKey) {
        self.workers.remove(&worker);
        self.cancelling.retain(|(cancelling, ..)| *cancelling != worker);
        self.on(Event::Exited(worker));
    }

    pub(super) fn restart(&mut self) {
        self.restarts.last_old_generations =
            self.harness.scheduler.slots().iter().map(Slot::last_generation).collect();
        self.restarts.last += 1;
        let number = self.restarts.last;
        self.on(Event::Restart { number });
    }

    pub(super) fn on_restart_ended(&mut self, number: u64, outcome: RestartOutcome) {
        assert_eq!(number, self.restarts.last);
        assert!(self.restarts.ended < number, "ended twice");
        self.restarts.ended = number;
        let is_old = |key: &WorkerKey| key.generation <= self.restarts.last_old_generations[key.index()];
        match outcome {
            RestartOutcome::Replaced => {
                let mut in_service = self.workers.iter().filter(|(_, up)| !up.is_retiring && !up.is_ending);
                assert!(!in_service.any(|(key, _)| is_old(key)), "an old worker remains in service");
            }
            RestartOutcome::Failed { worker, replaced } => {
                assert!(!is_old(&worker), "an old worker ended the restart");
                assert!(replaced < self.harness.scheduler.slots().len(), "all workers were replaced");
            }
            RestartOutcome::ShutDown => assert!(self.is_draining),
        }
    }

    /// Checks that a restart waits only for replaced workers.
    pub(super) fn on_restart_waits(&self, slot: u32) {
        assert!(self.restarts.is_running());
        let replaced = self.workers.iter().filter(|(key, up)| key.slot == slot && up.is_retiring).count();
        assert!(replaced >= MAX_REPLACED, "{replaced} replaced workers");
    }

    /// Checks that a worker may be launched.
    pub(super) fn check_launch(&self, worker: WorkerKey) {
        assert!(!self.launching.iter().any(|other| other.slot == worker.slot), "two launches in one slot");
        let others: Vec<_> = self.workers.iter().filter(|(other, _)| other.slot == worker.slot).collect();
        let is_retired = |up: &ModelWorker| up.is_retiring;
        let in_service = others.iter().filter(|(_, up)| !is_retired(up)).count();
        let is_restarting = self.restarts.is_running();
        let is_replaced = is_restarting || self.is_recycling(worker.slot);
        assert!(in_service <= usize::from(is_replaced), "{others:?} occupy the slot");
        // One that retired, and those that restarts have replaced.
        assert!(others.len() - in_service <= MAX_REPLACED + 1, "{others:?} occupy the slot");
    }

    /// Whether this worker is a successor that comes up during a drain. It is stopped, so it does not occupy its slot.
    pub(super) fn is_stopped_successor(&self, worker: WorkerKey) -> bool {
        self.is_draining && self.harness.scheduler.slots()[worker.index()].successor() == Some(worker)
    }

    /// Marks the worker that this one replaces.
    pub(super) fn retire_others(&mut self, worker: WorkerKey) {
        let others = self.workers.iter_mut().filter(|(other, _)| other.slot == worker.slot);
        others.for_each(|(_, up)| up.is_retiring = true);
    }

    /// Checks that the scheduler lists the workers beside their replacements, and no others.
    fn check_retired(&self) {
        let scheduler = &self.harness.scheduler;
        let is_beside = |key: &WorkerKey| scheduler.slots()[key.index()].key() != *key;
        let mut expected: Vec<_> = self.workers.iter().filter(|(key, _)| is_beside(key)).collect();
        // A slot without a worker keeps the key of the last one, which may have retired.
        let has_left = |key: &WorkerKey| {
            let state = &scheduler.slots()[key.index()].state;
            matches!(state, SlotState::BackingOff { .. } | SlotState::Closed)
        };
        expected.extend(self.workers.iter().filter(|(key, _)| !is_beside(key) && has_left(key)));
        let mut listed = 0;
        for (key, load) in scheduler.retired() {
            let (_, model) =
                expected.iter().find(|(other, _)| **other == key).expect("it is beside its replacement");
            let load = load.map(|load| (load.running(), load.cancelling));
            let expected = (model.running.len() as u32, model.cancelling as u32);
            assert_eq!(load, (!model.is_ending).then_some(expected), "{key:?}");
            listed += 1;
        }
        assert_eq!(listed, expected.len(), "{expected:?}");
    }

    pub(super) fn check_restarts(&self) {
        self.check_retired();
        self.check_progress();
    }

    /// Checks that a restart continues unless it waits for an exit.
    fn check_progress(&self) {
        if !self.restarts.is_running() || !self.launching.is_empty() {
            return;
        }
        let waits = |slot: &Slot| {
            let is_ending = self.workers.get(&slot.key()).is_some_and(|up| up.is_ending);
            let in_slot = self.workers.keys().filter(|key| key.slot == slot.key().slot).count();
            is_ending || in_slot > MAX_REPLACED
        };
        assert!(self.harness.scheduler.slots().iter().any(waits), "the restart does not continue");
    }
}
