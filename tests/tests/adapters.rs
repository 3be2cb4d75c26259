//! The life of Python workers: adapters that are files and functions, their arguments, their place in the pool, calls
//! between tools, and programs that a worker loads once.

use serde_json::{Value, json};
use snakepit_tests::{
    Client, EVENT_TIMEOUT, Sandbox, SandboxBuilder, eventually, execute, root, tool_request,
};
use tonic::Code;

fn living(workers: usize) -> SandboxBuilder {
    Sandbox::adapter("living:", workers).args(&["--adapter-arg", "label=x"])
}

/// The error of a tool that fails.
async fn failure(client: &mut Client, tool: &str, args: &Value) -> String {
    let response = client.execute_tool(tool_request(tool, args)).await.unwrap().into_inner();
    assert!(!response.success, "{response:?}");
    response.error_message
}

#[tokio::test]
async fn a_file_is_served_with_the_arguments_of_the_command_line() {
    let file = root().join("tests/adapters/living.py");
    // The positional argument takes precedence.
    let sandbox = Sandbox::adapter("missing:Adapter", 1)
        .args(&[file.to_str().unwrap(), "--adapter-arg", "label=a=b", "--adapter-arg", "size=3"])
        .config("[adapter-arg]\nlabel = 'of the file'\nother = 1\n")
        .start()
        .await;
    let mut client = sandbox.client().await;
    assert_eq!(execute(&mut client, "settings", &json!({})).await.unwrap(), json!(["a=b", 3]));
    let unknown = execute(&mut client, "lifespan", &json!({})).await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound, "hooks are not tools: {unknown:?}");
    assert_eq!(sandbox.stop().await, Some(0));
}

#[tokio::test]
async fn a_worker_that_stops_ends_its_adapter() {
    let sandbox = living(2).config("[adapter-arg]\nlabel = 'unused'\n").start().await;
    let log = sandbox.log_handle();
    assert_eq!(sandbox.stop().await, Some(0));
    for (line, count) in [("exit of 0", 1), ("exit of 1", 1), ("left x", 2)] {
        eventually("the log has the lines", EVENT_TIMEOUT, async || {
            log.lock().unwrap().iter().filter(|logged| logged.contains(line)).count() == count
        })
        .await;
    }
}

#[tokio::test]
async fn the_arguments_of_the_configuration_file_have_types() {
    let config = "adapter = 'living:'\n[adapter-arg]\nlabel = 'of the file'\nsize = 0x10\n";
    let sandbox = Sandbox::adapter("living:", 1).config(config).start().await;
    let mut client = sandbox.client().await;
    assert_eq!(execute(&mut client, "settings", &json!({})).await.unwrap(), json!(["of the file", 16]));
}

#[tokio::test]
async fn missing_and_unknown_arguments_fail_the_start_and_are_named() {
    let cases: [(&[&str], &str); 4] = [
        (&[], "adapter argument `label` is missing, which `lifespan` of adapter `living` needs"),
        (
            &["label=x", "colour=red"],
            "adapter argument `colour` is unknown; adapter `living` takes `label`, `size`",
        ),
        (
            &["label=x", "size=big"],
            "adapter argument `size` of `lifespan` of adapter `living` is a string, expected integer",
        ),
        (&["label"], "invalid value 'label' for '--adapter-arg <NAME=VALUE>': it takes the form NAME=TEXT"),
    ];
    for (arguments, problem) in cases {
        let args: Vec<&str> = arguments.iter().flat_map(|argument| ["--adapter-arg", argument]).collect();
        let failure = Sandbox::adapter("living:", 1).args(&args).try_start().await.unwrap_err();
        assert!(failure.stderr.contains(problem), "{problem}: {}", failure.stderr);
    }
}

#[tokio::test]
async fn arguments_that_no_environment_variable_holds_fail_the_start_with_the_limit() {
    let config = format!("[adapter-arg]\nlabel = '{}'\n", "x".repeat(140_000));
    let failure = Sandbox::adapter("living:", 1).config(&config).try_start().await.unwrap_err();
    let problem = "the adapter arguments take 140012 bytes as JSON, above the limit of 131049; the largest, `label`, takes 140002";
    assert!(failure.stderr.contains(problem), "{}", failure.stderr);
}

#[tokio::test]
async fn workers_know_their_place_and_share_the_processors() {
    let sandbox = living(2).args(&["--gpus", "3, 5"]).env("MKL_NUM_THREADS", "7").start().await;
    let mut client = sandbox.client().await;
    let place = execute(&mut client, "place", &json!({})).await.unwrap();
    let index = place["index"].as_u64().unwrap();
    let gpu = ["3", "5"][usize::try_from(index).unwrap()];
    let threads = (std::thread::available_parallelism().unwrap().get() / 2).max(1).to_string();
    let expected = json!({
        "pool": "default", "index": index, "count": 2, "gpu": gpu, "CUDA_VISIBLE_DEVICES": gpu,
        "OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads, "RAYON_NUM_THREADS": threads,
        "MKL_NUM_THREADS": "7",
    });
    assert_eq!(place, expected);

    let sandbox = living(1).args(&["--library-threads", "0"]).start().await;
    let place = execute(&mut sandbox.client().await, "place", &json!({})).await.unwrap();
    let inherited = std::env::var("OMP_NUM_THREADS").ok();
    assert_eq!((&place["OMP_NUM_THREADS"], &place["gpu"]), (&json!(inherited), &Value::Null));
}

#[tokio::test]
async fn tools_call_other_tools_on_other_workers() {
    let sandbox = living(2).start().await;
    let mut client = sandbox.client().await;
    let double = json!({"name": "double", "arguments": {"x": 21}});
    for tool in ["call", "call_later"] {
        assert_eq!(execute(&mut client, tool, &double).await.unwrap(), 42, "{tool}");
    }
    for (name, arguments, problem) in [
        ("fail", json!({"text": "no tea"}), "LookupError: no tea"),
        ("missing", json!({}), "NotFoundError: tool `missing` not found"),
        ("double", json!({}), "argument `x` of tool `double` is missing"),
    ] {
        let failing = json!({"name": name, "arguments": arguments});
        let error = failure(&mut client, "call", &failing).await;
        assert!(error.contains(problem), "{problem}: {error}");
    }
}

#[tokio::test]
async fn tools_stream_the_results_of_other_tools() {
    let sandbox = living(2).start().await;
    let mut client = sandbox.client().await;
    assert_eq!(execute(&mut client, "sum_of", &json!({"n": 5})).await.unwrap(), 10);
    assert_eq!(execute(&mut client, "sum_later", &json!({"n": 5})).await.unwrap(), 10);
    // The rest of the stream is cancelled, which frees its worker.
    assert_eq!(execute(&mut client, "sum_of", &json!({"n": 1_000_000, "limit": 3})).await.unwrap(), 3);
    assert_eq!(execute(&mut client, "sum_of", &json!({"n": 4})).await.unwrap(), 6);
    for tool in ["sum_of", "sum_later"] {
        let error = failure(&mut client, tool, &json!({"n": 3})).await;
        assert!(error.contains("LookupError: no more"), "{error}");
    }
}

#[tokio::test]
async fn a_draining_host_finishes_the_nested_calls_of_running_tools() {
    let dir = tempfile::tempdir().unwrap();
    let builder = snakepit_server::Snakepit::builder()
        .adapter("living:")
        .adapter_arg("label", "x")
        .python(snakepit_tests::python())
        .env("PYTHONPATH", root().join("tests/adapters").display().to_string())
        .run_dir(dir.path())
        .workers(2)
        .multiplex(!snakepit_tests::plain_calls());
    let snakepit = builder.start().await.unwrap();
    let file = dir.path().join("go");
    let arguments = json!({"path": file, "name": "double", "arguments": {"x": 21}});
    let call = {
        let snakepit = snakepit.clone();
        async move { snakepit.execute::<i64>("call_once_there", arguments).await }
    };
    let call = tokio::spawn(call);
    eventually("the call runs", EVENT_TIMEOUT, async || snakepit.status().in_flight == 1).await;
    let shutdown = {
        let snakepit = snakepit.clone();
        tokio::spawn(async move { snakepit.shutdown().await })
    };
    snakepit.stopping().await;
    eventually("the pool drains", EVENT_TIMEOUT, async || {
        snakepit.execute::<i64>("double", json!({"x": 1})).await.is_err()
    })
    .await;
    std::fs::write(&file, "").unwrap();
    assert_eq!(call.await.unwrap().unwrap(), 42);
    shutdown.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_nested_call_that_would_wait_for_its_ancestors_is_rejected_immediately() {
    for workers in [1, 2] {
        let sandbox = living(workers).start().await;
        let mut client = sandbox.client().await;
        let longest = json!({"depth": workers - 1});
        assert_eq!(execute(&mut client, "descend", &longest).await.unwrap(), workers - 1);
        let error = failure(&mut client, "descend", &json!({"depth": workers})).await;
        assert!(error.contains("call of tool `descend` would wait for itself"), "{error}");
        if workers == 1 {
            let caught = execute(&mut client, "descend_safely", &json!({"depth": 0})).await.unwrap();
            assert!(caught.as_str().unwrap().starts_with("DeadlockError(False): call of tool"), "{caught}");
        }
        assert_eq!(
            execute(&mut client, "double", &json!({"x": 1})).await.unwrap(),
            2,
            "the workers are free"
        );
    }
}

#[tokio::test]
async fn a_worker_loads_each_version_of_a_program_once() {
    let sandbox = living(1).start().await;
    let mut client = sandbox.client().await;
    for (value, loads) in [(1, 1), (2, 2)] {
        execute(&mut client, "store", &json!({"value": value})).await.unwrap();
        for _ in 0..2 {
            assert_eq!(execute(&mut client, "use", &json!({})).await.unwrap(), json!([value, loads]));
        }
    }
    eventually("the worker is idle", EVENT_TIMEOUT, async || sandbox.workers().await[0].state == "idle")
        .await;
}
