//! `snakepit call` and `snakepit stream` with reports and with errors as JSON.

use serde_json::{Value, json};
use snakepit_tests::Sandbox;

use crate::REPORTING;

#[tokio::test]
async fn the_command_line_shows_logs_and_progress() {
    let sandbox = Sandbox::adapter(REPORTING, 1).start().await;
    let shown = sandbox.cli(&["call", "speak", "--logs"]).await;
    let stderr = String::from_utf8_lossy(&shown.stderr).into_owned();
    assert!(stderr.contains("printed\n") && stderr.contains("ERROR shop.till: an error\n"), "{stderr}");
    assert!(!stderr.contains("\x1e"), "{stderr:?}");
    let shown = sandbox.cli(&["call", "train", "--args", r#"{"steps": 4}"#, "--progress"]).await;
    assert_eq!(String::from_utf8_lossy(&shown.stdout), "4\n");
    let stderr = String::from_utf8_lossy(&shown.stderr).into_owned();
    assert!(stderr.ends_with("[########################] 100 % step 4\n"), "{stderr}");
    // Without the options, a command that is not on a terminal shows neither.
    let shown = sandbox.cli(&["call", "speak"]).await;
    assert_eq!(String::from_utf8_lossy(&shown.stderr), "");
    let failed = sandbox.cli(&["call", "die", "--args", r#"{"how": "kill"}"#, "--logs"]).await;
    let stderr = String::from_utf8_lossy(&failed.stderr).into_owned();
    assert!(stderr.starts_with("last words\n") && failed.status.code() != Some(0), "{stderr}");
    assert!(!stderr.contains("\x1b"), "{stderr:?}");
    let missing = sandbox.cli(&["call", "nosuch", "--logs"]).await;
    assert_eq!(missing.status.code(), sandbox.cli(&["call", "nosuch"]).await.status.code());
}

#[tokio::test]
async fn streams_show_logs_and_progress() {
    let sandbox = Sandbox::adapter(REPORTING, 1).start().await;
    let arguments = ["stream", "count", "--args", r#"{"n": 3}"#];
    let plain = sandbox.cli(&arguments).await;
    assert_eq!((text(&plain.stdout), text(&plain.stderr)), ("0\n1\n2\n".into(), String::new()));
    let shown = sandbox.cli(&[&arguments[..], &["--logs", "--progress"]].concat()).await;
    assert_eq!(text(&shown.stdout), "0\n1\n2\n");
    let stderr = text(&shown.stderr);
    let lines: Vec<_> = stderr.lines().filter(|line| line.starts_with("item")).collect();
    assert_eq!(lines, ["item 0", "item 1", "item 2"]);
    assert!(stderr.contains("[########################] 100 %\n"), "{stderr}");
    // The chunks are those of the other RPC.
    let json = [&arguments[..], &["--json"]].concat();
    let shown = sandbox.cli(&[&json[..], &["--logs"]].concat()).await;
    assert_eq!(text(&shown.stdout), text(&sandbox.cli(&json).await.stdout));

    // A stream larger than the credit of its caller.
    let many = ["stream", "chunks", "--args", r#"{"count": 40, "size": 50000}"#];
    let plain = text(&sandbox.cli(&many).await.stdout);
    assert_eq!(plain.lines().count(), 40);
    assert_eq!(text(&sandbox.cli(&[&many[..], &["--logs"]].concat()).await.stdout), plain);
    // Bytes inside a value.
    let whole = ["stream", "buffers", "--json"];
    let plain = text(&sandbox.cli(&whole).await.stdout);
    assert!(plain.contains("\"__snakepit__\":\"bytes\""), "{plain}");
    assert_eq!(text(&sandbox.cli(&[&whole[..], &["--logs"]].concat()).await.stdout), plain);
}

/// Both paths to the server print the same errors, with the exception of the tool.
#[tokio::test]
async fn errors_as_json_carry_the_exception_of_the_tool() {
    let sandbox = Sandbox::adapter(REPORTING, 1).start().await;
    for command in [["call", "fail"], ["stream", "fail_later"]] {
        let mut shown = Vec::new();
        for options in [&["--json"][..], &["--json", "--logs"]] {
            let failed = sandbox.cli(&[&command[..], options].concat()).await;
            assert_eq!(failed.status.code(), Some(1));
            let error: Value = serde_json::from_slice(&failed.stderr).unwrap();
            let exception = &error["exception"];
            assert_eq!((&error["code"], &error["may_have_run"]), (&json!("TOOL_FAILED"), &json!(true)));
            assert_eq!(exception["type"], "reporting.NoItemError", "{error}");
            assert_eq!(exception["message"], "no item 7");
            assert_eq!((&exception["code"], &exception["data"]), (&json!("not_found"), &json!({"id": 7})));
            assert_eq!(
                (&exception["cause"]["type"], &exception["notes"]),
                (&json!("KeyError"), &json!(["a note"]))
            );
            assert_eq!(exception["traceback"], error["traceback"]);
            assert!(error["traceback"].as_str().unwrap().contains("KeyError: 7"), "{error}");
            shown.push(error);
        }
        assert_eq!(shown[0], shown[1]);
    }
    // The exception is that of a tool.
    let missing = sandbox.cli(&["call", "nosuch", "--json"]).await;
    let error: Value = serde_json::from_slice(&missing.stderr).unwrap();
    assert_eq!(error.get("exception"), None);
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
