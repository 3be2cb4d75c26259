//! The arguments of host tools that this crate provides: the host, and the session of the call.

use std::{
    fmt,
    sync::{Arc, OnceLock, Weak},
};

use snakepit_client::ExtractFrom;
use snakepit_registry::{CallScope, Requirements, ToolError};

use crate::{LocalHost, host::Host};

/// A reference to the host, for its tools. It is weak and set after the host exists, because the host owns its tools.
#[derive(Clone, Default)]
pub(crate) struct HostRef(Arc<OnceLock<Weak<Host>>>);

impl HostRef {
    /// Sets the host. Only the first call has an effect.
    pub(crate) fn set(&self, host: &Arc<Host>) {
        // The builder calls this once.
        let _ = self.0.set(Arc::downgrade(host));
    }
}

impl fmt::Debug for HostRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HostRef")
    }
}

impl ExtractFrom for LocalHost {
    fn extract_from(scope: &CallScope<'_>) -> Result<Self, ToolError> {
        let host = scope.state::<HostRef>().and_then(|host| host.0.get()).and_then(Weak::upgrade);
        let host = host.ok_or_else(|| ToolError::unavailable("the host was dropped"))?;
        Ok(Self::nested_in(host, scope.call()))
    }

    fn declare(requirements: &mut Requirements) {
        requirements.state::<HostRef>();
    }
}
