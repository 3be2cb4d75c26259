//! Lost data: writes lost in a failover, FLUSHALL, and evicted keys.

use super::*;
use snakepit_session::SessionEvent;

/// Returns the events of a watch until `x` has a value: the version of each update, or `lost`.
async fn events_until(watch: &mut VariableWatch, value: u32) -> Vec<String> {
    let mut delivered = Vec::new();
    loop {
        match soon(watch.next()).await.unwrap().unwrap() {
            WatchEvent::Lost(_) => delivered.push("lost".to_owned()),
            WatchEvent::Update(update) => {
                delivered.push(format!("v{}", update.variable.version));
                if update.variable.value.to_serde::<u32>().unwrap() == value {
                    return delivered;
                }
            }
        }
    }
}

/// Saves the data. A killed server loses all later writes.
async fn save(server: &Server) {
    let _: String = server.query(&["SAVE"]).await;
}

/// Retries a write until the server is available.
async fn write(host: &RedisBackend, value: u32) -> u32 {
    soon(async {
        loop {
            match host.set_variable(&id("s"), set("x", value)).await {
                Ok(version) => break version,
                Err(SessionError::Backend { .. }) => tokio::task::yield_now().await,
                Err(error) => panic!("{error}"),
            }
        }
    })
    .await
}

#[tokio::test]
async fn lost_writes_are_detected_after_any_number_of_later_writes() {
    // Fewer writes than were lost, as many, and more.
    for later_writes in [0, 1, 4, 7] {
        let mut server = Server::start_with(&["--dbfilename", "dump.rdb"]);
        let (a, b) = (server.host().await, server.host().await);
        create_with_x(&a, "s", NewSession::default()).await;
        let mut watch = a.watch_variables(&id("s"), &["x".to_owned()], false).await.unwrap();
        a.set_variable(&id("s"), set("x", 1)).await.unwrap();
        save(&server).await;
        for n in 2..=5 {
            a.set_variable(&id("s"), set("x", n)).await.unwrap();
        }
        assert_eq!(events_until(&mut watch, 5).await, ["v1", "v2", "v3", "v4", "v5"]);
        server.stop();
        server.restart();
        for n in 0..later_writes {
            write(&b, 100 + n).await;
        }
        let value = if later_writes == 0 { 1 } else { 99 + later_writes };
        let delivered = events_until(&mut watch, value).await;
        assert_eq!(delivered[0], "lost", "after {later_writes} writes: {delivered:?}");
        let version = write(&b, 1000).await;
        assert_eq!(events_until(&mut watch, 1000).await.last(), Some(&format!("v{version}")));
    }
}

#[tokio::test]
async fn no_write_is_based_on_lost_state() {
    let mut server = Server::start_with(&["--dbfilename", "dump.rdb"]);
    let host = server.host().await;
    create_with_x(&host, "s", NewSession::default()).await;
    let rev = || server.query::<u64>(&["HGET", "{snakepit}:s:s", "rev"]);
    save(&server).await;
    host.set_variable(&id("s"), set("x", 1)).await.unwrap();
    let lost = rev().await;
    server.stop();
    server.restart();
    write(&host, 2).await;
    let rev = server.query::<u64>(&["HGET", "{snakepit}:s:s", "rev"]).await;
    assert_ne!(rev, lost, "a lost change and a later one have different revisions");
}

#[tokio::test]
async fn lost_events_are_detected_even_if_the_clock_of_the_new_server_is_behind() {
    let mut server = Server::start_with(&["--dbfilename", "dump.rdb"]);
    let (a, b) = (server.host().await, server.host().await);
    let mut events = a.subscribe();
    a.create(&id("kept"), NewSession::default()).await.unwrap();
    assert_eq!(next_event(&mut events).await.0, "kept");
    save(&server).await;
    for lost in ["one", "other"] {
        a.create(&id(lost), NewSession::default()).await.unwrap();
        assert_eq!(next_event(&mut events).await.0, lost);
    }
    // The clock was an hour ahead, so the last reported event is later than all new ones.
    a.follower.pretend_reported_later(Duration::from_secs(3600));
    server.stop();
    server.restart();
    soon(async { while b.create(&id("new"), NewSession::default()).await.is_err() {} }).await;
    let lost = soon(events.next()).await.unwrap();
    assert!(lost.is_err(), "{lost:?}");
    let next = soon(async {
        loop {
            if let Ok(SessionEvent { id, .. }) = events.next().await.unwrap() {
                break id;
            }
        }
    });
    assert_eq!(next.await, id("new"));
}

#[tokio::test]
async fn watches_end_when_everything_is_flushed() {
    let server = Server::start();
    let host = server.host().await;
    create_with_x(&host, "s", NewSession::default()).await;
    let mut watch = host.watch_variables(&id("s"), &[], false).await.unwrap();
    let mut events = host.subscribe();
    let _: String = server.query(&["FLUSHALL"]).await;
    let end = soon(watch.next()).await.unwrap().unwrap_err();
    assert_eq!(end, SessionError::NotFound { id: id("s") });
    assert!(soon(events.next()).await.unwrap().is_err(), "the loss of events is reported");
    let (_, created) = host.create(&id("s"), NewSession::default()).await.unwrap();
    assert_eq!(created, Created::New);
    host.sweep().await.unwrap();
    let counted = host.stats().await.unwrap();
    assert_eq!((counted.live, counted.variables), (1, 0));
}

/// Deletes keys, as an eviction does.
async fn evict(server: &Server, keys: &[&str]) {
    for key in keys {
        let evicted: u32 = server.query(&["DEL", &format!("{{snakepit}}:{key}")]).await;
        assert_eq!(evicted, 1, "{key}");
    }
}

#[tokio::test]
async fn partly_evicted_sessions_are_lost_without_affecting_others() {
    let server = Server::start();
    let host = server.host().await;
    for session in ["whole", "deep", "head"] {
        create_with_x(&host, session, NewSession::default()).await;
        host.set_variable(&id(session), set("x", 1)).await.unwrap();
        host.put_program(&id(session).into(), &name("p"), Program::new("x", "t")).await.unwrap();
    }
    evict(&server, &["d:deep", "s:head"]).await;
    let listed = host.list(PageRequest::default()).await.unwrap().items;
    assert_eq!(listed.iter().map(|session| session.id.as_str()).collect::<Vec<_>>(), ["whole"]);
    for session in ["deep", "head"] {
        let lost = host.variable(&id(session), "x").await.unwrap_err();
        assert_eq!(lost, SessionError::NotFound { id: id(session) });
        let (_, created) = host.create(&id(session), NewSession::default()).await.unwrap();
        assert_eq!(created, Created::New);
    }
    assert_eq!(x(&host, "whole").await, (1, 1));
    let counted = host.stats().await.unwrap();
    assert_eq!((counted.live, counted.variables, counted.programs), (3, 1, 1));
}

#[tokio::test]
async fn a_sweep_repairs_evicted_indexes() {
    for evicted in [&["held"][..], &["ids"], &["due"], &["totals"], &["held", "ids", "due", "totals", "log"]]
    {
        let server = Server::start();
        let host = server.host().await;
        for n in 0..5 {
            create_with_x(&host, &n.to_string(), with_ttl_ms(if n == 4 { 50 } else { 100_000 })).await;
        }
        let before = host.stats().await.unwrap();
        wait_for_expiry(&server, "4").await;
        evict(&server, evicted).await;
        for n in 0..4 {
            assert_eq!(x(&host, &n.to_string()).await, (0, 0), "{evicted:?}");
        }
        host.sweep().await.unwrap();
        host.sweep().await.unwrap();
        assert_eq!(host.list(PageRequest::default()).await.unwrap().items.len(), 4, "{evicted:?}");
        let counted = host.stats().await.unwrap();
        assert_eq!((counted.live, counted.variables), (4, 4), "{evicted:?}");
        assert_eq!(counted.bytes, before.bytes / 5 * 4, "{evicted:?}");
        host.delete(&id("0")).await.unwrap();
        host.sweep().await.unwrap();
        assert_eq!(host.stats().await.unwrap().live, 3, "{evicted:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn evictions_make_no_session_unreadable_forever() {
    let server = Server::start();
    let host = server.host().await;
    let text = VariableType::new(ValueType::String).unwrap();
    let value = Payload::try_from_serde(&"x".repeat(20_000)).unwrap();
    let () = server.query(&["CONFIG", "SET", "maxmemory-policy", "allkeys-random"]).await;
    let () = server.query(&["CONFIG", "SET", "maxmemory", "8mb"]).await;
    for n in 0..300 {
        let session = id(&n.to_string());
        let new = NewVariable { ty: Arc::clone(&text), value: value.clone(), note: Note::default() };
        let _ = host.create(&session, NewSession::default()).await;
        let _ = host.register_variable(&session, &VariableName::try_new("t").unwrap(), new).await;
        let _ = host.set_variable(&session, SetVariable::new("t", value.clone())).await;
    }
    let () = server.query(&["CONFIG", "SET", "maxmemory", "0"]).await;
    host.sweep().await.unwrap();
    let mut live = 0;
    for n in 0..300 {
        match host.variable_history(&id(&n.to_string()), "t", 0).await {
            Ok(_) => live += 1,
            Err(SessionError::NotFound { .. }) => {}
            // The key was evicted between the two steps, and neither created it again.
            Err(SessionError::VariableNotFound { .. }) => live += 1,
            Err(error) => panic!("{n}: {error}"),
        }
    }
    assert!((1..300).contains(&live), "some sessions were evicted: {live} remain");
    host.sweep().await.unwrap();
    let page = PageRequest { size: 1000, token: None };
    assert_eq!(host.list(page).await.unwrap().items.len(), live);
    assert_eq!(host.stats().await.unwrap().live, live as u64);
}
