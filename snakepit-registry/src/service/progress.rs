//! [`CallProgress`]: how far a call got on its way through layers.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use crate::ToolCall;

/// The progress of a call through layers, an [extension](ToolCall::extensions) that all copies of the call share.
#[doc(hidden)]
#[derive(Debug, Clone, Default)]
pub struct CallProgress(Arc<Progress>);

#[derive(Debug, Default)]
struct Progress {
    /// The number of copies of the call that the handler inside of the layers runs.
    inside: AtomicUsize,
    has_begun: AtomicBool,
    /// The progress through the layers outside of these.
    outer: Option<CallProgress>,
}

impl CallProgress {
    /// Attaches a new record to a call.
    pub fn track(call: &mut ToolCall) -> Self {
        let outer = Self::of(call).cloned();
        let progress = Self(Arc::new(Progress { outer, ..Progress::default() }));
        call.extensions.insert(progress.clone());
        progress
    }

    /// The record of a call; `None` if the call passes no layers.
    #[inline]
    #[must_use]
    pub fn of(call: &ToolCall) -> Option<&Self> {
        call.extensions.get()
    }

    /// Records that the tool may run from now on.
    pub fn begin(&self) {
        let mut next = Some(self);
        while let Some(progress) = next {
            progress.0.has_begun.store(true, Ordering::Relaxed);
            next = progress.0.outer.as_ref();
        }
    }

    /// Whether the tool may have begun to run.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        self.0.has_begun.load(Ordering::Relaxed)
    }

    /// Whether the handler inside of the layers runs the call now.
    #[must_use]
    pub fn is_inside(&self) -> bool {
        self.0.inside.load(Ordering::Relaxed) > 0
    }

    /// Counts the call as inside until the guard is dropped.
    pub(super) fn enter(&self) -> InsideGuard {
        self.0.inside.fetch_add(1, Ordering::Relaxed);
        InsideGuard(self.clone())
    }
}

/// Keeps a call counted as inside.
pub(super) struct InsideGuard(CallProgress);

impl Drop for InsideGuard {
    fn drop(&mut self) {
        self.0.0.inside.fetch_sub(1, Ordering::Relaxed);
    }
}
