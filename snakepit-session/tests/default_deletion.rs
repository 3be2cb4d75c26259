//! The default implementation of `SessionBackend::delete_variables`, for backends that do not replace it.
#![allow(clippy::unwrap_used, reason = "tests may panic")]

use std::sync::Arc;

use async_trait::async_trait;
use snakepit_session::{
    Batch, Created, MemoryBackend, NewSession, NewVariable, Note, Page, PageRequest, Payload, Program,
    ProgramInfo, ProgramName, ProgramOwner, Session, SessionBackend, SessionError, SessionEvents, SessionId,
    SessionLimits, SessionStats, SetVariable, Variable, VariableName, VariableType, VariableVersion,
    VariableWatch,
};

/// A backend in memory that uses the default `delete_variables`.
#[derive(Debug)]
struct Plain(MemoryBackend);

macro_rules! delegate {
    ($(fn $operation:ident($($name:ident: $type:ty),*) -> $output:ty;)*) => {
        #[async_trait]
        impl SessionBackend for Plain {
            $(async fn $operation(&self, $($name: $type),*) -> Result<$output, SessionError> {
                self.0.$operation($($name),*).await
            })*

            fn subscribe(&self) -> SessionEvents {
                self.0.subscribe()
            }
        }
    };
}

delegate! {
    fn create(id: &SessionId, new: NewSession) -> (Session, Created);
    fn get(id: &SessionId) -> Session;
    fn delete(id: &SessionId) -> Session;
    fn list(page: PageRequest) -> Page<Session>;
    fn set_last_worker(id: &SessionId, worker: Arc<str>) -> ();
    fn put_program(owner: &ProgramOwner, name: &ProgramName, program: Program) -> Created;
    fn program(owner: &ProgramOwner, name: &ProgramName) -> Program;
    fn programs(owner: &ProgramOwner) -> Vec<ProgramInfo>;
    fn delete_program(owner: &ProgramOwner, name: &ProgramName) -> ();
    fn register_variable(id: &SessionId, name: &VariableName, new: NewVariable) -> Variable;
    fn variables(id: &SessionId, identifiers: &[&str]) -> Vec<Option<Variable>>;
    fn set_variables(id: &SessionId, updates: Vec<SetVariable>, batch: Batch) -> Vec<Result<u32, SessionError>>;
    fn list_variables(id: &SessionId, pattern: &str) -> Vec<Variable>;
    fn delete_variable(id: &SessionId, identifier: &str) -> Variable;
    fn variable_history(id: &SessionId, identifier: &str, limit: usize) -> Vec<VariableVersion>;
    fn rollback_variable(id: &SessionId, identifier: &str, version: u32, note: Note) -> Variable;
    fn watch_variables(id: &SessionId, identifiers: &[String], initial: bool) -> VariableWatch;
    fn stats() -> SessionStats;
    fn sweep() -> usize;
}

#[tokio::test]
async fn it_deletes_in_order_and_rejects_too_many_names() {
    let backend = Plain(MemoryBackend::new(SessionLimits::default()));
    let id = SessionId::try_new("s").unwrap();
    backend.create(&id, NewSession::default()).await.unwrap();
    for name in ["a", "b"] {
        let ty = VariableType::new(snakepit_session::ValueType::Integer).unwrap();
        let new = NewVariable { ty, value: Payload::try_from_serde(&1).unwrap(), note: Note::default() };
        backend.register_variable(&id, &VariableName::try_new(name).unwrap(), new).await.unwrap();
    }
    let names = vec!["a"; 1001];
    let error = backend.delete_variables(&id, &names).await.unwrap_err();
    assert!(matches!(error, SessionError::TooManyNames { given: 1001, limit: 1000 }), "{error:?}");
    let deleted = backend.delete_variables(&id, &["a", "x", "a", "b"]).await.unwrap();
    assert_eq!(deleted.iter().map(Option::is_some).collect::<Vec<_>>(), [true, false, false, true]);
}
