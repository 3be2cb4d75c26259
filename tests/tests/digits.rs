//! Runs the demo through the command line. `cargo xtask test` installs scikit-learn and then runs this file.

use serde_json::Value;
use snakepit_tests::{SHOWCASE, Sandbox, Signal, signal};

fn json_lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test]
#[ignore = "needs scikit-learn; run `cargo xtask test`, or `cargo xtask setup --demo` and then this test"]
async fn another_worker_predicts_after_the_death_of_the_worker_that_trained() {
    let sandbox = Sandbox::adapter(SHOWCASE, 2).start().await;
    let train = ["stream", "train_digits", "--session", "demo", "--args", r#"{"epochs": 5}"#];
    let progress = json_lines(&sandbox.cli_ok(&train).await);
    assert_eq!(progress.last().unwrap()["done"], true);
    let sessions = json_lines(&sandbox.cli_ok(&["sessions", "--json"]).await);
    let workers = json_lines(&sandbox.cli_ok(&["workers", "--json"]).await);
    let trainer = workers.iter().find(|worker| worker["worker_id"] == sessions[0]["last_worker_id"]).unwrap();
    signal(u32::try_from(trainer["pid"].as_u64().unwrap()).unwrap(), Signal::SIGKILL);
    let predict = ["call", "predict_digits", "--session", "demo", "--args", r#"{"start": 0, "count": 60}"#];
    let prediction: Value = serde_json::from_str(&sandbox.cli_ok(&predict).await).unwrap();
    assert_ne!(prediction["pid"], trainer["pid"]);
    let digits = |key: &str| prediction[key].as_array().unwrap().clone();
    let correct = digits("predicted").iter().zip(digits("expected")).filter(|(p, e)| *p == e).count();
    assert!(correct > 48, "{correct} of 60");
    assert_eq!(prediction.get("score"), None, "the daemon has no host tool that scores");
}
