//! Implements [`SessionBackend`] for `Arc<B>` and `Box<B>`, including `dyn SessionBackend`.

use std::{pin::Pin, sync::Arc};

use crate::{
    Batch, Created, NewSession, NewVariable, Note, Page, PageRequest, Program, ProgramInfo, ProgramName,
    ProgramOwner, Session, SessionBackend, SessionError, SessionEvents, SessionId, SessionStats, SetVariable,
    Variable, VariableName, VariableVersion, VariableWatch,
};

/// The future of a method that `async_trait` generated.
type BackendFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, SessionError>> + Send + 'a>>;

/// Implements the trait for a pointer, without `async_trait`, which would box each future a second time. The cost matters,
/// because method calls on an `Arc` resolve to this implementation, not to that of the backend.
macro_rules! forward {
    ($pointer:ident: $($method:ident<$($life:lifetime),*>($($arg:ident: $ty:ty),*) -> $output:ty;)*) => {
        impl<B: SessionBackend + ?Sized> SessionBackend for $pointer<B> {
            $(
                fn $method<'backend, $($life,)* 'future>(
                    &'backend self,
                    $($arg: $ty),*
                ) -> BackendFuture<'future, $output>
                where
                    'backend: 'future,
                    $($life: 'future,)*
                    Self: 'future,
                {
                    (**self).$method($($arg),*)
                }
            )*

            fn subscribe(&self) -> SessionEvents {
                (**self).subscribe()
            }
        }
    };
}

/// Lists every async method, including those with a default implementation, which a backend may replace.
macro_rules! forward_all {
    ($pointer:ident) => {
        forward! { $pointer:
            create<'a>(id: &'a SessionId, new: NewSession) -> (Session, Created);
            get<'a>(id: &'a SessionId) -> Session;
            delete<'a>(id: &'a SessionId) -> Session;
            list<>(page: PageRequest) -> Page<Session>;
            set_last_worker<'a>(id: &'a SessionId, worker: Arc<str>) -> ();
            put_program<'a, 'b>(owner: &'a ProgramOwner, name: &'b ProgramName, program: Program) -> Created;
            program<'a, 'b>(owner: &'a ProgramOwner, name: &'b ProgramName) -> Program;
            programs<'a>(owner: &'a ProgramOwner) -> Vec<ProgramInfo>;
            delete_program<'a, 'b>(owner: &'a ProgramOwner, name: &'b ProgramName) -> ();
            register_variable<'a, 'b>(id: &'a SessionId, name: &'b VariableName, new: NewVariable) -> Variable;
            variables<'a, 'b, 'c>(id: &'a SessionId, identifiers: &'b [&'c str]) -> Vec<Option<Variable>>;
            set_variables<'a>(
                id: &'a SessionId, updates: Vec<SetVariable>, batch: Batch
            ) -> Vec<Result<u32, SessionError>>;
            list_variables<'a, 'b>(id: &'a SessionId, pattern: &'b str) -> Vec<Variable>;
            delete_variable<'a, 'b>(id: &'a SessionId, identifier: &'b str) -> Variable;
            delete_variables<'a, 'b, 'c>(id: &'a SessionId, identifiers: &'b [&'c str]) -> Vec<Option<Variable>>;
            variable_history<'a, 'b>(
                id: &'a SessionId, identifier: &'b str, limit: usize
            ) -> Vec<VariableVersion>;
            rollback_variable<'a, 'b>(
                id: &'a SessionId, identifier: &'b str, version: u32, note: Note
            ) -> Variable;
            watch_variables<'a, 'b>(id: &'a SessionId, identifiers: &'b [String], initial: bool) -> VariableWatch;
            variable<'a, 'b>(id: &'a SessionId, identifier: &'b str) -> Variable;
            set_variable<'a>(id: &'a SessionId, update: SetVariable) -> u32;
            stats<>() -> SessionStats;
            sweep<>() -> usize;
        }
    };
}

forward_all!(Arc);
forward_all!(Box);

#[cfg(test)]
mod tests {
    /// A method of the trait that is missing here would silently use its default implementation.
    #[test]
    fn every_method_of_the_trait_is_forwarded() {
        let (_, code) = include_str!("backend.rs").split_once("pub trait SessionBackend").unwrap();
        let methods: Vec<&str> = code
            .lines()
            .filter_map(|line| line.strip_prefix("    async fn "))
            .filter_map(|rest| rest.split_once('(').map(|(name, _)| name))
            .collect();
        assert!(methods.len() >= 22, "{methods:?}");
        let forwarded = include_str!("shared.rs");
        for method in methods {
            assert!(forwarded.contains(&format!("\n            {method}<")), "`{method}` is not forwarded");
        }
    }
}
