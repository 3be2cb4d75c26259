//! The client of `docs/clients.md`, written with plain grpcio.

use snakepit_tests::{SHOWCASE, Sandbox, python, root};
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
