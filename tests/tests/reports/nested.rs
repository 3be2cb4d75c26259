//! Reports of calls that tools make to other tools, and of host tools.

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};
use snakepit_server::{Client, FnTool, Host, Snakepit, ToolContext};
use snakepit_tests::{Sandbox, python, root};

use crate::{CONCURRENT, REPORTING, Reports, connect};

/// The output belongs to the outer call. The progress measures other work, so it does not.
#[tokio::test]
async fn the_caller_of_the_outer_tool_receives_the_output_of_nested_calls() {
    let sandbox = Sandbox::adapter(REPORTING, 3).start().await;
    let client = connect(&sandbox).await;
    let reports = Reports::default();
    let call = client.call("outer").arg("depth", 2).on_log(reports.lines()).on_progress(reports.progress());
    assert_eq!(call.unary::<u64>().await.unwrap().value, 2);
    assert_eq!(reports.texts(), ["begin 2", "begin 1", "begin 0", "end 0", "end 1", "end 2"]);
    let seen: Vec<f64> = reports.progress.lock().unwrap().iter().map(|report| report.done).collect();
    assert!(seen.iter().all(|done| *done == 2.0), "{seen:?}");
    // A stream that the tool reads.
    let reports = Reports::default();
    client.call("reads").on_log(reports.lines()).unary::<Value>().await.unwrap();
    assert_eq!(reports.texts(), ["item 0", "item 1"]);
}

#[tokio::test]
async fn nested_calls_of_concurrent_calls_belong_to_their_own_caller() {
    let sandbox = Sandbox::adapter(CONCURRENT, 1).start().await;
    let client = connect(&sandbox).await;
    let calls = (0..3).map(|number| {
        let (client, reports) = (client.clone(), Reports::default());
        async move {
            let name = format!("caller {number}");
            let call = client.call("relay").arg("name", &name).on_log(reports.lines());
            call.unary::<Value>().await.unwrap();
            assert_eq!(reports.texts(), [format!("name {name}")]);
        }
    });
    futures_util::future::join_all(calls).await;
}

#[derive(Deserialize, JsonSchema)]
struct Import {
    files: u32,
}

#[tokio::test]
async fn host_tools_report_progress_and_pass_on_output() {
    let dir = tempfile::tempdir().unwrap();
    let import = FnTool::new("import", |context: ToolContext, import: Import| async move {
        for file in 1..=import.files {
            context.report_progress(file.into(), Some(import.files.into()), format!("file {file}"));
        }
        import.files
    });
    let snakepit = Snakepit::builder()
        .adapter(REPORTING)
        .env("PYTHONPATH", root().join("tests/adapters").display().to_string())
        .python(python())
        .run_dir(dir.path().join("run"))
        .workers(2)
        .listen(([127, 0, 0, 1], 0).into())
        .fn_tool(import)
        .host_tool("through", |host: Host| async move { host.execute::<Value>("whisper", ()).await })
        .start()
        .await
        .unwrap();
    let address = snakepit.address().unwrap();
    let client = Client::connect(&format!("http://{address}")).await.unwrap();
    let (local, remote) = (Reports::default(), Reports::default());
    snakepit.call("import").arg("files", 3).on_progress(local.progress()).unary::<u32>().await.unwrap();
    client.call("import").arg("files", 3).on_progress(remote.progress()).unary::<u32>().await.unwrap();
    for reports in [local, remote] {
        let seen = reports.progress.lock().unwrap().clone();
        let messages: Vec<_> = seen.iter().map(|report| report.message.as_str()).collect();
        assert_eq!(messages, ["file 1", "file 2", "file 3"]);
        assert_eq!(seen[2].fraction(), Some(1.0));
    }
    // A host tool that calls a worker tool, and a worker that calls such a host tool.
    let reports = Reports::default();
    client.call("through").on_log(reports.lines()).unary::<Value>().await.unwrap();
    assert_eq!(reports.texts(), ["of another call"]);
    let reports = Reports::default();
    let call = client.call("calls_host_tool").args(json!({"name": "through"})).on_log(reports.lines());
    call.unary::<Value>().await.unwrap();
    assert_eq!(reports.texts(), ["of another call"]);
    drop(client);
    snakepit.shutdown().await.unwrap();
}
