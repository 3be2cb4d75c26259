//! [`CallProgress`]: how far a call got on its way through layers.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use crate::{ErrorKind, ToolCall, ToolError, ToolReply};

/// The progress of a call through layers, an [extension](ToolCall::extensions) that all copies of the call share.
#[doc(hidden)]
#[derive(Debug, Clone, Default)]
pub struct CallProgress(Arc<Progress>);

#[derive(Debug, Default)]
struct Progress {
    /// How many copies of the call the handler inside the layers runs.
    running: AtomicUsize,
    has_begun: AtomicBool,
    /// The first pass through the layers that may have run the tool.
    earlier_pass: OnceLock<EarlierPass>,
    /// The record of the enclosing layers: an attempt has its own record, inside the record of its call.
    outer: Option<CallProgress>,
}

/// A pass that may have run the tool. A layer, such as a retry, may make another pass afterwards.
#[derive(Debug)]
enum EarlierPass {
    Failed(ToolError),
    /// The tool replied, or a layer dropped the call.
    Ended,
}

impl CallProgress {
    /// Attaches a new record to a call.
    pub fn track(call: &mut ToolCall) -> Self {
        let outer = Self::of(call).cloned();
        let progress = Self(Arc::new(Progress { outer, ..Progress::default() }));
        call.extensions.insert(progress.clone());
        progress
    }

    /// The record of a call; `None` if the call does not go through layers.
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

    /// Whether the handler inside the layers runs the call now.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.0.running.load(Ordering::Relaxed) > 0
    }

    /// Begins a pass through the innermost service.
    pub(super) fn enter(&self) -> PassGuard {
        self.0.running.fetch_add(1, Ordering::Relaxed);
        PassGuard { progress: self.clone(), has_ended: false }
    }

    /// Combines the error of the last pass with that of an earlier pass that may have run the tool.
    pub(super) fn with_earlier_pass(&self, error: ToolError) -> ToolError {
        match self.0.earlier_pass.get() {
            Some(_) if error.may_have_run() => error,
            Some(EarlierPass::Failed(earlier)) => error.with_earlier_attempt(earlier.clone()),
            Some(EarlierPass::Ended) => {
                let kind = match error.kind() {
                    kind @ (ErrorKind::Overloaded | ErrorKind::DeadlineExceeded) => kind,
                    _ => ErrorKind::Rejected,
                };
                let problem = format!(
                    "an earlier pass through the layers may have run the tool; the last one failed: {error}"
                );
                error.with_earlier_attempt(ToolError::Layer {
                    kind,
                    may_have_run: true,
                    problem,
                    source: None,
                })
            }
            None => error,
        }
    }
}

/// Counts a pass as running until the guard is dropped, and records a pass that may have run the tool.
pub(super) struct PassGuard {
    progress: CallProgress,
    has_ended: bool,
}

impl PassGuard {
    /// Ends the pass.
    pub(super) fn end(mut self, result: &Result<ToolReply, ToolError>) {
        self.has_ended = true;
        match result {
            Ok(_) => self.record(EarlierPass::Ended),
            Err(error) if error.may_have_run() => self.record(EarlierPass::Failed(error.clone())),
            Err(_) => {}
        }
    }

    fn record(&self, pass: EarlierPass) {
        // The first pass suffices.
        let _ = self.progress.0.earlier_pass.set(pass);
    }
}

impl Drop for PassGuard {
    fn drop(&mut self) {
        if !self.has_ended && self.progress.has_begun() {
            self.record(EarlierPass::Ended);
        }
        self.progress.0.running.fetch_sub(1, Ordering::Relaxed);
    }
}
