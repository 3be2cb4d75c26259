//! Shuts down the pool: rejects new calls, drains and then aborts the others, and stops the workers.

use tokio::time::Instant;

use super::{Effect, Phase, Rejection, Scheduler, Slot, SlotState};

impl Scheduler {
    pub(super) fn on_drain(&mut self, until: Instant, now: Instant) {
        let until = match self.phase {
            Phase::Serving => until,
            Phase::Draining { until: earlier } => earlier.min(until),
            Phase::Stopping | Phase::Stopped => return,
        };
        self.phase = Phase::Draining { until };
        // The pool has not accepted these calls.
        self.reject_overflow(Rejection::Draining);
        self.tick_at(until);
        if until <= now {
            return self.stop();
        }
        self.stop_if_drained();
    }

    pub(super) fn stop_if_drained(&mut self) {
        if matches!(self.phase, Phase::Draining { .. }) && self.queue.len() == 0 && self.in_flight == 0 {
            self.stop();
        }
    }

    pub(super) fn stop(&mut self) {
        self.phase = Phase::Stopping;
        self.reject_overflow(Rejection::Draining);
        while let Some(call) = self.queue.take_first() {
            self.reject(call.ticket, Rejection::Draining);
        }
        if self.in_flight > 0 {
            self.effects.push(Effect::CutOff);
        }
        for index in 0..self.slots.len() {
            let slot = &mut self.slots[index];
            if let Some(successor) = slot.successor() {
                self.effects.push(Effect::AbortLaunch(successor));
            }
            let worker = slot.key();
            match slot.state {
                SlotState::BackingOff { .. } => slot.state = SlotState::Closed,
                SlotState::Launching => self.effects.push(Effect::AbortLaunch(worker)),
                SlotState::Up(_) => {
                    self.take_out_of_service(worker, true);
                    self.effects.push(Effect::Stop(worker));
                }
                SlotState::Ending { .. } | SlotState::Closed => {}
            }
        }
        self.stop_retired();
        self.finish_stop();
    }

    pub(super) fn finish_stop(&mut self) {
        let is_closed = |slot: &Slot| matches!(slot.state, SlotState::Closed) && slot.successor.is_none();
        if self.phase == Phase::Stopping && self.retired.is_empty() && self.slots.iter().all(is_closed) {
            self.phase = Phase::Stopped;
            self.effects.push(Effect::Stopped);
        }
    }
}
