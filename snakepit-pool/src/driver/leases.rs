//! The table of the calls that hold a worker, with an index by call and by slot for pools whose tools make nested calls.

use std::{collections::HashMap, hash::BuildHasherDefault, iter::successors};

use snakepit_registry::CallId;

use super::{lease::LeaseRecord, waiters::CallIdHasher};
use crate::{collections::Slab, scheduler::WorkerKey};

/// The records of all leases. Finds those of a call or a worker by a scan until [`index`](Self::index) is called.
#[derive(Default)]
pub(super) struct Leases {
    records: Slab<LeaseRecord>,
    /// Boxed to keep the state of pools without nested calls small.
    index: Option<Box<LeaseIndex>>,
}

/// The keys of the leases.
#[derive(Default)]
struct LeaseIndex {
    /// The newest lease of each call. The record of a lease has the key of the next older one, because copies of a call share its id.
    by_call: HashMap<CallId, usize, BuildHasherDefault<CallIdHasher>>,
    /// The leases of all workers of each slot.
    by_slot: Vec<Vec<usize>>,
}

impl Leases {
    /// Adds a record, and returns its key.
    pub(super) fn insert(&mut self, record: LeaseRecord) -> usize {
        let key = self.records.insert(record);
        if let Some(index) = &mut self.index {
            index.insert(key, &mut self.records[key]);
        }
        key
    }

    /// Removes the record with this key.
    pub(super) fn remove(&mut self, key: usize) -> LeaseRecord {
        let record = self.records.remove(key);
        if let Some(index) = &mut self.index {
            index.remove(key, &record, &mut self.records);
        }
        record
    }

    pub(super) fn get(&self, key: usize) -> Option<&LeaseRecord> {
        self.records.get(key)
    }

    pub(super) fn get_mut(&mut self, key: usize) -> Option<&mut LeaseRecord> {
        self.records.get_mut(key)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &LeaseRecord> {
        self.records.iter().map(|(_, lease)| lease)
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut LeaseRecord> {
        self.records.iter_mut().map(|(_, lease)| lease)
    }

    /// Creates the index, unless it exists. It is kept up to date from then on, so that pools without nested calls do not pay for it.
    pub(super) fn index(&mut self) {
        if self.index.is_none() {
            let mut index = Box::<LeaseIndex>::default();
            for (key, record) in &mut self.records {
                index.insert(key, record);
            }
            self.index = Some(index);
        }
    }

    /// The leases of a call. There are several if a layer runs copies of the call at the same time.
    pub(super) fn of_call(&self, call: CallId) -> impl Iterator<Item = &LeaseRecord> {
        let indexed = self.index.iter().flat_map(move |index| {
            let keys = successors(index.by_call.get(&call).copied(), |key| self.records[*key].next_of_call);
            keys.map(|key| &self.records[key])
        });
        indexed.chain(self.unindexed()).filter(move |lease| lease.call == call)
    }

    /// The lease of a call on a worker. Searches the index.
    pub(super) fn of_call_on(&mut self, call: CallId, worker: WorkerKey) -> Option<&mut LeaseRecord> {
        let mut key = self.index.as_ref()?.by_call.get(&call).copied()?;
        while self.records[key].worker_key != worker {
            key = self.records[key].next_of_call?;
        }
        self.records.get_mut(key)
    }

    /// The leases of a worker.
    pub(super) fn of_worker(&self, worker: WorkerKey) -> impl Iterator<Item = &LeaseRecord> {
        let indexed = self.index.iter().flat_map(move |index| {
            let keys = index.by_slot.get(worker.index()).into_iter().flatten();
            keys.map(|key| &self.records[*key])
        });
        indexed.chain(self.unindexed()).filter(move |lease| lease.worker_key == worker)
    }

    /// All leases if there is no index.
    fn unindexed(&self) -> impl Iterator<Item = &LeaseRecord> {
        self.index.is_none().then(|| self.iter()).into_iter().flatten()
    }
}

impl LeaseIndex {
    fn insert(&mut self, key: usize, record: &mut LeaseRecord) {
        record.next_of_call = self.by_call.insert(record.call, key);
        let slot = record.worker_key.index();
        if self.by_slot.len() <= slot {
            self.by_slot.resize_with(slot + 1, Vec::new);
        }
        self.by_slot[slot].push(key);
    }

    fn remove(&mut self, key: usize, record: &LeaseRecord, records: &mut Slab<LeaseRecord>) {
        match self.by_call.get(&record.call).copied() {
            Some(newest) if newest == key => match record.next_of_call {
                Some(next) => drop(self.by_call.insert(record.call, next)),
                None => drop(self.by_call.remove(&record.call)),
            },
            newest => {
                let mut newer = newest;
                while let Some(copy) = newer.and_then(|newer| records.get_mut(newer)) {
                    if copy.next_of_call == Some(key) {
                        copy.next_of_call = record.next_of_call;
                        break;
                    }
                    newer = copy.next_of_call;
                }
            }
        }
        let keys = &mut self.by_slot[record.worker_key.index()];
        if let Some(position) = keys.iter().rposition(|other| *other == key) {
            keys.swap_remove(position);
        }
    }
}
