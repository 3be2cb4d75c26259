//! Deferred announcements: the worker tools with changed code take effect when the older workers have ended.

use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError, atomic::Ordering},
};

use super::{
    Registration, Registry, RegistryError, ResolvedTool,
    remote::{Announcer, RejectedAnnouncement},
};
use crate::{ToolHandler, ToolSpec};

/// The announcement of a worker whose specs differ from those of older workers.
#[derive(Debug)]
pub(super) struct DeferredAnnouncement {
    provider: String,
    announcer: Announcer,
    handler: Arc<dyn ToolHandler>,
    pub(super) specs: Vec<ToolSpec>,
    /// A worker with other specs.
    blocker: Announcer,
}

impl Registry {
    /// Like [`register_remote`](Self::register_remote), for workers whose code may change while older workers run. If another
    /// live worker announced a tool with another spec, the announcement takes effect when the last such worker has ended. If
    /// there are several such announcements, the newest one takes effect.
    ///
    /// # Errors
    /// As for `register_remote`. After [`RegistryError::DuplicateTool`], the registry keeps the announcement for later.
    pub fn register_remote_or_defer(
        &self,
        provider: &str,
        announcer: &Announcer,
        handler: &Arc<dyn ToolHandler>,
        mut specs: Vec<ToolSpec>,
    ) -> Result<Vec<Registration>, RegistryError> {
        // Held during the registration, which serializes the announcements of one worker and the passes over the list.
        let mut deferred = self.deferred.lock().unwrap_or_else(PoisonError::into_inner);
        let registered = self.register_specs(provider, announcer, handler, &mut specs);
        // Only the last announcement of a worker applies. Announcements of ended workers are removed, because a crash loop would
        // fill the memory with them.
        deferred.retain(|deferred| {
            deferred.announcer.is_alive() && deferred.announcer.worker != announcer.worker
        });
        if let Err(RejectedAnnouncement { blocker: Some(blocker), .. }) = &registered {
            let (provider, announcer, handler, blocker) =
                (provider.to_owned(), announcer.clone(), Arc::clone(handler), blocker.clone());
            deferred.push(DeferredAnnouncement { provider, announcer, handler, specs, blocker });
        }
        self.deferred_count.store(deferred.len() as u64, Ordering::Release);
        registered.map_err(|rejected| rejected.error)
    }

    /// Begins a restart of the workers of a provider: until [`retire_replaced_workers`](Self::retire_replaced_workers), new workers
    /// cannot add tools that the current workers do not have, because calls may still reach the current workers.
    pub fn begin_restart(&self, provider: &str) {
        let tools = self.tools.read().unwrap_or_else(PoisonError::into_inner);
        let announcers = self.announcers.lock().unwrap_or_else(PoisonError::into_inner);
        let is_ours = |name: &str| tools.get(name).is_some_and(|tool| tool.provider == provider);
        let workers = announcers.iter().filter(|(name, _)| is_ours(name)).flat_map(|(_, workers)| workers);
        let mut old: Vec<Announcer> = Vec::new();
        for worker in workers.filter(|worker| worker.is_alive()) {
            if old.iter().all(|other| other.worker != worker.worker) {
                old.push(worker.clone());
            }
        }
        let mut restarting = self.restarting.lock().unwrap_or_else(PoisonError::into_inner);
        restarting.insert(provider.to_owned(), old);
    }

    /// A worker that a restart has not replaced yet, for the announcement of another worker.
    pub(super) fn old_worker(&self, provider: &str, announcer: &Announcer) -> Option<Announcer> {
        let mut restarting = self.restarting.lock().unwrap_or_else(PoisonError::into_inner);
        let old = restarting.get_mut(provider)?;
        // After a failed restart, this is its end.
        old.retain(Announcer::is_alive);
        if old.is_empty() {
            restarting.remove(provider);
            return None;
        }
        // An old worker may register more tools itself, as workers of the original Snakepit do with each call.
        let is_old = old.iter().any(|worker| worker.worker == announcer.worker);
        if is_old { None } else { old.first().cloned() }
    }

    /// Treats all workers of a provider as ended, except the current ones. Use it after a restart: the tools of the new workers then
    /// replace the tools of the old workers, which may still finish calls.
    pub fn retire_replaced_workers(&self, provider: &str, is_current: impl Fn(&str) -> bool) {
        let tools = self.tools.read().unwrap_or_else(PoisonError::into_inner);
        let announcers = self.announcers.lock().unwrap_or_else(PoisonError::into_inner);
        for (name, workers) in &*announcers {
            if tools.get(name).is_some_and(|tool| tool.provider == provider) {
                workers.iter().filter(|worker| !is_current(&worker.worker)).for_each(Announcer::retire);
            }
        }
        drop((announcers, tools));
        let deferred = self.deferred.lock().unwrap_or_else(PoisonError::into_inner);
        // A restart may have superseded another one, whose workers still run.
        let replaced = deferred.iter().filter(|deferred| deferred.provider == provider);
        let replaced = replaced.map(|deferred| &deferred.announcer);
        replaced.filter(|worker| !is_current(&worker.worker)).for_each(Announcer::retire);
        drop(deferred);
        self.restarting.lock().unwrap_or_else(PoisonError::into_inner).remove(provider);
        self.retire_fallback(provider, &is_current);
        self.apply_deferred();
        if self.remove_unserved(provider) {
            self.remove_stale_fallback(provider);
        }
    }

    /// Removes the tools of a provider that no live worker serves, unless none of its workers is alive. Returns whether one is alive
    /// and has announced tools.
    fn remove_unserved(&self, provider: &str) -> bool {
        let mut tools = self.tools.write().unwrap_or_else(PoisonError::into_inner);
        let mut announcers = self.announcers.lock().unwrap_or_else(PoisonError::into_inner);
        let is_ours = |name: &str, tools: &BTreeMap<Arc<str>, Arc<ResolvedTool>>| {
            tools.get(name).is_some_and(|tool| tool.provider == provider)
        };
        let is_served = |workers: &Vec<Announcer>| workers.iter().any(Announcer::is_alive);
        let has_tools = announcers.iter().any(|(name, workers)| is_ours(name, &tools) && is_served(workers));
        // The new workers may serve any name without announcing tools.
        if !has_tools && !self.has_live_fallback(provider) {
            return false;
        }
        let count = announcers.len();
        announcers.retain(|name, workers| {
            let is_kept = is_served(workers) || !is_ours(name, &tools);
            if !is_kept {
                tools.remove(name);
            }
            is_kept
        });
        if announcers.len() < count {
            self.increment_revision();
        }
        has_tools
    }

    /// Registers the deferred announcements whose blockers have ended.
    pub(super) fn apply_deferred(&self) {
        if self.deferred_count.load(Ordering::Acquire) == 0 {
            return;
        }
        let mut deferred = self.deferred.lock().unwrap_or_else(PoisonError::into_inner);
        // Registers the newest first, so that older ones with other specs remain deferred.
        deferred.reverse();
        deferred.retain_mut(|DeferredAnnouncement { provider, announcer, handler, specs, blocker }| {
            if !announcer.is_alive() || blocker.is_alive() {
                return announcer.is_alive();
            }
            match self.register_specs(provider, announcer, handler, specs) {
                Err(RejectedAnnouncement { blocker: Some(next_blocker), .. }) => {
                    *blocker = next_blocker;
                    true
                }
                // Another error, such as a limit, concerns only this worker.
                _ => false,
            }
        });
        deferred.reverse();
        self.deferred_count.store(deferred.len() as u64, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::testing::{handler, names, specs_named, worker};

    #[test]
    fn after_a_restart_the_tools_of_the_new_workers_replace_those_of_the_old_ones() {
        let (registry, handler) = (Registry::new(), handler());
        let register = |worker: &Announcer, specs| {
            registry.register_remote_or_defer("pool", worker, &handler, specs).is_ok()
        };
        let ((_old_alive, old), (_new_alive, new)) = (worker("old"), worker("new"));
        assert!(register(&old, specs_named(&["changed", "removed", "same"])));
        let changed = || vec![ToolSpec::new("changed").description("new"), ToolSpec::new("same")];
        assert!(!register(&new, changed()), "the old worker still serves other specs");
        registry.retire_replaced_workers("other", |_| false);
        assert_eq!(names(&registry), ["changed", "removed", "same"], "they belong to another pool");
        // The old worker still runs.
        registry.retire_replaced_workers("pool", |worker| worker == "new");
        assert_eq!(names(&registry), ["changed", "same"]);
        assert_eq!(registry.tools()[0].0.description, "new");
        // Without a changed spec, the announcement is not deferred.
        let (_third_alive, third) = worker("third");
        assert!(register(&third, specs_named(&["same"])));
        registry.retire_replaced_workers("pool", |worker| worker == "third");
        assert_eq!(names(&registry), ["same"]);
        registry.retire_replaced_workers("pool", |_| false);
        assert_eq!(names(&registry), ["same"], "their calls wait for the next worker");
    }

    #[test]
    fn a_new_tool_is_listed_when_no_old_worker_can_get_its_calls() {
        let (registry, handler) = (Registry::new(), handler());
        let register = |worker: &Announcer, names: &[&str]| {
            registry.register_remote_or_defer("pool", worker, &handler, specs_named(names)).is_ok()
        };
        let ((_a, old_a), (_b, old_b)) = (worker("old-a"), worker("old-b"));
        let ((_c, new_a), (_d, new_b)) = (worker("new-a"), worker("new-b"));
        assert!(register(&old_a, &["kept"]) && register(&old_b, &["kept"]));
        registry.begin_restart("pool");
        assert!(!register(&new_a, &["kept", "added"]));
        assert_eq!(names(&registry), ["kept"], "an old worker would answer calls of `added`");
        // The first old worker has no calls left, and exits.
        drop(_a);
        assert_eq!(names(&registry), ["kept"]);
        assert!(!register(&new_b, &["kept", "added"]));
        registry.retire_replaced_workers("pool", |worker| worker.starts_with("new"));
        assert_eq!(names(&registry), ["added", "kept"]);
        let (_e, later) = worker("new-c");
        assert!(register(&later, &["kept", "added", "more"]), "no restart runs");
    }

    #[test]
    fn a_failed_restart_ends_with_its_old_workers() {
        let (registry, handler) = (Registry::new(), handler());
        let register = |worker: &Announcer, names: &[&str]| {
            registry.register_remote_or_defer("pool", worker, &handler, specs_named(names)).is_ok()
        };
        let ((old_alive, old), (_new_alive, new)) = (worker("old"), worker("new"));
        assert!(register(&old, &["kept"]));
        registry.begin_restart("pool");
        assert!(!register(&new, &["kept", "added"]));
        assert!(register(&old, &["kept", "own"]), "an old worker may register with each call");
        drop(old_alive);
        assert_eq!(names(&registry), ["added", "kept"]);
    }

    #[test]
    fn workers_that_serve_any_name_replace_the_tools_of_the_old_ones() {
        let (registry, handler) = (Registry::new(), handler());
        let ((_old_alive, old), (_new_alive, new)) = (worker("old"), worker("new"));
        registry.register_remote("pool", &old, &handler, specs_named(&["add"])).unwrap();
        registry.register_remote("pool", &new, &handler, Vec::new()).unwrap();
        registry.announce_fallback("pool", &new, Arc::clone(&handler));
        let before = registry.revision();
        registry.retire_replaced_workers("pool", |worker| worker == "new");
        assert_eq!(names(&registry), [""; 0]);
        assert!(registry.revision() > before);
        assert!(registry.resolve("add").unwrap().spec.is_none(), "the new worker does not declare the tool");
    }

    #[test]
    fn no_tool_of_a_replaced_worker_comes_back() {
        let (registry, handler) = (Registry::new(), handler());
        let register = |worker: &Announcer, specs| {
            registry.register_remote_or_defer("pool", worker, &handler, specs).is_ok()
        };
        let ((_old_alive, old), (_aborted_alive, aborted)) = (worker("old"), worker("aborted"));
        let (_new_alive, new) = worker("new");
        assert!(register(&old, specs_named(&["kept", "changed"])));
        registry.announce_fallback("pool", &old, Arc::clone(&handler));
        // The successor of a restart that is superseded. It came up too late to be aborted, and still runs a call.
        let specs = || {
            vec![
                ToolSpec::new("kept"),
                ToolSpec::new("changed").description("aborted"),
                ToolSpec::new("extra"),
            ]
        };
        assert!(!register(&aborted, specs()), "the old worker serves another spec");
        assert!(register(&new, specs_named(&["kept"])));
        registry.retire_replaced_workers("pool", |worker| worker == "new");
        assert_eq!(names(&registry), ["kept"]);
        registry.resolve("any").expect_err("the new worker does not serve any name");
        // Workers of the original Snakepit register with every call.
        for (replaced, specs) in [(&old, specs_named(&["kept", "changed"])), (&aborted, specs())] {
            assert!(register(replaced, specs), "the registration must not fail the call");
            registry.announce_fallback("pool", replaced, Arc::clone(&handler));
            assert_eq!(names(&registry), ["kept"]);
            registry.resolve("any").unwrap_err();
        }
    }
}
