//! The layers that the program puts around calls. They wrap the service that resolves and runs a call.
//!
//! ```text
//! caller > host: session, telemetry > [call layers] > registry > host tool
//!                                                              > pool: retry > [attempt layers] > dispatch > worker
//! ```
//!
//! A nested call, which a running tool makes through the host, belongs to a call that has passed the layers. It does not
//! pass them again, because a concurrency limit would then make it wait for its own caller.

use std::sync::{OnceLock, Weak};

use snakepit_registry::{CallLayers, CallService, ToolCall, ToolError};

use super::{ANCESTORS, Host, NestedCall};

/// The service with the layers of the program; empty without layers.
#[derive(Debug, Default)]
pub(super) struct HostLayers(OnceLock<CallService>);

impl HostLayers {
    /// Sets the layers. Only the first call has an effect.
    pub(super) fn set(&self, layers: CallLayers, host: Weak<Host>) {
        if let Some(service) = layers.wrap(HostService(host)) {
            // The builder calls this once.
            let _ = self.0.set(service);
        }
    }

    /// Returns the layered service for this call; `None` without layers, or if the call is nested.
    #[inline]
    pub(super) fn service_for(&self, call: &ToolCall) -> Option<&CallService> {
        let service = self.0.get()?;
        let is_nested = call.ancestors.is_some()
            || call.extensions.get::<NestedCall>().is_some()
            || ANCESTORS.try_with(|_| ()).is_ok();
        (!is_nested).then_some(service)
    }
}

/// The service inside the layers. Weak, because the host owns it.
#[derive(Debug, Clone)]
struct HostService(Weak<Host>);

snakepit_registry::always_ready!(HostService, |service, call| {
    let host = service.0.upgrade();
    Box::pin(async move {
        let host = host.ok_or_else(|| ToolError::unavailable("the host was dropped"))?;
        // Marks the calls that this task makes from now on as nested. `None`: no known call waits for them.
        ANCESTORS.scope(None, host.resolve_and_call(call)).await
    })
});
