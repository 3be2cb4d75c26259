//! A slow, closed or full log does not affect calls, the replacement of workers, or signals.

use std::{
    io::Read,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use serde_json::json;
use snakepit_tests::{
    Client, EVENT_TIMEOUT, Sandbox, SandboxBuilder, Signal, eventually, execute, is_alive, signal,
};

const MISBEHAVING: &str = "misbehaving:MisbehavingAdapter";

/// Creates a named pipe, and opens its read end.
fn fifo(dir: &Path) -> (PathBuf, std::fs::File) {
    let path = dir.join("log");
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let flags = nix::libc::O_NONBLOCK;
    let reader = std::fs::OpenOptions::new().read(true).custom_flags(flags).open(&path).unwrap();
    (path, reader)
}

fn daemon() -> SandboxBuilder {
    Sandbox::adapter(MISBEHAVING, 2)
}

async fn workers(client: &Client) -> Vec<snakepit_proto::pb::WorkerInfo> {
    let request = snakepit_proto::pb::ListWorkersRequest {};
    client.clone().list_workers(request).await.unwrap().into_inner().workers
}

/// Makes calls that print, and kills workers. All calls and replacements must succeed.
async fn exercise(client: &mut Client) {
    for number in 0..40 {
        execute(client, "say", &json!({"text": format!("line {number}")})).await.unwrap();
    }
    for _ in 0..2 {
        let before = workers(client).await;
        before.iter().for_each(|worker| signal(worker.pid, Signal::SIGKILL));
        eventually("the killed workers are replaced", EVENT_TIMEOUT, async || {
            let is_new = |pid: u32| before.iter().all(|old| old.pid != pid);
            workers(client).await.iter().all(|worker| worker.state == "idle" && is_new(worker.pid))
        })
        .await;
        assert_eq!(execute(client, "ping", &json!({})).await.unwrap(), "pong");
    }
    let flood = 20_000;
    assert_eq!(execute(client, "flood_stdout", &json!({"n": flood})).await.unwrap(), flood);
}

#[tokio::test]
async fn a_full_log_device_does_not_affect_the_daemon() {
    let sandbox = daemon().shell("exec \"$@\" 2>/dev/full").start().await;
    exercise(&mut sandbox.client().await).await;
    assert_eq!(sandbox.stop().await, Some(0));
}

#[tokio::test]
async fn a_closed_log_pipe_does_not_affect_the_daemon() {
    let dir = tempfile::tempdir().unwrap();
    let (path, reader) = fifo(dir.path());
    let sandbox = daemon().shell(format!("exec \"$@\" 2>{}", path.display())).start().await;
    assert_eq!(execute(&mut sandbox.client().await, "ping", &json!({})).await.unwrap(), "pong");
    drop(reader);
    exercise(&mut sandbox.client().await).await;
    assert_eq!(sandbox.stop().await, Some(0));
}

#[tokio::test]
async fn a_stalled_log_reader_does_not_delay_the_daemon() {
    let dir = tempfile::tempdir().unwrap();
    let (path, mut reader) = fifo(dir.path());
    let mut sandbox = daemon().shell(format!("exec \"$@\" 2>{}", path.display())).start().await;
    let mut client = sandbox.client().await;
    exercise(&mut client).await;
    // The daemon has written much more than the pipe can hold, and the test has read nothing yet.
    let mut log = Vec::new();
    let mut read = || {
        let mut buffer = [0; 65536];
        while let Ok(count @ 1..) = reader.read(&mut buffer) {
            log.extend_from_slice(&buffer[..count]);
        }
        String::from_utf8_lossy(&log).into_owned()
    };
    eventually("the log is read", EVENT_TIMEOUT, || {
        std::future::ready(read().contains("dropped output above"))
    })
    .await;
    // The daemon also ends while the reader stalls.
    exercise(&mut client).await;
    signal(sandbox.pid(), Signal::SIGTERM);
    assert_eq!(sandbox.wait(EVENT_TIMEOUT).await, Some(0));
}

#[tokio::test]
async fn the_daemon_works_with_closed_standard_streams() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let listen = format!("127.0.0.1:{port}");
    let mut starting = daemon().listen(&listen).shell("exec \"$@\" <&- >&- 2>&-").spawn();
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{listen}")).unwrap();
    eventually("the daemon serves", EVENT_TIMEOUT, async || endpoint.connect().await.is_ok()).await;
    let mut client = Client::new(endpoint.connect().await.unwrap());
    let are_idle = async || workers(&client).await.iter().all(|worker| worker.state == "idle");
    eventually("its workers are idle", EVENT_TIMEOUT, are_idle).await;
    exercise(&mut client).await;
    let pid = starting.pid();
    signal(pid, Signal::SIGTERM);
    assert_eq!(starting.wait(EVENT_TIMEOUT).await, Some(0));
    assert!(!is_alive(pid));
}

/// Only the ready line waits for space in the pipe.
#[tokio::test]
async fn a_full_stdout_delays_only_the_ready_line() {
    let dir = tempfile::tempdir().unwrap();
    let (path, mut reader) = fifo(dir.path());
    let flags = nix::libc::O_NONBLOCK;
    let mut writer = std::fs::OpenOptions::new().write(true).custom_flags(flags).open(&path).unwrap();
    while std::io::Write::write(&mut writer, &[b' '; 4096]).is_ok() {}
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let listen = format!("127.0.0.1:{port}");
    let shell = format!("exec \"$@\" >{}", path.display());
    let mut starting = daemon().listen(&listen).shell(shell).spawn();
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{listen}")).unwrap();
    eventually("the daemon serves", EVENT_TIMEOUT, async || endpoint.connect().await.is_ok()).await;
    let mut client = Client::new(endpoint.connect().await.unwrap());
    let are_idle = async || workers(&client).await.iter().all(|worker| worker.state == "idle");
    eventually("its workers are idle", EVENT_TIMEOUT, are_idle).await;
    assert_eq!(execute(&mut client, "ping", &json!({})).await.unwrap(), "pong");
    let mut text = Vec::new();
    let mut read = || {
        let mut buffer = [0; 65536];
        while let Ok(count @ 1..) = reader.read(&mut buffer) {
            text.extend_from_slice(&buffer[..count]);
        }
        String::from_utf8_lossy(&text).trim().ends_with('}')
    };
    eventually("the ready line arrives when the pipe is read", EVENT_TIMEOUT, || std::future::ready(read()))
        .await;
    while std::io::Write::write(&mut writer, &[b' '; 4096]).is_ok() {}
    signal(starting.pid(), Signal::SIGTERM);
    assert_eq!(starting.wait(EVENT_TIMEOUT).await, Some(0));
}

#[tokio::test]
async fn a_log_at_the_file_size_limit_does_not_affect_the_daemon() {
    let dir = tempfile::tempdir().unwrap();
    let shell = format!("ulimit -f 200; exec \"$@\" 2>{}", dir.path().join("log").display());
    let sandbox = daemon().shell(shell).start().await;
    exercise(&mut sandbox.client().await).await;
    assert_eq!(sandbox.stop().await, Some(0));
}

#[tokio::test]
async fn log_lines_are_escaped_and_long_ones_truncated() {
    let sandbox = daemon().start().await;
    let mut client = sandbox.client().await;
    let forged = "\u{1b}[2J\r2026-01-01T00:00:00Z  INFO forged\u{202e}";
    execute(&mut client, "say", &json!({"text": forged})).await.unwrap();
    let unknown = format!("x\n2026-01-01T00:00:00Z  INFO forged {forged}");
    execute(&mut client, &unknown, &json!({})).await.unwrap_err();
    let long = 100 * 1024 * 1024;
    assert_eq!(execute(&mut client, "print_without_newline", &json!({"n": long})).await.unwrap(), long);
    eventually("the long line is counted", EVENT_TIMEOUT, async || {
        // The next printed line contains the newline that ends the long one.
        execute(&mut client.clone(), "say", &json!({"text": ""})).await.unwrap();
        sandbox.log().contains(&format!("[{} more bytes of this line]", long - 8 * 1024))
    })
    .await;
    let log = sandbox.log();
    assert!(log.len() < 1024 * 1024, "{}", log.len());
    let has_control = log.lines().find(|line| line.chars().any(|c| c.is_control() && c != '\t'));
    assert_eq!(has_control, None);
    assert!(log.lines().all(|line| !line.starts_with("2026-01-01T00:00:00Z")), "{log}");
    assert!(log.contains("\\u{1b}[2J\\r2026-01-01T00:00:00Z  INFO forged\\u{202e}"), "{log}");
    let status = std::fs::read_to_string(format!("/proc/{}/status", sandbox.pid())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let kib: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(kib < 150 * 1024, "the host took {kib} KiB");
}

#[tokio::test]
async fn the_debug_log_has_the_error_of_each_call_once() {
    let debug = "snakepit_pool=debug,snakepit_server=debug";
    let sandbox = daemon().env("SNAKEPIT_LOG", debug).start().await;
    let mut client = sandbox.client().await;
    // The host rejects this call before it reaches the pool.
    execute(&mut client, "no_such_tool", &json!({})).await.unwrap_err();
    let failing = snakepit_tests::tool_request("exit_politely", &json!({}));
    assert!(!client.execute_tool(failing).await.unwrap().into_inner().success);
    for error in ["tool `no_such_tool` not found", "tool `exit_politely` failed: SystemExit"] {
        let count = || sandbox.log().matches(error).count();
        eventually("the error is in the log", EVENT_TIMEOUT, async || count() > 0).await;
        assert_eq!(count(), 1, "{error}: {}", sandbox.log());
    }
    assert_eq!(sandbox.stop().await, Some(0));
}
