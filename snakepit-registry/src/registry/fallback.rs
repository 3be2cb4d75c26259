//! The fallback, which handles calls of unregistered names.

use std::sync::{Arc, PoisonError};

use super::{Announcer, Registry, ResolvedTool};
use crate::ToolHandler;

/// The handler of unregistered names.
#[derive(Debug)]
pub(super) struct Fallback {
    pub(super) tool: Arc<ResolvedTool>,
    /// The workers that serve every name. `None` if the host has set the fallback.
    announcers: Option<Vec<Announcer>>,
}

impl Registry {
    /// Sets the fallback, which handles calls of unregistered names. It is needed for a pool whose workers announce their tools only at
    /// the first call.
    pub fn set_fallback(&self, provider: &str, handler: Arc<dyn ToolHandler>) {
        let tool = Arc::new(ResolvedTool::new(None, provider, handler));
        *self.fallback.write().unwrap_or_else(PoisonError::into_inner) =
            Some(Fallback { tool, announcers: None });
    }

    /// Sets the fallback for a worker that serves every name, unless the host has [set](Self::set_fallback) it.
    pub fn announce_fallback(&self, provider: &str, announcer: &Announcer, handler: Arc<dyn ToolHandler>) {
        let mut fallback = self.fallback.write().unwrap_or_else(PoisonError::into_inner);
        if announcer.is_retired() {
            return;
        }
        let mut announcers = match fallback.take() {
            Some(set @ Fallback { announcers: None, .. }) => {
                *fallback = Some(set);
                return;
            }
            Some(Fallback { announcers: Some(announcers), .. }) => announcers,
            None => Vec::new(),
        };
        // A worker may announce itself with every call.
        announcers.retain(|other| other.is_alive() && other.worker() != announcer.worker());
        announcers.push(announcer.clone());
        let tool = Arc::new(ResolvedTool::new(None, provider, handler));
        *fallback = Some(Fallback { tool, announcers: Some(announcers) });
    }

    /// Treats all workers of a provider that announced the fallback as ended, except the current ones.
    pub(super) fn retire_fallback(&self, provider: &str, is_current: impl Fn(&str) -> bool) {
        let fallback = self.fallback.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(Fallback { tool, announcers: Some(announcers) }) = &*fallback
            && tool.provider == provider
        {
            announcers.iter().filter(|worker| !is_current(worker.worker())).for_each(Announcer::retire);
        }
    }

    /// Whether a live worker of a provider serves every name.
    pub(super) fn has_live_fallback(&self, provider: &str) -> bool {
        let fallback = self.fallback.read().unwrap_or_else(PoisonError::into_inner);
        fallback.as_ref().is_some_and(|Fallback { tool, announcers }| {
            tool.provider == provider
                && announcers.as_ref().is_some_and(|announcers| announcers.iter().any(Announcer::is_alive))
        })
    }

    /// Removes the fallback if all workers that announced it have ended. The host calls this when a worker of the provider registers
    /// with a fixed set of tools. Until then, calls of unregistered names wait for replacements of the ended workers.
    pub fn remove_stale_fallback(&self, provider: &str) {
        let is_stale = |fallback: &Fallback| {
            let announcers = fallback.announcers.as_ref();
            fallback.tool.provider == provider
                && announcers.is_some_and(|announcers| !announcers.iter().any(Announcer::is_alive))
        };
        let fallback = self.fallback.read().unwrap_or_else(PoisonError::into_inner);
        if !fallback.as_ref().is_some_and(is_stale) {
            return;
        }
        drop(fallback);
        let mut fallback = self.fallback.write().unwrap_or_else(PoisonError::into_inner);
        // A worker may have announced the fallback before this lock was taken.
        let stale = fallback.take_if(|fallback| is_stale(fallback));
        // The handler is dropped without the lock.
        drop(fallback);
        drop(stale);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ToolError,
        registry::testing::{handler, worker},
    };

    #[test]
    fn the_fallback_ends_with_the_last_worker_that_serves_any_name() {
        let registry = Registry::new();
        let ((first_liveness, first), (second_liveness, second)) = (worker("first"), worker("second"));
        registry.announce_fallback("pool", &first, handler());
        registry.announce_fallback("pool", &second, handler());
        registry.announce_fallback("pool", &second, handler());
        drop(first_liveness);
        registry.remove_stale_fallback("pool");
        registry.resolve("any").expect("the second worker serves it");
        drop(second_liveness);
        registry.resolve("any").expect("its calls wait for the next worker");
        registry.remove_stale_fallback("other");
        registry.resolve("any").expect("a worker of another pool has registered");
        registry.remove_stale_fallback("pool");
        assert!(matches!(registry.resolve("any"), Err(ToolError::NotFound { .. })));

        // The fallback of the host remains.
        registry.set_fallback("pool", handler());
        registry.announce_fallback("pool", &first, handler());
        registry.remove_stale_fallback("pool");
        registry.resolve("any").unwrap();
    }
}
