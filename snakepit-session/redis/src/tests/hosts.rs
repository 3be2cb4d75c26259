//! Tests with several hosts on one server.

use super::*;

#[tokio::test]
async fn hosts_share_sessions() {
    let server = Server::start();
    let (a, b) = (server.host().await, server.host().await);
    let (mut events_a, mut events_b) = (a.subscribe(), b.subscribe());
    let metadata = BTreeMap::from([("user".to_owned(), "ada".to_owned())]);
    let (first, _) = a.create(&id("s"), NewSession { metadata, ttl: None }).await.unwrap();
    let (found, created) = b.create(&id("s"), NewSession::default()).await.unwrap();
    assert_eq!(
        (created, &found.metadata, found.created_at),
        (Created::Existing, &first.metadata, first.created_at)
    );
    for events in [&mut events_a, &mut events_b] {
        assert_eq!(next_event(events).await, ("s".to_owned(), SessionEventKind::Created));
    }

    create_with_x(&a, "s", NewSession::default()).await;
    b.set_variable(&id("s"), set("x", 5)).await.unwrap();
    assert_eq!(x(&a, "s").await, (5, 1));
    a.set_last_worker(&id("s"), "w".into()).await.unwrap();
    assert_eq!(a.get(&id("s")).await.unwrap().last_worker.as_deref(), Some("w"));
    // Both hosts have a worker with this name.
    let last_worker = b.get(&id("s")).await.unwrap().last_worker.unwrap();
    assert!(last_worker.starts_with("w@"), "{last_worker}");
    let listed = b.list(PageRequest::default()).await.unwrap().items.remove(0).last_worker.unwrap();
    assert_eq!(listed, last_worker);
    for owner in [ProgramOwner::Session(id("s")), ProgramOwner::Global] {
        a.put_program(&owner, &name("p"), Program::new("data", "t")).await.unwrap();
        assert_eq!(b.program(&owner, &name("p")).await.unwrap().data, "data");
        assert_eq!(b.programs(&owner).await.unwrap()[0].name, name("p"));
    }
    let counted = a.stats().await.unwrap();
    assert_eq!(counted, b.stats().await.unwrap());
    assert_eq!((counted.live, counted.variables, counted.programs), (1, 1, 2));
    assert_eq!(b.list(PageRequest::default()).await.unwrap().items.len(), 1);

    b.delete(&id("s")).await.unwrap();
    a.get(&id("s")).await.unwrap_err();
    for events in [&mut events_a, &mut events_b] {
        assert_eq!(next_event(events).await, ("s".to_owned(), SessionEventKind::Deleted));
    }
    let other = RedisConfig { prefix: "other".to_owned(), ..RedisConfig::default() };
    let other = RedisBackend::connect(&server.url, other, SessionLimits::default()).await.unwrap();
    let missing = other.program(&ProgramOwner::Global, &name("p")).await.unwrap_err();
    assert_eq!(missing, SessionError::GlobalProgramNotFound { name: "p".to_owned() });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn racing_hosts_create_one_session() {
    let server = Server::start();
    let hosts = [Arc::new(server.host().await), Arc::new(server.host().await)];
    let mut creators = JoinSet::new();
    for n in 0..400 {
        let host = Arc::clone(&hosts[n % 2]);
        let metadata = BTreeMap::from([("creator".to_owned(), n.to_string())]);
        creators
            .spawn(async move { host.create(&id("s"), NewSession { metadata, ttl: None }).await.unwrap() });
    }
    let outcomes = creators.join_all().await;
    assert_eq!(outcomes.iter().filter(|(_, created)| *created == Created::New).count(), 1);
    assert!(outcomes.iter().all(|(session, _)| session.metadata == outcomes[0].0.metadata));
    assert_eq!(hosts[0].stats().await.unwrap().created, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_increment_of_two_hosts_is_lost() {
    const EACH: u32 = 100;
    let server = Server::start();
    let hosts = [Arc::new(server.host().await), Arc::new(server.host().await)];
    create_with_x(&hosts[0], "s", NewSession::default()).await;
    let mut writers = JoinSet::new();
    for host in &hosts {
        for _ in 0..2 {
            let host = Arc::clone(host);
            writers.spawn(async move {
                let (mut increments, mut conflicts) = (0, 0_u32);
                while increments < EACH {
                    let (value, version) = x(&host, "s").await;
                    match host.set_variable(&id("s"), set("x", value + 1).if_version(version)).await {
                        Ok(_) => increments += 1,
                        Err(SessionError::VersionConflict { .. }) => conflicts += 1,
                        Err(error) => panic!("{error}"),
                    }
                }
                conflicts
            });
        }
    }
    let conflicts: u32 = writers.join_all().await.into_iter().sum();
    assert_eq!(x(&hosts[1], "s").await, (4 * EACH, 4 * EACH), "after {conflicts} conflicts");
    assert!(conflicts > 0, "the writers conflict");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watchers_on_every_host_receive_all_writes_once_and_in_order() {
    const EACH: u32 = 200;
    let server = Server::start();
    let hosts = [Arc::new(server.host().await), Arc::new(server.host().await)];
    create_with_x(&hosts[0], "s", NewSession::default()).await;
    let mut writers = JoinSet::new();
    for host in hosts.clone() {
        writers.spawn(async move {
            for n in 1..=EACH {
                host.set_variable(&id("s"), set("x", n)).await.unwrap();
            }
        });
    }
    let mut watchers = JoinSet::new();
    // Start the watches at different times during the writes, so that some start during a read for others.
    for n in 0..20 {
        let host = Arc::clone(&hosts[n % 2]);
        let mut watch = host.watch_variables(&id("s"), &["x".to_owned()], true).await.unwrap();
        watchers.spawn(async move {
            let (kind, mut last) = next_update(&mut watch).await;
            assert_eq!(kind, UpdateKind::Initial);
            while last < 2 * EACH {
                let (kind, version) = next_update(&mut watch).await;
                assert_eq!((kind, version), (UpdateKind::Set, last + 1));
                last = version;
            }
        });
    }
    writers.join_all().await;
    watchers.join_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_read_is_a_consistent_snapshot() {
    let server = Server::start();
    let (a, b) = (server.host().await, Arc::new(server.host().await));
    create_with_x(&a, "s", NewSession::default()).await;
    // The session is so large that Redis runs other commands during the read.
    let mut names = vec!["x".to_owned()];
    for n in 0..300 {
        let name = VariableName::try_new(format!("{n:0256}")).unwrap();
        let ty = VariableType::new(ValueType::Integer).unwrap();
        let new = NewVariable { ty, value: Payload::try_from_serde(&0).unwrap(), note: Note::default() };
        a.register_variable(&id("s"), &name, new).await.unwrap();
        names.push(name.to_string());
    }
    let mut writer = JoinSet::new();
    let host = Arc::clone(&b);
    writer.spawn(async move {
        for n in 1.. {
            host.set_variable(&id("s"), set("x", n)).await.unwrap();
        }
    });
    for _ in 0..100 {
        let mut watch = a.watch_variables(&id("s"), &names, true).await.unwrap();
        let mut last = None;
        // Expect the initial values in any order, and two changes.
        for n in 0..names.len() + 2 {
            let WatchEvent::Update(update) = soon(watch.next()).await.unwrap().unwrap() else {
                panic!("an update was lost")
            };
            if update.variable.name.as_str() == "x" {
                assert_eq!(
                    update.variable.version,
                    last.map_or(update.variable.version, |last: u32| last + 1)
                );
                last = Some(update.variable.version);
            } else {
                assert!(n < names.len(), "only `x` changes");
            }
        }
    }
    writer.abort_all();
}

#[tokio::test]
async fn an_expired_session_ends_once_for_all_hosts() {
    const SESSIONS: usize = 500;
    let server = Server::start();
    let (a, b) = (server.host().await, server.host().await);
    create_with_x(&a, "watched", with_ttl_ms(300)).await;
    let mut watch = b.watch_variables(&id("watched"), &[], false).await.unwrap();
    for n in 0..SESSIONS {
        a.create(&id(&n.to_string()), with_ttl_ms(10)).await.unwrap();
    }
    create_with_x(&a, "lives", NewSession::default()).await;
    let mut events = [a.subscribe(), b.subscribe()];
    // The session expires without a sweep.
    let end = soon(watch.next()).await.unwrap().unwrap_err();
    assert_eq!(end, SessionError::NotFound { id: id("watched") });
    let (swept_a, swept_b) = tokio::join!(a.sweep(), b.sweep());
    assert_eq!(swept_a.unwrap() + swept_b.unwrap(), SESSIONS + 1);
    for events in &mut events {
        let mut expired = BTreeMap::new();
        while expired.len() <= SESSIONS {
            let (id, kind) = next_event(events).await;
            if kind == SessionEventKind::Expired {
                assert_eq!(expired.insert(id, kind), None, "each event arrives once");
            }
        }
        assert!(!expired.contains_key("lives"));
    }
    let counted = a.stats().await.unwrap();
    assert_eq!((counted.live, counted.expired, counted.variables), (1, SESSIONS as u64 + 1, 1));
    assert_eq!(counted.sweeps, 2);
}

#[tokio::test]
async fn a_recreated_session_is_a_new_one() {
    let server = Server::start();
    let (a, b) = (server.host().await, server.host().await);
    create_with_x(&a, "s", NewSession::default()).await;
    let mut first = b.watch_variables(&id("s"), &[], false).await.unwrap();
    a.set_variable(&id("s"), set("x", 1)).await.unwrap();
    a.delete(&id("s")).await.unwrap();
    create_with_x(&a, "s", NewSession::default()).await;
    let mut second = b.watch_variables(&id("s"), &[], true).await.unwrap();
    a.set_variable(&id("s"), set("x", 2)).await.unwrap();
    assert_eq!(next_update(&mut first).await, (UpdateKind::Set, 1), "updates before the end precede it");
    let end = soon(first.next()).await.unwrap().unwrap_err();
    assert_eq!(end, SessionError::NotFound { id: id("s") });
    assert_eq!(next_update(&mut second).await, (UpdateKind::Initial, 0));
    assert_eq!(next_update(&mut second).await, (UpdateKind::Set, 1));
}

/// The script with which hosts of format 1 change a session.
const COMMIT_1: &str =
    concat!(include_str!("../../tests/formats/1/lib.lua"), include_str!("../../tests/formats/1/commit.lua"));

/// Deletes the program `p` of session `s`, as a host of format 1 does.
async fn delete_program_as_format_1(server: &Server) {
    let head: Vec<String> = server.query(&["HMGET", "{snakepit}:s:s", "born", "rev"]).await;
    let usage: String = server.query(&["HGET", "{snakepit}:held", "s"]).await;
    let [bytes, variables, programs, _] = usage.split(' ').collect::<Vec<_>>()[..] else { panic!("{usage}") };
    let size = "p".len() + "data".len() + "t".len();
    let (bytes, programs) = (bytes.parse::<usize>().unwrap() - size, programs.parse::<usize>().unwrap() - 1);
    let new_usage = format!("{bytes} {variables} {programs} {}", head[0]);
    let growth = format!("-{size}");
    let changed: String = server
        .query(&[
            "EVAL",
            COMMIT_1,
            "1",
            "{snakepit}",
            "s",
            &head[0],
            &head[1],
            &new_usage,
            &growth,
            "0",
            "-1",
            "1000000",
            "1024",
            "1000000",
            "remove",
            "p",
        ])
        .await;
    assert_eq!(changed, "done");
}

#[tokio::test]
async fn a_session_survives_when_a_host_of_an_earlier_version_deletes_its_program() {
    let server = Server::start();
    let host = server.host().await;
    create_with_x(&host, "s", NewSession::default()).await;
    let before = host.stats().await.unwrap();
    host.put_program(&id("s").into(), &name("p"), Program::new("data", "t")).await.unwrap();
    delete_program_as_format_1(&server).await;
    let exists: bool = server.query(&["EXISTS", "{snakepit}:d:s"]).await;
    assert!(!exists, "the hash of rarely read fields is empty");

    assert_eq!(host.list(PageRequest::default()).await.unwrap().items.len(), 1);
    assert_eq!(x(&host, "s").await, (0, 0));
    assert_eq!(host.variable_history(&id("s"), "x", 0).await.unwrap().len(), 1);
    let (_, created) = host.create(&id("s"), NewSession::default()).await.unwrap();
    assert_eq!(created, Created::Existing);
    host.sweep().await.unwrap();
    assert_eq!(host.programs(&id("s").into()).await.unwrap(), []);
    let after = host.stats().await.unwrap();
    assert_eq!((after.bytes, after.programs), (before.bytes, before.programs));

    // The next commit of this version writes the counts again, so evictions are detected again.
    host.put_program(&id("s").into(), &name("p"), Program::new("data", "t")).await.unwrap();
    let evicted: u32 = server.query(&["DEL", "{snakepit}:d:s"]).await;
    assert_eq!(evicted, 1);
    assert_eq!(host.get(&id("s")).await.unwrap_err(), SessionError::NotFound { id: id("s") });
}
