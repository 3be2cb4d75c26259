//! Writers that know the value of their variable, and watchers that must receive each write or a notice of its loss.

use std::{sync::Arc, time::Duration};

use snakepit_proto::{pb, status::details_of, value};
use snakepit_tests::Client;
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};
use tonic::{Request, Status};

use crate::{
    daemon::Daemon,
    tally::{DEADLINE, Tally},
    windows::Caller,
};

const WRITERS: u32 = 4;
const NAME: &str = "n";
/// The time limit for a variable to become readable, which is longer than any fault.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// The time limit for a watch to end after its session.
const WATCH_END_TIMEOUT: Duration = Duration::from_secs(20);

/// A writer and its watcher. Each returns the last version that it knows.
struct WatchedWriter {
    session: String,
    writer: JoinHandle<i32>,
    watcher: JoinHandle<Option<i32>>,
}

/// The running writers and watchers.
pub(crate) struct Writers {
    writers: Vec<WatchedWriter>,
    client: Client,
    tally: Arc<Tally>,
}

pub(crate) async fn start(daemon: &Daemon, tally: &Arc<Tally>) -> Writers {
    let client = daemon.client().await;
    let mut writers = Vec::new();
    for number in 0..WRITERS {
        let session = format!("soak-writer-{number}");
        let mut setup = client.clone();
        let new = pb::InitializeSessionRequest { session_id: session.clone(), ..Default::default() };
        setup.initialize_session(new).await.expect("the session is created");
        let new = pb::RegisterVariableRequest {
            session_id: session.clone(),
            name: NAME.to_owned(),
            r#type: "integer".to_owned(),
            initial_value: Some(integer(0)),
            ..Default::default()
        };
        setup.register_variable(new).await.expect("the variable is registered");
        let watcher = tokio::spawn(watch(daemon.client().await, session.clone(), Arc::clone(tally)));
        let writer = tokio::spawn(write(client.clone(), session.clone(), Arc::clone(tally)));
        writers.push(WatchedWriter { session, writer, watcher });
    }
    Writers { writers, client, tally: Arc::clone(tally) }
}

impl Writers {
    /// Ends the writers. Checks that each last write is stored and that its watcher received it.
    pub(crate) async fn finish(mut self) {
        for WatchedWriter { session, writer, watcher } in self.writers {
            let version = writer.await.expect("a writer does not panic");
            match read(&mut self.client, &session).await {
                Ok(found) if found == version => {}
                found => self.tally.violation(format!("{session}: wrote version {version}, found {found:?}")),
            }
            // A watch ends with its session, after it has delivered every update.
            let end = pb::CleanupSessionRequest { session_id: session.clone(), force: true };
            self.client.cleanup_session(end).await.expect("the session can be ended");
            match timeout(WATCH_END_TIMEOUT, watcher).await {
                Ok(last) => {
                    let last = last.expect("a watcher does not panic");
                    if last != Some(version) {
                        let problem = format!(
                            "{session}: the last write is version {version}, its watch ended at {last:?}"
                        );
                        self.tally.violation(problem);
                    }
                }
                Err(_) => self.tally.violation(format!("{session}: the watch did not end with its session")),
            }
        }
    }
}

fn integer(number: i64) -> pb::Any {
    let typed =
        value::TypedValue { type_name: "integer".into(), json: number.to_string().into(), binary: None };
    value::encode(typed).0
}

/// Increments the variable with compare-and-swap. Returns the version of the last write.
async fn write(mut client: Client, session: String, tally: Arc<Tally>) -> i32 {
    let mut version = 0;
    while !tally.is_stopping() {
        let next = version + 1;
        let began = Instant::now();
        let mut request = Request::new(pb::SetVariableRequest {
            session_id: session.clone(),
            variable_identifier: NAME.to_owned(),
            value: Some(integer(next.into())),
            expected_version: version,
            ..Default::default()
        });
        request.set_timeout(DEADLINE);
        match client.set_variable(request).await {
            Ok(response) => {
                let response = response.into_inner();
                if response.new_version != next {
                    tally.violation(format!("write {next} was acknowledged as {}", response.new_version));
                }
                version = next;
                tally.record_success("write", began);
            }
            Err(status) => {
                let reason = reason(&status, began);
                tally.record_failure("write", Caller::Session, began, reason, status.message());
                // The write may be stored. Reading the version shows it.
                version = read_after_failure(&mut client, &session, version, &tally).await;
            }
        }
    }
    version
}

/// Reads the version until a read succeeds, after a write with an unknown outcome. It must be `before` or the next one.
async fn read_after_failure(client: &mut Client, session: &str, before: i32, tally: &Tally) -> i32 {
    let began = Instant::now();
    loop {
        let attempt = Instant::now();
        match read(client, session).await {
            Ok(version) => {
                if version != before && version != before + 1 {
                    tally.violation(format!("{session}: version {version} follows version {before}"));
                }
                return version;
            }
            Err(status) => {
                let reason = reason(&status, attempt);
                tally.check_explained("read", Caller::Session, attempt, &reason, status.message());
                if began.elapsed() > READ_TIMEOUT {
                    tally.violation(format!("{session} stays unreadable: {}", status.message()));
                    return before;
                }
                sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// Reads the variable's version, and checks that the value belongs to it.
async fn read(client: &mut Client, session: &str) -> Result<i32, Status> {
    let mut request = Request::new(pb::GetVariableRequest {
        session_id: session.to_owned(),
        variable_identifier: NAME.to_owned(),
        ..Default::default()
    });
    request.set_timeout(DEADLINE);
    let variable = client.get_variable(request).await?.into_inner().variable.unwrap_or_default();
    let typed = value::decode(variable.value.unwrap_or_default(), None)
        .map_err(|e| Status::internal(e.to_string()))?;
    if typed.json != variable.version.to_string() {
        return Err(Status::data_loss(format!("version {} has value {:?}", variable.version, typed.json)));
    }
    Ok(variable.version)
}

fn reason(status: &Status, began: Instant) -> String {
    let reason = details_of(status).reason.unwrap_or_else(|| format!("{:?}", status.code()));
    if reason == "Cancelled" && began.elapsed() >= DEADLINE { "DEADLINE_EXCEEDED".into() } else { reason }
}

/// Watches the variable until its session ends. Versions increase by one, unless the watch reports lost updates or had to be
/// opened again.
async fn watch(mut client: Client, session: String, tally: Arc<Tally>) -> Option<i32> {
    let mut last: Option<i32> = None;
    loop {
        let request = pb::WatchVariablesRequest { session_id: session.clone(), ..Default::default() };
        let began = Instant::now();
        let mut updates = match client.watch_variables(request).await {
            Ok(response) => response.into_inner(),
            Err(status) if details_of(&status).reason.as_deref() == Some("SESSION_NOT_FOUND") => return last,
            Err(status) => {
                tally.record_failure(
                    "watch",
                    Caller::Session,
                    began,
                    reason(&status, began),
                    status.message(),
                );
                sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        // A new watch may start at any version.
        let mut is_consecutive = false;
        loop {
            match updates.message().await {
                Ok(Some(update)) if update.update_type == "lost" => {
                    tally.count("watch", "lost", 1);
                    is_consecutive = false;
                }
                Ok(Some(update)) if update.update_type == "deleted" => {}
                Ok(Some(update)) => {
                    let Some(variable) = update.variable else { continue };
                    if is_consecutive && last.is_some_and(|last| variable.version != last + 1) {
                        tally.violation(format!(
                            "{session}: a watch received version {last:?}, then {}",
                            variable.version
                        ));
                    }
                    (last, is_consecutive) = (Some(variable.version), true);
                    tally.count("watch", "update", 1);
                }
                Ok(None) => {
                    tally.violation(format!("{session}: a watch ended without an error"));
                    break;
                }
                Err(status) => {
                    let reason = details_of(&status).reason.unwrap_or_else(|| format!("{:?}", status.code()));
                    if reason == "SESSION_NOT_FOUND" {
                        return last;
                    }
                    tally.check_explained(
                        "watch",
                        Caller::Session,
                        Instant::now(),
                        &reason,
                        status.message(),
                    );
                    tally.count("watch", format!("ended: {reason}"), 1);
                    break;
                }
            }
        }
    }
}
