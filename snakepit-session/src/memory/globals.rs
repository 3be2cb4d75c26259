//! Global programs of the memory backend. They are few, so expiry does not need a queue.

use std::collections::{BTreeMap, btree_map::Entry};

use tokio::time::Instant;

use crate::{
    Created, Program, ProgramInfo, ProgramName, SessionError, SessionLimits,
    kit::{ProgramRecord, program_not_found},
};

#[derive(Debug, Default)]
pub(super) struct Globals {
    programs: BTreeMap<ProgramName, Global>,
}

#[derive(Debug)]
struct Global {
    program: ProgramRecord,
    expires_at: Instant,
}

impl Globals {
    pub(super) fn put(
        &mut self,
        limits: &SessionLimits,
        name: &ProgramName,
        program: Program,
        resize: impl FnOnce(usize, usize) -> Result<(), SessionError>,
    ) -> Result<Created, SessionError> {
        let program = ProgramRecord::global(limits, name, program)?;
        let now = Instant::now();
        let replaced = self.programs.get(name);
        let is_live = replaced.is_some_and(|global| global.expires_at > now);
        let live_count = self.programs.values().filter(|global| global.expires_at > now).count();
        let limit = limits.max_programs;
        if !is_live && live_count >= limit {
            return Err(SessionError::TooManyGlobalPrograms { limit });
        }
        resize(replaced.map_or(0, |global| global.program.size()), program.size())?;
        let expires_at = now + limits.ttl(program.info.ttl);
        self.programs.insert(name.clone(), Global { program, expires_at });
        Ok(if is_live { Created::Existing } else { Created::New })
    }

    pub(super) fn program(&mut self, name: &ProgramName) -> Result<Program, SessionError> {
        let now = Instant::now();
        let live = self.programs.get_mut(name).filter(|global| global.expires_at > now);
        let global = live.ok_or_else(|| program_not_found(None, name))?;
        global.expires_at = now + global.program.info.ttl.unwrap_or_default();
        global.program.program()
    }

    pub(super) fn list(&self) -> Vec<ProgramInfo> {
        let now = Instant::now();
        let live = self.programs.values().filter(|global| global.expires_at > now);
        live.map(|global| global.program.info.clone()).collect()
    }

    /// Deletes a program and returns its size.
    pub(super) fn delete(&mut self, name: &ProgramName) -> Result<usize, SessionError> {
        let now = Instant::now();
        match self.programs.entry(name.clone()) {
            Entry::Occupied(global) if global.get().expires_at > now => Ok(global.remove().program.size()),
            _ => Err(program_not_found(None, name)),
        }
    }

    /// Removes expired programs and returns their total size.
    pub(super) fn reclaim(&mut self, now: Instant) -> usize {
        let mut freed_bytes = 0;
        self.programs.retain(|_, global| {
            let is_live = global.expires_at > now;
            freed_bytes += if is_live { 0 } else { global.program.size() };
            is_live
        });
        freed_bytes
    }

    pub(super) fn len(&self) -> usize {
        self.programs.len()
    }
}
