//! `snakepit dev`: the reload of changed code, and the debugger.

use std::{
    io::{Read, Write},
    path::Path,
    process::Stdio,
    sync::{Arc, Mutex},
    time::Duration,
};

use nix::pty::openpty;
use serde_json::Value;
use snakepit_tests::{
    EVENT_TIMEOUT, Sandbox, Signal, daemon_binary, eventually, is_alive, processes_with, python, signal,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader},
    process::{Child, Command},
};

/// A running `snakepit dev`. Dropping it kills the process, and its workers end with it.
struct Dev {
    child: Child,
    address: String,
    /// Everything on stderr, and on stdout after the ready line.
    output: Arc<Mutex<String>>,
}

fn command(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(daemon_binary());
    command.arg("dev").args(args).args(["--listen", "127.0.0.1:0", "--run-dir", "run"]);
    command.arg("--python").arg(python()).current_dir(dir).stdin(Stdio::piped());
    command.env_remove("SNAKEPIT_LOG").kill_on_drop(true);
    command
}

/// Appends everything that a stream has to `output`.
fn collect(mut stream: impl AsyncRead + Unpin + Send + 'static, output: &Arc<Mutex<String>>) {
    let output = Arc::clone(output);
    tokio::spawn(async move {
        let mut block = [0; 4096];
        while let Ok(count @ 1..) = stream.read(&mut block).await {
            output.lock().unwrap().push_str(&String::from_utf8_lossy(&block[..count]));
        }
    });
}

impl Dev {
    async fn start(dir: &Path, args: &[&str]) -> Self {
        let mut child = command(dir, args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let output = Arc::default();
        collect(child.stderr.take().unwrap(), &output);
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        let read = tokio::time::timeout(Duration::from_secs(60), stdout.read_line(&mut line)).await;
        assert!(read.unwrap().unwrap() > 0, "it ended: {}", output.lock().unwrap());
        let ready: Value = serde_json::from_str(&line).unwrap();
        collect(stdout, &output);
        Self { child, address: ready["grpc"].as_str().unwrap().to_owned(), output }
    }

    /// Waits until the output contains a string, and returns the output up to its end. The rest remains for the next call.
    async fn wait_for(&self, needle: &str) -> String {
        let found = || async { self.output.lock().unwrap().contains(needle) };
        let timeout = tokio::time::timeout(EVENT_TIMEOUT * 2, async {
            eventually(needle, EVENT_TIMEOUT, found).await;
        });
        assert!(timeout.await.is_ok());
        let mut output = self.output.lock().unwrap();
        let end = output.find(needle).unwrap() + needle.len();
        output.drain(..end).collect()
    }

    async fn call(&self, tool: &str) -> std::process::Output {
        Sandbox::cli_at(&self.address, &["call", tool]).await
    }

    /// Sends SIGINT, as Ctrl-C does, and checks that every process ends.
    async fn interrupt(mut self, dir: &Path) {
        signal(self.child.id().unwrap(), Signal::SIGINT);
        let ended = tokio::time::timeout(Duration::from_secs(20), self.child.wait()).await;
        assert_eq!(ended.expect("it did not end").unwrap().code(), Some(0));
        let run_dir = dir.join("run").canonicalize().unwrap().display().to_string();
        assert_eq!(processes_with(&run_dir), [0_u32; 0], "workers are left");
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("---- output\n{}", self.output.lock().unwrap());
        }
    }
}

fn write(dir: &Path, file: &str, code: &str) {
    std::fs::write(dir.join(file), code).unwrap();
}

#[tokio::test]
async fn changed_code_is_reloaded_and_broken_code_is_reported() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    write(dir, "app.py", "import helper\n\ndef answer() -> int:\n    return helper.VALUE\n");
    write(dir, "helper.py", "VALUE = 1\n");
    let dev = Dev::start(dir, &[]).await;
    dev.wait_for("serving 1 tool of app.py on http://127.0.0.1:").await;
    assert_eq!(dev.call("answer").await.stdout, b"1\n");
    dev.wait_for("call answer  ok").await;

    // The size and, in seconds, the time of the file stay the same.
    write(dir, "helper.py", "VALUE = 2\n");
    dev.wait_for("helper.py changed").await;
    dev.wait_for("reloaded in").await;
    assert_eq!(dev.call("answer").await.stdout, b"2\n");

    let more = "import helper\n\ndef answer(plus: int = 0) -> int:\n    return helper.VALUE + plus\n\ndef fail():\n    raise KeyError('x')\n";
    write(dir, "app.py", more);
    dev.wait_for("  added    fail()").await;
    dev.wait_for("  changed  answer() -> answer(plus?: integer)").await;

    write(dir, "app.py", "def answer(:\n");
    let before = dev.wait_for("the old code keeps serving: ").await;
    assert!(!before.contains("SyntaxError"), "the error appears twice: {before}");
    dev.wait_for("SyntaxError: ").await;
    assert_eq!(dev.call("answer").await.stdout, b"2\n");
    assert_eq!(dev.call("fail").await.status.code(), Some(1));
    dev.wait_for("call fail  failed").await;
    let traceback = dev.wait_for("KeyError").await;
    assert!(traceback.contains("Traceback"), "{traceback}");

    write(dir, "app.py", "\n\ndef other(a: 'Missing') -> None:\n    pass\n");
    let line = dev.wait_for("/app.py:3)").await;
    assert!(line.contains("parameter `a` of tool `other`"), "{line}");
    write(dir, "app.py", "def other() -> None:\n    pass\n");
    let after = dev.wait_for("  removed  answer").await;
    assert!(!after.contains("snakepit_bridge"), "frames of the runtime: {after}");
    dev.interrupt(dir).await;
}

#[tokio::test]
async fn a_start_with_broken_code_waits_for_a_change() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    write(dir, "snakepit.toml", "adapter = 'tools.py'\n");
    write(dir, "tools.py", "def answer() -> int:\n    return VALUE\n\nVALUE = 1 / 0\n");
    let mut child = command(dir, &[]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let output = Arc::default();
    collect(child.stderr.take().unwrap(), &output);
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let dev = Dev { child, address: String::new(), output };
    dev.wait_for("ZeroDivisionError").await;
    dev.wait_for("waiting for a change of the code").await;
    write(dir, "tools.py", "def answer() -> int:\n    return VALUE\n\nVALUE = 1\n");
    dev.wait_for("serving 1 tool of tools.py").await;
    let mut line = String::new();
    stdout.read_line(&mut line).await.unwrap();
    assert!(line.contains("\"grpc\""), "{line}");
    dev.interrupt(dir).await;
}

#[tokio::test]
async fn a_failure_that_no_change_of_the_code_repairs_ends_the_command() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "app.py", "def answer() -> int:\n    return 1\n");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let mut command = Command::new(daemon_binary());
    command.args(["dev", "--listen", &address, "--run-dir", "run", "--python"]).arg(python());
    command.current_dir(dir.path()).stdin(Stdio::null()).kill_on_drop(true);
    let ended = tokio::time::timeout(EVENT_TIMEOUT * 2, command.output()).await;
    let output = ended.expect("it waited for a change of the code").unwrap();
    assert_eq!(output.status.code(), Some(5), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("cannot listen on"), "{output:?}");
}

#[tokio::test]
async fn a_directory_a_package_or_a_file_can_be_named() {
    let dir = tempfile::tempdir().unwrap();
    let project = dir.path().join("project");
    std::fs::create_dir_all(project.join("shop")).unwrap();
    write(&project, "shop/__init__.py", "from .prices import price\n__all__ = ['price']\n");
    write(&project, "shop/prices.py", "def price() -> int:\n    return 3\n");
    for (path, name) in [
        ("project", "shop:"),
        ("project/shop", "shop:"),
        ("project/shop/prices.py", "project/shop/prices.py"),
    ] {
        let dev = Dev::start(dir.path(), &[path]).await;
        dev.wait_for(&format!("serving 1 tool of {name}")).await;
        assert_eq!(dev.call("price").await.stdout, b"3\n", "{path}");
        let run_dir = if path.ends_with(".py") { dir.path() } else { &*project };
        dev.interrupt(run_dir).await;
    }
    std::fs::create_dir(dir.path().join("empty")).unwrap();
    let output = command(dir.path(), &["empty"]).output().await.unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("there is no Python file in") && stderr.contains("snakepit new"), "{stderr}");
}

/// The adapter of the debugger's tests.
const DEBUGGED: &str = "def double(n: int = 21) -> int:\n    result = n * 2\n    breakpoint()\n    print('printed', result)\n    return result\n\ndef ask() -> str:\n    return input('name? ')\n";

/// A `snakepit dev` on a terminal.
struct OnTerminal {
    dev: Dev,
    keyboard: std::fs::File,
}

impl OnTerminal {
    async fn start(dir: &Path, args: &[&str]) -> Self {
        let pty = openpty(None, None).unwrap();
        let (slave, keyboard) = (std::fs::File::from(pty.slave), std::fs::File::from(pty.master));
        let mut command = command(dir, args);
        command
            .stdin(slave.try_clone().unwrap())
            .stdout(slave.try_clone().unwrap())
            .stderr(slave.try_clone().unwrap());
        let child = command.spawn().unwrap();
        drop((command, slave));
        let output = Arc::<Mutex<String>>::default();
        let (mut reader, collected) = (keyboard.try_clone().unwrap(), Arc::clone(&output));
        std::thread::spawn(move || {
            let mut block = [0; 4096];
            while let Ok(count @ 1..) = reader.read(&mut block) {
                collected.lock().unwrap().push_str(&String::from_utf8_lossy(&block[..count]));
            }
        });
        let mut dev = Dev { child, address: String::new(), output };
        dev.wait_for("serving 2 tools of app.py on ").await;
        dev.address = dev.wait_for(";").await.trim_end_matches(';').to_owned();
        Self { dev, keyboard }
    }

    /// Waits for a prompt, and types text.
    async fn answer(&mut self, prompt: &str, text: &str) -> String {
        let before = self.dev.wait_for(prompt).await;
        self.keyboard.write_all(text.as_bytes()).unwrap();
        before
    }

    /// Starts a call. Returns a task, so that the test can answer its prompts.
    fn call(&self, tool: &'static str) -> tokio::task::JoinHandle<std::process::Output> {
        let address = self.dev.address.clone();
        tokio::spawn(async move { Sandbox::cli_at(&address, &["call", tool]).await })
    }
}

#[tokio::test]
async fn a_breakpoint_stops_in_a_terminal() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    write(dir, "app.py", DEBUGGED);
    let mut terminal = OnTerminal::start(dir, &["--debug"]).await;
    let call = terminal.call("double");
    terminal.answer("(Pdb) ", "p result + 1000\n").await;
    terminal.dev.wait_for("1042").await;
    terminal.answer("(Pdb) ", "c\n").await;
    terminal.dev.wait_for("printed 42").await;
    let called = call.await.unwrap();
    assert_eq!(called.stdout, b"42\n", "{called:?}");
    let call = terminal.call("ask");
    let before = terminal.answer("name? ", "Ada\n").await;
    assert!(!before.contains("SIGINT"), "a warning about the debugger: {before}");
    let called = call.await.unwrap();
    assert_eq!(called.stdout, b"\"Ada\"\n", "{called:?}");
    terminal.dev.interrupt(dir).await;
}

#[tokio::test]
async fn ctrl_d_ends_a_prompt_and_the_next_one_works() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    write(dir, "app.py", DEBUGGED);
    let mut terminal = OnTerminal::start(dir, &["--debug"]).await;
    for (tool, prompt, error) in [("ask", "name? ", "EOFError"), ("double", "(Pdb) ", "BdbQuit")] {
        let call = terminal.call(tool);
        terminal.answer(prompt, "\x04").await;
        let called = call.await.unwrap();
        assert_eq!(called.status.code(), Some(1), "{called:?}");
        assert!(String::from_utf8_lossy(&called.stderr).contains(error), "{called:?}");
        terminal.dev.wait_for(&format!("call {tool}  failed")).await;
    }
    let call = terminal.call("ask");
    terminal.answer("name? ", "Ada\n").await;
    assert_eq!(call.await.unwrap().stdout, b"\"Ada\"\n");
    terminal.dev.interrupt(dir).await;
}

#[tokio::test]
async fn the_end_of_standard_input_ends_all_prompts() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    write(dir, "app.py", DEBUGGED);
    let mut dev = Dev::start(dir, &["--debug"]).await;
    let mut stdin = dev.child.stdin.take().unwrap();
    stdin.write_all(b"Ada\n").await.unwrap();
    drop(stdin);
    assert_eq!(dev.call("ask").await.stdout, b"\"Ada\"\n");
    for (tool, error) in [("ask", "EOFError"), ("double", "BdbQuit"), ("ask", "EOFError")] {
        let called = dev.call(tool).await;
        assert_eq!(called.status.code(), Some(1), "{called:?}");
        assert!(String::from_utf8_lossy(&called.stderr).contains(error), "{called:?}");
    }
    dev.interrupt(dir).await;
}

#[tokio::test]
async fn the_last_output_of_a_debugged_worker_is_shown() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let hook = "def process_exit():\n    for n in range(2000):\n        print('closing', n)\n";
    write(dir, "app.py", &format!("{DEBUGGED}\n{hook}"));
    let dev = Dev::start(dir, &["--debug"]).await;
    dev.wait_for("serving 2 tools").await;
    let output = Arc::clone(&dev.output);
    dev.interrupt(dir).await;
    let has_ended = async || output.lock().unwrap().contains("closing 1999\n");
    eventually("the worker has printed", EVENT_TIMEOUT, has_ended).await;
}

#[tokio::test]
async fn without_debug_the_errors_of_prompts_name_the_option() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    write(dir, "app.py", DEBUGGED);
    let dev = Dev::start(dir, &[]).await;
    for tool in ["ask", "double"] {
        let called = dev.call(tool).await;
        assert_eq!(called.status.code(), Some(1), "{called:?}");
        assert!(String::from_utf8_lossy(&called.stderr).contains("`snakepit dev --debug`"), "{called:?}");
        let before = dev.wait_for("`snakepit dev --debug`").await;
        assert!(!before.contains("SIGINT"), "a warning about the debugger: {before}");
    }
    dev.interrupt(dir).await;
}

#[tokio::test]
async fn output_continues_beside_input_that_no_worker_reads() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let code =
        "def flood() -> str:\n    for n in range(20000):\n        print('line', n)\n    return input()\n";
    write(dir, "app.py", code);
    let mut dev = Dev::start(dir, &["--debug"]).await;
    let mut stdin = dev.child.stdin.take().unwrap();
    let typing = tokio::spawn(async move {
        let line = format!("{}\n", "x".repeat(1023));
        for _ in 0..4096 {
            if stdin.write_all(line.as_bytes()).await.is_err() {
                break;
            }
        }
    });
    let called = dev.call("flood").await;
    assert_eq!(called.stdout.len(), 1023 + 3, "{called:?}");
    dev.wait_for("line 19999").await;
    assert!(!typing.is_finished(), "no worker reads the rest of the input");
    dev.interrupt(dir).await;
}

#[tokio::test]
async fn input_stays_with_the_stopped_call_after_a_reload() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    write(dir, "app.py", DEBUGGED);
    let mut terminal = OnTerminal::start(dir, &["--debug"]).await;
    let stopped = terminal.call("double");
    terminal.dev.wait_for("(Pdb) ").await;
    write(dir, "app.py", &format!("{DEBUGGED}\ndef more() -> int:\n    return 1\n"));
    terminal.dev.wait_for("  added    more()").await;
    let asking = terminal.call("ask");
    terminal.answer("name? ", "p result + 1000\n").await;
    terminal.dev.wait_for("1042").await;
    terminal.answer("(Pdb) ", "c\n").await;
    assert_eq!(stopped.await.unwrap().stdout, b"42\n");
    // Its worker has exited or is about to, so the new one has the input.
    terminal.keyboard.write_all(b"Ada\n").unwrap();
    assert_eq!(asking.await.unwrap().stdout, b"\"Ada\"\n");
    terminal.dev.interrupt(dir).await;
}

#[tokio::test]
async fn an_interrupt_ends_a_debugger_and_reloads_work_beside_it() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    write(dir, "app.py", DEBUGGED);
    let dev = Dev::start(dir, &["--debug", "--workers", "3"]).await;
    let calls = async {
        dev.wait_for("(Pdb) ").await;
        let workers = Sandbox::cli_at(&dev.address, &["workers", "--json"]).await.stdout;
        assert_eq!(String::from_utf8(workers.clone()).unwrap().lines().count(), 1, "--workers has no effect");
        write(dir, "app.py", &format!("{DEBUGGED}\ndef more() -> int:\n    return 1\n"));
        dev.wait_for("  added    more()").await;
        assert_eq!(dev.call("more").await.stdout, b"1\n");
        serde_json::from_slice::<Value>(&workers).unwrap()["pid"].as_u64().unwrap()
    };
    let (address, output) = (dev.address.clone(), Arc::clone(&dev.output));
    let call = tokio::spawn(async move { Sandbox::cli_at(&address, &["call", "double"]).await });
    let pid = u32::try_from(calls.await).unwrap();
    assert!(is_alive(pid), "the old worker waits in the debugger: {}", output.lock().unwrap());
    dev.interrupt(dir).await;
    assert!(!is_alive(pid));
    assert_ne!(call.await.unwrap().status.code(), Some(0));
}
