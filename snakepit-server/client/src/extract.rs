//! Handles to the host and to the session of a call, as arguments of host tools.

use snakepit_registry::{CallScope, Extractor, OptionalExtractor, Requirements, ToolError};

use crate::{Caller, HostHandle, SessionHandle};

/// A handle to a host that its tools can take as an argument: `LocalHost` of `snakepit-server`.
#[doc(hidden)]
pub trait ExtractFrom: HostHandle {
    /// Creates a handle whose calls are nested in this one.
    fn extract_from(scope: &CallScope<'_>) -> Result<Self, ToolError>;

    /// Declares that the tool needs the host.
    fn declare(requirements: &mut Requirements);
}

/// The host, without a session. Its calls are nested in the call to the host tool.
impl<H: ExtractFrom> Extractor for Caller<H> {
    fn extract(scope: &CallScope<'_>) -> Result<Self, ToolError> {
        H::extract_from(scope).map(Self::new)
    }

    fn declare(requirements: &mut Requirements) {
        H::declare(requirements);
    }
}

/// The session of the call. Its calls are nested in the call to the host tool. A call without a session fails, unless the tool
/// takes an `Option`.
impl<H: ExtractFrom> Extractor for SessionHandle<H> {
    fn extract(scope: &CallScope<'_>) -> Result<Self, ToolError> {
        Self::extract_optional(scope)?.ok_or_else(|| {
            let problem = "is missing; the tool uses a session, so call it in one";
            ToolError::invalid_argument(&*scope.call().tool, "session_id", problem)
        })
    }

    fn declare(requirements: &mut Requirements) {
        H::declare(requirements);
    }
}

impl<H: ExtractFrom> OptionalExtractor for SessionHandle<H> {
    fn extract_optional(scope: &CallScope<'_>) -> Result<Option<Self>, ToolError> {
        let Some(session) = &scope.call().session else { return Ok(None) };
        Ok(Some(Self::new(H::extract_from(scope)?, session.clone())))
    }
}
