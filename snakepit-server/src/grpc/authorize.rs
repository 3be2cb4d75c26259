//! Finds the principal of a request, and asks the host whether it may do what the request says.

use std::sync::Arc;

use snakepit_proto::pb;
use snakepit_registry::Principal;
use tonic::{Extensions, Request, Status};

use super::bridge::Bridge;
use crate::{Operation, listen::Connection, status::from_tool_error};

/// The principal of a request: the one that a server of the program has set, or the peer of the connection.
pub(super) fn principal(extensions: &Extensions) -> Principal {
    if let Some(principal) = extensions.get::<Principal>() {
        return principal.clone();
    }
    let connection = extensions.get::<Arc<Connection>>();
    connection.map_or_else(Principal::mounted, |connection| connection.principal())
}

/// A request that names a session, or no session for global programs.
pub(super) trait OfSession {
    fn session(&self) -> Option<&str>;
}

macro_rules! of_session {
    ($($request:ident)+) => {
        $(impl OfSession for pb::$request {
            fn session(&self) -> Option<&str> {
                Some(&self.session_id)
            }
        })+
    };
    (or global: $($request:ident)+) => {
        $(impl OfSession for pb::$request {
            fn session(&self) -> Option<&str> {
                (!self.global).then_some(&self.session_id)
            }
        })+
    };
}

of_session! {
    GetExposedElixirToolsRequest InitializeSessionRequest CleanupSessionRequest GetSessionRequest HeartbeatRequest RegisterVariableRequest GetVariableRequest
    SetVariableRequest BatchGetVariablesRequest BatchSetVariablesRequest ListVariablesRequest DeleteVariableRequest
    GetVariableHistoryRequest RollbackVariableRequest WatchVariablesRequest
}
of_session! { or global: PutProgramRequest GetProgramRequest ListProgramsRequest DeleteProgramRequest }

impl Bridge {
    /// Asks the host whether the principal of a request may do this.
    pub(super) fn authorize(&self, extensions: &Extensions, operation: &Operation<'_>) -> Result<(), Status> {
        let Some(authorizer) = self.host().authorizer() else { return Ok(()) };
        authorizer.authorize(&principal(extensions), operation).map_err(from_tool_error)
    }

    /// Asks the host whether the principal of a request may read its session.
    pub(super) fn may_read<M: OfSession>(&self, request: &Request<M>) -> Result<(), Status> {
        let session = request.get_ref().session();
        let operation = session.map_or(Operation::ReadPrograms, |session| Operation::ReadSession { session });
        self.authorize(request.extensions(), &operation)
    }

    /// Asks the host whether the principal of a request may change its session.
    pub(super) fn may_write<M: OfSession>(&self, request: &Request<M>) -> Result<(), Status> {
        let session = request.get_ref().session();
        let operation =
            session.map_or(Operation::WritePrograms, |session| Operation::WriteSession { session });
        self.authorize(request.extensions(), &operation)
    }

    /// Asks the host whether the principal of a request may observe the host.
    pub(super) fn may_observe<M>(&self, request: &Request<M>) -> Result<(), Status> {
        self.authorize(request.extensions(), &Operation::Observe)
    }
}

#[cfg(test)]
mod tests {
    use snakepit_registry::Via;

    use super::*;

    #[test]
    fn the_principal_of_a_server_of_the_program_wins() {
        let mut extensions = Extensions::default();
        assert_eq!(principal(&extensions), Principal::mounted());
        let alice = Principal::new("alice", Via::Mounted);
        extensions.insert(alice.clone());
        assert_eq!(principal(&extensions), alice);
    }
}
