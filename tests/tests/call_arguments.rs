//! `snakepit call` and `snakepit stream`: arguments by name, from files and from standard input, and results in files.

use std::{path::Path, process::Stdio};

use serde_json::{Value, json};
use snakepit_tests::{EVENT_TIMEOUT, Sandbox, Signal, daemon_binary, eventually, python, signal};
use tokio::{io::AsyncWriteExt, process::Command};

fn sandbox() -> snakepit_tests::SandboxBuilder {
    Sandbox::adapter("typed_arguments.py", 1).working_dir(snakepit_tests::root().join("tests/adapters"))
}

/// Writes a file and returns `NAME=@FILE`, or `NAME:=@FILE` for the name `NAME:`.
fn file(dir: &Path, name: &str, file: &str, content: &[u8]) -> String {
    let path = dir.join(file);
    std::fs::write(&path, content).unwrap();
    format!("{name}=@{}", path.display())
}

/// Runs a command with this text as its standard input.
async fn with_stdin(sandbox: &Sandbox, stdin: &[u8], args: &[&str]) -> std::process::Output {
    let mut command = Command::new(daemon_binary());
    command.args(args).env("SNAKEPIT_SERVER", sandbox.url()).kill_on_drop(true);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(stdin).await.unwrap();
    child.wait_with_output().await.unwrap()
}

#[tokio::test]
async fn the_types_of_the_tool_decide_about_texts() {
    let sandbox = sandbox().start().await;
    let kinds = async |words: &[&str]| -> Vec<String> {
        let printed = sandbox.cli_ok(&[&["call", "kinds"], words].concat()).await;
        serde_json::from_str(&printed).unwrap()
    };
    let words = ["count=5", "rate=5", "on=true", "note=5", "level=2", "limit=7", "anything=5"];
    assert_eq!(kinds(&words).await, ["5", "5.0", "True", "'5'", "2", "7", "'5'"]);
    let words = ["count:=5", "rate=-inf", "note=true", "limit=null", "anything:=[5, null]"];
    assert_eq!(kinds(&words).await, ["5", "-inf", "False", "'true'", "1", "None", "[5, None]"]);
    assert_eq!(kinds(&["count=6", "--args", r#"{"note": "x"}"#]).await[..4], ["6", "0.0", "False", "'x'"]);
    assert_eq!(kinds(&["note=a b=c:=d"]).await[3], "'a b=c:=d'");
}

#[tokio::test]
async fn files_and_standard_input_are_arguments() {
    let (sandbox, dir) = (sandbox().start().await, tempfile::tempdir().unwrap());
    let at = |name: &str| dir.path().join(name).display().to_string();
    let data = file(dir.path(), "data", "in.bin", b"\x00\xffabc");
    let (out, array_out) = (at("out.bin"), at("out.npy"));
    assert_eq!(sandbox.cli_ok(&["call", "reverse", &data, "--output", &out]).await, "");
    assert_eq!(std::fs::read(&out).unwrap(), b"cba\xff\x00");
    let raw = sandbox.cli(&["call", "reverse", &data, "-o", "-"]).await;
    assert_eq!(raw.stdout, b"cba\xff\x00");
    assert_eq!(sandbox.cli_ok(&["call", "reverse", &data]).await, "<5 bytes; --output FILE saves it>\n");
    let exact: Value =
        serde_json::from_str(&sandbox.cli_ok(&["call", "reverse", &data, "--json"]).await).unwrap();
    assert_eq!(exact["result"]["data"], "Y2Jh/wA=", "{exact}");

    // numpy writes and reads the files.
    let numpy = async |code: &str| {
        let output = Command::new(python()).args(["-c", code]).output().await.unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let array = at("in.npy");
    numpy(&format!("import numpy; numpy.save({array:?}, numpy.arange(6, dtype='int16').reshape(2, 3))"))
        .await;
    let argument = format!("array=@{array}");
    sandbox.cli_ok(&["call", "double", &argument, "--output", &array_out]).await;
    let read =
        numpy(&format!("import numpy; a = numpy.load({array_out:?}); print(a.dtype, a.tolist())")).await;
    assert_eq!(read, "int16 [[0, 2, 4], [6, 8, 10]]\n");
    let described = sandbox.cli_ok(&["call", "double", &argument]).await;
    assert_eq!(described, "<array of int16, shape (2, 3), 12 bytes; --output FILE saves it>\n");

    let nested: Value = serde_json::from_str(&sandbox.cli_ok(&["call", "report", &data]).await).unwrap();
    let expected =
        json!({"name": "a", "data": "<5 bytes>", "sums": ["<array of float32, shape (3), 12 bytes>"]});
    assert_eq!(nested, expected);
    let items = file(dir.path(), "items:", "items.json", b"[1, 2, 3]\n");
    let json_out = at("total.json");
    sandbox.cli_ok(&["call", "total", &items, "--output", &json_out]).await;
    assert_eq!(std::fs::read_to_string(&json_out).unwrap(), "6\n");

    for (args, stdin, expected) in [
        (&["call", "total", "items:=@-"][..], "[4, 5]", "9\n"),
        (&["call", "total", "--args", "-"], r#"{"items": [1]}"#, "1\n"),
        (&["call", "reverse", "data=@-", "--output", "-"], "abc", "cba"),
    ] {
        let output = with_stdin(&sandbox, stdin.as_bytes(), args).await;
        assert_eq!(String::from_utf8(output.stdout).unwrap(), expected, "{args:?}");
    }
    let whole = dir.path().join("whole.json");
    std::fs::write(&whole, r#"{"items": [8]}"#).unwrap();
    let whole = format!("@{}", whole.display());
    assert_eq!(sandbox.cli_ok(&["call", "total", "--args", &whole]).await, "8\n");
}

#[tokio::test]
async fn streams_of_bytes_are_written_one_after_the_other() {
    let (sandbox, dir) = (sandbox().start().await, tempfile::tempdir().unwrap());
    let data = file(dir.path(), "data", "in.bin", b"\x00\xffabc");
    let out = dir.path().join("out.bin").display().to_string();
    assert_eq!(sandbox.cli_ok(&["stream", "parts", &data, "size=2", "--output", &out]).await, "");
    assert_eq!(std::fs::read(&out).unwrap(), b"\x00\xffabc");
    // The mode with reports uses another stream.
    sandbox.cli_ok(&["stream", "parts", &data, "size=3", "--output", &out, "--progress"]).await;
    assert_eq!(std::fs::read(&out).unwrap(), b"\x00\xffabc");
    let printed = sandbox.cli_ok(&["stream", "parts", &data, "size=4"]).await;
    assert_eq!(printed, "<4 bytes; --output FILE saves it>\n<1 byte; --output FILE saves it>\n");
}

#[tokio::test]
async fn a_full_disk_keeps_the_old_file() {
    let (sandbox, dir) = (sandbox().start().await, tempfile::tempdir().unwrap());
    let data = file(dir.path(), "data", "in.bin", &[b'x'; 5000]);
    let out = dir.path().join("out.bin");
    std::fs::write(&out, "old").unwrap();
    for command in [&["call", "reverse"][..], &["stream", "parts", "size=100"]] {
        // The largest size of a file stands for a full disk.
        let mut shell = Command::new("/bin/sh");
        shell
            .args(["-c", "trap '' XFSZ; ulimit -f 1; exec \"$0\" \"$@\""])
            .arg(daemon_binary())
            .args(command);
        shell.args([&data, "--output"]).arg(&out).env("SNAKEPIT_SERVER", sandbox.url());
        let output = shell.stdin(Stdio::null()).kill_on_drop(true).output().await.unwrap();
        assert_eq!(output.status.code(), Some(6), "{output:?}");
        assert!(
            String::from_utf8_lossy(&output.stderr).contains("cannot write the result to "),
            "{output:?}"
        );
        assert_eq!(std::fs::read(&out).unwrap(), b"old");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2, "no temporary file is left");
    }
}

#[tokio::test]
async fn an_interrupted_stream_keeps_the_old_file() {
    let dir = tempfile::tempdir().unwrap();
    let code = "import time\nfrom collections.abc import Iterator\n\ndef forever() -> Iterator[bytes]:\n    while True:\n        yield b'x'\n        time.sleep(0.01)\n";
    std::fs::write(dir.path().join("app.py"), code).unwrap();
    let sandbox = Sandbox::adapter("app.py", 1).working_dir(dir.path()).start().await;
    let files = tempfile::tempdir().unwrap();
    let out = files.path().join("out.bin");
    std::fs::write(&out, "old").unwrap();
    let count = || std::fs::read_dir(files.path()).unwrap().count();
    for stop in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        let mut command = Command::new(daemon_binary());
        command.args(["stream", "forever", "--output"]).arg(&out).env("SNAKEPIT_SERVER", sandbox.url());
        let child = command.stdin(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
        eventually("the temporary file exists", EVENT_TIMEOUT, async || count() == 2).await;
        signal(child.id().unwrap(), stop);
        let output = child.wait_with_output().await.unwrap();
        assert_eq!(output.status.code(), Some(3), "{output:?}");
        let expected = format!("stopped by {stop} before the result was complete");
        assert!(String::from_utf8_lossy(&output.stderr).contains(&expected), "{output:?}");
        assert_eq!((std::fs::read(&out).unwrap(), count()), (b"old".to_vec(), 1));
    }
}

#[tokio::test]
async fn a_signal_during_the_write_of_a_result_leaves_no_temporary_file() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("app.py"), "def large() -> bytes:\n    return bytes(80_000_000)\n")
        .unwrap();
    let sandbox = Sandbox::adapter("app.py", 1).working_dir(dir.path()).start().await;
    let files = tempfile::tempdir().unwrap();
    let out = files.path().join("out.bin");
    let mut command = Command::new(daemon_binary());
    command.args(["call", "large", "--output"]).arg(&out).env("SNAKEPIT_SERVER", sandbox.url());
    let mut child = command.stdin(Stdio::null()).kill_on_drop(true).spawn().unwrap();
    let count = || std::fs::read_dir(files.path()).unwrap().count();
    eventually("the write has begun", EVENT_TIMEOUT, async || count() == 1).await;
    signal(child.id().unwrap(), Signal::SIGHUP);
    assert_eq!(child.wait().await.unwrap().code(), Some(0));
    assert_eq!((std::fs::metadata(&out).unwrap().len(), count()), (80_000_000, 1));
}

#[tokio::test]
async fn mistakes_in_arguments_are_reported_with_their_names() {
    let (sandbox, dir) = (sandbox().start().await, tempfile::tempdir().unwrap());
    let binary = file(dir.path(), "note", "in.bin", b"\xff");
    let missing_parent = dir.path().join("no/out").display().to_string();
    let directory = dir.path().display().to_string();
    let directory_argument = format!("data=@{directory}");
    let cases: [(&[&str], i32, &str); 12] = [
        (&["call", "kinds", "count=five"], 2, "the argument `count` takes an integer, not `five`"),
        (&["call", "kinds", "on=yes"], 2, "the argument `on` takes true or false, not `yes`"),
        (&["call", "kinds", "count=1.5"], 3, "argument `count` of tool `kinds`"),
        (&["call", "kinds", "cuont=1"], 3, "did you mean `count`"),
        (&["call", "kinds", &binary], 2, "the argument `note` takes a string, and"),
        (&["call", "total", "items=1"], 2, "write `items:=JSON`"),
        (&["call", "total", "5"], 2, "NAME=TEXT, NAME:=JSON"),
        (&["call", "reverse", "data=@/nowhere/x"], 2, "the argument `data` cannot be read from /nowhere/x"),
        (&["call", "reverse", &directory_argument], 2, "it is a directory"),
        (&["call", "reverse", "data=@-", "--args", "-"], 2, "standard input can be read only once"),
        (&["call", "reverse", "data=x", "--output", &missing_parent], 2, "does not exist"),
        (&["call", "reverse", "data=x", "--output", &directory], 2, "it is a directory"),
    ];
    for (args, code, needle) in cases {
        let output = sandbox.cli(args).await;
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{args:?}: {stderr}");
        assert!(stderr.contains(needle), "{args:?}: {stderr}");
    }
    // An unknown tool is reported by the server, although its types are unknown.
    let output = sandbox.cli(&["call", "revers", "data=x"]).await;
    assert!(String::from_utf8_lossy(&output.stderr).contains("did you mean `reverse`"), "{output:?}");
}
