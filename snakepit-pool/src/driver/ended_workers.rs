//! The reasons why workers ended, for listings.

use snakepit_worker::WorkerId;

use crate::scheduler::{RecycleReason, WorkerKey};

/// Why the last worker of each slot ended.
#[derive(Debug)]
pub(super) struct EndedWorkers {
    slots: Vec<Option<String>>,
    /// The workers that are being recycled, which have not exited.
    recycling: Vec<(WorkerKey, RecycleReason)>,
}

impl EndedWorkers {
    pub(super) fn new(slots: usize) -> Self {
        Self { slots: vec![None; slots], recycling: Vec::new() }
    }

    /// Records that the pool recycles a worker.
    pub(super) fn recycle(&mut self, worker: WorkerKey, reason: RecycleReason) {
        self.recycling.retain(|(recycled, _)| *recycled != worker);
        self.recycling.push((worker, reason));
    }

    /// Records the exit of a worker, and its reason. `was_stopped` is whether the worker stopped as asked.
    pub(super) fn end(&mut self, worker: WorkerKey, id: &WorkerId, reason: &str, was_stopped: bool) {
        let position = self.recycling.iter().position(|(recycled, _)| *recycled == worker);
        let text = match position.map(|position| self.recycling.swap_remove(position)) {
            Some((_, recycled)) if was_stopped => format!("{id}: it was recycled because {recycled}"),
            _ => format!("{id}: {reason}"),
        };
        if let Some(slot) = self.slots.get_mut(worker.index()) {
            *slot = Some(text);
        }
    }

    /// The end of the last worker of a slot that has exited.
    pub(super) fn last(&self, slot: usize) -> Option<&str> {
        self.slots.get(slot)?.as_deref()
    }
}
