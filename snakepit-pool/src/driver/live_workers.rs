//! The workers that were launched and have not exited.

use std::{sync::Arc, time::SystemTime};

use snakepit_worker::Worker;

use crate::scheduler::WorkerKey;

/// A worker that was launched and has not exited.
#[derive(Debug)]
pub(crate) struct LiveWorker {
    pub(crate) key: WorkerKey,
    pub(crate) handle: Worker,
    pub(crate) started_at: SystemTime,
}

/// The workers that are up or stopping: the last one of each slot, and those that finish their calls while their replacements
/// run.
#[derive(Debug)]
pub(super) struct LiveWorkers {
    by_slot: Vec<Option<Arc<LiveWorker>>>,
    retired: Vec<Arc<LiveWorker>>,
}

impl LiveWorkers {
    pub(super) fn new(slots: usize) -> Self {
        Self { by_slot: vec![None; slots], retired: Vec::new() }
    }

    pub(super) fn get(&self, key: WorkerKey) -> Option<&Arc<LiveWorker>> {
        let last = self.by_slot.get(key.index()).and_then(Option::as_ref);
        last.filter(|worker| worker.key == key)
            .or_else(|| self.retired.iter().find(|worker| worker.key == key))
    }

    /// Adds a worker. An earlier one of the same slot stays until its exit.
    pub(super) fn insert(&mut self, worker: Arc<LiveWorker>) {
        let key = worker.key;
        self.retired.extend(self.by_slot[key.index()].replace(worker));
    }

    /// Removes a worker. Drop it after the lock is released, because its handler is foreign code.
    pub(super) fn remove(&mut self, key: WorkerKey) -> Option<Arc<LiveWorker>> {
        let last = self.by_slot[key.index()].take_if(|worker| worker.key == key);
        last.or_else(|| {
            let index = self.retired.iter().position(|worker| worker.key == key)?;
            Some(self.retired.remove(index))
        })
    }

    /// The workers of a slot that finish their calls beside their replacement.
    pub(super) fn replaced(&self, slot: u32) -> impl Iterator<Item = &Arc<LiveWorker>> {
        self.retired.iter().filter(move |worker| worker.key.slot == slot)
    }

    /// The last worker of each slot.
    pub(super) fn by_slot(&self) -> impl Iterator<Item = Option<&Arc<LiveWorker>>> {
        self.by_slot.iter().map(Option::as_ref)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<LiveWorker>> {
        self.by_slot.iter().flatten().chain(&self.retired)
    }
}
