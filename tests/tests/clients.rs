//! Clients in Python: that of `docs/clients.md`, written with plain grpcio, and that of the package.

use snakepit_tests::{SHOWCASE, Sandbox, eventually, python, root};
use tokio::process::Command;

#[tokio::test]
async fn the_documented_client_works() {
    let sandbox = Sandbox::adapter(SHOWCASE, 1).start().await;
    let output = Command::new(python())
        .arg(root().join("tests/clients/client.py"))
        .arg(sandbox.url().trim_start_matches("http://"))
        .env("PYTHONPATH", root().join(".venv/stubs"))
        .kill_on_drop(true)
        .output()
        .await
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "3.5\n[1, 2, 3]\n", "{stderr}");
}

#[tokio::test]
async fn the_client_of_the_package_works_over_tcp_and_unix() {
    let sandbox = Sandbox::adapter(SHOWCASE, 2).start().await;
    for address in [sandbox.url().to_owned(), format!("unix:{}", sandbox.socket().display())] {
        let mut client = Command::new(python());
        client.arg(root().join("tests/clients/bridge_client.py")).arg(&address).kill_on_drop(true);
        let output = tokio::time::timeout(std::time::Duration::from_secs(60), client.output()).await;
        let output = output.expect("the client ends").unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(String::from_utf8_lossy(&output.stdout), "ok\n", "{address}: {stderr}");
    }
    let idle = async || sandbox.workers().await.iter().all(|worker| worker.state == "idle");
    eventually("no call was left running", std::time::Duration::from_secs(10), idle).await;
}
