//! [`LocalHost`]: the host of this process, as an implementation of [`HostHandle`], which remote hosts implement too.

use std::sync::Arc;

use futures_core::Stream;
use futures_util::{
    StreamExt,
    stream::{self, PollNext},
};
use snakepit_client::{Error, EventStream, HostHandle, InProcessHandle, attach_current_trace};
use snakepit_registry::{CallId, CallReports, Principal, ToolCall, ToolError, ToolReply};
use snakepit_session::{
    Batch, Created, NewSession, NewVariable, Note, Program, ProgramInfo, ProgramName, ProgramOwner, Session,
    SessionError, SessionId, SetVariable, Variable, VariableId, VariableName, VariableVersion,
};

use crate::host::{ANCESTORS, Host, NestedCall, Permission};

/// A handle to the host of this process. Cheap to clone. It does not keep the workers alive; [`Snakepit`](crate::Snakepit)
/// does.
///
/// It is a [`tower::Service`] of [`ToolCall`]s ([`Snakepit::service`](crate::Snakepit::service)) and always ready, because each
/// call waits for its own worker. Dropping the future of a call, or the stream that it returned, cancels the call.
///
/// A host tool that takes a handle as an argument acts for the caller of the tool: the calls of the handle have the same
/// [principal](ToolCall::principal). They are still calls of the program, so [`Builder::authorize`](crate::Builder::authorize)
/// does not apply to them.
#[derive(Debug, Clone)]
pub struct LocalHost {
    host: Arc<Host>,
    owner: HandleOwner,
}

/// The owner of a handle, for which its calls are made.
#[derive(Debug, Clone)]
enum HandleOwner {
    Program,
    /// A service. It also serves listeners of the program, so its calls must have a principal.
    Service,
    /// A call to a host tool. Shared, because each call contains a copy of its handle.
    Call(Arc<OuterCall>),
}

/// The properties of a host tool's call that its nested calls inherit.
#[derive(Debug)]
struct OuterCall {
    /// The calls that wait for the nested ones, if they are known.
    ancestors: Option<Arc<[CallId]>>,
    /// The receivers of the output.
    reports: Option<CallReports>,
    principal: Principal,
}

impl LocalHost {
    pub(crate) const fn new(host: Arc<Host>) -> Self {
        Self { host, owner: HandleOwner::Program }
    }

    /// Returns a handle whose calls must have a principal.
    pub(crate) fn without_principal(self) -> Self {
        Self { owner: HandleOwner::Service, ..self }
    }

    /// A handle whose calls are nested in a call to a host tool, even outside of the tool's task.
    pub(crate) fn nested_in(host: Arc<Host>, call: &ToolCall) -> Self {
        let outer = OuterCall {
            ancestors: call.ancestors.clone(),
            reports: CallReports::of(call).and_then(CallReports::for_nested),
            principal: call.principal.clone(),
        };
        Self { host, owner: HandleOwner::Call(Arc::new(outer)) }
    }

    pub(crate) const fn inner(&self) -> &Arc<Host> {
        &self.host
    }
}

snakepit_registry::always_ready!(LocalHost, |service, call| {
    let host = service.clone();
    Box::pin(async move { HostHandle::call(&host, Box::new(call)).await })
});

fn owner(id: &SessionId) -> ProgramOwner {
    ProgramOwner::Session(id.clone())
}

impl snakepit_client::sealed::Sealed for LocalHost {}

impl InProcessHandle for LocalHost {}

impl HostHandle for LocalHost {
    // This is not an `async fn`, whose future would store its arguments twice.
    fn call(&self, mut call: Box<ToolCall>) -> impl Future<Output = Result<ToolReply, ToolError>> + Send {
        attach_current_trace(&mut call);
        let principal = match &self.owner {
            HandleOwner::Program => Principal::program(),
            HandleOwner::Service => Principal::unset(),
            HandleOwner::Call(outer) => outer.principal.clone(),
        };
        if let HandleOwner::Call(outer) = &self.owner {
            call.ancestors.clone_from(&outer.ancestors);
            if let Some(reports) = outer.reports.clone() {
                reports.attach_to(&mut call);
            }
            if call.ancestors.is_none() {
                call.extensions.insert(NestedCall);
            }
        } else {
            call.ancestors = ANCESTORS.try_with(Clone::clone).unwrap_or_default();
        }
        let is_of_program = call.principal.is_unset() && !principal.is_unset();
        let permission = if is_of_program {
            call.principal = principal;
            Permission::Implied
        } else {
            Permission::Required
        };
        self.host.call_local(call, permission)
    }

    async fn open_session(&self, id: &SessionId, new: NewSession) -> Result<(), Error> {
        Ok(self.host.sessions.create(id, new).await.map(drop)?)
    }

    async fn session(&self, id: &SessionId) -> Result<Session, Error> {
        Ok(self.host.sessions.get(id).await.map_err(SessionError::into_read_error)?)
    }

    async fn delete_session(&self, id: &SessionId) -> Result<(), Error> {
        Ok(self.host.sessions.delete(id).await.map(drop)?)
    }

    async fn register_variable(
        &self,
        id: &SessionId,
        name: &VariableName,
        new: NewVariable,
    ) -> Result<VariableId, Error> {
        Ok(self.host.sessions.register_variable(id, name, new).await?.id)
    }

    async fn variable(&self, id: &SessionId, identifier: &str) -> Result<Variable, Error> {
        Ok(self.host.sessions.variable(id, identifier).await.map_err(SessionError::into_read_error)?)
    }

    async fn variables(&self, id: &SessionId, pattern: &str) -> Result<Vec<Variable>, Error> {
        Ok(self.host.sessions.list_variables(id, pattern).await.map_err(SessionError::into_read_error)?)
    }

    async fn set_variable(&self, id: &SessionId, write: SetVariable) -> Result<u32, Error> {
        Ok(self.host.sessions.set_variable(id, write).await?)
    }

    async fn find_variables(
        &self,
        id: &SessionId,
        identifiers: &[&str],
    ) -> Result<Vec<Option<Variable>>, Error> {
        Ok(self.host.sessions.variables(id, identifiers).await.map_err(SessionError::into_read_error)?)
    }

    async fn set_variables(
        &self,
        id: &SessionId,
        writes: Vec<SetVariable>,
        batch: Batch,
    ) -> Result<Vec<Result<u32, SessionError>>, Error> {
        Ok(self.host.sessions.set_variables(id, writes, batch).await?)
    }

    async fn delete_variable(&self, id: &SessionId, identifier: &str) -> Result<(), Error> {
        Ok(self.host.sessions.delete_variable(id, identifier).await.map(drop)?)
    }

    async fn delete_variables(&self, id: &SessionId, identifiers: &[&str]) -> Result<Vec<bool>, Error> {
        let deleted = self.host.sessions.delete_variables(id, identifiers).await?;
        Ok(deleted.iter().map(Option::is_some).collect())
    }

    async fn history(
        &self,
        id: &SessionId,
        identifier: &str,
        limit: usize,
    ) -> Result<Vec<VariableVersion>, Error> {
        Ok(self
            .host
            .sessions
            .variable_history(id, identifier, limit)
            .await
            .map_err(SessionError::into_read_error)?)
    }

    async fn rollback(&self, id: &SessionId, identifier: &str, version: u32) -> Result<Variable, Error> {
        Ok(self.host.sessions.rollback_variable(id, identifier, version, Note::default()).await?)
    }

    async fn watch(
        &self,
        id: &SessionId,
        identifiers: Vec<String>,
        include_initial: bool,
    ) -> Result<EventStream, Error> {
        let watch = self.host.sessions.watch_variables(id, &identifiers, include_initial).await;
        let events = watch
            .map_err(SessionError::into_read_error)?
            .map(|event| event.map_err(|error| error.into_read_error().into()));
        let stopped = self.host.stop.clone().cancelled_owned();
        let end = stream::once(stopped).map(|()| Err(ToolError::shutting_down(false).into()));
        // Events first, so that the watch delivers all changes from before the shutdown.
        let events = stream::select_with_strategy(events, Box::pin(end), |(): &mut ()| PollNext::Left);
        Ok(until_error(events).boxed())
    }

    async fn put_program(
        &self,
        id: &SessionId,
        name: &ProgramName,
        program: Program,
    ) -> Result<Created, Error> {
        Ok(self.host.sessions.put_program(&owner(id), name, program).await?)
    }

    async fn program(&self, id: &SessionId, name: &ProgramName) -> Result<Program, Error> {
        Ok(self.host.sessions.program(&owner(id), name).await.map_err(SessionError::into_read_error)?)
    }

    async fn programs(&self, id: &SessionId) -> Result<Vec<ProgramInfo>, Error> {
        Ok(self.host.sessions.programs(&owner(id)).await.map_err(SessionError::into_read_error)?)
    }

    async fn delete_program(&self, id: &SessionId, name: &ProgramName) -> Result<(), Error> {
        Ok(self.host.sessions.delete_program(&owner(id), name).await?)
    }
}

/// Ends a stream after its first error, without polling it again.
fn until_error<T>(
    stream: impl Stream<Item = Result<T, Error>> + Unpin,
) -> impl Stream<Item = Result<T, Error>> {
    stream::unfold(Some(stream), |stream| async {
        let mut stream = stream?;
        let item = stream.next().await?;
        let rest = item.is_ok().then_some(stream);
        Some((item, rest))
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::json;
    use snakepit_client::Caller;
    use snakepit_registry::{FnTool, Registry};
    use snakepit_session::{MemoryBackend, Payload, SessionLimits};
    use tokio_util::{sync::CancellationToken, task::TaskTracker};

    use super::*;

    fn caller() -> Caller<LocalHost> {
        let registry = Registry::new();
        let echo = |args: BTreeMap<String, serde_json::Value>| async move { args };
        registry.register_host_tool(FnTool::typed("echo", echo)).unwrap();
        let sessions = Arc::new(MemoryBackend::new(SessionLimits::default()));
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let host = Host::new(sessions, registry, Arc::default(), None, &tasks, stop);
        Caller::new(LocalHost::new(Arc::new(host)))
    }

    /// With 1464 bytes, an overloaded host spent its time on page faults instead of calls.
    #[tokio::test]
    async fn a_waiting_call_takes_little_memory() {
        let caller = caller();
        let call = caller.execute::<u64>("echo", json!({"x": 1}));
        assert!(size_of_val(&call) <= 640, "{} bytes", size_of_val(&call));
    }

    #[tokio::test]
    async fn keeps_arguments_and_payloads_together_and_rejects_duplicates() {
        let caller = caller();
        let one = || Payload::try_from_serde(&1).unwrap();
        let call = caller.call("echo").payload("x", one()).args(json!({"y": 2})).arg("z", 3);
        let reply = call.unary::<serde_json::Value>().await.unwrap();
        assert_eq!(reply.value, json!({"x": 1, "y": 2, "z": 3}));
        for duplicate in [
            caller.call("echo").payload("x", one()).args(json!({"x": 2})),
            caller.call("echo").args(json!({"x": 2})).payload("x", one()),
            caller.call("echo").arg("x", 1).arg("x", 2),
        ] {
            let error = duplicate.unary::<serde_json::Value>().await.unwrap_err().to_string();
            assert_eq!(
                error,
                "argument `x` of tool `echo` is set twice; pass it once, by `arg`, `args` or `payload`"
            );
        }
    }
}
