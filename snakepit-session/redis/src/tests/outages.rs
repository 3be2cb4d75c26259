//! Broken connections and stopped servers.

use super::*;

#[tokio::test]
async fn a_broken_connection_loses_no_update_and_no_event() {
    let server = Server::start();
    let (a, b) = (server.host().await, server.host().await);
    create_with_x(&a, "s", NewSession::default()).await;
    let mut watch = a.watch_variables(&id("s"), &[], false).await.unwrap();
    let mut events = a.subscribe();
    let mut version = 0;
    for round in 0..20 {
        let killed: u32 = server.query(&["CLIENT", "KILL", "TYPE", "pubsub"]).await;
        assert!(round > 0 || killed == 2, "{killed}");
        for _ in 0..5 {
            b.set_variable(&id("s"), set("x", version)).await.unwrap();
            version += 1;
        }
        b.create(&id(&round.to_string()), NewSession::default()).await.unwrap();
        if round % 3 == 0 {
            // Sometimes wait for the reconnect before the next break.
            while next_update(&mut watch).await.1 < version {}
        }
    }
    let mut last = 0;
    while last < version {
        last = next_update(&mut watch).await.1;
    }
    for round in 0..20 {
        assert_eq!(next_event(&mut events).await.0, round.to_string());
    }
}

#[tokio::test]
async fn a_host_that_was_disconnected_for_too_long_receives_lost_and_the_latest_change() {
    let server = Server::start();
    let proxy = Proxy::to(&server);
    let config = RedisConfig { watch_lease: Duration::from_millis(200), ..RedisConfig::default() };
    let (a, b) = (proxy.host(config).await.unwrap(), server.host().await);
    create_with_x(&b, "s", NewSession::default()).await;
    let mut watch = a.watch_variables(&id("s"), &["x".to_owned()], false).await.unwrap();
    b.set_variable(&id("s"), set("x", 1)).await.unwrap();
    assert_eq!(next_update(&mut watch).await, (UpdateKind::Set, 1));

    proxy.disconnect();
    let error = soon(async {
        loop {
            match a.get(&id("s")).await {
                Ok(_) => tokio::task::yield_now().await,
                Err(error) => break error_chain(&error).to_string(),
            }
        }
    });
    let error = error.await;
    assert!(error.contains("redis at") && error.contains("proxy"), "{error}");
    for n in 2..=5 {
        b.set_variable(&id("s"), set("x", n)).await.unwrap();
    }
    // The log expires when its watch lease is not renewed.
    let incarnation: String = server.query(&["HGET", "{snakepit}:s:s", "born"]).await;
    soon(async { while server.query(&["EXISTS", &format!("{{snakepit}}:w:{incarnation}")]).await {} }).await;
    for n in 6..=9 {
        b.set_variable(&id("s"), set("x", n)).await.unwrap();
    }
    proxy.reconnect();
    let lost = soon(watch.next()).await.unwrap().unwrap();
    assert_eq!(lost, WatchEvent::Lost(7), "versions 2 to 8 are lost");
    assert_eq!(next_update(&mut watch).await, (UpdateKind::Set, 9), "the latest update is never lost");
    b.set_variable(&id("s"), set("x", 10)).await.unwrap();
    assert_eq!(next_update(&mut watch).await, (UpdateKind::Set, 10));
}

#[tokio::test]
async fn a_server_without_memory_rejects_writes_and_keeps_its_data() {
    let server = Server::start();
    let host = server.host().await;
    create_with_x(&host, "s", NewSession::default()).await;
    create_with_x(&host, "expired", with_ttl_ms(300)).await;
    wait_for_expiry(&server, "expired").await;
    let () = server.query(&["CONFIG", "SET", "maxmemory", "1"]).await;
    let rejected = [
        host.create(&id("t"), NewSession::default()).await.map(drop),
        host.set_variable(&id("s"), set("x", 1)).await.map(drop),
        host.put_program(&ProgramOwner::Global, &name("p"), Program::new("x", "t")).await.map(drop),
    ];
    for rejected in rejected {
        let rejected = error_chain(&rejected.unwrap_err()).to_string();
        assert!(rejected.contains("maxmemory"), "{rejected}");
    }
    assert_eq!(x(&host, "s").await, (0, 0), "the data is unchanged");
    assert_eq!(host.sweep().await.unwrap(), 1);
    assert_eq!(host.sweep().await.unwrap(), 0);
    host.delete(&id("s")).await.unwrap();
    let counted = host.stats().await.unwrap();
    assert_eq!((counted.live, counted.variables, counted.bytes), (0, 0, 0));
    let () = server.query(&["CONFIG", "SET", "maxmemory", "0"]).await;
    host.create(&id("t"), NewSession::default()).await.unwrap();
}

#[tokio::test]
async fn hosts_reconnect_to_a_restarted_server() {
    let mut server = Server::start();
    let host = server.host().await;
    create_with_x(&host, "s", NewSession::default()).await;
    let mut watch = host.watch_variables(&id("s"), &[], false).await.unwrap();
    let mut events = host.subscribe();
    server.stop();
    let errors = [
        host.get(&id("s")).await.unwrap_err(),
        host.create(&id("t"), NewSession::default()).await.unwrap_err(),
        host.set_variable(&id("s"), set("x", 1)).await.unwrap_err(),
        host.watch_variables(&id("s"), &[], true).await.unwrap_err(),
        host.sweep().await.unwrap_err(),
    ];
    for error in errors {
        assert!(matches!(error, SessionError::Backend { .. }), "{error:?}");
        assert!(error.to_string().contains(server.url.trim_start_matches("redis+unix://")), "{error}");
    }
    let config = RedisConfig { start_wait: Duration::ZERO, ..RedisConfig::default() };
    let rejected = RedisBackend::connect(&server.url, config, SessionLimits::default());
    assert!(matches!(soon(rejected).await, Err(SessionError::Backend { .. })));

    server.restart();
    // The server saved nothing, so the session does not exist.
    let end = soon(watch.next()).await.unwrap().unwrap_err();
    assert_eq!(end, SessionError::NotFound { id: id("s") });
    let created = soon(async {
        loop {
            match host.create(&id("s"), NewSession::default()).await {
                Ok((_, created)) => break created,
                Err(SessionError::Backend { .. }) => tokio::task::yield_now().await,
                Err(error) => panic!("{error}"),
            }
        }
    });
    assert_eq!(created.await, Created::New);
    let lost = soon(events.next()).await.unwrap();
    assert!(lost.is_err(), "the loss of events is reported: {lost:?}");
    soon(async { while events.next().await.unwrap().is_err() {} }).await;
    create_with_x(&host, "u", NewSession::default()).await;
    let mut watch = host.watch_variables(&id("u"), &[], false).await.unwrap();
    host.set_variable(&id("u"), set("x", 1)).await.unwrap();
    assert_eq!(next_update(&mut watch).await, (UpdateKind::Set, 1));
}
