//! [`Reports`]: the progress and the output of one call whose caller receives them.

use std::{
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak, mpsc},
    time::Duration,
};

use serde_json::json;
use snakepit_proto::{
    launch::output::{Frame, FrameKind},
    pb,
};
use tokio::time::Instant;

use crate::{fork, output_frames::OutputFrames, state::CallState, subprocess_output};

/// The minimum time between two progress reports of a call. The last report of several is sent.
const INTERVAL: Duration = Duration::from_millis(50);
/// The maximum size of a progress message, so that a report fits into one frame.
const MAX_MESSAGE_BYTES: usize = 1024;

/// The host's id of a call, and the kinds of reports that its caller receives. An extension of the call.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ReportRequest {
    pub(crate) request_id: u64,
    pub(crate) wanted: Option<pb::CallReports>,
}

/// The reports of one call.
#[derive(Debug)]
pub(crate) struct Reports {
    wanted: pb::CallReports,
    progress: Mutex<Progress>,
}

#[derive(Debug, Default)]
struct Progress {
    sent_at: Option<Instant>,
    /// The report that waits until it may be sent.
    pending: Option<(f64, Option<f64>, String)>,
    /// Whether the flusher will send the pending report.
    is_scheduled: bool,
    has_ended: bool,
}

impl Reports {
    pub(crate) fn new(wanted: pb::CallReports) -> Self {
        Self { wanted, progress: Mutex::default() }
    }

    /// Whether the caller receives output.
    pub(crate) const fn wants_logs(&self) -> bool {
        self.wanted.logs
    }

    /// Whether the caller receives progress.
    pub(crate) const fn wants_progress(&self) -> bool {
        self.wanted.progress
    }

    /// Code under this lock does not panic, so a poisoned lock still holds consistent data. In a fork, returns `None` if another
    /// thread held the lock when the process forked, because the fork has no thread that releases it.
    fn progress(&self) -> Option<MutexGuard<'_, Progress>> {
        if fork::is_fork() {
            return self.progress.try_lock().ok();
        }
        Some(self.progress.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Sends a progress report now, or soon if another one was sent just before. `state` is that of the call.
    pub(crate) fn report(&self, state: Weak<CallState>, request_id: u64, report: (f64, Option<f64>, String)) {
        let Some(mut progress) = self.progress().filter(|progress| !progress.has_ended) else { return };
        let now = Instant::now();
        match progress.sent_at.map(|sent_at| sent_at + INTERVAL).filter(|due| *due > now) {
            None => {
                (progress.sent_at, progress.pending) = (Some(now), None);
                send(request_id, &report);
            }
            Some(due) => {
                progress.pending = Some(report);
                if !progress.is_scheduled {
                    progress.is_scheduled = true;
                    flush_at(due, state);
                }
            }
        }
    }

    /// Sends the pending progress report if it may be sent. Otherwise schedules it again, because another report was sent meanwhile.
    fn flush_due(&self, state: &Arc<CallState>) {
        let Some(mut progress) = self.progress() else { return };
        let due = progress.sent_at.map(|sent_at| sent_at + INTERVAL).filter(|due| *due > Instant::now());
        match due.filter(|_| progress.pending.is_some()) {
            Some(due) => flush_at(due, Arc::downgrade(state)),
            None => Self::flush(&mut progress, state.request_id()),
        }
    }

    /// Sends the pending progress report.
    fn flush(progress: &mut Progress, request_id: u64) {
        progress.is_scheduled = false;
        if let Some(report) = progress.pending.take() {
            progress.sent_at = Some(Instant::now());
            send(request_id, &report);
        }
    }

    /// Sends the last report of the call, and ends its reports.
    pub(crate) fn end(&self, request_id: u64) {
        let Some(mut progress) = self.progress() else { return };
        Self::flush(&mut progress, request_id);
        let had_ended = std::mem::replace(&mut progress.has_ended, true);
        drop(progress);
        if !had_ended && let Some(frames) = OutputFrames::get() {
            subprocess_output::forward_for_call(request_id);
            frames.write_to_both(&frame(FrameKind::End, request_id, b""));
        }
    }
}

fn send(request_id: u64, (done, total, message): &(f64, Option<f64>, String)) {
    let Some(frames) = OutputFrames::get() else { return };
    let end = (0..=message.len().min(MAX_MESSAGE_BYTES)).rev().find(|end| message.is_char_boundary(*end));
    let message = &message[..end.unwrap_or(0)];
    let json = json!({"done": done, "total": total, "message": message}).to_string();
    frames.write(0, &frame(FrameKind::Progress, request_id, json.as_bytes()));
}

const fn frame(kind: FrameKind, request_id: u64, body: &[u8]) -> Frame<'_> {
    Frame { kind, request_id, level: 0, writer: 0, session: "", tool: "", logger: "", body }
}

/// Flushes the reports of a call at this time, on a thread that the first caller starts.
fn flush_at(due: Instant, state: Weak<CallState>) {
    type Due = (Instant, Weak<CallState>);
    static FLUSHER: OnceLock<Option<mpsc::Sender<Due>>> = OnceLock::new();
    let flusher = FLUSHER.get_or_init(|| {
        let (sender, receiver) = mpsc::channel::<Due>();
        let thread = std::thread::Builder::new().name("snakepit-progress".to_owned());
        let spawned = thread.spawn(move || {
            // All reports wait equally long, so their order is that of their times.
            for (due, state) in receiver {
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
                if let Some(state) = state.upgrade()
                    && let Some(reports) = state.reports()
                {
                    reports.flush_due(&state);
                }
            }
        });
        spawned.is_ok().then_some(sender)
    });
    // Without the thread, the next report or the end of the call sends the pending one. A fork has no such thread.
    if let Some(flusher) = flusher {
        let _ = flusher.send((due, state));
    }
}
