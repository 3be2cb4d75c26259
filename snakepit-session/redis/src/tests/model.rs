//! Random operations, on one host and on two hosts in turn. Both must match the model.

use async_trait::async_trait;
use snakepit_session::{Batch, Page, ProgramInfo, Session, SessionStats, Variable, VariableVersion};
use snakepit_session_testkit::{session_backend_linearizes, session_backend_matches_model};

use super::*;

/// Two hosts that execute operations in turn. All watches of a session go to one host, because limits of watches apply per
/// host.
#[derive(Debug)]
struct AlternatingHosts {
    hosts: [RedisBackend; 2],
    next: AtomicUsize,
}

impl AlternatingHosts {
    fn host(&self) -> &RedisBackend {
        &self.hosts[self.next.fetch_add(1, Relaxed) % 2]
    }
}

/// Delegates operations to the host whose turn it is.
macro_rules! delegate {
    ($(fn $operation:ident($($name:ident: $type:ty),*) -> $output:ty;)*) => {
        #[async_trait]
        impl SessionBackend for AlternatingHosts {
            $(async fn $operation(&self, $($name: $type),*) -> Result<$output, SessionError> {
                self.host().$operation($($name),*).await
            })*

            async fn watch_variables(
                &self,
                id: &SessionId,
                identifiers: &[String],
                initial: bool,
            ) -> Result<VariableWatch, SessionError> {
                let host = usize::from(id.as_str().as_bytes()[0]) % 2;
                self.hosts[host].watch_variables(id, identifiers, initial).await
            }

            fn subscribe(&self) -> SessionEvents {
                self.host().subscribe()
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
    fn delete_variables(id: &SessionId, identifiers: &[&str]) -> Vec<Option<Variable>>;
    fn variable_history(id: &SessionId, identifier: &str, limit: usize) -> Vec<VariableVersion>;
    fn rollback_variable(id: &SessionId, identifier: &str, version: u32, note: Note) -> Variable;
    fn stats() -> SessionStats;
    fn sweep() -> usize;
}

/// Creates backends with separate prefixes on one server.
struct BackendFactory {
    server: Server,
    created: AtomicUsize,
}

impl BackendFactory {
    fn new() -> Self {
        Self { server: Server::start(), created: AtomicUsize::new(0) }
    }

    async fn two_hosts(&self, limits: SessionLimits) -> AlternatingHosts {
        let prefix = format!("case-{}", self.created.fetch_add(1, Relaxed));
        let config = RedisConfig { prefix, ..RedisConfig::default() };
        let connect = || RedisBackend::connect(&self.server.url, config.clone(), limits.clone());
        AlternatingHosts {
            hosts: [connect().await.unwrap(), connect().await.unwrap()],
            next: AtomicUsize::new(0),
        }
    }

    async fn one_host(&self, limits: SessionLimits) -> RedisBackend {
        let [host, _] = self.two_hosts(limits).await.hosts;
        host
    }
}

#[test]
fn random_operations_match_the_model() {
    let factory = BackendFactory::new();
    session_backend_matches_model(|limits| factory.one_host(limits), 30);
}

#[test]
fn random_operations_of_two_hosts_match_the_model() {
    let factory = BackendFactory::new();
    session_backend_matches_model(|limits| factory.two_hosts(limits), 60);
}

#[test]
fn concurrent_operations_of_two_hosts_are_linearizable() {
    let factory = BackendFactory::new();
    session_backend_linearizes(|limits| factory.two_hosts(limits), 60);
}
