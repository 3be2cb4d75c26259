//! Finds the principal of a request, and authorizes its operation.

use std::sync::Arc;

use snakepit_proto::pb;
use snakepit_registry::Principal;
use snakepit_worker::process::Launch;
use tonic::{Extensions, Request, Status};

use super::bridge::Bridge;
use crate::{
    Operation,
    host::Host,
    listen::{Connection, ReportedCall},
    status::from_tool_error,
};

/// Determines the principal of a request.
#[derive(Debug, Clone)]
pub(super) enum PrincipalSource {
    /// The principal that the program's own server has set, or the peer of the connection.
    Fixed(Principal),
    /// A process of a worker, which acts for the call that makes the request.
    Worker {
        launch: Arc<Launch>,
        /// The call that the worker reports, if it runs several.
        call: Option<ReportedCall>,
    },
}

impl PrincipalSource {
    /// Returns the current principal. The principal of a worker changes with the call that the worker runs.
    pub(super) fn principal(&self, host: &Host) -> Principal {
        match self {
            Self::Fixed(principal) => principal.clone(),
            Self::Worker { launch, call } => host.acting_principal(launch.id(), call.map(|call| call.0)),
        }
    }
}

/// A request that names a session, or that may refer to global programs instead.
pub(super) trait HasSession {
    fn session(&self) -> Option<&str>;
}

macro_rules! has_session {
    ($($request:ident)+) => {
        $(impl HasSession for pb::$request {
            fn session(&self) -> Option<&str> {
                Some(&self.session_id)
            }
        })+
    };
    (or global: $($request:ident)+) => {
        $(impl HasSession for pb::$request {
            fn session(&self) -> Option<&str> {
                (!self.global).then_some(&self.session_id)
            }
        })+
    };
}

has_session! {
    GetExposedElixirToolsRequest InitializeSessionRequest CleanupSessionRequest GetSessionRequest HeartbeatRequest RegisterVariableRequest GetVariableRequest
    SetVariableRequest BatchGetVariablesRequest BatchSetVariablesRequest ListVariablesRequest DeleteVariableRequest
    DeleteVariablesRequest
    GetVariableHistoryRequest RollbackVariableRequest WatchVariablesRequest
}
has_session! { or global: PutProgramRequest GetProgramRequest ListProgramsRequest DeleteProgramRequest }

impl Bridge {
    /// Returns the source of a request's principal.
    pub(super) fn principal_source(&self, extensions: &Extensions) -> PrincipalSource {
        if let Some(principal) = extensions.get::<Principal>() {
            return PrincipalSource::Fixed(principal.clone());
        }
        let Some(connection) = extensions.get::<Arc<Connection>>() else {
            return PrincipalSource::Fixed(Principal::mounted());
        };
        match connection.find_launch() {
            // A foreign worker acts as itself, because it runs any number of calls concurrently and opens sessions for calls that
            // have none.
            Some(launch) if self.launch().is_none() => {
                PrincipalSource::Worker { launch: Arc::clone(launch), call: extensions.get().copied() }
            }
            _ => PrincipalSource::Fixed(connection.principal()),
        }
    }

    /// Returns the principal of a request.
    pub(super) fn principal(&self, extensions: &Extensions) -> Principal {
        self.principal_source(extensions).principal(self.host())
    }

    /// Checks that the principal of a request may do this operation.
    pub(super) fn authorize(&self, extensions: &Extensions, operation: &Operation<'_>) -> Result<(), Status> {
        let Some(authorizer) = self.host().authorizer() else { return Ok(()) };
        let principal = self.principal(extensions);
        if principal.is_program() {
            return Ok(());
        }
        authorizer.authorize(&principal, operation).map_err(from_tool_error)
    }

    /// Checks that the principal of a request may read the session of the request.
    pub(super) fn may_read<M: HasSession>(&self, request: &Request<M>) -> Result<(), Status> {
        let session = request.get_ref().session();
        let operation = session.map_or(Operation::ReadPrograms, |session| Operation::ReadSession { session });
        self.authorize(request.extensions(), &operation)
    }

    /// Checks that the principal of a request may change the session of the request.
    pub(super) fn may_write<M: HasSession>(&self, request: &Request<M>) -> Result<(), Status> {
        let session = request.get_ref().session();
        let operation =
            session.map_or(Operation::WritePrograms, |session| Operation::WriteSession { session });
        self.authorize(request.extensions(), &operation)
    }

    /// Checks that the principal of a request may observe the host.
    pub(super) fn may_observe<M>(&self, request: &Request<M>) -> Result<(), Status> {
        self.authorize(request.extensions(), &Operation::Observe)
    }
}
