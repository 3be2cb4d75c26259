//! Checks the file of a killed host.

use snakepit_session::{
    Metadata, Note, PageRequest, Payload, ProgramOwner, Session, SessionBackend, SessionError, Variable,
};
use snakepit_session_redb::RedbBackend;

use crate::{Acknowledged, host, id, program_name};

/// Checks that all acknowledged writes are present. Writes that were in progress may be present too. Every write that is present
/// counts as acknowledged from now on, because the next host has read it.
pub(crate) async fn check(backend: &RedbBackend, known: &mut Acknowledged) {
    let acknowledged = known.clone();
    let count = |name: &str| acknowledged.get(name).copied();
    for task in 0..host::SEPARATE_TASKS {
        let session = format!("alone-{task}");
        if let Some(acknowledged) = count(&session) {
            let version = version_of(backend, &session, "x").await;
            // Each task has one write in progress.
            assert!(
                (acknowledged..=acknowledged + 1).contains(&version),
                "{session} {acknowledged} {version}"
            );
            known.insert(session, version);
        }
    }
    if let Some(acknowledged) = count("together") {
        let version = version_of(backend, "together", "a").await;
        let max = acknowledged + host::BATCH_TASKS;
        assert!((acknowledged..=max).contains(&version), "together {acknowledged} {version}");
        known.insert("together".to_owned(), version);
        for name in host::BATCH {
            assert_eq!(version_of(backend, "together", name).await, version, "batches are atomic");
        }
    }
    for (kind, owner) in [("program", id("programs").into()), ("global", ProgramOwner::Global)] {
        if let Some(acknowledged) = count(kind) {
            let program = backend.program(&owner, &program_name("p")).await.unwrap();
            let found: u32 = program.metadata["count"].parse().unwrap();
            assert!((acknowledged..=acknowledged + 1).contains(&found), "{kind} {acknowledged} {found}");
            known.insert(kind.to_owned(), found);
            assert_eq!(program.data, host::data(found), "data and metadata match");
        }
    }
    for task in 0..host::SHORT_LIVED_SESSIONS {
        let session = format!("{}{task}", host::SHORT_LIVED_PREFIX);
        if let Some(acknowledged) = count(&session) {
            match backend.get(&id(&session)).await {
                Ok(found) if acknowledged % 2 == 1 => {
                    assert_eq!(found.variable_count, 2, "the session is complete");
                    assert_eq!(count_of(&found), acknowledged - 1, "{session}");
                }
                Ok(found) => {
                    assert_eq!(count_of(&found), acknowledged, "{session}: deleted sessions stay deleted");
                }
                // The next session was not created yet, or this one was deleted.
                Err(SessionError::NotFound { .. }) => {}
                Err(error) => panic!("{error}"),
            }
        }
    }
    if count("changing").is_some() {
        backend.get(&id("changing")).await.unwrap();
    }
    check_counters(backend).await;
}

fn count_of(session: &Session) -> u32 {
    session.metadata.get("count").unwrap().parse().unwrap()
}

/// Checks that each version in the history has the value that was written with it, and returns the newest version.
async fn version_of(backend: &RedbBackend, session: &str, name: &str) -> u32 {
    let variable = backend.variable(&id(session), name).await.unwrap();
    let history = backend.variable_history(&id(session), variable.id.as_str(), 0).await.unwrap();
    for (entry, version) in history.iter().zip((0..=variable.version).rev()) {
        assert_eq!((entry.version, entry.value.to_serde::<u32>().unwrap()), (version, version));
    }
    assert_eq!(history.len(), 21.min(variable.version as usize + 1), "the history has the maximum length");
    variable.version
}

/// Checks that the counters of sessions match their contents.
async fn check_counters(backend: &RedbBackend) {
    let (mut bytes, mut variables, mut programs) = (0, 0, 0);
    let sessions = backend.list(PageRequest::default()).await.unwrap().items;
    for session in &sessions {
        let found = backend.list_variables(&session.id, "").await.unwrap();
        let mut variable_bytes = size_of(&session.metadata);
        for variable in &found {
            variable_bytes += size_of_variable(backend, session, variable).await;
        }
        let (program_count, in_programs) = programs_of(backend, &session.id.clone().into()).await;
        assert_eq!((session.variable_count, session.program_count), (found.len(), program_count));
        assert_eq!(session.bytes, variable_bytes + in_programs, "{}", session.id);
        (bytes, variables, programs) =
            (bytes + session.bytes, variables + found.len(), programs + program_count);
    }
    let (globals, in_globals) = programs_of(backend, &ProgramOwner::Global).await;
    let stats = backend.stats().await.unwrap();
    assert_eq!(stats.live, sessions.len() as u64);
    assert_eq!(stats.variables, variables as u64);
    assert_eq!(stats.programs, (programs + globals) as u64);
    assert_eq!(stats.bytes, (bytes + in_globals) as u64);
}

fn size_of(metadata: &Metadata) -> usize {
    metadata.iter().map(|(name, value)| name.len() + value.len()).sum()
}

async fn size_of_variable(backend: &RedbBackend, session: &Session, variable: &Variable) -> usize {
    let version = |value: &Payload, note: &Note| {
        value.size() + note.changed_by.as_ref().map_or(0, |by| by.len()) + size_of(&note.metadata)
    };
    let history = backend.variable_history(&session.id, variable.name.as_str(), 0).await.unwrap();
    let versions: usize = history.iter().map(|entry| version(&entry.value, &entry.note)).sum();
    let Variable { id, name, ty, metadata, .. } = variable;
    let names = id.as_str().len() + name.as_str().len();
    names + ty.constraints_json().len() + size_of(metadata) + versions
}

/// Returns the number of programs and their total size.
async fn programs_of(backend: &RedbBackend, owner: &ProgramOwner) -> (usize, usize) {
    let programs = backend.programs(owner).await.unwrap();
    let mut bytes = 0;
    for info in &programs {
        let program = backend.program(owner, &info.name).await.unwrap();
        assert_eq!(program.data.len(), info.size);
        let metadata: usize = program.metadata.iter().map(|(name, value)| name.len() + value.len()).sum();
        bytes += info.name.as_str().len() + info.size + info.content_type.len() + metadata;
    }
    (programs.len(), bytes)
}
