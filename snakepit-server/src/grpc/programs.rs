//! The programs of a session.

use snakepit_proto::pb;
use snakepit_session::{Created, Program, ProgramInfo, ProgramName, SessionError};
use tonic::Status;

use super::{bridge::Bridge, request::session_id};
use crate::status::{from_session_error, invalid_field};

/// What a program is when its owner does not say.
const OPAQUE: &str = "application/octet-stream";

impl Bridge {
    pub(super) async fn put(&self, request: pb::PutProgramRequest) -> Result<pb::PutProgramResponse, Status> {
        let id = session_id(&request.session_id)?;
        let Some(program) = request.program else {
            return Err(invalid_field("program", "is missing"));
        };
        let pb::Program { name, data, content_type, metadata, .. } = program;
        let name = program_name(&name)?;
        let content_type = if content_type.is_empty() { OPAQUE.to_owned() } else { content_type };
        let program = Program { metadata, ..Program::new(data, content_type) };
        let created = self.host().sessions.put_program(&id, &name, program).await.map_err(refused)?;
        Ok(pb::PutProgramResponse { created: created == Created::New })
    }

    pub(super) async fn program(
        &self,
        request: pb::GetProgramRequest,
    ) -> Result<pb::GetProgramResponse, Status> {
        let id = session_id(&request.session_id)?;
        let name = program_name(&request.name)?;
        let program = self.host().sessions.program(&id, &name).await.map_err(refused)?;
        Ok(pb::GetProgramResponse {
            program: Some(pb::Program {
                name: request.name,
                size: size(program.data.len()),
                data: program.data,
                content_type: program.content_type,
                metadata: program.metadata,
                updated_at: Some(program.updated_at.into()),
                ttl_seconds: 0,
            }),
        })
    }

    pub(super) async fn programs(
        &self,
        request: &pb::ListProgramsRequest,
    ) -> Result<pb::ListProgramsResponse, Status> {
        let id = session_id(&request.session_id)?;
        let programs = self.host().sessions.programs(&id).await.map_err(refused)?;
        Ok(pb::ListProgramsResponse { programs: programs.into_iter().map(listed).collect() })
    }

    pub(super) async fn remove_program(&self, request: &pb::DeleteProgramRequest) -> Result<(), Status> {
        let id = session_id(&request.session_id)?;
        let name = program_name(&request.name)?;
        self.host().sessions.delete_program(&id, &name).await.map_err(refused)
    }
}

fn listed(info: ProgramInfo) -> pb::Program {
    pb::Program {
        name: info.name.to_string(),
        size: size(info.size),
        data: bytes::Bytes::new(),
        content_type: info.content_type,
        metadata: info.metadata,
        updated_at: Some(info.updated_at.into()),
        ttl_seconds: 0,
    }
}

fn program_name(name: &str) -> Result<ProgramName, Status> {
    ProgramName::try_new(name).map_err(refused)
}

#[allow(clippy::needless_pass_by_value, reason = "it is an argument of map_err")]
fn refused(error: SessionError) -> Status {
    from_session_error(&error)
}

fn size(bytes: usize) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}
