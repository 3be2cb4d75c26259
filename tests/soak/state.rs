//! Writers that know what their variable must be, and watchers that must see every write or be told that some are missing.

use std::{sync::Arc, time::Duration};

use snakepit_proto::{pb, status::details_of, value};
use snakepit_tests::Client;
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};
use tonic::{Code, Request, Status};

use crate::{
    daemon::Daemon,
    tally::{DEADLINE, Tally},
};

const WRITERS: u32 = 4;
const NAME: &str = "n";
/// What a Redis that is away explains.
const FAULTS: [&str; 2] = ["BACKEND_FAILED", "DEADLINE_EXCEEDED"];
/// How long a variable may stay unreadable: longer than any fault lasts.
const SETTLES_WITHIN: Duration = Duration::from_secs(30);
/// How long a watch may take to end after its session.
const QUIET: Duration = Duration::from_secs(20);

/// A writer with its watcher: both end with the version they know last.
struct Pair {
    session: String,
    writer: JoinHandle<i32>,
    watcher: JoinHandle<Option<i32>>,
}

/// The writers and watchers that run.
pub(crate) struct State {
    pairs: Vec<Pair>,
    client: Client,
    tally: Arc<Tally>,
}

pub(crate) async fn start(daemon: &Daemon, tally: &Arc<Tally>) -> State {
    let client = daemon.client().await;
    let mut pairs = Vec::new();
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
        pairs.push(Pair { session, writer, watcher });
    }
    State { pairs, client, tally: Arc::clone(tally) }
}

impl State {
    /// Ends the writers, then checks that each last write is there and that its watcher saw it.
    pub(crate) async fn finish(mut self) {
        for Pair { session, writer, watcher } in self.pairs {
            let version = writer.await.expect("a writer does not panic");
            match read(&mut self.client, &session).await {
                Ok(found) if found == version => {}
                found => self.tally.violation(format!("{session}: wrote version {version}, found {found:?}")),
            }
            // A watch ends with its session, after every update.
            let end = pb::CleanupSessionRequest { session_id: session.clone(), force: true };
            self.client.cleanup_session(end).await.expect("the session can be ended");
            match timeout(QUIET, watcher).await {
                Ok(seen) => {
                    let seen = seen.expect("a watcher does not panic");
                    if seen != Some(version) {
                        let what =
                            format!("{session}: the last write is version {version}, its watch saw {seen:?}");
                        self.tally.violation(what);
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

/// Counts up by compare-and-set. Returns the version of the last write that is known to have been made.
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
                tally.ended("write", began, "ok", &[], String::new);
            }
            Err(status) => {
                let reason = reason(&status, began);
                tally.ended("write", began, reason, &FAULTS, || status.message().to_owned());
                // The write may have been made; the variable itself says so.
                version = settle(&mut client, &session, version, &tally).await;
            }
        }
    }
    version
}

/// Reads until there is an answer: the version before a write whose outcome is unknown, or the one after it.
async fn settle(client: &mut Client, session: &str, before: i32, tally: &Tally) -> i32 {
    let began = Instant::now();
    loop {
        match read(client, session).await {
            Ok(version) => {
                if version != before && version != before + 1 {
                    tally.violation(format!("{session}: after version {before} came {version}"));
                }
                return version;
            }
            Err(status) => {
                let reason = details_of(&status).reason.unwrap_or_default();
                if !FAULTS.contains(&&*reason) && status.code() != Code::Cancelled {
                    tally.violation(format!("{session} cannot be read: {reason}: {}", status.message()));
                    return before;
                }
                if began.elapsed() > SETTLES_WITHIN {
                    tally.violation(format!("{session} stays unreadable: {}", status.message()));
                    return before;
                }
                sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// The variable's version; its value must belong to it.
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

/// Follows the variable until its session ends. Versions rise one by one, unless the watch says that some are missing or
/// had to be opened anew.
async fn watch(mut client: Client, session: String, tally: Arc<Tally>) -> Option<i32> {
    let mut last: Option<i32> = None;
    loop {
        let request = pb::WatchVariablesRequest { session_id: session.clone(), ..Default::default() };
        let mut updates = match client.watch_variables(request).await {
            Ok(response) => response.into_inner(),
            Err(status) if details_of(&status).reason.as_deref() == Some("SESSION_NOT_FOUND") => return last,
            Err(_) => {
                tally.count("watch", "not opened", 1);
                sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        // A new watch begins wherever the variable is.
        let mut follows = false;
        loop {
            match updates.message().await {
                Ok(Some(update)) if update.update_type == "lost" => {
                    tally.count("watch", "lost", 1);
                    follows = false;
                }
                Ok(Some(update)) if update.update_type == "deleted" => {}
                Ok(Some(update)) => {
                    let Some(variable) = update.variable else { continue };
                    if follows && last.is_some_and(|last| variable.version != last + 1) {
                        tally
                            .violation(format!("{session}: a watch saw {last:?}, then {}", variable.version));
                    }
                    (last, follows) = (Some(variable.version), true);
                    tally.count("watch", "update", 1);
                }
                Ok(None) => {
                    tally.violation(format!("{session}: a watch ended as if complete"));
                    break;
                }
                Err(status) => {
                    let reason = details_of(&status).reason.unwrap_or_else(|| format!("{:?}", status.code()));
                    if reason == "SESSION_NOT_FOUND" {
                        return last;
                    }
                    tally.count("watch", format!("ended: {reason}"), 1);
                    break;
                }
            }
        }
    }
}
