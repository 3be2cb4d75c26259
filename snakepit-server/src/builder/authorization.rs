//! Sets the function that authorizes operations.

use snakepit_registry::Principal;

use super::Builder;
use crate::{Denied, Operation, TracebackPolicy, authorization::Authorizer};

impl Builder {
    /// Sets the function that authorizes the operations of each [`Principal`]. The host calls the function for every operation of a
    /// client or a worker, in every protocol, before it runs the operation. For a call in a session, the host asks twice: about the
    /// call, and about the use of the session. A denied operation fails with
    /// [`ToolError::AccessDenied`](crate::ToolError::AccessDenied), which is `PERMISSION_DENIED` in gRPC. Without a function, every
    /// peer that can connect may do everything.
    ///
    /// - The host authenticates its peers: a user by its Unix socket, a worker by its launch. Other clients are `loopback` or
    ///   `remote`. If you mount the host's services in your own server, authenticate there, and insert the `Principal` into the
    ///   extensions of the HTTP request.
    /// - [`Principal::program`], which makes the calls of your program, is always permitted. To make a call for another
    ///   principal, set [`ToolCall::principal`](crate::ToolCall::principal) and use
    ///   [`Snakepit::service`](crate::Snakepit::service). A call of the service without a principal is denied.
    /// - A tool in a worker uses sessions and calls host tools as the principal of the outermost call that waits for it, and this
    ///   principal also has the [worker id](Principal::worker_id). If the outermost call comes from your program, the tool acts as
    ///   the [worker](Principal::worker) itself. Workers between calls, foreign workers, and workers of a launcher that run several
    ///   calls without reporting which of them makes a request, act as themselves too. If you deny these operations, such tools
    ///   fail.
    /// - `Ping`, health checks and reflection are open to every peer. A worker registers its tools with its own credentials.
    /// - The function runs in the task of the request, so it must return quickly and must not block. If it panics, the host
    ///   denies the operation.
    ///
    /// ```
    /// use snakepit_server::{Denied, Operation, Snakepit};
    ///
    /// let builder = Snakepit::builder().authorize(|principal, operation| match operation {
    ///     _ if principal.worker_id().is_some() || principal.has_grant("admin") => Ok(()),
    ///     Operation::Call { tool, .. } if principal.has_grant(tool) => Ok(()),
    ///     Operation::ListTools => Ok(()),
    ///     _ => Err(Denied::new(format!("{principal} needs a grant"))),
    /// });
    /// ```
    pub fn authorize<F>(mut self, authorize: F) -> Self
    where
        F: Fn(&Principal, &Operation<'_>) -> Result<(), Denied> + Send + Sync + 'static,
    {
        self.authorizer = Some(Authorizer::new(authorize));
        self
    }

    /// Sets the principals whose errors include tracebacks, causes and output of workers. The default is
    /// [`TracebackPolicy::Local`]: clients on this machine.
    ///
    /// Applies to all answers over gRPC. [`Fault::to_problem`](crate::Fault::to_problem) and
    /// [`Fault::to_json_rpc_error`](crate::Fault::to_json_rpc_error) take the reader as an argument: for a service of your
    /// program, call [`ToolError::without_traceback`](crate::ToolError::without_traceback) unless the policy
    /// [shows](TracebackPolicy::shows_to) them.
    ///
    /// ```
    /// use snakepit_server::{Snakepit, TracebackPolicy};
    ///
    /// let builder = Snakepit::builder().tracebacks(TracebackPolicy::when(|principal| principal.has_grant("debug")));
    /// ```
    pub fn tracebacks(mut self, policy: TracebackPolicy) -> Self {
        self.tracebacks = policy;
        self
    }
}
