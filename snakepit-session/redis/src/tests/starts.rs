//! Servers that are starting or unusable.

use super::*;

async fn connect(url: &str) -> Result<RedisBackend, SessionError> {
    RedisBackend::connect(url, RedisConfig::default(), SessionLimits::default()).await
}

#[tokio::test]
async fn a_host_waits_for_a_server_that_starts_later() {
    let mut server = Server::start();
    server.stop();
    let socket = server.url.trim_start_matches("redis+unix://").to_owned();
    std::fs::remove_file(&socket).unwrap();
    let listener = tokio::net::UnixListener::bind(&socket).unwrap();
    let start_after_an_attempt = async {
        drop(listener.accept().await.unwrap());
        drop(listener);
        std::fs::remove_file(&socket).unwrap();
        server.restart();
        std::future::pending::<()>().await;
    };
    let url = format!("redis+unix://{socket}");
    let host = tokio::select! {
        host = soon(connect(&url)) => host.unwrap(),
        () = start_after_an_attempt => unreachable!("it never returns"),
    };
    host.create(&id("s"), NewSession::default()).await.unwrap();
}

#[tokio::test]
async fn a_host_waits_for_a_server_that_loads_its_data() {
    let mut server = Server::start_with(&["--dbfilename", "dump.rdb"]);
    let _: String = server.query(&["SET", "much", &"x".repeat(1000)]).await;
    for n in 0..200 {
        let _: String = server.query(&["SET", &n.to_string(), "x"]).await;
    }
    let _: String = server.query(&["SAVE"]).await;
    server.stop();
    // Loading takes a second.
    server.start_loading(&["--key-load-delay", "5000", "--loading-process-events-interval-bytes", "1024"]);
    let host = soon(connect(&server.url)).await.unwrap();
    host.create(&id("s"), NewSession::default()).await.unwrap();
}

#[tokio::test]
async fn missing_features_and_permissions_are_reported_at_the_start() {
    let server = Server::start();
    let primary = server.with_port().await;
    let replica = Server::start_with(&["--replicaof", "127.0.0.1", &primary.to_string()]);
    let rejected = soon(connect(&replica.url)).await.unwrap_err().to_string();
    assert!(rejected.contains("read-only replica"), "{rejected}");

    let user = |name: &str| format!("{}?user={name}&pass=p", server.url);
    for (name, rules) in [
        ("scripts", &["+@all", "-@scripting"][..]),
        ("streams", &["+@all", "-xadd"]),
        ("keys", &["+@all", "resetkeys", "~other:*"]),
    ] {
        let words = ["ACL", "SETUSER", name, "on", ">p", "~*", "&*"];
        let () = server.query(&[&words[..], rules].concat()).await;
        let rejected = soon(connect(&user(name))).await.unwrap_err().to_string();
        assert!(rejected.contains("sessions need a user"), "{name}: {rejected}");
    }
    let () = server
        .query(&["ACL", "SETUSER", "plain", "on", ">p", "~{snakepit}*", "&*", "+@all", "-info", "-config"])
        .await;
    connect(&user("plain")).await.unwrap();
}

#[tokio::test]
async fn hosts_with_different_prefixes_in_their_urls_share_nothing() {
    let server = Server::start();
    let one = connect(&format!("{}?prefix=one", server.url)).await.unwrap();
    let other = connect(&format!("{}?prefix=other", server.url)).await.unwrap();
    one.create(&id("s"), NewSession::default()).await.unwrap();
    other.get(&id("s")).await.unwrap_err();
    let unknown = connect(&format!("{}?prefx=one", server.url)).await.unwrap_err().to_string();
    assert!(unknown.contains("`prefx`"), "{unknown}");
}

#[tokio::test]
async fn waiting_writers_time_out_together() {
    let server = Server::start();
    let config = RedisConfig { timeout: Duration::from_millis(500), ..RedisConfig::default() };
    let host = RedisBackend::connect(&server.url, config, SessionLimits::default()).await.unwrap();
    create_with_x(&host, "s", NewSession::default()).await;
    let host = Arc::new(host);
    server.freeze(true);
    let began = tokio::time::Instant::now();
    let mut writers = JoinSet::new();
    for n in 0..20 {
        let host = Arc::clone(&host);
        writers.spawn(async move { host.set_variable(&id("s"), set("x", n)).await });
    }
    let failed = writers.join_all().await.into_iter().filter(Result::is_err).count();
    let took = began.elapsed();
    server.freeze(false);
    assert_eq!(failed, 20);
    assert!(took < Duration::from_secs(4), "in sequence, they would take ten seconds: {took:?}");
}

#[tokio::test]
#[expect(clippy::disallowed_methods, reason = "not a worker")]
async fn a_sentinel_and_servers_of_other_protocols_are_rejected_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let (config, socket) = (dir.path().join("sentinel.conf"), dir.path().join("s"));
    std::fs::write(
        &config,
        format!("port 0\nunixsocket {}\ndir {}\n", socket.display(), dir.path().display()),
    )
    .unwrap();
    let mut sentinel = std::process::Command::new("redis-server");
    let mut sentinel =
        sentinel.arg(&config).arg("--sentinel").stdout(std::process::Stdio::null()).spawn().unwrap();
    let rejected =
        soon(connect(&format!("redis+unix://{}", socket.display()))).await.unwrap_err().to_string();
    sentinel.kill().unwrap();
    sentinel.wait().unwrap();
    assert!(rejected.contains("it is a Sentinel") && rejected.contains("the primary"), "{rejected}");

    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("redis://{}", listener.local_addr().unwrap());
    let http = async {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.read(&mut [0; 1024]).await;
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        }
    };
    let rejected = tokio::select! {
        host = soon(connect(&url)) => host.unwrap_err().to_string(),
        () = http => unreachable!("the server never stops"),
    };
    assert!(rejected.contains("not a Redis server"), "{rejected}");
}
