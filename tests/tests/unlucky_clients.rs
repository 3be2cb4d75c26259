//! The Python package's client under faults: frozen, stopping and overloaded hosts, broken connections, forks, threads, and
//! early closes.

use std::time::Duration;

use snakepit_tests::{Sandbox, python, root};
use tokio::process::Command;

/// Runs a scenario of `tests/clients/unlucky.py` against a new host.
async fn scenario(name: &str) {
    scenario_with(name, &["--queue-limit", "4"]).await;
}

async fn scenario_with(name: &str, options: &[&str]) {
    let sandbox = Sandbox::adapter("unlucky:UnluckyTools", 2).args(options).start().await;
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
    calls_to_a_frozen_host_end_at_their_deadline
    session_requests_to_a_frozen_host_end_at_their_timeout
    connecting_to_a_server_that_is_not_a_host_fails
    running_calls_survive_the_close_of_their_client
    calls_continue_without_a_reference_to_their_client
    thousands_of_calls_share_a_few_descriptors
    a_cut_connection_loses_at_most_the_running_calls
    each_rejection_has_its_exception_class
    forks_may_drop_and_close_a_client
    threads_share_a_client_and_a_stream
    a_stopping_host_ends_calls_and_watches_with_an_error
}

#[tokio::test]
async fn exhausted_memory_rejects_calls_and_ends_no_other() {
    let options = ["--connection-bytes", "8MiB", "--queue-limit", "1000"];
    scenario_with("exhausted_memory_rejects_calls_and_ends_no_other", &options).await;
}
