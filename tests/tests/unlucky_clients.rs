//! The client of the Python package under faults: hosts that freeze, stop or are overloaded, networks that cut or swallow,
//! forks, threads, and programs that close it too early.

use std::time::Duration;

use snakepit_tests::{Sandbox, python, root};
use tokio::process::Command;

/// Runs a scenario of `tests/clients/unlucky.py` against a host of its own.
async fn scenario(name: &str) {
    let sandbox = Sandbox::adapter("unlucky:UnluckyTools", 2).args(&["--queue-limit", "4"]).start().await;
    let mut client = Command::new(python());
    client.arg(root().join("tests/clients/unlucky.py")).arg(sandbox.url().trim_start_matches("http://"));
    client.arg(sandbox.pid().to_string()).arg(name).kill_on_drop(true);
    let output = tokio::time::timeout(Duration::from_secs(100), client.output()).await;
    let output = output.expect("the client ends").unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "ok\n", "{name}: {stderr}");
}

macro_rules! scenarios {
    ($($name:ident)*) => {
        $(
            #[tokio::test]
            async fn $name() {
                scenario(stringify!($name)).await;
            }
        )*
    };
}

scenarios! {
    silent_hosts
    silent_sessions
    odd_proxies
    closing
    unkept
    descriptors
    cuts
    refusals
    forks
    threads
    stopping
}
