//! RPCs for programs, both of sessions and global.

use std::time::Duration;

use snakepit_proto::pb;
use snakepit_session::{Created, Program, ProgramInfo, ProgramName, ProgramOwner};
use tonic::Status;

use super::{
    bridge::Bridge,
    request::{read_status, session_id, ttl, write_status},
};
use crate::status::invalid_field;

/// The content type of programs that are stored without one.
const DEFAULT_CONTENT_TYPE: &str = "application/octet-stream";

impl Bridge {
    pub(super) async fn put(&self, request: pb::PutProgramRequest) -> Result<pb::PutProgramResponse, Status> {
        let owner = owner(&request.session_id, request.global)?;
        let Some(program) = request.program else {
            return Err(invalid_field("program", "is missing"));
        };
        let pb::Program { name, data, content_type, metadata, ttl_seconds, .. } = program;
        let name = program_name(&name)?;
        let content_type =
            if content_type.is_empty() { DEFAULT_CONTENT_TYPE.to_owned() } else { content_type };
        let ttl = ttl("program.ttl_seconds", ttl_seconds)?;
        let program = Program { metadata, ttl, ..Program::new(data, content_type) };
        let created = self.host().sessions.put_program(&owner, &name, program).await.map_err(write_status)?;
        Ok(pb::PutProgramResponse { created: created == Created::New })
    }

    pub(super) async fn program(
        &self,
        request: pb::GetProgramRequest,
    ) -> Result<pb::GetProgramResponse, Status> {
        let owner = owner(&request.session_id, request.global)?;
        let name = program_name(&request.name)?;
        let program = self.host().sessions.program(&owner, &name).await.map_err(read_status)?;
        let updated_at = Some(program.updated_at.into());
        let unchanged = request.unless_updated_at.is_some() && request.unless_updated_at == updated_at;
        Ok(pb::GetProgramResponse {
            program: Some(pb::Program {
                name: request.name,
                size: size(program.data.len()),
                data: if unchanged { bytes::Bytes::new() } else { program.data },
                content_type: program.content_type,
                metadata: program.metadata,
                updated_at,
                ttl_seconds: seconds(program.ttl),
            }),
            unchanged,
        })
    }

    pub(super) async fn programs(
        &self,
        request: &pb::ListProgramsRequest,
    ) -> Result<pb::ListProgramsResponse, Status> {
        let owner = owner(&request.session_id, request.global)?;
        let programs = self.host().sessions.programs(&owner).await.map_err(read_status)?;
        Ok(pb::ListProgramsResponse { programs: programs.into_iter().map(program_without_data).collect() })
    }

    pub(super) async fn remove_program(&self, request: &pb::DeleteProgramRequest) -> Result<(), Status> {
        let owner = owner(&request.session_id, request.global)?;
        let name = program_name(&request.name)?;
        self.host().sessions.delete_program(&owner, &name).await.map_err(write_status)
    }
}

fn program_without_data(info: ProgramInfo) -> pb::Program {
    pb::Program {
        name: info.name.to_string(),
        size: size(info.size),
        data: bytes::Bytes::new(),
        content_type: info.content_type,
        metadata: info.metadata,
        updated_at: Some(info.updated_at.into()),
        ttl_seconds: seconds(info.ttl),
    }
}

/// The owner of the programs that a request names: a session, or the host for global programs.
fn owner(session: &str, global: bool) -> Result<ProgramOwner, Status> {
    match (global, session) {
        (false, id) => session_id(id).map(ProgramOwner::Session),
        (true, "") => Ok(ProgramOwner::Global),
        (true, _) => Err(invalid_field("session_id", "is set together with `global`; set only one of them")),
    }
}

/// A TTL in seconds, rounded up.
fn seconds(ttl: Option<Duration>) -> i64 {
    ttl.map_or(0, |ttl| i64::try_from(ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0)).unwrap_or(i64::MAX))
}

fn program_name(name: &str) -> Result<ProgramName, Status> {
    ProgramName::try_new(name).map_err(read_status)
}

fn size(bytes: usize) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}
