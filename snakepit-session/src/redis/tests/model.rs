//! Random operations, each done in memory too: both must answer the same, refusals included.

use proptest::{
    collection::vec,
    prelude::{Just, Strategy, any},
    prop_oneof,
    sample::select,
    test_runner::{Config, TestRunner},
};

use super::*;
use crate::{Batch, MemoryBackend, Session, Variable, VariableVersion};

/// So small that all of them are met.
fn limits() -> SessionLimits {
    SessionLimits {
        max_sessions: 2,
        max_session_bytes: 500,
        max_total_bytes: 800,
        max_program_bytes: 300,
        max_programs: 2,
        max_variables: 2,
        max_value_bytes: 90,
        max_history: 3,
        max_history_bytes: 120,
        max_metadata_entries: 2,
        ..SessionLimits::default()
    }
}

#[derive(Debug, Clone)]
enum Step {
    Create(&'static str),
    Get(&'static str),
    Delete(&'static str),
    List(usize),
    Register(&'static str, &'static str, usize),
    Set(&'static str, Vec<(&'static str, usize, Option<u32>)>, Batch),
    Rollback(&'static str, &'static str, u32),
    DeleteVariable(&'static str, &'static str),
    History(&'static str, &'static str, usize),
    Variables(&'static str),
    Watch(&'static str),
    Put(Option<&'static str>, &'static str, usize),
    Programs(Option<&'static str>, &'static str),
    DeleteProgram(Option<&'static str>, &'static str),
    Stats,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    use Step::*;
    // Most often the first, so that much happens to it.
    let session = || select(vec!["a", "a", "a", "a", "b", "c"]);
    let owner = || select(vec![Some("a"), Some("a"), Some("b"), None]);
    let named = || select(vec!["x", "x", "x", "y", "z"]);
    let size = || prop_oneof![8 => 0..40_usize, 1 => 60..120_usize];
    let writes =
        || vec((named(), size(), prop_oneof![3 => Just(None), 1 => (0..4_u32).prop_map(Some)]), 1..4);
    let batch = || any::<bool>().prop_map(|atomic| if atomic { Batch::Atomic } else { Batch::Each });
    let step = prop_oneof![
        3 => session().prop_map(Create),
        2 => session().prop_map(Get),
        1 => session().prop_map(Delete),
        1 => (1..3_usize).prop_map(List),
        4 => (session(), named(), size()).prop_map(|(session, name, size)| Register(session, name, size)),
        12 => (session(), writes(), batch()).prop_map(|(session, writes, batch)| Set(session, writes, batch)),
        2 => (session(), named(), 0..6_u32).prop_map(|(session, name, version)| Rollback(session, name, version)),
        1 => (session(), named()).prop_map(|(session, name)| DeleteVariable(session, name)),
        3 => (session(), named(), 0..4_usize).prop_map(|(session, name, limit)| History(session, name, limit)),
        2 => session().prop_map(Variables),
        2 => session().prop_map(Watch),
        3 => (owner(), named(), 0..350_usize).prop_map(|(owner, name, size)| Put(owner, name, size)),
        2 => (owner(), named()).prop_map(|(owner, name)| Programs(owner, name)),
        1 => (owner(), named()).prop_map(|(owner, name)| DeleteProgram(owner, name)),
        2 => Just(Stats),
    ];
    vec(step, 1..60)
}

fn owner_of(owner: Option<&str>) -> ProgramOwner {
    owner.map_or(ProgramOwner::Global, |session| ProgramOwner::Session(id(session)))
}

fn text(size: usize) -> Payload {
    Payload::try_from_serde(&"x".repeat(size)).unwrap()
}

// What both must have the same of what they answer: not ids, not times.

fn of_session(session: &Session) -> String {
    let Session { id, metadata, ttl, program_count, variable_count, bytes, last_worker, .. } = session;
    format!("{id} {metadata:?} {ttl:?} {program_count} {variable_count} {bytes} {last_worker:?}")
}

fn of_variable(variable: &Variable) -> String {
    let Variable { name, value, version, metadata, source, .. } = variable;
    format!("{name} {value:?} {version} {metadata:?} {source:?}")
}

fn of_version(version: &VariableVersion) -> String {
    let VariableVersion { version, value, note, at: _ } = version;
    format!("{version} {value:?} {note:?}")
}

fn of<T>(answer: Result<T, SessionError>, show: impl Fn(&T) -> String) -> String {
    answer.map_or_else(|error| format!("{error:?}"), |answer| show(&answer))
}

/// Does a step, and tells what came of it.
async fn step(backend: &impl SessionBackend, step: Step, watches: &mut Vec<VariableWatch>) -> String {
    let variable = |name: &str| VariableName::try_new(name).unwrap();
    match step {
        Step::Create(session) => {
            let metadata = BTreeMap::from([("of".to_owned(), session.to_owned())]);
            let made = backend.create(&id(session), NewSession { metadata, ttl: None }).await;
            of(made, |(session, created)| format!("{} {created:?}", of_session(session)))
        }
        Step::Get(session) => of(backend.get(&id(session)).await, of_session),
        Step::Delete(session) => of(backend.delete(&id(session)).await, of_session),
        Step::List(size) => of(backend.list(PageRequest { size, token: None }).await, |page| {
            let sessions: Vec<_> = page.items.iter().map(of_session).collect();
            format!("{sessions:?} {:?}", page.next)
        }),
        Step::Register(session, name, size) => {
            let ty = VariableType::with_constraints(ValueType::String, r#"{"max_length": 80}"#).unwrap();
            let new = NewVariable { ty, value: text(size), note: Note::default() };
            of(backend.register_variable(&id(session), &variable(name), new).await, of_variable)
        }
        Step::Set(session, writes, batch) => {
            let write = |(name, size, expected_version): (&str, usize, Option<u32>)| {
                let metadata = [("size", &*size.to_string())].into_iter().collect();
                let note = Note { metadata, changed_by: Some("w".into()), ..Note::default() };
                SetVariable { note, expected_version, ..SetVariable::new(name, text(size)) }
            };
            let writes = writes.into_iter().map(write).collect();
            of(backend.set_variables(&id(session), writes, batch).await, |versions| format!("{versions:?}"))
        }
        Step::Rollback(session, name, version) => {
            of(backend.rollback_variable(&id(session), name, version, Note::default()).await, of_variable)
        }
        Step::DeleteVariable(session, name) => {
            of(backend.delete_variable(&id(session), name).await, of_variable)
        }
        Step::History(session, name, limit) => {
            let history = backend.variable_history(&id(session), name, limit).await;
            of(history, |versions| versions.iter().map(of_version).collect())
        }
        Step::Variables(session) => {
            let listed = backend.list_variables(&id(session), "").await;
            let listed = of(listed, |variables| variables.iter().map(of_variable).collect());
            let some = backend.variables(&id(session), &["y", "x", "nothing"]).await;
            let show = |found: &Option<Variable>| found.as_ref().map(of_variable).unwrap_or_default();
            listed + &of(some, |variables| format!("{:?}", variables.iter().map(show).collect::<Vec<_>>()))
        }
        Step::Watch(session) => {
            let watch = backend.watch_variables(&id(session), &[], true).await;
            let done = of(watch.as_ref().map_err(Clone::clone), |_| String::new());
            watches.extend(watch);
            done
        }
        Step::Put(owner, name, size) => {
            let program = Program::new("x".repeat(size), "t");
            let put = backend.put_program(&owner_of(owner), &super::name(name), program).await;
            of(put, |created| format!("{created:?}"))
        }
        Step::Programs(owner, name) => {
            let owner = owner_of(owner);
            let found = backend.program(&owner, &super::name(name)).await;
            let found = of(found, |program| format!("{:?} {:?}", program.data, program.ttl));
            let info = |info: &ProgramInfo| format!("{} {} {:?}", info.name, info.size, info.ttl);
            found + &of(backend.programs(&owner).await, |programs| programs.iter().map(info).collect())
        }
        Step::DeleteProgram(owner, name) => {
            of(backend.delete_program(&owner_of(owner), &super::name(name)).await, |()| String::new())
        }
        Step::Stats => of(backend.stats().await, |stats| format!("{stats:?}")),
    }
}

fn of_event(event: &Result<WatchEvent, SessionError>) -> String {
    match event {
        Ok(WatchEvent::Update(update)) => {
            format!("{:?} {} {:?}", update.kind, of_variable(&update.variable), update.note)
        }
        other => format!("{other:?}"),
    }
}

#[test]
fn redis_does_what_memory_does() {
    let server = Server::start();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let cases = AtomicUsize::new(0);
    let config = Config { cases: 100, failure_persistence: None, ..Config::default() };
    let outcome = TestRunner::new(config).run(&steps(), |steps| {
        runtime.block_on(async {
            let prefix = format!("case-{}", cases.fetch_add(1, Relaxed));
            let config = RedisConfig { prefix, ..RedisConfig::default() };
            let redis = RedisBackend::connect(&server.url, config, limits()).await.unwrap();
            let memory = MemoryBackend::new(limits());
            let (mut expected, mut watches) = (Vec::new(), Vec::new());
            for each in steps {
                let answer = step(&memory, each.clone(), &mut expected).await;
                assert_eq!(step(&redis, each.clone(), &mut watches).await, answer, "{each:?}");
            }
            for (mut expected, mut watch) in expected.into_iter().zip(watches) {
                while let Ok(event) = tokio::time::timeout(Duration::ZERO, expected.next()).await {
                    assert_eq!(soon(watch.next()).await.as_ref().map(of_event), event.as_ref().map(of_event));
                    if event.is_none() {
                        break;
                    }
                }
            }
        });
        Ok(())
    });
    outcome.unwrap_or_else(|failed| panic!("{failed}"));
}
