//! The operations of a host, in this process or across a connection.

use std::fmt;

use futures_util::stream::BoxStream;
use snakepit_registry::{ToolCall, ToolError, ToolReply};
use snakepit_session::{
    Batch, Created, NewSession, NewVariable, Program, ProgramInfo, ProgramName, Session, SessionError,
    SessionId, SetVariable, Variable, VariableId, VariableName, VariableVersion, WatchEvent,
};

use crate::Error;

/// A handle to a host in this process. Such a host trusts the program, so the program can choose the
/// [principal](crate::CallBuilder::principal) of a call. Remote hosts authenticate their clients themselves. Only `LocalHost` of
/// `snakepit-server` implements this trait, which is sealed.
pub trait InProcessHandle: HostHandle {}

/// Seals the traits of handles. `snakepit-server` needs access for `LocalHost`.
#[doc(hidden)]
pub mod sealed {
    /// Marks the handles of this workspace.
    pub trait Sealed {}
}

/// The events of a watch, up to and including the error that ends it.
pub type EventStream = BoxStream<'static, Result<WatchEvent, Error>>;

/// A handle to a host. Cheap to clone.
///
/// [`RemoteHost`](crate::RemoteHost) sends each operation over a connection. `LocalHost` of `snakepit-server` runs it in this
/// process. [`Caller`](crate::Caller), [`CallBuilder`](crate::CallBuilder) and [`SessionHandle`](crate::SessionHandle) are
/// generic over it, so both kinds of host have the same API, and a call to a local host needs no boxed future.
///
/// Use this trait as a bound. It is sealed: only `snakepit-client` and `snakepit-server` implement it, so a minor release may add
/// methods.
pub trait HostHandle: sealed::Sealed + Clone + fmt::Debug + Send + Sync + 'static {
    /// Runs a call.
    #[doc(hidden)]
    fn call(&self, call: Box<ToolCall>) -> impl Future<Output = Result<ToolReply, ToolError>> + Send;

    /// Creates a session unless it exists.
    #[doc(hidden)]
    fn open_session(&self, id: &SessionId, new: NewSession)
    -> impl Future<Output = Result<(), Error>> + Send;

    /// Returns a session and renews its TTL.
    #[doc(hidden)]
    fn session(&self, id: &SessionId) -> impl Future<Output = Result<Session, Error>> + Send;

    /// Deletes a session.
    #[doc(hidden)]
    fn delete_session(&self, id: &SessionId) -> impl Future<Output = Result<(), Error>> + Send;

    /// Registers a variable.
    #[doc(hidden)]
    fn register_variable(
        &self,
        id: &SessionId,
        name: &VariableName,
        new: NewVariable,
    ) -> impl Future<Output = Result<VariableId, Error>> + Send;

    /// Returns a variable.
    #[doc(hidden)]
    fn variable(
        &self,
        id: &SessionId,
        identifier: &str,
    ) -> impl Future<Output = Result<Variable, Error>> + Send;

    /// Lists the variables whose names match a pattern.
    #[doc(hidden)]
    fn variables(
        &self,
        id: &SessionId,
        pattern: &str,
    ) -> impl Future<Output = Result<Vec<Variable>, Error>> + Send;

    /// Writes a variable and returns its new version.
    #[doc(hidden)]
    fn set_variable(
        &self,
        id: &SessionId,
        write: SetVariable,
    ) -> impl Future<Output = Result<u32, Error>> + Send;

    /// Returns a consistent snapshot of variables, in the order of the identifiers, with `None` for missing ones.
    #[doc(hidden)]
    fn find_variables(
        &self,
        id: &SessionId,
        identifiers: &[&str],
    ) -> impl Future<Output = Result<Vec<Option<Variable>>, Error>> + Send;

    /// Writes several variables, and returns the new version of each, or the error of its write.
    #[doc(hidden)]
    fn set_variables(
        &self,
        id: &SessionId,
        writes: Vec<SetVariable>,
        batch: Batch,
    ) -> impl Future<Output = Result<Vec<Result<u32, SessionError>>, Error>> + Send;

    /// Deletes a variable.
    #[doc(hidden)]
    fn delete_variable(
        &self,
        id: &SessionId,
        identifier: &str,
    ) -> impl Future<Output = Result<(), Error>> + Send;

    /// Deletes variables in one step, and returns whether each existed.
    #[doc(hidden)]
    fn delete_variables(
        &self,
        id: &SessionId,
        identifiers: &[&str],
    ) -> impl Future<Output = Result<Vec<bool>, Error>> + Send;

    /// Returns up to `limit` stored versions of a variable, newest first. A limit of 0 returns all of them.
    #[doc(hidden)]
    fn history(
        &self,
        id: &SessionId,
        identifier: &str,
        limit: usize,
    ) -> impl Future<Output = Result<Vec<VariableVersion>, Error>> + Send;

    /// Restores an old value of a variable as a new version.
    #[doc(hidden)]
    fn rollback(
        &self,
        id: &SessionId,
        identifier: &str,
        version: u32,
    ) -> impl Future<Output = Result<Variable, Error>> + Send;

    /// Watches the named variables, or all variables of the session if `identifiers` is empty.
    #[doc(hidden)]
    fn watch(
        &self,
        id: &SessionId,
        identifiers: Vec<String>,
        include_initial: bool,
    ) -> impl Future<Output = Result<EventStream, Error>> + Send;

    /// Stores a program.
    #[doc(hidden)]
    fn put_program(
        &self,
        id: &SessionId,
        name: &ProgramName,
        program: Program,
    ) -> impl Future<Output = Result<Created, Error>> + Send;

    /// Returns a program.
    #[doc(hidden)]
    fn program(
        &self,
        id: &SessionId,
        name: &ProgramName,
    ) -> impl Future<Output = Result<Program, Error>> + Send;

    /// Lists the programs of a session.
    #[doc(hidden)]
    fn programs(&self, id: &SessionId) -> impl Future<Output = Result<Vec<ProgramInfo>, Error>> + Send;

    /// Deletes a program.
    #[doc(hidden)]
    fn delete_program(
        &self,
        id: &SessionId,
        name: &ProgramName,
    ) -> impl Future<Output = Result<(), Error>> + Send;
}
