//! Stores global programs. Each program has its own key with a TTL. A hash indexes their sizes.

use snakepit_session::{
    Created, Program, ProgramInfo, ProgramName, SessionError,
    kit::{ProgramRecord, decode, encode, program_not_found},
};

use super::{RedisBackend, millis, scripts};

impl RedisBackend {
    pub(super) async fn put_global(
        &self,
        name: &ProgramName,
        program: Program,
    ) -> Result<Created, SessionError> {
        let program = ProgramRecord::global(&self.limits, name, program)?;
        let info = encode(&program.info)?;
        let limit = self.limits.max_programs;
        loop {
            let call = self.connection.call(&scripts::GLOBAL_PUT).arg(name.as_str()).arg(&info);
            let call = call.arg(&program.data[..]).arg(millis(self.limits.ttl(program.info.ttl)));
            let call = call.arg(program.size()).arg(limit).arg(self.limits.max_total_bytes);
            let (reply, size): (String, usize) = call.run().await?;
            match &*reply {
                "new" => return Ok(Created::New),
                "existing" => return Ok(Created::Existing),
                "programs" => return Err(SessionError::TooManyGlobalPrograms { limit }),
                // "bytes": the store is full. The next attempt follows a sweep that freed memory of expired data.
                _ if !self.reclaim().await? => return Err(self.backend_full(size)),
                _ => {}
            }
        }
    }

    pub(super) async fn global_program(&self, name: &ProgramName) -> Result<Program, SessionError> {
        let found: Option<(Vec<u8>, Vec<u8>)> =
            self.connection.call(&scripts::GLOBAL_GET).arg(name.as_str()).run().await?;
        let (info, data) = found.ok_or_else(|| program_not_found(None, name))?;
        ProgramRecord { info: decode(&info)?, data: data.into() }.program()
    }

    pub(super) async fn global_programs(&self) -> Result<Vec<ProgramInfo>, SessionError> {
        let found: Vec<Vec<u8>> = self.connection.call(&scripts::GLOBAL_LIST).run().await?;
        let mut programs: Vec<ProgramInfo> =
            found.iter().map(|info| decode(info)).collect::<Result<_, _>>()?;
        programs.sort_unstable_by(|one, other| one.name.cmp(&other.name));
        Ok(programs)
    }

    pub(super) async fn delete_global(&self, name: &ProgramName) -> Result<(), SessionError> {
        let existed: bool = self.connection.call(&scripts::GLOBAL_DELETE).arg(name.as_str()).run().await?;
        if existed { Ok(()) } else { Err(program_not_found(None, name)) }
    }
}
