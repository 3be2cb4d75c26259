//! The command line: results, tables, exit codes and error messages.

use std::time::Duration;

use serde_json::{Value, json};
use snakepit_proto::pb;
use snakepit_tests::{SHOWCASE, Sandbox, Signal, eventually, processes_with, signal};

fn json_lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test]
async fn the_commands_print_results_chunks_and_tables() {
    let sandbox = Sandbox::adapter(SHOWCASE, 2).start().await;

    assert_eq!(sandbox.cli_ok(&["call", "add", "--args", r#"{"a": 1, "b": 2}"#]).await, "3\n");
    let envelope = sandbox.cli_ok(&["call", "add", "--args", r#"{"a": 1, "b": 2}"#, "--json"]).await;
    let envelope: Value = serde_json::from_str(&envelope).unwrap();
    assert_eq!(envelope["result"], 3);
    assert!(envelope["worker"].as_str().unwrap().starts_with("default-"), "{envelope}");

    let chunks = json_lines(&sandbox.cli_ok(&["stream", "count", "--args", r#"{"n": 3}"#]).await);
    assert_eq!(chunks.len(), 3);

    let tools = json_lines(&sandbox.cli_ok(&["tools", "--json"]).await);
    let add = tools.iter().find(|tool| tool["name"] == "add").unwrap();
    assert_eq!(add["parameters"][0]["name"], "a");
    let table = sandbox.cli_ok(&["tools"]).await;
    let row = |name: &str| table.lines().find(|line| line.trim().starts_with(name)).unwrap();
    assert!(row("train_digits").contains("epochs?: integer"), "{table}");
    assert!(row("call_host").contains("arguments?: map"), "{table}");
    assert!(row("echo").contains("**") && !row("add").contains("**"), "{table}");

    let workers = json_lines(&sandbox.cli_ok(&["workers", "--json"]).await);
    assert_eq!(workers.len(), 2);
    assert!(workers.iter().all(|worker| worker["state"] == "idle"), "{workers:?}");
    let status = json_lines(&sandbox.cli_ok(&["status", "--json"]).await);
    assert_eq!((&status[0]["name"], &status[0]["queued"]), (&json!("default"), &json!(0)));
    assert_eq!(status[0]["workers"], json!(workers));
    assert!(status[0]["calls"]["succeeded"].as_u64() > Some(0), "{status:?}");
    let table = sandbox.cli_ok(&["status"]).await;
    assert!(table.contains("IN FLIGHT") && table.contains("2/2"), "{table}");

    sandbox.cli_ok(&["call", "add", "--args", r#"{"a": 1, "b": 2}"#, "--session", "alice"]).await;
    let sessions = json_lines(&sandbox.cli_ok(&["sessions", "--json"]).await);
    assert_eq!(sessions.len(), 1);
    assert_eq!(sessions[0]["session_id"], "alice");
    assert!(sessions[0]["last_worker_id"].as_str().unwrap().starts_with("default-"));
    assert!(sandbox.cli_ok(&["sessions"]).await.contains("alice"));

    assert_eq!(sandbox.stop().await, Some(0));
}

#[tokio::test]
async fn each_mistake_of_a_caller_gets_an_error_and_exit_code_and_does_not_harm_the_server() {
    let sandbox = Sandbox::adapter(SHOWCASE, 1).start().await;
    let cases: [(&[&str], i32, &[&str]); 19] = [
        (
            &["call", "ad", "--args", r#"{"a": 1}"#],
            3,
            &["`ad` not found", "did you mean `add`", "(TOOL_NOT_FOUND)"],
        ),
        (&["call", "add", "--args", r#"{"a": 1}"#], 3, &["argument `b` of tool `add` is missing"]),
        (&["call", "add", "--args", r#"{"a": "x", "b": 2}"#], 3, &["argument `a` of tool `add` is a string"]),
        (&["call", "add", "--args", r#"{"a": 1, "b": 2, "c": 3}"#], 3, &["argument `c` of tool `add`"]),
        (&["call", "add", "--args", "{a: 1}"], 2, &["--args is not a JSON object"]),
        (&["call", "add", "--args", "[1, 2]"], 2, &["--args is not a JSON object: it is a list; it looks"]),
        (&["call", "add", "--args", "null"], 2, &["--args is not a JSON object: it is null; it looks"]),
        (&["call", "fail", "--args", r#"{"message": "on purpose"}"#], 1, &["`fail` failed", "on purpose"]),
        (&["call", "sleep_for", "--args", r#"{"seconds": 5}"#, "--timeout", "200ms"], 3, &["deadline"]),
        (&["call", "add", "--server", "http://127.0.0.1:1"], 4, &["cannot reach", "snakepit serve"]),
        (&["call", "add", "--server", "127.0.0.1:1"], 4, &["cannot reach", "http://127.0.0.1:1"]),
        (&["call", "add", "--server", "https://127.0.0.1:1"], 2, &["not support TLS", "http://"]),
        (&["call", "add", "--server", "localhost"], 2, &["the port is missing", "localhost:50051"]),
        (&["call", "add", "--timeout", "5"], 2, &["`5s` are seconds"]),
        (
            &["call", "add", "1", "2"],
            2,
            &["'1'", "write NAME=1 with a name that `snakepit tools TOOL` shows"],
        ),
        (&["call", "xyzzy"], 3, &["`xyzzy` not found", "see `snakepit tools`"]),
        (&["call", "count", "--args", r#"{"n": 3}"#], 3, &["`snakepit stream count`"]),
        (&["call", "fail"], 1, &["Traceback", "in fail"]),
        (&["stream", "fail"], 1, &["`fail` failed", "Traceback", "in fail"]),
    ];
    for (args, code, needles) in cases {
        let output = sandbox.cli(args).await;
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{args:?}: {stderr}");
        assert!(output.stdout.is_empty(), "{args:?}");
        for needle in needles {
            assert!(stderr.contains(needle), "{args:?}: no {needle:?} in {stderr}");
        }
    }
    assert_eq!(sandbox.cli_ok(&["call", "add", "--args", r#"{"a": 1, "b": 2}"#]).await, "3\n");
}

#[tokio::test]
async fn json_output_shows_numbers_as_the_tool_returned_them() {
    let sandbox = Sandbox::adapter(SHOWCASE, 1).start().await;
    for number in ["18446744073709551616", "12345678901234567890123", &"9".repeat(310)] {
        let args = format!(r#"{{"value": [{number}]}}"#);
        for flags in [&[][..], &["--json"]] {
            let output = sandbox.cli_ok(&[&["call", "echo", "--args", &args], flags].concat()).await;
            assert!(output.contains(&format!("[{number}]")), "{flags:?}: {output}");
        }
    }
}

#[tokio::test]
async fn the_error_of_a_timeout_names_the_stage_and_whether_the_call_may_have_run() {
    let sandbox = Sandbox::adapter(SHOWCASE, 1).start().await;
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let sleep = ["call", "sleep_for", "--json", "--args", r#"{"seconds": 60}"#];
    for (more, may_have_run) in
        [(&["--timeout", "2s"][..], true), (&["--timeout", "50ms", "--server", &*address][..], false)]
    {
        let output = sandbox.cli(&[&sleep[..], more].concat()).await;
        assert_eq!(output.status.code(), Some(3), "{output:?}");
        let error: Value = serde_json::from_slice(&output.stderr).unwrap();
        assert_eq!(error["code"], "DEADLINE_EXCEEDED", "{error}");
        assert_eq!(error["may_have_run"], may_have_run, "{error}");
        if !may_have_run {
            let expected =
                format!("the deadline of 50ms passed while connecting to http://{address}; raise --timeout");
            assert!(error["message"].as_str().unwrap().starts_with(&expected), "{error}");
        }
    }
}

#[tokio::test]
async fn with_json_an_error_is_a_json_object() {
    let sandbox = Sandbox::adapter(SHOWCASE, 1).start().await;
    let cases: [(&[&str], i32, &str, &str); 11] = [
        (&["call", "--json"], 2, "USAGE", "required arguments were not provided"),
        (&["call", "add", "--jsn", "--json"], 2, "USAGE", "unexpected argument '--jsn'"),
        (&["call", "add", "--json", "--timeout", "5"], 2, "USAGE", "0.7s"),
        (&["call", "add", "--json", "--server", "localhost"], 2, "USAGE", "the port is missing"),
        (&["tols", "--json"], 2, "USAGE", "unrecognized subcommand 'tols'"),
        (
            &["call", "add", "--json", "--args", r#"{"a": 1, "b": 2, "a": 3}"#],
            2,
            "USAGE",
            "two values for the key `a`",
        ),
        (&["call", "xyzzy", "--json"], 3, "TOOL_NOT_FOUND", "xyzzy"),
        (&["call", "count", "--json", "--args", r#"{"n": 3}"#], 3, "UNSUPPORTED", "snakepit stream count"),
        (&["call", "add", "--json", "--args", "[]"], 2, "USAGE", "JSON object"),
        (&["tools", "--json", "--server", "127.0.0.1:1"], 4, "UNREACHABLE", "127.0.0.1:1"),
        (&["stream", "fail", "--json"], 1, "TOOL_FAILED", "asked to fail"),
    ];
    for (args, exit, code, needle) in cases {
        let output = sandbox.cli(args).await;
        assert_eq!(output.status.code(), Some(exit), "{args:?}");
        let error: Value = serde_json::from_slice(&output.stderr).unwrap();
        assert_eq!(error["code"], code, "{error}");
        assert_eq!(error["may_have_run"], code == "TOOL_FAILED", "{error}");
        assert!(!error["message"].as_str().unwrap().contains("Usage:"), "{error}");
        assert!(error["message"].as_str().unwrap().contains(needle), "{error}");
        let traceback = error["traceback"].as_str();
        assert_eq!(traceback.is_some_and(|text| text.contains("in fail")), code == "TOOL_FAILED", "{error}");
    }
}

#[tokio::test]
async fn a_call_exits_with_unreachable_if_the_server_dies() {
    let sandbox = Sandbox::adapter("misbehaving:MisbehavingAdapter", 2).start().await;
    let calls = [["call", "sleep_async"], ["stream", "sleep_async"]];
    let (call, stream, ()) = tokio::join!(sandbox.cli(&calls[0]), sandbox.cli(&calls[1]), async {
        let busy = async || sandbox.workers().await.iter().all(|worker| worker.state == "busy");
        eventually("both calls run", Duration::from_secs(10), busy).await;
        signal(sandbox.pid(), Signal::SIGKILL);
    });
    for output in [call, stream] {
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(4), "{stderr}");
        assert!(stderr.contains("connection to the server was lost"), "{stderr}");
    }
}

#[tokio::test]
async fn a_second_signal_cancels_running_calls() {
    let mut sandbox = Sandbox::adapter("misbehaving:MisbehavingAdapter", 1).start().await;
    let (call, ()) = tokio::join!(sandbox.cli(&["call", "sleep_async"]), async {
        let busy = async || sandbox.workers().await.iter().all(|worker| worker.state == "busy");
        eventually("the call runs", Duration::from_secs(10), busy).await;
        for (name, needle) in [(Signal::SIGTERM, "a second signal cuts off"), (Signal::SIGINT, "cutting off")]
        {
            signal(sandbox.pid(), name);
            let logged = async || sandbox.log().contains(needle);
            eventually(needle, Duration::from_secs(5), logged).await;
        }
    });
    assert_ne!(call.status.code(), Some(0));
    // After the first signal alone, the call would have had ten seconds.
    assert_eq!(sandbox.wait(Duration::from_secs(5)).await, Some(0));
}

#[tokio::test]
async fn a_python_without_the_package_is_named_in_the_error() {
    let dir = tempfile::tempdir().unwrap();
    let created = tokio::process::Command::new(snakepit_tests::python())
        .args(["-m", "venv", "--without-pip"])
        .arg(dir.path())
        .status();
    assert!(created.await.unwrap().success());
    let bare = dir.path().join("bin/python");
    let failure = Sandbox::adapter(SHOWCASE, 1).python(&bare).try_start().await.unwrap_err();
    assert_eq!(failure.code, Some(5), "{}", failure.stderr);
    let python = bare.display();
    for needle in [&format!("Python `{python}`, chosen by --python"), &format!("`{python} -m pip install ")] {
        assert!(failure.line().contains(needle), "no {needle:?} in {}", failure.line());
    }
}

#[tokio::test]
async fn a_failed_start_reports_its_cause_and_leaves_no_process() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken_address = taken.local_addr().unwrap().to_string();
    let root = snakepit_tests::root().display();
    let never_ready = format!("python3 {root}/tests/workers/never_ready.py");
    let exits = format!("python3 {root}/tests/workers/exits_at_once.py");
    let cases = [
        (
            // Any of the three workers may fail first.
            Sandbox::adapter("no.such.module:Adapter", 3),
            vec!["worker `default-", "` did not start", "no.such.module"],
        ),
        (
            Sandbox::adapter("broken_import:Adapter", 1),
            vec!["`default-0-1`", "broken_import", "a_module_that_does_not_exist"],
        ),
        (Sandbox::adapter("misbehaving:NoSuchClass", 1), vec!["`default-0-1`", "NoSuchClass"]),
        (Sandbox::adapter(SHOWCASE, 1).python("/no/such/python"), vec!["/no/such/python", "--python"]),
        (Sandbox::adapter(SHOWCASE, 1).listen(&taken_address), vec!["cannot listen on 127.0.0.1", "port 0"]),
        (
            Sandbox::adapter(SHOWCASE, 1).listen("no-such-host.invalid:0"),
            vec!["cannot listen on no-such-host.invalid:0"],
        ),
        (Sandbox::adapter(SHOWCASE, 1).listen("0.0.0.0:0"), vec!["listen on 0.0.0.0:0", "--allow-remote"]),
        (
            Sandbox::worker_command(&never_ready, 1).args(&["--start-timeout", "500ms"]),
            vec![
                "`default-0-1`",
                "not ready within 500ms",
                "raise --start-timeout (`start-timeout` in snakepit.toml)",
            ],
        ),
        (Sandbox::worker_command(&exits, 1), vec!["`default-0-1`", "before it was ready", "code 3"]),
        (Sandbox::worker_command("/no/such/worker", 1), vec!["/no/such/worker", "--worker-command"]),
        (
            Sandbox::adapter(SHOWCASE, 1).args(&["--stop-grace", "40000years"]),
            vec!["pool setting --stop-grace (`stop-grace` in snakepit.toml) is"],
        ),
        (
            Sandbox::adapter(SHOWCASE, 1).args(&["--sessions", "redis://127.0.0.1:1?prefx=a"]),
            vec!["--sessions", "unknown parameter `prefx`", "the parameters are prefix"],
        ),
        (
            Sandbox::adapter(SHOWCASE, 1).args(&["--sessions", "file:/no/such/directory/s.redb"]),
            vec!["--sessions", "/no/such/directory"],
        ),
    ];
    for (builder, needles) in cases {
        let options = format!("{builder:?}");
        let failure = builder.try_start().await.unwrap_err();
        assert_eq!(failure.code, Some(5), "{options}: {}", failure.stderr);
        // The debug log, which the test enables, names the worker of each failed launch.
        let warning =
            failure.stderr.lines().find(|line| line.contains(" WARN ") && line.contains("did not start"));
        assert!(warning.is_none(), "the log repeats the cause: {}", failure.stderr);
        assert!(!failure.stderr.contains("Builder::"), "{options} names a method: {}", failure.stderr);
        let line = failure.line();
        for needle in needles {
            assert!(line.contains(needle), "{options}: no {needle:?} in {line}\n{}", failure.stderr);
        }
    }
    drop(taken);
    let running: Vec<_> = ["never_ready.py", "no.such.module"].into_iter().flat_map(processes_with).collect();
    assert!(running.is_empty(), "still running: {running:?}");
}

#[tokio::test]
async fn an_import_error_in_the_adapter_is_shown_with_its_line() {
    let failure = Sandbox::adapter("broken_import:Adapter", 1).try_start().await.unwrap_err();
    assert!(failure.stderr.contains("broken_import.py\", line 3"), "{}", failure.stderr);
}

#[tokio::test]
async fn invalid_options_exit_with_usage_errors() {
    let cases = [
        (Sandbox::adapter(SHOWCASE, 1).listen("localhost"), "HOST:PORT"),
        (
            Sandbox::adapter(SHOWCASE, 1).env("SNAKEPIT_LOG", "info,snakepit=loud"),
            "SNAKEPIT_LOG is malformed",
        ),
        (Sandbox::worker_command("", 1), "--worker-command is empty"),
        (
            Sandbox::adapter(SHOWCASE, 1).args(&["--sessions", "redsi://:secret@host"]),
            "the location `redsi://***@host` of --sessions cannot be used: it is `memory`",
        ),
        (
            Sandbox::adapter(SHOWCASE, 1).args(&["--sessions", "rediss://:secret@host"]),
            "the location `rediss://***@host` of --sessions cannot be used: TLS is not supported; give `redis://` and the address of a TLS",
        ),
        (
            Sandbox::adapter(SHOWCASE, 1).config("max-sesions = 3"),
            "snakepit.toml:1: unknown key `max-sesions`",
        ),
        (
            Sandbox::adapter(SHOWCASE, 1).args(&["--config", "other.toml"]),
            "cannot read the configuration other.toml",
        ),
    ];
    for (builder, needle) in cases {
        let failure = builder.try_start().await.unwrap_err();
        assert_eq!(failure.code, Some(2), "{}", failure.stderr);
        assert!(failure.stderr.contains(needle), "no {needle:?} in {}", failure.stderr);
        assert!(!failure.stderr.contains("secret"), "{}", failure.stderr);
    }
}

#[tokio::test]
async fn with_json_a_failed_start_ends_the_log_with_a_json_object() {
    let serve = || Sandbox::adapter(SHOWCASE, 1).args(&["--json"]);
    let cases = [
        (serve().python("/no/such/python"), 5, "CANNOT_START", "/no/such/python"),
        (Sandbox::adapter("broken_import:A", 1).args(&["--json"]), 5, "CANNOT_START", "broken_import"),
        (serve().listen("localhost"), 2, "USAGE", "HOST:PORT"),
        (serve().args(&["--drian", "1s"]), 2, "USAGE", "unexpected argument '--drian'"),
        (serve().env("SNAKEPIT_LOG", "info,snakepit=loud"), 2, "USAGE", "SNAKEPIT_LOG is malformed"),
        (serve().env("SNAKEPIT_DRAIN", "soon"), 2, "USAGE", "SNAKEPIT_DRAIN cannot be used"),
        (serve().env("TOKIO_WORKER_THREADS", "many"), 2, "USAGE", "it takes a number from 1 to 1024"),
        (serve().config("max-sesions = 3"), 2, "USAGE", "snakepit.toml:1: unknown key `max-sesions`"),
        // `json` is not a key, because it determines how errors of the file itself are printed.
        (serve().config("json = true"), 2, "USAGE", "snakepit.toml:1: unknown key `json`"),
    ];
    for (builder, exit, code, needle) in cases {
        let failure = builder.try_start().await.unwrap_err();
        assert_eq!(failure.code, Some(exit), "{}", failure.stderr);
        let last = failure.stderr.lines().last().unwrap_or_default();
        let error: Value =
            serde_json::from_str(last).unwrap_or_else(|error| panic!("{error}: {}", failure.stderr));
        assert_eq!((&error["code"], &error["may_have_run"]), (&code.into(), &false.into()), "{error}");
        assert!(error["message"].as_str().unwrap().contains(needle), "no {needle:?} in {error}");
        assert_eq!(error["traceback"].is_string(), needle == "broken_import", "{error}");
    }
    assert_eq!(serve().start().await.stop().await, Some(0));
}

#[tokio::test]
async fn the_configuration_file_sets_options_that_flags_and_environment_do_not_set() {
    let config = r#"
        sessions = "file:sessions.redb"
        max-value-bytes = "1KiB"
        workers = 7
        max-variables = 5
    "#;
    let mut sandbox =
        Sandbox::adapter(SHOWCASE, 1).config(config).env("SNAKEPIT_MAX_VARIABLES", "1").start().await;
    assert_eq!(sandbox.workers().await.len(), 1, "the flag overrides the file");
    let mut client = sandbox.client().await;
    let request = pb::InitializeSessionRequest { session_id: "alice".into(), ..Default::default() };
    client.initialize_session(request).await.unwrap();
    let note = |text: &str| pb::RegisterVariableRequest {
        session_id: "alice".into(),
        name: "note".into(),
        r#type: "string".into(),
        initial_value: Some(pb::Any {
            type_url: "type.googleapis.com/snakepit.string".into(),
            value: json!(text).to_string().into(),
        }),
        constraints_json: r#"{"min_length": 2}"#.into(),
        ..Default::default()
    };
    let rejected = client.register_variable(note(&"a".repeat(1025))).await.unwrap_err();
    let advice = "above the limit of 1024; raise --max-value-bytes (`max-value-bytes` in snakepit.toml)";
    assert!(
        rejected.message().contains(advice) && !rejected.message().contains("SessionLimits"),
        "{rejected}"
    );
    client.register_variable(note("kept in the file")).await.unwrap();
    let another = pb::RegisterVariableRequest { name: "another".into(), ..note("one too many") };
    let rejected = client.register_variable(another).await.unwrap_err();
    assert!(
        rejected.message().contains("limit of 1 variables in session"),
        "the environment overrides the file: {rejected}"
    );
    signal(sandbox.pid(), Signal::SIGKILL);
    sandbox.wait(Duration::from_secs(20)).await;

    let sandbox = Sandbox::adapter(SHOWCASE, 1).after(sandbox).start().await;
    let table = sandbox.cli_ok(&["variables", "alice"]).await;
    assert!(table.contains(r#""kept in the file""#) && table.contains("min_length"), "{table}");
    let rows = json_lines(&sandbox.cli_ok(&["variables", "alice", "no*", "--json"]).await);
    assert_eq!((rows.len(), &rows[0]["name"], &rows[0]["version"]), (1, &json!("note"), &json!(0)));
    assert_eq!(rows[0]["value"], "kept in the file");
    assert_eq!(sandbox.cli_ok(&["variables", "alice", "other*", "--json"]).await, "");
    let missing = sandbox.cli(&["variables", "bob"]).await;
    assert_eq!(missing.status.code(), Some(3), "{missing:?}");
    assert_eq!(sandbox.stop().await, Some(0));
}

#[tokio::test]
async fn host_names_and_very_long_timeouts_are_accepted() {
    let endless = ["--default-timeout", "40000years", "--start-timeout", "40000years"];
    let sandbox = Sandbox::adapter(SHOWCASE, 1).listen("localhost:0").args(&endless).start().await;
    let call = ["call", "add", "--args", r#"{"a": 1, "b": 2}"#];
    assert_eq!(sandbox.cli_ok(&call).await, "3\n");
    assert_eq!(sandbox.cli_ok(&[&call[..], &["--timeout", "99999999999h"]].concat()).await, "3\n");
}

#[tokio::test]
async fn a_closed_stdout_has_its_own_exit_code() {
    let sandbox = Sandbox::adapter(SHOWCASE, 1).start().await;
    sandbox.cli_ok(&["call", "add", "--args", r#"{"a": 1, "b": 2}"#, "--session", "s"]).await;
    let commands: [&[&str]; 6] = [
        &["tools", "--json"],
        &["tools"],
        &["workers", "--json"],
        &["sessions"],
        &["call", "whoami"],
        &["stream", "count", "--args", r#"{"n": 3}"#],
    ];
    for args in commands {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = sandbox.cli_into(writer, args).await;
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), stderr.as_str()), (Some(6), ""), "{args:?}");
        for redirection in [">&-", ">/dev/full"] {
            let (code, stderr) = redirected(&sandbox, redirection, args).await;
            assert_eq!(code, Some(6), "{redirection} {args:?}: {stderr}");
            assert!(stderr.contains("cannot write to stdout: "), "{args:?}: {stderr}");
        }
    }
    let local: [&[&str]; 5] = [&["--help"], &["--version"], &["call", "--help"], &["stubs"], &["doctor"]];
    for args in local {
        assert_eq!(redirected(&sandbox, ">&-", args).await.0, Some(6), "{args:?}");
    }
    // The tool does not run if its result cannot be printed.
    let (_, stderr) = redirected(&sandbox, ">&-", &["call", "whoami", "--json"]).await;
    let error: Value = serde_json::from_str(&stderr).unwrap();
    assert_eq!((&error["code"], &error["may_have_run"]), (&json!("OUTPUT_FAILED"), &json!(false)), "{error}");
}

/// Runs a command with a redirection of the shell. Returns its exit code and its stderr.
async fn redirected(sandbox: &Sandbox, redirection: &str, args: &[&str]) -> (Option<i32>, String) {
    let mut shell = tokio::process::Command::new("/bin/sh");
    shell.args(["-c", &format!("exec \"$0\" \"$@\" {redirection}")]).arg(snakepit_tests::daemon_binary());
    shell.args(args).env("SNAKEPIT_SERVER", sandbox.url()).env("SNAKEPIT_PYTHON", snakepit_tests::python());
    let output = shell.stdin(std::process::Stdio::null()).kill_on_drop(true).output().await.unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[tokio::test]
async fn a_stream_of_a_failing_tool_ends_with_the_error() {
    let sandbox = Sandbox::adapter("misbehaving:MisbehavingAdapter", 1).start().await;
    let output = sandbox.cli(&["stream", "fail_midway", "--args", &json!({"after": 2}).to_string()]).await;
    assert_eq!(String::from_utf8(output.stdout).unwrap().lines().count(), 2);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stderr).unwrap().contains("midway"));
    // The help text refers to the log for failures.
    let logged = async || sandbox.log().contains("call failed");
    eventually("the failure is logged", Duration::from_secs(5), logged).await;
}
